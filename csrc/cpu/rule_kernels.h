// The CPU driver: how a worker processes its part of the table. Compiled once per instruction set
// (FRICTION_ISA) with the same arithmetic in each: no fused multiply-adds, no library functions,
// sums in a fixed number of lanes. So every instruction set and thread count gives the same bits.
// In a namespace without a name, or the linker would take one set's functions for all.
#pragma once

#include <iterator>
#include <utility>

#include "instruction_set.h"
#include "region.h"
#include "staging.h"
#include "sums.h"

namespace friction {
namespace {

constexpr int64_t kStaged = 512;  // elements per pass through buffers, which then stay in L1

template <class T, class Rule>
FRICTION_INLINE const typename Rule::template Scalars<T>& scalars_of(const StepScalars<Rule>& s) {
  if constexpr (std::is_same_v<T, double>)
    return s.float64;
  else
    return s.float32;
}

template <class Rule>
FRICTION_INLINE Rounding rounding_of(const StepScalars<Rule>& s, const TensorEntry& t) {
  return {s.key_of(t), s.threshold()};
}

template <class Rule>
constexpr auto all_operands() {
  return std::make_index_sequence<Rule::kOperands>();
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls f(null pointer to the arithmetic type, variant as a constant) for a tensor. A projection
// has so many loops that only the most general variants are compiled.
template <class Rule, int kIndex = 0, class F>
FRICTION_INLINE void with_instance(const TensorEntry& t, const StepScalars<Rule>& s, F&& f) {
  constexpr int kCount =
      Rule::kProjects ? int(std::size(Rule::kFullVariants)) : int(Rule::kVariants);
  constexpr int kVariant = Rule::kProjects ? Rule::kFullVariants[kIndex] : kIndex;
  if constexpr (kIndex + 1 < kCount)
    if ((s.variant & kVariant) != s.variant) return with_instance<Rule, kIndex + 1>(t, s, f);
  if (t.dtype[0] == DType::kFloat64)
    f(static_cast<double*>(nullptr), Constant<kVariant>{});
  else
    f(static_cast<float*>(nullptr), Constant<kVariant>{});
}

// Whether the gradient that a rule keeps differs from the one it was given.
template <class Rule, class T>
FRICTION_INLINE bool is_scaled(const typename Rule::template Scalars<T>& scalars) {
  if constexpr (kept_gradient<Rule>() > 0) return scalars.grad_scale != 1;
  return false;
}

// The loop over plain arrays that the compiler vectorises. Operands overlap only at equal indices.
// kept: where the kept gradient goes, if kKeeps.
template <class Rule, int kVariant, bool kKeeps, class T, size_t... kOperand>
FRICTION_INLINE void update_elements(T* const (&operands)[Rule::kOperands], T* const kept,
                                     int64_t count, const typename Rule::template Scalars<T> s,
                                     std::index_sequence<kOperand...>) {
  constexpr int kKept = kept_gradient<Rule>();
  T* const local[] = {operands[kOperand]...};
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T x[] = {local[kOperand][i]...};
    Rule::template update<kVariant>(x, s);
    ((is_written(kOperand) && int(kOperand) != kKept ? void(local[kOperand][i] = x[kOperand])
                                                     : void()),
     ...);
    if constexpr (kKept > 0 && kKeeps) kept[i] = x[kKept];
  }
}

template <class Rule, int kVariant, class T>
void update_chunk(const Region<Rule>& r, const TensorEntry& t, int64_t begin, int64_t count,
                  const typename Rule::template Scalars<T>& scalars) {
  Stage<T, Rule> stage;
  const Rounding rounding = rounding_of(r.scalars[t.scalars], t);
  const bool buffers = stage.buffers(t), scaled = is_scaled<Rule, T>(scalars);
  const int64_t most = buffers ? kStaged : kChunk;
  for (int64_t done = 0; done < count; done += most) {
    const int64_t length = count - done < most ? count - done : most;
    if (buffers) stage.look_ahead(t, begin + done + most, most);
    stage.load(t, begin + done, length);
    constexpr bool kMayDrop = kept_gradient<Rule>() > 0;
    T* const kept = stage.kept(t);
    if (kMayDrop && t.takes && !scaled)
      update_elements<Rule, kVariant, !kMayDrop>(stage.x, kept, length, scalars,
                                                 all_operands<Rule>());
    else
      update_elements<Rule, kVariant, true>(stage.x, kept, length, scalars, all_operands<Rule>());
    stage.store(t, begin + done, length, scaled, rounding);
  }
}

template <class Rule>
FRICTION_INLINE void update_chunk_of(const Region<Rule>& r, const TensorEntry& t, int64_t begin,
                                     int64_t end) {
  const StepScalars<Rule>& s = r.scalars[t.scalars];
  with_instance<Rule>(t, s, [&](auto* type, auto variant) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kVariant = decltype(variant)::value;
    update_chunk<Rule, kVariant, T>(r, t, begin, end - begin, scalars_of<T>(s));
  });
}

template <class Rule>
void update(const Region<Rule>& r, int64_t first, int64_t last) {
  r.table.for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    update_chunk_of(r, t, begin, end);
  });
}

