// What one thread does in an update: the rules applied to its elements.
#pragma once

#include <iterator>

#include "../rules.h"
#include "elements.h"

namespace friction::cuda {

// What the threads of a block share while they stay within a tensor or a group's step.
template <class Rule, class T>
struct Shared {
  typename Rule::template Scalars<T> scalars;
  T projected_decay;  // AdamP: the decay where the update is projected
  double delta, eps;  // AdamP
  int variant;

  Shared() = default;
  FRICTION_INLINE Shared(const typename Rule::Settings& s, double step)
      : scalars(s, step), projected_decay(0), delta(0), eps(0), variant(Rule::variant(s)) {
    if constexpr (std::is_same_v<Rule, FrictionAdam>) {
      projected_decay = T(1 - s.lr * s.weight_decay * s.wd_ratio);
      delta = s.delta;
      eps = s.eps;
    }
  }
};

// The step that a tensor makes. On the device it is counted after all have read it.
template <class Launch>
FRICTION_INLINE double step_of(const Launch& launch, int64_t tensor) {
  const float* counter = launch.extras != nullptr ? launch.extras[tensor].step : nullptr;
  return counter != nullptr ? double(*counter) + 1 : launch.group_step(tensor).step;
}

// Calls f(variant as a constant). Only the variants of full generality are compiled, since the
// arithmetic that others would spare hides behind memory.
template <class Rule, int kVariant = 0, class F>
FRICTION_INLINE void with_variant(int variant, F&& f) {
  constexpr int kFull = Rule::kFullVariants[kVariant];
  if constexpr (kVariant + 1 < int(std::size(Rule::kFullVariants)))
    if ((variant & kFull) != variant) return with_variant<Rule, kVariant + 1>(variant, f);
  f(std::integral_constant<int, kFull>{});
}

// 64-bit division costs four times a 32-bit one.
FRICTION_INLINE int64_t row_of(int64_t element, int64_t row_length) {
  if (((element | row_length) >> 32) == 0) return uint32_t(element) / uint32_t(row_length);
  return element / row_length;
}

// The coefficient of AdamP's projection at one element after another.
template <class T>
class Coefficients {
 public:
  FRICTION_INLINE Coefficients(const double* of_rows, int64_t row_length)
      : of_rows_(of_rows), row_length_(row_length) {}

  FRICTION_INLINE T at(int64_t element) {
    if (element != next_ || element >= row_end_) {
      const int64_t row = row_of(element, row_length_);
      row_end_ = (row + 1) * row_length_;
      coefficient_ = T(of_rows_[row]);
    }
    next_ = element + 1;
    return coefficient_;
  }

 private:
  const double* of_rows_;
  int64_t row_length_, next_ = -1, row_end_ = 0;
  T coefficient_ = T(0);
};

// A thread's share of a part. AdamP's projection is taken where the tensor has one.
// Returns the thread's sums of what is observed; zero where the part is not.
template <class Storage, bool kProjects, class Launch>
FRICTION_INLINE Observation
update_part(const Launch& launch, const Part& part, int thread,
            const Shared<typename Launch::Rule, typename Storage::Arithmetic>& shared) {
  using Rule = typename Launch::Rule;
  using T = typename Storage::Arithmetic;
  T sum = T(0), square_sum = T(0);
  const bool observe = Rule::kObserves && is_observed(part.begin);
  visit_elements<Storage, true>(launch, part, thread, [&](auto& elements, auto&& position) {
    with_variant<Rule>(shared.variant, [&](auto variant) {
      const auto observing = [&](T raw) {
        if constexpr (Rule::kObserves) {
          if (!observe) return;
          const T seen = Rule::observation(raw, shared.scalars);
          sum += seen;
          square_sum += seen * seen;
        }
      };
      if constexpr (kProjects) {
        const bool projected = launch.projection.projected[part.tensor];
        const Extra& extra = launch.extras[part.tensor];
        Coefficients<T> coefficients(launch.projection.coefficients + extra.first_row,
                                     extra.row_length);
        const T decay = projected ? shared.projected_decay : shared.scalars.decay;
        int i = 0;
        FRICTION_UNROLL
        for (auto& x : elements) {
          T raw;
          const T param = x[Rule::kParam];
          const T u = Rule::template direction<variant()>(x, shared.scalars, raw);
          const int64_t element = part.begin + position(i++);
          x[Rule::kParam] = param * decay - (projected ? u - coefficients.at(element) * param : u);
          observing(raw);
        }
      } else {
        FRICTION_UNROLL
        for (auto& x : elements) {
          T raw;
          Rule::template update<variant()>(x, shared.scalars, raw);
          observing(raw);
        }
      }
    });
  });
  return {double(sum), double(square_sum), observe && thread == 0 ? part.count : 0};
}

}  // namespace friction::cuda
