// An operand of a state in 8 bits an element: blocks of 256 elements, each with a float32 scale,
// the largest magnitude in it. In memory: the scales, padded to 16 bytes, then the codes.
//
// With r in [0, 1] an element's share of the scale, its code is the upper bits of the float32
// r + d: logarithmic where r is above d, even below, as mu-law companding is, with the exponent and
// the mantissa of a float for the logarithm, 16 codes an octave. d is such that the codes reach
// from d to 1 + d. Signed operands have 8 octaves and keep the sign in the code's upper bit,
// operands that are never negative have 16; docs/numerics.md compares maps. A block with a NaN or
// an infinity does not decode to numbers: what went wrong is not hidden.
//
// An average moves less than half a code in a step, and rounding to nearest would freeze it. So the
// threshold from which a step rounds up runs through [0, 1) evenly, from step to step. With 1/2,
// quantizing what was dequantized gives the same bytes.
#pragma once

#include "random.h"

namespace friction {

constexpr int kBlock = 256;

FRICTION_INLINE int64_t blocks_of(int64_t numel) { return (numel + kBlock - 1) / kBlock; }
// Where the codes begin, in bytes.
FRICTION_INLINE int64_t codes_begin(int64_t numel) { return (4 * blocks_of(numel) + 15) / 16 * 16; }
FRICTION_INLINE int64_t quantized_bytes(int64_t numel) { return codes_begin(numel) + numel; }

// What elements are multiplied by before they are encoded; 0 where that would overflow.
FRICTION_INLINE float inverse_of(float scale) {
  return scale >= 1.17549435e-38f ? 1.0f / scale : 0.0f;
}

// The same holds of averages in bfloat16, whose neighbours are 0.4 to 0.8 % apart.
constexpr float kNearest = 0.5f;

// Multiples of the golden section fill [0, 1) more evenly than random numbers.
FRICTION_INLINE float threshold_of(double step) {
  const double turns = static_cast<double>(whole_steps(step)) * 0.6180339887498949;
  return static_cast<float>(turns - std::floor(turns));
}

FRICTION_INLINE BFloat16 narrow_from(float x, float threshold) {
  const uint32_t share = static_cast<uint32_t>(threshold * 65536.0f);
  return narrow_stochastically<BFloat16>(x, share < 0xffffu ? share : 0xffffu);
}

// kOffset: the bits of d. The largest code decodes to 1 exactly, and 1 + d, rounded, is its number.
template <uint32_t kOffset>
struct Companding {
  static constexpr int kShift = 23 - 4;  // 16 codes an octave

  // What is added to a number's bits before the lower ones are cut off: d's are taken away, and
  // those from the threshold on rounded up. A few less than all, because the inverse of a scale
  // above 2^126 is inexact: beyond the largest code, there would be none.
  static FRICTION_INLINE uint32_t rounding(float threshold) {
    const uint32_t share = static_cast<uint32_t>(threshold * float(1 << kShift));
    const uint32_t most = (1 << kShift) - 8;
    return (share < most ? share : most) - kOffset;
  }
  // The code of a magnitude, with kShift bits below it.
  static FRICTION_INLINE uint32_t encode(float x, float inverse_scale, uint32_t rounding) {
    return bits_of(std::fabs(x) * inverse_scale + float_of(kOffset)) + rounding;
  }
  static FRICTION_INLINE float decode(uint32_t shifted, float scale) {
    return (float_of(shifted + kOffset) - float_of(kOffset)) * scale;
  }
};

struct SignedCode : Companding<0x3b888889> {  // d = 1/240; 1 + d is 127 codes above it
  static constexpr uint32_t kSign = 0x80u << kShift;
  static FRICTION_INLINE uint8_t encode(float x, float inverse_scale, uint32_t rounding) {
    const uint32_t sign = bits_of(x) >> (24 - kShift) & kSign;
    return static_cast<uint8_t>((Companding::encode(x, inverse_scale, rounding) | sign) >> kShift);
  }
  static FRICTION_INLINE float decode(uint8_t code, float scale) {
    const uint32_t shifted = static_cast<uint32_t>(static_cast<int8_t>(code)) << kShift;
    const uint32_t sign = shifted & 0x80000000u;
    return Companding::decode(shifted & (kSign - 1), float_of(bits_of(scale) ^ sign));
  }
};

// What is positive never becomes 0, because updates are divided by its root.
struct UnsignedCode : Companding<0x37880088> {  // d = 1.0625/65535; 255 codes
  static FRICTION_INLINE uint8_t encode(float x, float inverse_scale, uint32_t rounding) {
    const uint32_t code = Companding::encode(x, inverse_scale, rounding) >> kShift;
    const uint32_t one = inverse_scale != 0.0f ? 1 : 0;
    const uint32_t least = bits_of(x) < one ? bits_of(x) : one;
    return static_cast<uint8_t>(code > least ? code : least);
  }
  static FRICTION_INLINE float decode(uint8_t code, float scale) {
    return Companding::decode(static_cast<uint32_t>(code) << kShift, scale);
  }
};

template <bool kNonNegative>
using CodeOf = std::conditional_t<kNonNegative, UnsignedCode, SignedCode>;

}  // namespace friction
