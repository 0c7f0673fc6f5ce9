// The types that operands are stored in, and their conversion to and from the arithmetic type.
#pragma once

#include "../rules/portable.h"

namespace friction {

// kQuantized: 8-bit blockwise (blockwise.h). kInt8 and kInt16: residuals (master_weight.h).
enum class DType : uint8_t { kFloat16, kBFloat16, kFloat32, kFloat64, kInt8, kInt16, kQuantized };

FRICTION_INLINE bool is_floating(DType dtype) { return dtype <= DType::kFloat64; }

// Bytes per element; a quantized operand also has scales.
FRICTION_INLINE int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    case DType::kInt8:
    case DType::kQuantized: return 1;
    default: return 2;
  }
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

FRICTION_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FRICTION_INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

FRICTION_INLINE float widen(float x) { return x; }
FRICTION_INLINE double widen(double x) { return x; }
FRICTION_INLINE float widen(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

// Changes the exponent's bias from 15 to 127; a subtraction normalizes subnormals.
FRICTION_INLINE float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
  const uint32_t infinite = (magnitude << 13) | 0x7f800000u;
  const float subnormal = float_of((magnitude << 13) + ((127u - 14u) << 23)) - 6.103515625e-05f;
  const uint32_t bits = magnitude >= 0x7c00u   ? infinite
                        : magnitude >= 0x0400u ? normal
                                               : bits_of(subnormal);
  return float_of(bits | sign);
}

template <class Stored, class T>
FRICTION_INLINE Stored narrow(T x) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    const uint32_t bits = bits_of(static_cast<float>(x));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
  } else if constexpr (std::is_same_v<Stored, Half>) {
    const uint32_t bits = bits_of(static_cast<float>(x));
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t normal =
        (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - ((127u - 15u) << 23)) >> 13;
    // Adding 0.5 aligns the last bit of a subnormal half with a float's last bit, and rounds.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t half = magnitude > 0x7f800000u    ? 0x7e00u
                          : magnitude >= 0x477ff000u ? 0x7c00u  // 65520 and above round to infinity
                          : magnitude < 0x38800000u  ? subnormal
                                                     : normal;
    return {static_cast<uint16_t>(half | sign)};
  } else {
    return static_cast<Stored>(x);
  }
}

// Calls f with a null pointer to the type of a floating operand.
template <class F>
FRICTION_INLINE void with_stored_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat16: return f(static_cast<Half*>(nullptr));
    case DType::kBFloat16: return f(static_cast<BFloat16*>(nullptr));
    case DType::kFloat32: return f(static_cast<float*>(nullptr));
    case DType::kFloat64: return f(static_cast<double*>(nullptr));
    default: return;
  }
}

}  // namespace friction
