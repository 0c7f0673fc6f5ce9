// The master of a 16-bit parameter: either its rounding error in 8 or 16 further bits (the
// residual), or the whole value in float32 (the master weight). Together they give the value that
// the arithmetic sees.
//
// bfloat16 with 16 error bits represents every float32 exactly; with 8, it has 16 significant bits.
// float16 with 16 error bits represents every float32 in float16's normal range exactly.
#pragma once

#include "dtypes.h"

namespace friction {

// bfloat16: the pair is an integer, the float32's upper 24 or 32 bits. A negative residual of a
// zero means that the user zeroed the parameter. It is ignored, because borrowing would give NaN.
template <class Residual>
FRICTION_INLINE float join(BFloat16 param, Residual residual) {
  constexpr int kBits = 8 * int(sizeof(Residual));
  const int32_t below = (param.bits & 0x7fffu) == 0 && residual < 0 ? 0 : int32_t(residual);
  const uint32_t upper = (uint32_t(param.bits) << kBits) + uint32_t(below);
  return float_of(upper << (16 - kBits));
}

// A float32's upper 24 or 32 bits, rounded half up in magnitude (not to even): the residual fits.
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

// The rounding error of upper_part.
template <class Residual>
FRICTION_INLINE Residual residual_of(float x, BFloat16 param) {
  constexpr int kBits = 8 * int(sizeof(Residual));
  const bool nan = (param.bits & 0x7fffu) > 0x7f80u;
  const uint32_t kept = uint32_t(param.bits) << kBits;
  return static_cast<Residual>(nan ? 0 : static_cast<int32_t>(upper_bits<Residual>(x) - kept));
}

// float16: the residual counts fractions of the distance between neighbouring float16 numbers.
FRICTION_INLINE uint32_t exponent_of_step(float half) {
  const uint32_t exponent = bits_of(half) >> 23 & 0xffu;
  return (exponent < 113u ? 113u : exponent) - 10u;  // e, where the step is 2^(e - 127)
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
  constexpr float kMost = float((1u << (kBits - 1)) - 1);  // half a step belongs to the neighbour
  const float half = widen(param);
  const float parts = float_of((254u + kBits - exponent_of_step(half)) << 23);  // per unit
  const float count = (x - half) * parts;
  const float rounded = count < 0 ? count - 0.5f : count + 0.5f;
  const float low = rounded < -kMost ? -kMost : rounded;
  const float clamped = low > kMost ? kMost : low;
  const bool finite = (param.bits & 0x7c00u) != 0x7c00u;
  return static_cast<Residual>(finite ? static_cast<int32_t>(clamped) : 0);
}

// The fp32 master weight is the value as long as it rounds to the parameter. Otherwise the user has
// overwritten the parameter, which then is the value.
template <class Param>
FRICTION_INLINE float value_of(Param param, float master) {
  return narrow<Param>(master).bits == param.bits ? master : widen(param);
}
FRICTION_INLINE float join(BFloat16 param, float master) { return value_of(param, master); }
FRICTION_INLINE float join(Half param, float master) { return value_of(param, master); }

}  // namespace friction