template <class Rule, int kVariant, class T, size_t... kOperand>
FRICTION_INLINE void find_statistics(T* const (&operands)[Rule::kOperands], T* values,
                                     int64_t count, const typename Rule::template Scalars<T> s,
                                     std::index_sequence<kOperand...>) {
  const T* const local[] = {operands[kOperand]...};
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const T x[] = {local[kOperand][i]...};
    values[i] = Rule::template statistic<kVariant>(x, s);
  }
}

// Computes the moments of each chunk's statistic at the step that an update would make.
template <class Rule>
void statistic(const StatisticRegion<Rule>& r, int64_t first, int64_t last) {
  int64_t chunk = first;
  r.table.for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    const StepScalars<Rule>& s = r.scalars[t.scalars];
    with_instance<Rule>(t, s, [&](auto* type, auto variant) {
      using T = std::remove_pointer_t<decltype(type)>;
      const int64_t count = end - begin;
      Stage<T, Rule> stage;
      T values[kChunk];
      stage.load(t, begin, count);
      find_statistics<Rule, decltype(variant)::value>(stage.x, values, count, scalars_of<T>(s),
                                                      all_operands<Rule>());
      r.of_chunk[chunk] = {lane_sum<T>(count, [&](int64_t i) { return values[i]; }),
                           lane_sum<T>(count, [&](int64_t i) { return values[i] * values[i]; })};
    });
    ++chunk;
  });
}

// Calls visit(row, begin, end) for every part of a row within the elements [begin, end).
template <class Visit>
FRICTION_INLINE void for_each_row(const TensorEntry& t, int64_t begin, int64_t end, Visit&& visit) {
  for (int64_t row = begin / t.row_length; begin < end; ++row) {
    const int64_t row_end = (row + 1) * t.row_length;
    const int64_t part_end = row_end < end ? row_end : end;
    visit(row, begin, part_end);
    begin = part_end;
  }
}

// First pass of a projection: the sums of each row that the decision needs.
template <class Rule, class T>
void reduce_chunk(const ProjectedRegion<Rule>& r, const TensorEntry& t, int64_t begin,
                  int64_t end) {
  Stage<T, Rule, 2> stage;  // parameter and gradient
  stage.load(t, begin, end - begin);
  for_each_row(t, begin, end, [&](int64_t row, int64_t row_begin, int64_t row_end) {
    const T *p = stage.x[Rule::kParam] + (row_begin - begin),
            *g = stage.x[Rule::kGrad] + (row_begin - begin);
    const int64_t count = row_end - row_begin;
    RowSums& sums = r.slots[row_slot(t, row, begin)];
    sums = {dot(p, g, count), dot(p, p, count), dot(g, g, count)};
  });
}

template <class Rule>
void reduce(const ProjectedRegion<Rule>& r, int64_t first, int64_t last) {
  r.table.for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    if (t.rows == 0) return;
    if (t.dtype[0] == DType::kFloat64)
      reduce_chunk<Rule, double>(r, t, begin, end);
    else
      reduce_chunk<Rule, float>(r, t, begin, end);
  });
}

template <class Rule>
RowSums row_sums(const ProjectedRegion<Rule>& r, const TensorEntry& t, int64_t row) {
  const int64_t begin = row * t.row_length, last_element = begin + t.row_length - 1;
  RowSums sums;
  for (int64_t chunk = begin / kChunk; chunk <= last_element / kChunk; ++chunk)
    sums += r.slots[row_slot(t, row, chunk * kChunk)];
  return sums;
}

// Computes the directions of the staged elements without changing any operand.
template <class Rule, int kVariant, class T, size_t... kOperand>
void find_directions(T* const (&operands)[Rule::kOperands], int64_t count,
                     const typename Rule::template Scalars<T> s, T* directions,
                     std::index_sequence<kOperand...>) {
  const T* const local[] = {operands[kOperand]...};
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T x[] = {local[kOperand][i]...};
    directions[i] = Rule::template direction<kVariant>(x, s);
  }
}

