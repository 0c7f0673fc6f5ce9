// Codecs for the formats that kernels look up at run time: plain numbers, 8-bit codes, a parameter
// with its master. Each codec reads and writes eight consecutive elements, or one.
#pragma once

#include "../formats/blockwise.h"
#include "../formats/master_weight.h"
#include "vector_load.h"

namespace friction::cuda {

constexpr int kVec8 = 8;

template <class Stored>
constexpr bool kIsCode = std::is_same_v<Stored, SignedCode> || std::is_same_v<Stored, UnsignedCode>;
template <class Stored>
constexpr bool kIsHalf = std::is_same_v<Stored, BFloat16> || std::is_same_v<Stored, Half>;

// Refers to one element of an operand, or to the first of eight.
struct ElementRef {
  char* data;
  int64_t at;  // in elements
  char* master;
  int64_t master_at;
  int64_t numel;  // of the tensor: determines where codes begin

  template <class Stored>
  FRICTION_INLINE Stored* operand() const {
    return reinterpret_cast<Stored*>(data) + at;
  }
  template <class Stored>
  FRICTION_INLINE Stored* masters() const {
    return reinterpret_cast<Stored*>(master) + master_at;
  }
};

// 8 elements as loaded from memory. Fetching is separate from widening, so that the loads of
// all operands are in flight before the first is used.
struct RawVec8 {
  uint32_t words[kVec8];

  template <class Stored>
  FRICTION_INLINE void fetch(const Stored* from, int first_word = 0) {
    constexpr int kWords = int(sizeof(Stored)) * kVec8 / 4;
    uint32_t fetched[kWords];
    Vector<uint32_t, kWords>::load(reinterpret_cast<const uint32_t*>(from), fetched);
    FRICTION_UNROLL
    for (int i = 0; i < kWords; ++i) words[first_word + i] = fetched[i];
  }
  // The i-th fetched element.
  template <class Stored>
  FRICTION_INLINE Stored at(int i, int first_word = 0) const {
    const int byte = i * int(sizeof(Stored));
    const uint32_t bits = words[first_word + byte / 4] >> (8 * (byte % 4));
    Stored stored;
    std::memcpy(&stored, &bits, sizeof stored);  // the low bytes
    return stored;
  }
};

template <class Stored>
FRICTION_INLINE Stored read_one(const Stored* from) {
  Stored stored[1];
  Vector<Stored, 1>::load(from, stored);
  return stored[0];
}

template <class Stored>
FRICTION_INLINE void write_one(Stored value, Stored* to) {
  const Stored stored[1] = {value};
  Vector<Stored, 1>::store(stored, to);
}

// How a block of codes is quantized.
struct Quantization {
  uint32_t scale;  // the bits of the float
  float threshold;
};

// Plain numbers.
template <class Stored>
struct Codec {
  static FRICTION_INLINE void fetch(const ElementRef& ref, RawVec8& raw) {
    raw.fetch(ref.operand<Stored>());
  }
  static FRICTION_INLINE void widen_all(const RawVec8& raw, float (&x)[kVec8]) {
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) x[i] = widen(raw.at<Stored>(i));
  }
  static FRICTION_INLINE void store(const float (&x)[kVec8], const ElementRef& ref, Quantization) {
    Stored stored[kVec8];
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) stored[i] = narrow<Stored>(x[i]);
    Vector<Stored, kVec8>::store(stored, ref.operand<Stored>());
  }
  static FRICTION_INLINE float read(const ElementRef& ref) {
    return static_cast<float>(widen(read_one(ref.operand<Stored>())));
  }
  static FRICTION_INLINE void write(float x, const ElementRef& ref, Quantization) {
    write_one(narrow<Stored>(x), ref.operand<Stored>());
  }
};

// float64 gradients, rounded to float32 as they are fetched: too rare to keep the loads in flight.
template <>
struct Codec<double> {
  static FRICTION_INLINE void fetch(const ElementRef& ref, RawVec8& raw) {
    double stored[kVec8];
    Vector<double, kVec8>::load(ref.operand<double>(), stored);
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) raw.words[i] = bits_of(static_cast<float>(stored[i]));
  }
  static FRICTION_INLINE void widen_all(const RawVec8& raw, float (&x)[kVec8]) {
    Codec<float>::widen_all(raw, x);
  }
  static FRICTION_INLINE float read(const ElementRef& ref) {
    return static_cast<float>(read_one(ref.operand<double>()));
  }
};

