// What one parallel region on the processor reads and writes, and the kernels that can run in one.
#pragma once

#include <tuple>

#include "../observation.h"
#include "../rules.h"
#include "../rules/adamp.h"
#include "../tensor_table.h"

namespace friction {

// A group's settings at one step, ready for either arithmetic.
template <class Rule>
struct StepScalars {
  typename Rule::Settings settings;
  int variant;
  typename Rule::template Scalars<double> float64;
  typename Rule::template Scalars<float> float32;

  StepScalars(const typename Rule::Settings& s, double step)
      : settings(s), variant(Rule::variant(s)), float64(s, step), float32(s, step) {}
};

template <class Rule>
struct Region {
  TensorTable table;
  const StepScalars<Rule>* scalars;  // [TensorEntry::scalars]
  Observation* observations;         // see observation_slot; null where the rule observes nothing
};

// What AdamP decided for a tensor.
struct ProjectionDecision {
  enum Kind : uint8_t { kNone, kRows, kTensor } kind = kNone;
  double coefficient = 0;  // of the whole tensor, for kTensor
};

struct ProjectedRegion : Region<FrictionAdam> {
  RowSums* slots;                 // [rows + chunks], see row_slot
  ProjectionDecision* decisions;  // [tensors]
};

// Each kernel works on the items [first, last) of its region: chunks, or tensors where it decides.
template <class RegionType>
using Kernel = void (*)(const RegionType&, int64_t first, int64_t last);

template <class List>
struct RuleKernels;
template <class... Rule>
struct RuleKernels<RuleList<Rule...>> {
  std::tuple<Kernel<Region<Rule>>...> update;
};

struct KernelSet : RuleKernels<Rules> {
  const char* instruction_set;
  Kernel<ProjectedRegion> adamp_reduce, adamp_decide, adamp_apply;
};

KernelSet kernels_baseline();
#if defined(FRICTION_X86)
KernelSet kernels_avx2();
KernelSet kernels_avx512();
#endif

}  // namespace friction
