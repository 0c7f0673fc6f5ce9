// What one thread does in an update: it applies the rule to its elements.
#pragma once

#include <iterator>

#include "../rules.h"
#include "elements.h"

namespace friction::cuda {

// What a rule that projects needs besides its scalars.
template <class Rule, class T, bool kProjects = Rule::kProjects>
struct SharedByProjection {
  SharedByProjection() = default;
  FRICTION_INLINE explicit SharedByProjection(const typename Rule::Settings&) {}
};
template <class Rule, class T>
struct SharedByProjection<Rule, T, true> {
  T projected_decay;

  SharedByProjection() = default;
  FRICTION_INLINE explicit SharedByProjection(const typename Rule::Settings& s)
      : projected_decay(T(s.projected_decay())) {}
};

// The values that the threads of a block share for tensors of the same group and step.
template <class Rule, class T>
struct Shared : SharedByProjection<Rule, T> {
  typename Rule::template Scalars<T> scalars;
  StepRounding rounding;
  Types types;
  int variant;

  Shared() = default;
  FRICTION_INLINE Shared(const typename Rule::Settings& s, double step, const Types& types)
      : SharedByProjection<Rule, T>(s),
        scalars(s, step),
        rounding{{uint64_t(s.seed), uint32_t(whole_steps(step)), 0}, threshold_of(step)},
        types(types),
        variant(Rule::variant(s)) {}
};

// A tensor's settings, with the device's gradient scaling multiplied into grad_factor. `resolved`:
// the results of GroupStep::resolve.
template <class Launch>
FRICTION_INLINE typename Launch::Rule::Settings scaled(const Launch& launch,
                                                       typename Launch::Rule::Settings resolved) {
  resolved.grad_factor *= launch.scaling.factor(resolved.max_norm);
  return resolved;
}

// The step that a tensor makes. A device counter is incremented after all blocks have read it.
template <class Launch>
FRICTION_INLINE double step_of(const Launch& launch, int64_t tensor) {
  const float* counter = launch.extras != nullptr ? launch.extras[tensor].step : nullptr;
  return counter != nullptr ? double(*counter) + 1 : launch.group_step(tensor).step;
}

// Calls f(variant as a constant). Where the arithmetic is hidden behind memory latency, only the
// most general variants are compiled.
template <class Rule, bool kAll, int kVariant = 0, class F>
FRICTION_INLINE void with_variant(int variant, F&& f) {
  constexpr int kCount = kAll ? int(Rule::kVariants) : int(std::size(Rule::kFullVariants));
  constexpr int kThis = kAll ? kVariant : Rule::kFullVariants[kVariant];
  if constexpr (kVariant + 1 < kCount)
    if ((variant & kThis) != variant) return with_variant<Rule, kAll, kVariant + 1>(variant, f);
  f(std::integral_constant<int, kThis>{});
}

// A projection's coefficients at consecutive elements, read once per row.
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

// Applies the rule, and the tensor's projection if it has one, to elements whose positions in the
// part are position(i).
template <class Config, class Launch, class T, class Elements, class Position>
FRICTION_INLINE void update_elements(const Launch& launch, const PartOf<Launch>& part,
                                     const Shared<typename Launch::Rule, T>& shared,
                                     Elements& elements, Position&& position) {
  using Rule = typename Launch::Rule;
  with_variant<Rule, Config::kBoundByArithmetic>(shared.variant, [&](auto variant) {
    if constexpr (Rule::kProjects) {
      const Projected how = launch.projection.projected[part.tensor];
      const bool projected = how != Projected::kNot, as_one_row = how == Projected::kAsOneRow;
      const Extra& extra = launch.extras[part.tensor];
      Coefficients<T> coefficients(as_one_row ? launch.projection.as_one_row + part.tensor
                                              : launch.projection.coefficients + extra.first_row,
                                   as_one_row ? part.numel : extra.row_length);
      const T decay = projected ? shared.projected_decay : shared.scalars.decay;
      int i = 0;
      FRICTION_UNROLL
      for (auto& x : elements) {
        const T param = x[Rule::kParam];
        const T u = Rule::template direction<variant()>(x, shared.scalars);
        const int64_t element = part.begin + position(i++);
        x[Rule::kParam] = param * decay - (projected ? u - coefficients.at(element) * param : u);
      }
    } else {
      FRICTION_UNROLL
      for (auto& x : elements) Rule::template update<variant()>(x, shared.scalars);
    }
  });
}

// Updates a thread's share of a part.
template <class Config, class Launch>
FRICTION_INLINE void update_part(
    const Launch& launch, const PartOf<Launch>& part, int thread,
    const Shared<typename Launch::Rule, typename Config::Arithmetic>& shared) {
  visit_elements<Config, true>(launch, part, shared.types, thread,
                               [&](auto& elements, auto&& position) {
                                 update_elements<Config>(launch, part, shared, elements, position);
                               });
}

// For a step that is skipped on the device: a gradient that is taken becomes what it was to
// replace.
template <class Launch>
FRICTION_INLINE void keep_previous(const Launch& launch, const PartOf<Launch>& part, int thread) {
  using Rule = typename Launch::Rule;
  constexpr int kKept = kept_gradient<Rule>();
  if (!part.takes) return;
  const int64_t* layout = layout_of(launch, part.tensor);
  const auto copy = [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    FRICTION_NO_UNROLL
    for (int at = thread; at < part.count; at += kThreads) {
      int64_t offsets[Rule::kOperands];
      find_offsets(layout, part.begin + at, offsets);
      Stored stored[1];
      Vector<Stored, 1>::load(static_cast<const Stored*>(part.data[kKept]) + offsets[kKept],
                              stored);
      Vector<Stored, 1>::store(
          stored, static_cast<Stored*>(part.data[kGradOperand]) + offsets[kGradOperand]);
    }
  };
  // Bits are enough, of the size that the gradient shares with the state.
  const DType type = launch.group_step(part.tensor).types.operand[kKept];
  if (bytes_of(type) == 2)
    copy(static_cast<uint16_t*>(nullptr));
  else if (bytes_of(type) == 4)
    copy(static_cast<uint32_t*>(nullptr));
  else
    copy(static_cast<uint64_t*>(nullptr));
}

// A thread's share of a part's statistic. Changes nothing.
template <class Config, class Launch>
FRICTION_INLINE Moments
statistic_of_part(const Launch& launch, const PartOf<Launch>& part, int thread,
                  const Shared<typename Launch::Rule, typename Config::Arithmetic>& shared) {
  using Rule = typename Launch::Rule;
  using T = typename Config::Arithmetic;
  T sum = T(0), square_sum = T(0);
  visit_elements<Config, false>(launch, part, shared.types, thread, [&](auto& elements, auto&&) {
    with_variant<Rule, false>(shared.variant, [&](auto variant) {
      FRICTION_UNROLL
      for (auto& x : elements) {
        const T value = Rule::template statistic<variant()>(x, shared.scalars);
        sum += value;
        square_sum += value * value;
      }
    });
  });
  return {double(sum), double(square_sum)};
}

// update_part for dynamic dtypes, in two phases. Between them, the lanes of a warp find the largest
// magnitude of each block that is to be quantized. write_scales comes last. All lanes participate.
template <class Config, class Launch>
class DynamicUpdate {
 public:
  using Rule = typename Launch::Rule;

