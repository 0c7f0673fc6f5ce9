// The processor's driver: how a worker walks its part of the table. Compiled once per instruction set
// (FRICTION_ISA) with the same arithmetic in all: no fused multiply-adds, no library functions, sums in
// a fixed number of lanes. So every instruction set and thread count gives the same bits.
#include <utility>

#include "region.h"
#include "staging.h"

namespace friction {
namespace {

constexpr int kLanes = 16;  // partial sums side by side: one AVX-512 register of floats

// Sum of f(i) for i in [0, count) in kLanes interleaved partial sums, added up as a tree.
template <class T, class F>
FRICTION_INLINE double lane_sum(int64_t count, F&& f) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += f(i + lane);
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] += f(i + lane);
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

template <class T, class Rule>
FRICTION_INLINE const typename Rule::template Scalars<T>& scalars_of(const StepScalars<Rule>& s) {
  if constexpr (std::is_same_v<T, double>)
    return s.float64;
  else
    return s.float32;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

// Calls f(null pointer of the arithmetic's type, variant as a constant) for a tensor.
template <class Rule, int kVariant = 0, class F>
FRICTION_INLINE void with_instance(const TensorEntry& t, const StepScalars<Rule>& s, F&& f) {
  if constexpr (kVariant + 1 < Rule::kVariants)
    if (s.variant != kVariant) return with_instance<Rule, kVariant + 1>(t, s, f);
  if (t.dtype[0] == DType::kFloat64)
    f(static_cast<double*>(nullptr), Constant<kVariant>{});
  else
    f(static_cast<float*>(nullptr), Constant<kVariant>{});
}

// The loop over plain arrays that the compiler vectorises. Lists never overlap but for equal indices.
template <class Rule, int kVariant, bool kObserve, class T, size_t... kList>
FRICTION_INLINE void update_elements(T* const (&lists)[Rule::kLists], T* observed, int64_t count,
                                     const typename Rule::template Scalars<T> s,
                                     std::index_sequence<kList...>) {
  T* const local[] = {lists[kList]...};
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T x[] = {local[kList][i]...}, seen = T(0);
    Rule::template update<kVariant>(x, s, seen);
    ((Rule::kWrites[kList] ? void(local[kList][i] = x[kList]) : void()), ...);
    if constexpr (kObserve) observed[i] = seen;
  }
}

template <class T>
void put_observation(const T* observed, int64_t count, Observation& out) {
  out.sum = lane_sum<T>(count, [&](int64_t i) { return observed[i]; });
  out.square_sum = lane_sum<T>(count, [&](int64_t i) { return observed[i] * observed[i]; });
}

template <class Rule, int kVariant, bool kObserve, class T>
void update_chunk(const Region<Rule>& r, const TensorEntry& t, int64_t begin, int64_t count,
                  const typename Rule::template Scalars<T>& scalars) {
  Stage<T, Rule::kLists> stage;
  stage.load(t, begin, count);
  T observed[kObserve ? kChunk : 1];
  update_elements<Rule, kVariant, kObserve>(stage.x, observed, count, scalars,
                                            std::make_index_sequence<Rule::kLists>());
  stage.store(t, begin, count, Rule::kWrites);
  if constexpr (kObserve) put_observation(observed, count, r.observations[observation_slot(t, begin)]);
}

template <class Rule>
FRICTION_INLINE void update_chunk_of(const Region<Rule>& r, const TensorEntry& t, int64_t begin,
                                     int64_t end) {
  const StepScalars<Rule>& s = r.scalars[t.scalars];
  with_instance<Rule>(t, s, [&](auto* type, auto variant) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int kVariant = decltype(variant)::value;
    if constexpr (Rule::kObserves)
      if (is_observed(begin))
        return update_chunk<Rule, kVariant, true, T>(r, t, begin, end - begin, scalars_of<T>(s));
    update_chunk<Rule, kVariant, false, T>(r, t, begin, end - begin, scalars_of<T>(s));
  });
}

