// The forms in which a list's elements lie in memory, where kernels look them up: plain numbers,
// 8-bit codes, a parameter with its companion. Each form reads and writes eight consecutive
// elements, or one.
#pragma once

#include "../companion.h"
#include "../packed.h"
#include "access.h"

namespace friction::cuda {

constexpr int kEight = 8;

template <class Stored>
constexpr bool kIsCode = std::is_same_v<Stored, SignedCode> || std::is_same_v<Stored, UnsignedCode>;
template <class Stored>
constexpr bool kIsHalf = std::is_same_v<Stored, BFloat16> || std::is_same_v<Stored, Half>;

// Which element of a list, or the first of eight.
struct Place {
  char* data;
  int64_t at;  // in elements
  char* companion;
  int64_t companion_at;
  int64_t numel;  // of the tensor: tells where codes begin

  template <class Stored>
  FRICTION_INLINE Stored* list() const {
    return reinterpret_cast<Stored*>(data) + at;
  }
  template <class Stored>
  FRICTION_INLINE Stored* companions() const {
    return reinterpret_cast<Stored*>(companion) + companion_at;
  }
};

// Eight elements as they come from memory. Fetching and widening are apart, so that every list is
// on its way before the first is looked at.
struct Raw {
  uint32_t words[kEight];

  template <class Stored>
  FRICTION_INLINE void fetch(const Stored* from, int first_word = 0) {
    constexpr int kWords = int(sizeof(Stored)) * kEight / 4;
    uint32_t fetched[kWords];
    Vector<uint32_t, kWords>::load(reinterpret_cast<const uint32_t*>(from), fetched);
    FRICTION_UNROLL
    for (int i = 0; i < kWords; ++i) words[first_word + i] = fetched[i];
  }
  // The i-th of those fetched.
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

// How a block of codes is written.
struct Packing {
  uint32_t scale;  // its bits
  float threshold;
};

// Plain numbers.
template <class Stored>
struct Form {
  static FRICTION_INLINE void fetch(const Place& place, Raw& raw) {
    raw.fetch(place.list<Stored>());
  }
  static FRICTION_INLINE void widen_all(const Raw& raw, float (&x)[kEight]) {
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) x[i] = widen(raw.at<Stored>(i));
  }
  static FRICTION_INLINE void store(const float (&x)[kEight], const Place& place, Packing) {
    Stored stored[kEight];
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) stored[i] = narrow<Stored>(x[i]);
    Vector<Stored, kEight>::store(stored, place.list<Stored>());
  }
  static FRICTION_INLINE float read(const Place& place) {
    return static_cast<float>(widen(read_one(place.list<Stored>())));
  }
  static FRICTION_INLINE void write(float x, const Place& place, Packing) {
    write_one(narrow<Stored>(x), place.list<Stored>());
  }
};

// float64 gradients, of which only what float32 holds is used; too rare to be fetched ahead.
template <>
struct Form<double> {
  static FRICTION_INLINE void fetch(const Place& place, Raw& raw) {
    double stored[kEight];
    Vector<double, kEight>::load(place.list<double>(), stored);
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) raw.words[i] = bits_of(static_cast<float>(stored[i]));
  }
  static FRICTION_INLINE void widen_all(const Raw& raw, float (&x)[kEight]) {
    Form<float>::widen_all(raw, x);
  }
  static FRICTION_INLINE float read(const Place& place) {
    return static_cast<float>(read_one(place.list<double>()));
  }
};

