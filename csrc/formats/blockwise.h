// 8-bit blockwise quantization of states. Each block of 256 elements has a float32 scale, its
// largest magnitude. Memory holds the scales, padded to 16 bytes, and then the codes.
//
// Let r in [0, 1] be an element's magnitude divided by the scale. Its code is the upper bits of the
// float32 r + d. Like mu-law companding, this is logarithmic for r above d and linear below, with
// 16 codes per octave; the exponent and mantissa of a float stand in for the logarithm. d is chosen
// so that the codes cover d to 1 + d. Signed operands have 8 octaves and keep the sign in the
// code's upper bit; non-negative operands have 16. docs/numerics.md compares maps. A block that
// contains NaN or infinity decodes to non-finite values, so the fault is not hidden. Its codes are
// arbitrary: CPU and GPU have other ones, since a NaN's bits are not the same on both.
//
// A moving average changes by less than half a code per step, so rounding to nearest would freeze
// it. The threshold for rounding up therefore varies from step to step, evenly over [0, 1). With a
// threshold of 1/2, quantizing dequantized values gives the same bytes.
#pragma once

#include "random.h"

namespace friction {

constexpr int kBlock = 256;

FRICTION_INLINE int64_t blocks_of(int64_t numel) { return (numel + kBlock - 1) / kBlock; }
// The byte offset of the codes.
FRICTION_INLINE int64_t codes_begin(int64_t numel) { return (4 * blocks_of(numel) + 15) / 16 * 16; }
FRICTION_INLINE int64_t quantized_bytes(int64_t numel) { return codes_begin(numel) + numel; }

// The factor of elements before they are encoded; 0 if the inverse would overflow.
FRICTION_INLINE float inverse_of(float scale) {
  return scale >= 1.17549435e-38f ? 1.0f / scale : 0.0f;
}

constexpr float kNearest = 0.5f;

// Multiples of the golden ratio, modulo 1, fill [0, 1) more evenly than random numbers.
FRICTION_INLINE float threshold_of(double step) {
  const double turns = static_cast<double>(whole_steps(step)) * 0.6180339887498949;
  return static_cast<float>(turns - std::floor(turns));
}

// Averages in bfloat16 would freeze likewise: neighbouring values are 0.4 to 0.8 % apart.
FRICTION_INLINE BFloat16 narrow_from(float x, float threshold) {
  const uint32_t share = static_cast<uint32_t>(threshold * 65536.0f);
  return narrow_stochastically<BFloat16>(x, share < 0xffffu ? share : 0xffffu);
}

// kOffset: the bits of d. 1 + d rounds to the largest code, which decodes to exactly 1.
template <uint32_t kOffset>
struct Companding {
  static constexpr int kShift = 23 - 4;  // 16 codes an octave

  // Added to a number's bits before the lower kShift bits are cut off: subtracts d's bits and adds
  // the rounding. `most` is a few below 2^kShift, because the inverse of a scale above 2^126 is
  // inexact and rounding up could otherwise exceed the largest code.
  static FRICTION_INLINE uint32_t rounding(float threshold) {
    const uint32_t share = static_cast<uint32_t>(threshold * float(1 << kShift));
    const uint32_t most = (1 << kShift) - 8;
    return (share < most ? share : most) - kOffset;
  }
  // A word with one of its bytes, a code, followed by kShift lower bits.
  static FRICTION_INLINE uint32_t shifted(uint32_t word, int byte) {
    const int left = kShift - 8 * byte;
    return left >= 0 ? word << left : word >> -left;
  }
  // The code of a magnitude, followed by kShift lower bits.
  static FRICTION_INLINE uint32_t encode(float x, float inverse_scale, uint32_t rounding) {
    return bits_of(std::fabs(x) * inverse_scale + float_of(kOffset)) + rounding;
  }
  static FRICTION_INLINE float decode(uint32_t shifted, float scale) {
    return (float_of(shifted + kOffset) - float_of(kOffset)) * scale;
  }
};

struct SignedCode : Companding<0x3b888889> {  // d = 1/240; 1 + d is 127 codes above d
  static constexpr uint32_t kSign = 0x80u << kShift;
  static FRICTION_INLINE uint8_t encode(float x, float inverse_scale, uint32_t rounding) {
    const uint32_t sign = bits_of(x) >> (24 - kShift) & kSign;
    return static_cast<uint8_t>((Companding::encode(x, inverse_scale, rounding) | sign) >> kShift);
  }
  static FRICTION_INLINE float decode(uint8_t code, float scale) { return decode(code, 0, scale); }
  // The code in one of a word's bytes, from the lowest on.
  static FRICTION_INLINE float decode(uint32_t word, int byte, float scale) {
    const uint32_t sign = word << (24 - 8 * byte) & 0x80000000u;
    return Companding::decode(shifted(word, byte) & (0x7fu << kShift),
                              float_of(bits_of(scale) ^ sign));
  }
};

// A positive value never becomes 0, because updates are divided by its square root.
struct UnsignedCode : Companding<0x37880088> {  // d = 1.0625/65535; 255 codes
  static FRICTION_INLINE uint8_t encode(float x, float inverse_scale, uint32_t rounding) {
    const uint32_t code = Companding::encode(x, inverse_scale, rounding) >> kShift;
    const uint32_t one = inverse_scale != 0.0f ? 1 : 0;
    const uint32_t least = bits_of(x) < one ? bits_of(x) : one;
    return static_cast<uint8_t>(code > least ? code : least);
  }
  static FRICTION_INLINE float decode(uint8_t code, float scale) { return decode(code, 0, scale); }
  static FRICTION_INLINE float decode(uint32_t word, int byte, float scale) {
    return Companding::decode(shifted(word, byte) & (0xffu << kShift), scale);
  }
};

template <bool kNonNegative>
using CodeOf = std::conditional_t<kNonNegative, UnsignedCode, SignedCode>;

}  // namespace friction
