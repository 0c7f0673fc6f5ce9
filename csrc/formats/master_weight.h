// A parameter of 16 bits with a master: what its rounding took away (the residual), in 8 or 16
// bits more, or all of it in float32 (the master). Both together are the value that the arithmetic
// sees.
//
// bfloat16 with 16 bits more is any float32 exactly; with 8 more it has 16 significant bits.
// float16 with 16 bits more is any float32 in its normal range exactly.
#pragma once

#include "dtypes.h"

namespace friction {

// bfloat16: the pair is an integer that is the float32's upper 24 or 32 bits. No residual below a
// zero comes from here; where somebody zeroed the parameter, borrowing would make it NaN.
template <class Residual>
FRICTION_INLINE float join(BFloat16 param, Residual residual) {
  constexpr int kBits = 8 * int(sizeof(Residual));
  const int32_t below = (param.bits & 0x7fffu) == 0 && residual < 0 ? 0 : int32_t(residual);
  const uint32_t upper = (uint32_t(param.bits) << kBits) + uint32_t(below);
  return float_of(upper << (16 - kBits));
}

// A float32's upper 24 or 32 bits, rounded half up in magnitude (not to even: the residual fits).
template <class Residual>
FRICTION_INLINE uint32_t upper_bits(float x) {
  constexpr int kDropped = 16 - 8 * int(sizeof(Residual));
  return (bits_of(x) + ((1u << kDropped) >> 1)) >> kDropped;
}

template <class Param, class Residual>
FRICTION_INLINE Param upper_part(float x) {
  if constexpr (std::is_same_v<Param, Half>) return narrow<Half>(x);
  constexpr int kBits = 8 * int(sizeof(Residual));
  const uint32_t rounded = (upper_bits<Residual>(x) + (1u << (kBits - 1))) >> kBits;
  const bool nan = (bits_of(x) & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

// What upper_part took away.
template <class Residual>
FRICTION_INLINE Residual residual_of(float x, BFloat16 param) {
  constexpr int kBits = 8 * int(sizeof(Residual));
  const bool nan = (param.bits & 0x7fffu) > 0x7f80u;
  const uint32_t kept = uint32_t(param.bits) << kBits;
  return static_cast<Residual>(nan ? 0 : static_cast<int32_t>(upper_bits<Residual>(x) - kept));
}

// float16: the residual counts parts of the distance between neighbouring float16 numbers.
FRICTION_INLINE uint32_t exponent_of_step(float half) {
  const uint32_t exponent = bits_of(half) >> 23 & 0xffu;
  return (exponent < 113u ? 113u : exponent) - 10u;  // of 2^(e - 127)
}

template <class Residual>
FRICTION_INLINE float join(Half param, Residual residual) {
  constexpr uint32_t kBits = 8 * sizeof(Residual);
  const float half = widen(param);
  const float part = float_of((exponent_of_step(half) - kBits) << 23);
  const bool finite = (param.bits & 0x7c00u) != 0x7c00u;
  return finite ? half + static_cast<float>(residual) * part : half;
}

template <class Residual>
FRICTION_INLINE Residual residual_of(float x, Half param) {
  constexpr uint32_t kBits = 8 * sizeof(Residual);
  constexpr float kMost = float((1u << (kBits - 1)) - 1);  // half a step is the neighbour's
  const float half = widen(param);
  const float parts = float_of((254u + kBits - exponent_of_step(half)) << 23);  // to a unit
  const float count = (x - half) * parts;
  const float rounded = count < 0 ? count - 0.5f : count + 0.5f;
  const float low = rounded < -kMost ? -kMost : rounded;
  const float clamped = low > kMost ? kMost : low;
  const bool finite = (param.bits & 0x7c00u) != 0x7c00u;
  return static_cast<Residual>(finite ? static_cast<int32_t>(clamped) : 0);
}

// A master in float32 is the value as long as the parameter is what it rounds to. Otherwise
// somebody wrote the parameter, and that is the value.
template <class Param>
FRICTION_INLINE float value_of(Param param, float master) {
  return narrow<Param>(master).bits == param.bits ? master : widen(param);
}
FRICTION_INLINE float join(BFloat16 param, float master) { return value_of(param, master); }
FRICTION_INLINE float join(Half param, float master) { return value_of(param, master); }

}  // namespace friction
