// A thread's elements if dtypes are looked up at run time: eight consecutive ones, so that one warp
// owns the 256 elements of a block of 8-bit codes.
#pragma once

#include "dtype_configs.h"
#include "rounding.h"

namespace friction::cuda {

static_assert(kThreads * kVec8 == kChunk && kWarp * kVec8 == kBlock);

// Calls f with a null pointer to an operand's stored type (codecs.h). Branches do not diverge.
template <class Rule, class Config, int kOperand, class F>
FRICTION_INLINE void with_type(const Types& types, F&& f) {
  using Map = CodeOf<is_non_negative<Rule>(kOperand)>;
  constexpr bool kState = kOperand > 1, kFloat64 = kOperand == 1 && !Config::kStatesQuantized;
  if constexpr (kState && Config::kStatesQuantized) {
    f(static_cast<Map*>(nullptr));
  } else {
    const DType type = types.operand[kOperand];
    if constexpr (kState)
      if (type == DType::kQuantized) return f(static_cast<Map*>(nullptr));
    if constexpr (kFloat64)
      if (type == DType::kFloat64) return f(static_cast<double*>(nullptr));
    if (type == DType::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
    if (type == DType::kFloat16) return f(static_cast<Half*>(nullptr));
    f(static_cast<float*>(nullptr));
  }
}

// The same for the parameter, with its master if it has one.
template <class Rule, class Config, class F>
FRICTION_INLINE void with_parameter(const Types& types, F&& f) {
  if (!types.master) return with_type<Rule, Config, 0>(types, f);
  const DType master = types.operand[Rule::kOperands];
  const auto pair = [&](auto* param) {
    using Param = std::remove_pointer_t<decltype(param)>;
    if (master == DType::kInt8) return f(static_cast<Pair<Param, int8_t>*>(nullptr));
    if (master == DType::kInt16) return f(static_cast<Pair<Param, int16_t>*>(nullptr));
    f(static_cast<Pair<Param, float>*>(nullptr));
  };
  if (types.operand[0] == DType::kBFloat16) return pair(static_cast<BFloat16*>(nullptr));
  pair(static_cast<Half*>(nullptr));
}

// Calls f(operand as a constant, null pointer as above) for every operand.
template <class Rule, class Config, int kOperand = 0, class F>
FRICTION_INLINE void for_each_type(const Types& types, F&& f) {
  if constexpr (kOperand < Rule::kOperands) {
    const auto with_operand = [&](auto* type) { f(std::integral_constant<int, kOperand>{}, type); };
    if constexpr (kOperand == 0)
      with_parameter<Rule, Config>(types, with_operand);
    else
      with_type<Rule, Config, kOperand>(types, with_operand);
    for_each_type<Rule, Config, kOperand + 1>(types, f);
  }
}

template <class Launch>
FRICTION_INLINE char* master_of(const Launch& launch, const PartOf<Launch>& part,
                                const Types& types) {
  return types.master ? static_cast<char*>(launch.extras[part.tensor].master) : nullptr;
}

template <class Launch>
FRICTION_INLINE RandomBits random_bits(const Launch& launch, const PartOf<Launch>& part,
                                       RandomKey key) {
  const Extra& extra = launch.extras[part.tensor];
  key.parameter = uint32_t(extra.parameter);
  return {key, extra.global};
}

// How a step rounds what it stores in fewer bits.
struct StepRounding {
  RandomKey key;    // without the parameter's number
  float threshold;  // for averages in 8 bits or bfloat16

  template <class Rule, int kOperand>
  FRICTION_INLINE Quantization quantization(uint32_t scale) const {
    return {scale, is_average<Rule>(kOperand) ? threshold : kNearest};
  }
};

// 8 elements, from a given position on, of a part that is accessed in vectors.
template <class Rule, class Config>
struct Vec8 {
  static constexpr int kOperands = Rule::kOperands;
  float x[kVec8][kOperands];

  FRICTION_INLINE void clear() {
    FRICTION_UNROLL
    for (auto& element : x) {
      FRICTION_UNROLL
      for (float& value : element) value = 0.0f;
    }
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const PartOf<Launch>& part, const Types& types,
                            int position) {
    RawVec8 raw[kOperands] = {};  // zeroed, as in clear()
    for_each_type<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      Codec<Stored>::fetch(ref(launch, part, types, position, operand), raw[operand]);
    });
    for_each_type<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      float column[kVec8];
      Codec<Stored>::widen_all(raw[operand], column);
      FRICTION_UNROLL
      for (int i = 0; i < kVec8; ++i) x[i][operand] = column[i];
    });
  }

  // scales: the bits of the scales of the operands' blocks.
  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const PartOf<Launch>& part, const Types& types,
                             int position, const uint32_t (&scales)[kOperands],
                             const StepRounding& rounding) const {
    for_each_type<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (is_written(operand)) {
        ElementRef to = ref(launch, part, types, position, operand);
        to.data = static_cast<char*>(part.template destination<Rule>(operand));
        if (operand == kept_gradient<Rule>() && to.data == nullptr) return;
        float column[kVec8];
        FRICTION_UNROLL
        for (int i = 0; i < kVec8; ++i) column[i] = x[i][operand];
        if constexpr (operand == 0 && kIsHalf<Stored>) {
          if (types.stochastic) {
            const RandomBlock random =
                random_bits(launch, part, rounding.key).of_eight(part.begin + position);
            Stored stored[kVec8];
            FRICTION_UNROLL
            for (int i = 0; i < kVec8; ++i)
              stored[i] = narrow_stochastically<Stored>(column[i], random.at(i));
            Vector<Stored, kVec8>::store(stored, to.template operand<Stored>());
            return;
          }
        }
        if constexpr (is_average<Rule>(operand) && std::is_same_v<Stored, BFloat16>) {
          BFloat16 stored[kVec8];
          FRICTION_UNROLL
          for (int i = 0; i < kVec8; ++i) stored[i] = narrow_from(column[i], rounding.threshold);
          Vector<BFloat16, kVec8>::store(stored, to.template operand<BFloat16>());
          return;
        }
        Codec<Stored>::store(column, to, rounding.quantization<Rule, operand()>(scales[operand]));
      }
    });
  }

 private:
  template <class Launch>
  static FRICTION_INLINE ElementRef ref(const Launch& launch, const PartOf<Launch>& part,
                                        const Types& types, int position, int operand) {
    const int64_t at = part.begin + position;
    char* data = static_cast<char*>(part.data[operand]);
    return {data, at, operand == 0 ? master_of(launch, part, types) : nullptr, at, part.numel};
  }
};