// parameter . direction over the elements [begin, end).
template <class Rule, int kVariant, class T>
double param_direction(const TensorEntry& t, int64_t begin, int64_t end,
                       const typename Rule::template Scalars<T>& scalars) {
  Stage<T, Rule> stage;
  T directions[kChunk];
  double sum = 0;
  for (; begin < end; begin += kChunk) {
    const int64_t count = end - begin < kChunk ? end - begin : kChunk;
    stage.load(t, begin, count);
    find_directions<Rule, kVariant>(stage.x, count, scalars, directions, all_operands<Rule>());
    sum += dot(stage.x[Rule::kParam], directions, count);
  }
  return sum;
}

// Decides between the passes; one item is one tensor. Few tensors are projected as a whole, so one
// worker may sum parameter . direction over all of such a tensor.
template <class Rule>
void decide(const ProjectedRegion<Rule>& r, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; ++index) {
    const TensorEntry& t = r.table.tensors[index];
    const StepScalars<Rule>& s = r.scalars[t.scalars];
    bool rows_pass = t.rows > 0;
    RowSums whole;
    for (int64_t row = 0; row < t.rows; ++row) {
      const RowSums sums = row_sums(r, t, row).of_scaled(s.settings.grad_factor);
      rows_pass = rows_pass &&
                  nearly_orthogonal(sums, double(t.row_length), s.settings.delta, s.settings.eps);
      whole += sums;
    }
    ProjectionDecision& decision = r.decisions[index] = {};
    if (rows_pass) {
      decision.kind = ProjectionDecision::kRows;
    } else if (t.rows > 0 &&
               nearly_orthogonal(whole, double(t.numel), s.settings.delta, s.settings.eps)) {
      decision.kind = ProjectionDecision::kTensor;
      with_instance<Rule>(t, s, [&](auto* type, auto variant) {
        using T = std::remove_pointer_t<decltype(type)>;
        const double sum =
            param_direction<Rule, decltype(variant)::value, T>(t, 0, t.numel, scalars_of<T>(s));
        decision.coefficient = projection_coefficient(whole.param_param, sum, s.settings.eps);
      });
    }
  }
}

// Advances the states of the staged elements and writes their directions to `directions`.
template <class Rule, int kVariant, class T, size_t... kOperand>
FRICTION_INLINE void advance_states(T* const (&operands)[Rule::kOperands], T* const kept,
                                    int64_t count, const typename Rule::template Scalars<T> s,
                                    T* directions, std::index_sequence<kOperand...>) {
  constexpr int kKept = kept_gradient<Rule>();
  T* const local[] = {operands[kOperand]...};
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T x[] = {local[kOperand][i]...};
    directions[i] = Rule::template direction<kVariant>(x, s);
    ((kOperand > Rule::kGrad && int(kOperand) != kKept ? void(local[kOperand][i] = x[kOperand])
                                                       : void()),
     ...);
    if constexpr (kKept > 0) kept[i] = x[kKept];
  }
}

template <class T>
FRICTION_INLINE void descend_projected(T* param, const T* direction, int64_t count, T decay,
                                       T coefficient) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    param[i] = param[i] * decay - (direction[i] - coefficient * param[i]);
}

// For tensors with quantized states that are projected row by row. Chunks own their blocks, so rows
// are not processed whole, and parameter . direction of each row is summed beforehand.
template <class Rule>
void sum_directions(const ProjectedRegion<Rule>& r, int64_t first, int64_t last) {
  r.table.for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    const ProjectionDecision& decision = r.decisions[&t - r.table.tensors];
    if (!t.quantized || decision.kind != ProjectionDecision::kRows) return;
    const StepScalars<Rule>& s = r.scalars[t.scalars];
    with_instance<Rule>(t, s, [&](auto* type, auto variant) {
      using T = std::remove_pointer_t<decltype(type)>;
      Stage<T, Rule> stage;
      T directions[kChunk];
      stage.load(t, begin, end - begin);
      find_directions<Rule, decltype(variant)::value>(stage.x, end - begin, scalars_of<T>(s),
                                                      directions, all_operands<Rule>());
      for_each_row(t, begin, end, [&](int64_t row, int64_t row_begin, int64_t row_end) {
        const T* param = stage.x[Rule::kParam] + (row_begin - begin);
        r.directions[row_slot(t, row, begin)] =
            dot(param, directions + (row_begin - begin), row_end - row_begin);
      });
    });
  });
}

// parameter . direction of a row, from sum_directions.
template <class Rule>
double direction_sum(const ProjectedRegion<Rule>& r, const TensorEntry& t, int64_t row) {
  const int64_t begin = row * t.row_length, last_element = begin + t.row_length - 1;
  double sum = 0;
  for (int64_t chunk = begin / kChunk; chunk <= last_element / kChunk; ++chunk)
    sum += r.directions[row_slot(t, row, chunk * kChunk)];
  return sum;
}