template <class Rule>
void update(const Region<Rule>& r, int64_t first, int64_t last) {
  r.table.walk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    update_chunk_of(r, t, begin, end);
  });
}

// Calls visit(row, begin, end) for every part of a row among the elements [begin, end).
template <class Visit>
FRICTION_INLINE void for_each_row(const TensorEntry& t, int64_t begin, int64_t end, Visit&& visit) {
  for (int64_t row = begin / t.row_length; begin < end; ++row) {
    const int64_t row_end = (row + 1) * t.row_length;
    const int64_t part_end = row_end < end ? row_end : end;
    visit(row, begin, part_end);
    begin = part_end;
  }
}

using Adam = FrictionAdam;

// AdamP, first pass: changes nothing, sums what the decision needs of each row.
template <int kVariant, class T>
void reduce_chunk(const ProjectedRegion& r, const TensorEntry& t, int64_t begin, int64_t end,
                  const Adam::Scalars<T>& scalars) {
  Stage<T, Adam::kLists> stage;
  stage.load(t, begin, end - begin);
  T directions[kChunk];
  const T *param = stage.x[Adam::kParam], *grad = stage.x[Adam::kGrad],
          *exp_avg = stage.x[Adam::kExpAvg], *exp_avg_sq = stage.x[Adam::kExpAvgSq],
          *prev_grad = stage.x[Adam::kPrevGrad];
  const Adam::Scalars<T> s = scalars;
#pragma GCC ivdep
  for (int64_t i = 0; i < end - begin; ++i) {
    T x[] = {param[i], grad[i], exp_avg[i], exp_avg_sq[i], prev_grad[i]}, observed;
    directions[i] = Adam::direction<kVariant>(x, s, observed);
  }
  for_each_row(t, begin, end, [&](int64_t row, int64_t row_begin, int64_t row_end) {
    const int64_t offset = row_begin - begin, count = row_end - row_begin;
    const T *p = param + offset, *g = grad + offset, *u = directions + offset;
    RowSums& sums = r.slots[row_slot(t, row, begin)];
    sums.param_grad = lane_sum<T>(count, [&](int64_t i) { return p[i] * g[i]; });
    sums.param_param = lane_sum<T>(count, [&](int64_t i) { return p[i] * p[i]; });
    sums.grad_grad = lane_sum<T>(count, [&](int64_t i) { return g[i] * g[i]; });
    sums.param_direction = lane_sum<T>(count, [&](int64_t i) { return p[i] * u[i]; });
  });
}

void adamp_reduce(const ProjectedRegion& r, int64_t first, int64_t last) {
  r.table.walk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    if (t.rows == 0) return;
    const StepScalars<Adam>& s = r.scalars[t.scalars];
    with_instance<Adam>(t, s, [&](auto* type, auto variant) {
      using T = std::remove_pointer_t<decltype(type)>;
      reduce_chunk<decltype(variant)::value, T>(r, t, begin, end, scalars_of<T>(s));
    });
  });
}

// AdamP, between the passes: one item is one tensor.
void adamp_decide(const ProjectedRegion& r, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; ++index) {
    const TensorEntry& t = r.table.tensors[index];
    const Adam::Settings& s = r.scalars[t.scalars].settings;
    double* coefficients = r.row_coefficients + t.first_row;
    bool rows_pass = t.rows > 0;
    RowSums whole;
    for (int64_t row = 0; row < t.rows; ++row) {
      const int64_t begin = row * t.row_length, last_element = begin + t.row_length - 1;
      RowSums sums;
      for (int64_t chunk = begin / kChunk; chunk <= last_element / kChunk; ++chunk)
        sums += r.slots[row_slot(t, row, chunk * kChunk)];
      rows_pass = rows_pass && nearly_orthogonal(sums, double(t.row_length), s.delta, s.eps);
      coefficients[row] = projection_coefficient(sums, s.eps);
      whole += sums;
    }
    r.projections[index] = Projection::kNone;
    if (rows_pass) {
      r.projections[index] = Projection::kRows;
    } else if (t.rows > 0 && nearly_orthogonal(whole, double(t.numel), s.delta, s.eps)) {
      r.projections[index] = Projection::kTensor;
      for (int64_t row = 0; row < t.rows; ++row)
        coefficients[row] = projection_coefficient(whole, s.eps);
    }
  }
}

