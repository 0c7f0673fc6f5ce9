// What one parallel region on the processor reads and writes, and the kernels that can run in one.
#pragma once

#include <tuple>

#include "../moments.h"
#include "../packed.h"
#include "../rules.h"
#include "../rules/adamp.h"
#include "../tensor_table.h"

namespace friction {

// A group's settings at one step, ready for either arithmetic.
template <class Rule>
struct StepScalars {
  typename Rule::Settings settings;
  double step;
  int variant;
  typename Rule::template Scalars<double> float64;
  typename Rule::template Scalars<float> float32;

  StepScalars(const typename Rule::Settings& s, double step)
      : settings(s), step(step), variant(Rule::variant(s)), float64(s, step), float32(s, step) {}

  RandomKey key_of(const TensorEntry& t) const {
    return {uint64_t(settings.seed), uint32_t(whole_steps(step)), t.parameter};
  }
  float threshold() const { return threshold_of(step); }
};

template <class Rule>
struct Region {
  TensorTable table;
  const StepScalars<Rule>* scalars;  // [TensorEntry::scalars]
};

// What a rule's statistic is over each chunk.
template <class Rule>
struct StatisticRegion : Region<Rule> {
  Moments* of_chunk;  // [chunks]
};

// What a look at the gradients alone sees of a tensor's lists.
struct Gradients {
  enum List { kParam, kGrad, kLists };
  static constexpr bool kWrites[kLists] = {}, kWide[kLists] = {}, kNonNegative[kLists] = {};
};

struct NormRegion {
  TensorTable table;
  double* squares;  // [chunks]
};

// What AdamP decided for a tensor.
struct ProjectionDecision {
  enum Kind : uint8_t { kNone, kRows, kTensor } kind = kNone;
  double coefficient = 0;  // of the whole tensor, for kTensor
};

struct ProjectedRegion : Region<FrictionAdam> {
  RowSums* slots;                 // [rows + chunks], see row_slot
  double* directions;             // likewise: parameter . direction, where states are packed
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
  std::tuple<Kernel<StatisticRegion<Rule>>...> statistic;  // null where a rule has none
};

struct KernelSet : RuleKernels<Rules> {
  const char* instruction_set;
  Kernel<NormRegion> squared_norm;
  Kernel<ProjectedRegion> adamp_reduce, adamp_decide, adamp_directions, adamp_apply;
};

KernelSet kernels_baseline();
#if defined(FRICTION_X86)
KernelSet kernels_avx2();
KernelSet kernels_avx512();
#endif

}  // namespace friction