// Second pass, for the elements [begin, end) of a projected tensor: u_row - c_row p_row, with the
// projected decay. They are whole rows if rows are projected one by one.
template <class Rule, int kVariant, class T>
void apply_projected(const ProjectedRegion<Rule>& r, const TensorEntry& t, int64_t begin,
                     int64_t end, const StepScalars<Rule>& step,
                     const ProjectionDecision& decision) {
  const auto& s = scalars_of<T>(step);
  const typename Rule::Settings& group = step.settings;
  const T decay = T(group.projected_decay());
  const bool by_rows = decision.kind == ProjectionDecision::kRows, scaled = is_scaled<Rule, T>(s);
  const auto coefficient = [&](int64_t row, double sum) {
    return T(projection_coefficient(row_sums(r, t, row).param_param, sum, group.eps));
  };
  const bool long_row = by_rows && !t.quantized && t.row_length > kChunk;
  const T of_all = long_row ? coefficient(begin / t.row_length,
                                          param_direction<Rule, kVariant, T>(t, begin, end, s))
                            : T(decision.coefficient);
  // A stage holds as many whole short rows as fit.
  const bool whole_rows = by_rows && !t.quantized && !long_row;
  const int64_t block = whole_rows ? kChunk / t.row_length * t.row_length : kChunk;
  Stage<T, Rule> stage;
  T directions[kChunk];
  for (; begin < end; begin += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    stage.load(t, begin, count);
    advance_states<Rule, kVariant>(stage.x, stage.kept(t), count, s, directions,
                                   all_operands<Rule>());
    T* param = stage.x[Rule::kParam];
    if (!by_rows || long_row) {
      descend_projected(param, directions, count, decay, of_all);
    } else {
      for_each_row(t, begin, begin + count, [&](int64_t row, int64_t row_begin, int64_t row_end) {
        T *p = param + (row_begin - begin), *u = directions + (row_begin - begin);
        const int64_t length = row_end - row_begin;
        const double sum = whole_rows ? dot(p, u, length) : direction_sum(r, t, row);
        descend_projected(p, u, length, decay, coefficient(row, sum));
      });
    }
    stage.store(t, begin, count, scaled, rounding_of(step, t));
  }
}

template <class Rule>
void apply(const ProjectedRegion<Rule>& r, int64_t first, int64_t last) {
  r.table.for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    const ProjectionDecision& decision = r.decisions[&t - r.table.tensors];
    if (decision.kind == ProjectionDecision::kNone) return update_chunk_of<Rule>(r, t, begin, end);
    const bool by_rows = decision.kind == ProjectionDecision::kRows && !t.quantized;
    if (by_rows) {
      // A chunk processes the rows that begin in it.
      begin = (begin + t.row_length - 1) / t.row_length * t.row_length;
      end = (end + t.row_length - 1) / t.row_length * t.row_length;
    }
    const StepScalars<Rule>& s = r.scalars[t.scalars];
    with_instance<Rule>(t, s, [&](auto* type, auto variant) {
      using T = std::remove_pointer_t<decltype(type)>;
      // Long rows are processed one by one, since each has its own coefficient.
      const int64_t stride = by_rows && t.row_length > kChunk ? t.row_length : end - begin;
      for (int64_t at = begin; at < end; at += stride)
        apply_projected<Rule, decltype(variant)::value, T>(r, t, at, at + stride, s, decision);
    });
  });
}

template <class Rule>
RuleKernels<Rule> rule_kernels() {
  RuleKernels<Rule> kernels{};
  if constexpr (Rule::kHasStatistic) kernels.statistic = statistic<Rule>;
  if constexpr (Rule::kProjects) {
    kernels.reduce = reduce<Rule>;
    kernels.decide = decide<Rule>;
    kernels.directions = sum_directions<Rule>;
    kernels.apply = apply<Rule>;
  } else {
    kernels.update = update<Rule>;
  }
  return kernels;
}

template <class Rule, bool kProjects>
void add_kernels_of(KernelSet& set) {
  if constexpr (Rule::kProjects == kProjects)
    std::get<RuleKernels<Rule>>(set.rules) = rule_kernels<Rule>();
}

// Those of all rules that project, or of all others: each half is a source, so that two compilers
// share an instruction set.
template <bool kProjects, class... Rule>
void add_kernels(KernelSet& set, RuleList<Rule...>) {
  (add_kernels_of<Rule, kProjects>(set), ...);
}

}  // namespace
}  // namespace friction
