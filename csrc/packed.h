// A list of a state in 8 bits an element: blocks of 256 elements, each with a float32 scale, the
// largest magnitude in it. In memory: the scales, padded to 16 bytes, then the codes.
//
// Signed lists keep the root of the magnitude, lists that are never negative the fourth root, so
// that small elements of a block keep a relative error; bench/quantisers.py compares maps. A block
// with a NaN or an infinity does not decode to numbers: what went wrong is not hidden.
//
// An average moves less than half a code in a step, and rounding to nearest would freeze it. So the
// threshold from which a step rounds up runs through [0, 1) evenly, from step to step. With 1/2,
// packing what was unpacked gives the same bytes.
#pragma once

#include "random.h"

namespace friction {

constexpr int kBlock = 256;

FRICTION_INLINE int64_t blocks_of(int64_t numel) { return (numel + kBlock - 1) / kBlock; }
// Where the codes begin, in bytes.
FRICTION_INLINE int64_t codes_begin(int64_t numel) { return (4 * blocks_of(numel) + 15) / 16 * 16; }
FRICTION_INLINE int64_t packed_bytes(int64_t numel) { return codes_begin(numel) + numel; }

// What elements are multiplied by before they are encoded; 0 where that would overflow.
FRICTION_INLINE float inverse_of(float scale) {
  return scale >= 1.17549435e-38f ? 1.0f / scale : 0.0f;
}

// The same holds of averages in bfloat16, whose neighbours are 0.4 to 0.8 % apart.
constexpr float kNearest = 0.5f;

// Multiples of the golden section fill [0, 1) more evenly than random numbers.
FRICTION_INLINE float threshold_of(double step) {
  const double turns = step * 0.6180339887498949;
  return static_cast<float>(turns - std::floor(turns));
}

// The root of a number in [0, 1], or of NaN. On a GPU: sqrtf's own instructions, to the bit,
// without its branch for very small numbers. Those below 2^-101 come out too small, and get the
// same code.
FRICTION_INLINE float root_of_fraction(float x) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 3.94430453e-31f)));
  const float root = __fmul_rn(x, inverse);
  return __fmaf_rn(__fmaf_rn(-root, root, x), __fmul_rn(inverse, 0.5f), root);
#else
  return std::sqrt(x);
#endif
}

FRICTION_INLINE BFloat16 narrow_from(float x, float threshold) {
  const uint32_t share = static_cast<uint32_t>(threshold * 65536.0f);
  return narrow_stochastically<BFloat16>(x, share < 0xffffu ? share : 0xffffu);
}

struct SignedCode {
  using Code = int8_t;
  static FRICTION_INLINE Code encode(float x, float inverse_scale, float threshold) {
    const float y = root_of_fraction(std::fabs(x) * inverse_scale) * 127.0f + threshold;
    const int magnitude = static_cast<int>(y < 127.0f ? y : 127.0f);
    return static_cast<Code>(x < 0.0f ? -magnitude : magnitude);
  }
  static FRICTION_INLINE float decode(Code code, float scale) {
    const float t = static_cast<float>(code) * (1.0f / 127.0f);
    return t * std::fabs(t) * scale;
  }
};

// What is positive never becomes 0, because updates are divided by its root.
struct UnsignedCode {
  using Code = uint8_t;
  static FRICTION_INLINE Code encode(float x, float inverse_scale, float threshold) {
    const float y = root_of_fraction(root_of_fraction(x * inverse_scale)) * 255.0f + threshold;
    const int code = static_cast<int>(y < 255.0f ? y : 255.0f);
    const int least = x > 0.0f ? 1 : 0;
    return static_cast<Code>(code > least ? code : least);
  }
  static FRICTION_INLINE float decode(Code code, float scale) {
    const float t = static_cast<float>(code) * (1.0f / 255.0f);
    const float squared = t * t;
    return squared * squared * scale;
  }
};

template <bool kNonNegative>
using CodeOf = std::conditional_t<kNonNegative, UnsignedCode, SignedCode>;

}  // namespace friction
