// The data of a parallel region on the CPU, and the kernels that run in one.
#pragma once

#include <tuple>

#include "../formats/blockwise.h"
#include "../moments.h"
#include "../rules.h"
#include "../tensor_lists.h"

namespace friction {

// A group's settings at one step, for float64 and float32 arithmetic.
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
  const StepScalars<Rule>* scalars;  // indexed by TensorEntry::scalars
};

// Writes the moments of a rule's statistic over each chunk.
template <class Rule>
struct StatisticRegion : Region<Rule> {
  Moments* of_chunk;  // [chunks]
};

// Stands in for a rule if tensors have a single operand.
struct SingleOperand {
  enum Operand { kParam, kOperands };
  static constexpr States<1> kStates{};
};

// Lists of tensors of the same shapes. A tensor's data is null where its list misses it.
struct ListsRegion {
  TensorTable lists[kMostLists + 1];
  int count;
};

// Writes the products of all pairs of lists over each chunk.
struct GramRegion : ListsRegion {
  double* of_chunk;  // [chunks, pairs]
};

// Writes the weighted sum of `count` lists to one more.
struct CombineRegion : ListsRegion {
  double weights[kMostLists];
};

// How a tensor is projected.
struct ProjectionDecision {
  enum Kind : uint8_t { kNone, kRows, kTensor } kind = kNone;
  double coefficient = 0;  // of the whole tensor, for kTensor
};

template <class Rule>
struct ProjectedRegion : Region<Rule> {
  RowSums* slots;                 // [rows + chunks], see row_slot
  double* directions;             // likewise: parameter . direction, if states are quantized
  ProjectionDecision* decisions;  // [tensors]
};

// A kernel processes the items [first, last) of its region: chunks, or tensors for `decide`.
template <class RegionType>
using Kernel = void (*)(const RegionType&, int64_t first, int64_t last);

template <class Rule>
struct RuleKernels {
  Kernel<StatisticRegion<Rule>> statistic;  // null if the rule has none
  Kernel<Region<Rule>> update;              // the only region, unless the rule projects
  Kernel<ProjectedRegion<Rule>> reduce, decide, directions, apply;
};

struct ListKernels {
  Kernel<GramRegion> gram;
  Kernel<CombineRegion> combine;
};

template <class List>
struct KernelsOf;
template <class... Rule>
struct KernelsOf<RuleList<Rule...>> {
  std::tuple<RuleKernels<Rule>...> rules;
};

struct KernelSet : KernelsOf<Rules> {
  const char* instruction_set;
  ListKernels lists;

  template <class Rule>
  const RuleKernels<Rule>& of() const {
    return std::get<RuleKernels<Rule>>(rules);
  }
};

#define FRICTION_DECLARE_KERNELS(isa)   \
  KernelSet kernels_##isa();            \
  void add_projected_##isa(KernelSet&); \
  ListKernels list_kernels_##isa()
FRICTION_DECLARE_KERNELS(baseline);
#if defined(FRICTION_X86)
FRICTION_DECLARE_KERNELS(avx2);
FRICTION_DECLARE_KERNELS(avx512);
#endif

}  // namespace friction