// AdamP, second pass, where the tensor is projected: u_row - c_row p_row, and the decay scaled.
template <int kVariant, bool kObserve, class T>
void apply_chunk(const ProjectedRegion& r, const TensorEntry& t, int64_t begin, int64_t end,
                 const StepScalars<Adam>& step) {
  Stage<T, Adam::kLists> stage;
  stage.load(t, begin, end - begin);
  T observed[kObserve ? kChunk : 1];
  T *param = stage.x[Adam::kParam], *exp_avg = stage.x[Adam::kExpAvg],
    *exp_avg_sq = stage.x[Adam::kExpAvgSq], *prev_grad = stage.x[Adam::kPrevGrad];
  const T* grad = stage.x[Adam::kGrad];
  const Adam::Scalars<T> s = scalars_of<T>(step);
  const Adam::Settings& group = step.settings;
  const T decay = T(1 - group.lr * group.weight_decay * group.wd_ratio);
  for_each_row(t, begin, end, [&](int64_t row, int64_t row_begin, int64_t row_end) {
    const T coefficient = T(r.row_coefficients[t.first_row + row]);
#pragma GCC ivdep
    for (int64_t i = row_begin - begin; i < row_end - begin; ++i) {
      T x[] = {param[i], grad[i], exp_avg[i], exp_avg_sq[i], prev_grad[i]}, seen;
      const T direction = Adam::direction<kVariant>(x, s, seen);
      param[i] = param[i] * decay - (direction - coefficient * param[i]);
      exp_avg[i] = x[Adam::kExpAvg];
      exp_avg_sq[i] = x[Adam::kExpAvgSq];
      prev_grad[i] = x[Adam::kPrevGrad];
      if constexpr (kObserve) observed[i] = seen;
    }
  });
  stage.store(t, begin, end - begin, Adam::kWrites);
  if constexpr (kObserve)
    put_observation(observed, end - begin, r.observations[observation_slot(t, begin)]);
}

void adamp_apply(const ProjectedRegion& r, int64_t first, int64_t last) {
  r.table.walk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    if (r.projections[&t - r.table.tensors] == Projection::kNone)
      return update_chunk_of<Adam>(r, t, begin, end);
    const StepScalars<Adam>& s = r.scalars[t.scalars];
    with_instance<Adam>(t, s, [&](auto* type, auto variant) {
      using T = std::remove_pointer_t<decltype(type)>;
      constexpr int kVariant = decltype(variant)::value;
      if (is_observed(begin))
        apply_chunk<kVariant, true, T>(r, t, begin, end, s);
      else
        apply_chunk<kVariant, false, T>(r, t, begin, end, s);
    });
  });
}

template <class... Rule>
KernelSet kernel_set(const char* instruction_set, RuleList<Rule...>) {
  return {{{update<Rule>...}}, instruction_set, adamp_reduce, adamp_decide, adamp_apply};
}

}  // namespace

#define FRICTION_JOIN_(a, b) a##b
#define FRICTION_JOIN(a, b) FRICTION_JOIN_(a, b)
#define FRICTION_TEXT_(a) #a
#define FRICTION_TEXT(a) FRICTION_TEXT_(a)

KernelSet FRICTION_JOIN(kernels_, FRICTION_ISA)() {
  return kernel_set(FRICTION_TEXT(FRICTION_ISA), Rules());
}

}  // namespace friction