// 8-bit codes. A block's scale is written separately, after all of its elements have been read.
template <class Map>
struct BlockwiseCodec {
  static FRICTION_INLINE uint8_t* codes(const ElementRef& ref) {
    return reinterpret_cast<uint8_t*>(ref.data + codes_begin(ref.numel)) + ref.at;
  }
  static FRICTION_INLINE float* scale(const ElementRef& ref) {
    return reinterpret_cast<float*>(ref.data) + ref.at / kBlock;
  }
  static FRICTION_INLINE void fetch(const ElementRef& ref, RawVec8& raw) {
    raw.fetch(codes(ref));
    raw.words[2] = bits_of(read_one(scale(ref)));
  }
  static FRICTION_INLINE void widen_all(const RawVec8& raw, float (&x)[kVec8]) {
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i)
      x[i] = Map::decode(raw.words[i / 4], i % 4, float_of(raw.words[2]));
  }
  static FRICTION_INLINE uint8_t encode(float x, Quantization quantization) {
    const float inverse = inverse_of(float_of(quantization.scale));
    return Map::encode(x, inverse, Map::rounding(quantization.threshold));
  }
  static FRICTION_INLINE void store(const float (&x)[kVec8], const ElementRef& ref,
                                    Quantization quantization) {
    uint8_t stored[kVec8];
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) stored[i] = encode(x[i], quantization);
    Vector<uint8_t, kVec8>::store(stored, codes(ref));
  }
  static FRICTION_INLINE float read(const ElementRef& ref) {
    return Map::decode(read_one(codes(ref)), read_one(scale(ref)));
  }
  static FRICTION_INLINE void write(float x, const ElementRef& ref, Quantization quantization) {
    write_one(encode(x, quantization), codes(ref));
  }
};
template <>
struct Codec<SignedCode> : BlockwiseCodec<SignedCode> {};
template <>
struct Codec<UnsignedCode> : BlockwiseCodec<UnsignedCode> {};

// A 16-bit parameter with its master: a residual or an fp32 master weight.
template <class Param, class Master>
struct Pair;

template <class Param, class Residual>
struct Codec<Pair<Param, Residual>> {
  static constexpr int kResidualWord = int(sizeof(Param)) * kVec8 / 4;

  static FRICTION_INLINE void fetch(const ElementRef& ref, RawVec8& raw) {
    raw.fetch(ref.operand<Param>());
    raw.fetch(ref.masters<Residual>(), kResidualWord);
  }
  static FRICTION_INLINE void widen_all(const RawVec8& raw, float (&x)[kVec8]) {
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i)
      x[i] = join(raw.at<Param>(i), raw.at<Residual>(i, kResidualWord));
  }
  static FRICTION_INLINE void store(const float (&x)[kVec8], const ElementRef& ref, Quantization) {
    Param params[kVec8];
    Residual residuals[kVec8];
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) {
      params[i] = upper_part<Param, Residual>(x[i]);
      residuals[i] = residual_of<Residual>(x[i], params[i]);
    }
    Vector<Param, kVec8>::store(params, ref.operand<Param>());
    Vector<Residual, kVec8>::store(residuals, ref.masters<Residual>());
  }
  static FRICTION_INLINE float read(const ElementRef& ref) {
    return join(read_one(ref.operand<Param>()), read_one(ref.masters<Residual>()));
  }
  static FRICTION_INLINE void write(float x, const ElementRef& ref, Quantization) {
    const Param param = upper_part<Param, Residual>(x);
    write_one(param, ref.operand<Param>());
    write_one(residual_of<Residual>(x, param), ref.masters<Residual>());
  }
};

template <class Param>
struct Codec<Pair<Param, float>> {
  static FRICTION_INLINE ElementRef master(const ElementRef& ref) {
    return {ref.master, ref.master_at, nullptr, 0, 0};
  }
  // Joined immediately, because there are words for only one of the two.
  static FRICTION_INLINE void fetch(const ElementRef& ref, RawVec8& raw) {
    RawVec8 params;
    params.fetch(ref.operand<Param>());
    Codec<float>::fetch(master(ref), raw);
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i)
      raw.words[i] = bits_of(join(params.at<Param>(i), float_of(raw.words[i])));
  }
  static FRICTION_INLINE void widen_all(const RawVec8& raw, float (&x)[kVec8]) {
    Codec<float>::widen_all(raw, x);
  }
  static FRICTION_INLINE void store(const float (&x)[kVec8], const ElementRef& ref, Quantization) {
    Codec<float>::store(x, master(ref), {});
    Codec<Param>::store(x, ref, {});
  }
  static FRICTION_INLINE float read(const ElementRef& ref) {
    return join(read_one(ref.operand<Param>()), Codec<float>::read(master(ref)));
  }
  static FRICTION_INLINE void write(float x, const ElementRef& ref, Quantization) {
    Codec<float>::write(x, master(ref), {});
    Codec<Param>::write(x, ref, {});
  }
};

}  // namespace friction::cuda