  uint32_t largest[Rule::kOperands] =
      {};  // magnitudes compare like their bits, NaN being the largest

  FRICTION_INLINE DynamicUpdate(const Launch& launch, const PartOf<Launch>& part, int thread,
                                const Shared<Rule, float>& shared)
      : launch_(launch), part_(part), shared_(shared), thread_(thread) {}

  FRICTION_INLINE bool by_vectors() const { return by_vec8(part_); }
  FRICTION_INLINE bool quantizes() const {
    return Config::kStatesQuantized || shared_.types.quantized;
  }

  // In vectors: the elements stay in registers between the phases.
  FRICTION_INLINE void compute() {
    vec8_.clear();  // otherwise stale values would occupy the registers throughout
    if (position() >= part_.count) return;
    vec8_.load(launch_, part_, shared_.types, position());
    update_elements<Config>(launch_, part_, shared_, vec8_.x,
                            [&](int i) { return position() + i; });
    note(vec8_.x);
  }
  FRICTION_INLINE void store() const {
    if (position() < part_.count)
      vec8_.store(launch_, part_, shared_.types, position(), largest, shared_.rounding);
  }

  // One by one: the second phase computes again, which is simpler than keeping the results of a
  // rolled loop. The first phase is needed only if an operand is quantized.
  FRICTION_INLINE void one_by_one(bool stores) {
    visit_ones<Config>(launch_, part_, shared_.types, thread_, [&](auto& one, int at) {
      update_elements<Config>(launch_, part_, shared_, one.x, [&](int) { return at; });
      if (stores)
        one.store(launch_, part_, shared_.types, largest, shared_.rounding);
      else
        note(one.x);
    });
  }

  // Called after all lanes have read the old scales for the last time.
  FRICTION_INLINE void write_scales() const {
    if (!quantizes() || thread_ % kWarp != 0 || position() >= part_.count) return;
    for_each_type<Rule, Config>(shared_.types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (is_written(operand) && kIsCode<Stored>) {
        char* data = static_cast<char*>(part_.data[operand]);
        const ElementRef ref{data, part_.begin + position(), nullptr, 0, part_.numel};
        write_one(float_of(largest[operand]), Codec<Stored>::scale(ref));
      }
    });
  }

 private:
  FRICTION_INLINE int position() const { return thread_ * kVec8; }

  template <int kCount>
  FRICTION_INLINE void note(const float (&x)[kCount][Rule::kOperands]) {
    if (!quantizes()) return;
    FRICTION_UNROLL
    for (int operand = 2; operand < Rule::kOperands; ++operand) {
      FRICTION_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const uint32_t magnitude = bits_of(x[i][operand]) & 0x7fffffffu;
        largest[operand] = magnitude > largest[operand] ? magnitude : largest[operand];
      }
    }
  }

  const Launch& launch_;
  const PartOf<Launch>& part_;
  const Shared<Rule, float>& shared_;
  int thread_;
  Vec8<Rule, Config> vec8_;
};

}  // namespace friction::cuda