// 8-bit codes. A block's scale is written apart, when all of its elements have been read.
template <class Map>
struct CodeForm {
  static FRICTION_INLINE uint8_t* codes(const Place& place) {
    return reinterpret_cast<uint8_t*>(place.data + codes_begin(place.numel)) + place.at;
  }
  static FRICTION_INLINE float* scale(const Place& place) {
    return reinterpret_cast<float*>(place.data) + place.at / kBlock;
  }
  static FRICTION_INLINE void fetch(const Place& place, Raw& raw) {
    raw.fetch(codes(place));
    raw.words[2] = bits_of(read_one(scale(place)));
  }
  static FRICTION_INLINE void widen_all(const Raw& raw, float (&x)[kEight]) {
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) x[i] = Map::decode(raw.at<uint8_t>(i), float_of(raw.words[2]));
  }
  static FRICTION_INLINE uint8_t encode(float x, Packing packing) {
    const float inverse = inverse_of(float_of(packing.scale));
    return Map::encode(x, inverse, Map::rounding(packing.threshold));
  }
  static FRICTION_INLINE void store(const float (&x)[kEight], const Place& place, Packing packing) {
    uint8_t stored[kEight];
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) stored[i] = encode(x[i], packing);
    Vector<uint8_t, kEight>::store(stored, codes(place));
  }
  static FRICTION_INLINE float read(const Place& place) {
    return Map::decode(read_one(codes(place)), read_one(scale(place)));
  }
  static FRICTION_INLINE void write(float x, const Place& place, Packing packing) {
    write_one(encode(x, packing), codes(place));
  }
};
template <>
struct Form<SignedCode> : CodeForm<SignedCode> {};
template <>
struct Form<UnsignedCode> : CodeForm<UnsignedCode> {};

// A parameter of 16 bits with its residual, or with its master in float32.
template <class Param, class Companion>
struct Pair;

template <class Param, class Residual>
struct Form<Pair<Param, Residual>> {
  static constexpr int kResidualWord = int(sizeof(Param)) * kEight / 4;

  static FRICTION_INLINE void fetch(const Place& place, Raw& raw) {
    raw.fetch(place.list<Param>());
    raw.fetch(place.companions<Residual>(), kResidualWord);
  }
  static FRICTION_INLINE void widen_all(const Raw& raw, float (&x)[kEight]) {
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i)
      x[i] = join(raw.at<Param>(i), raw.at<Residual>(i, kResidualWord));
  }
  static FRICTION_INLINE void store(const float (&x)[kEight], const Place& place, Packing) {
    Param params[kEight];
    Residual residuals[kEight];
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) {
      params[i] = upper_part<Param, Residual>(x[i]);
      residuals[i] = residual_of<Residual>(x[i], params[i]);
    }
    Vector<Param, kEight>::store(params, place.list<Param>());
    Vector<Residual, kEight>::store(residuals, place.companions<Residual>());
  }
  static FRICTION_INLINE float read(const Place& place) {
    return join(read_one(place.list<Param>()), read_one(place.companions<Residual>()));
  }
  static FRICTION_INLINE void write(float x, const Place& place, Packing) {
    const Param param = upper_part<Param, Residual>(x);
    write_one(param, place.list<Param>());
    write_one(residual_of<Residual>(x, param), place.companions<Residual>());
  }
};

template <class Param>
struct Form<Pair<Param, float>> {
  static FRICTION_INLINE Place master(const Place& place) {
    return {place.companion, place.companion_at, nullptr, 0, 0};
  }
  // Joined at once: there are words for one of both.
  static FRICTION_INLINE void fetch(const Place& place, Raw& raw) {
    Raw params;
    params.fetch(place.list<Param>());
    Form<float>::fetch(master(place), raw);
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i)
      raw.words[i] = bits_of(join(params.at<Param>(i), float_of(raw.words[i])));
  }
  static FRICTION_INLINE void widen_all(const Raw& raw, float (&x)[kEight]) {
    Form<float>::widen_all(raw, x);
  }
  static FRICTION_INLINE void store(const float (&x)[kEight], const Place& place, Packing) {
    Form<float>::store(x, master(place), {});
    Form<Param>::store(x, place, {});
  }
  static FRICTION_INLINE float read(const Place& place) {
    return join(read_one(place.list<Param>()), Form<float>::read(master(place)));
  }
  static FRICTION_INLINE void write(float x, const Place& place, Packing) {
    Form<float>::write(x, master(place), {});
    Form<Param>::write(x, place, {});
  }
};

}  // namespace friction::cuda