// Whether a part is accessed in vectors.
template <int kOperands>
FRICTION_INLINE bool by_vec8(const Part<kOperands>& part) {
  return part.aligned && part.count % kVec8 == 0;
}

// One element of a part that is not accessed in vectors.
template <class Rule, class Config>
struct One {
  static constexpr int kOperands = Rule::kOperands;
  float x[1][kOperands];
  int64_t index, offsets[kOperands + 1];  // in element order; in each operand

  FRICTION_INLINE One(const int64_t* layout, int64_t index) : index(index) {
    find_offsets(layout, index, offsets);
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const PartOf<Launch>& part, const Types& types) {
    for_each_type<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      x[0][operand] = Codec<Stored>::read(ref<Stored>(launch, part, types, operand));
    });
  }

  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const PartOf<Launch>& part, const Types& types,
                             const uint32_t (&scales)[kOperands],
                             const StepRounding& rounding) const {
    for_each_type<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (is_written(operand)) {
        ElementRef to = ref<Stored>(launch, part, types, operand);
        to.data = static_cast<char*>(part.template destination<Rule>(operand));
        if (operand == kept_gradient<Rule>() && to.data == nullptr) return;
        to.at = part.template destination_offset<Rule, operand()>(offsets);
        if constexpr (operand == 0 && kIsHalf<Stored>) {
          if (types.stochastic) {
            const uint32_t random = random_bits(launch, part, rounding.key).of(index);
            write_one(narrow_stochastically<Stored>(x[0][operand], random),
                      to.template operand<Stored>());
            return;
          }
        }
        if constexpr (is_average<Rule>(operand) && std::is_same_v<Stored, BFloat16>) {
          write_one(narrow_from(x[0][operand], rounding.threshold),
                    to.template operand<BFloat16>());
          return;
        }
        Codec<Stored>::write(x[0][operand], to,
                             rounding.quantization<Rule, operand()>(scales[operand]));
      }
    });
  }

 private:
  template <class Stored, class Launch>
  FRICTION_INLINE ElementRef ref(const Launch& launch, const PartOf<Launch>& part,
                                 const Types& types, int operand) const {
    char* data = static_cast<char*>(part.data[operand]);
    return {data, offsets[operand], operand == 0 ? master_of(launch, part, types) : nullptr,
            offsets[kOperands], part.numel};
  }
};

// Calls visit(element, position) for each of a thread's elements in a part that is not accessed in
// vectors. A thread takes eight consecutive elements if an operand is quantized. Otherwise,
// neighbouring threads take neighbouring elements.
template <class Config, int kTeam = kThreads, class Launch, class Visit>
FRICTION_INLINE void visit_ones(const Launch& launch, const PartOf<Launch>& part,
                                const Types& types, int thread, Visit&& visit) {
  const int64_t* layout = layout_of(launch, part.tensor);
  const int first = types.quantized ? thread * kVec8 : thread, step = types.quantized ? 1 : kTeam;
  FRICTION_NO_UNROLL
  for (int i = 0; i < kVec8; ++i) {
    const int at = first + i * step;
    if (at >= part.count) break;
    One<typename Launch::Rule, Config> one(layout, part.begin + at);
    one.load(launch, part, types);
    visit(one, at);
  }
}

// visit_elements (elements.h) for dynamic dtypes, without storing.
template <class Config, int kTeam, class Launch, class Visit>
FRICTION_INLINE void visit_dynamic(const Launch& launch, const PartOf<Launch>& part,
                                   const Types& types, int thread, Visit&& visit) {
  if (by_vec8(part)) {
    const int position = thread * kVec8;
    if (position >= part.count) return;
    Vec8<typename Launch::Rule, Config> vec8;
    vec8.load(launch, part, types, position);
    visit(vec8.x, [&](int i) { return position + i; });
  } else {
    visit_ones<Config, kTeam>(launch, part, types, thread,
                              [&](auto& one, int at) { visit(one.x, [&](int) { return at; }); });
  }
}

}  // namespace friction::cuda
