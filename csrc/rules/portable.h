// What lets a rule be compiled by g++ and nvcc alike, and the one transcendental function rules need.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define FRICTION_INLINE __host__ __device__ __forceinline__
#else
// Always inlined: an out-of-line copy built for AVX-512 could be the one the linker keeps for all.
#define FRICTION_INLINE inline __attribute__((always_inline))
#endif

namespace friction {

template <class T>
struct ExpConstants;

// round_to_int: adding 1.5 * 2^mantissa leaves round(x) in the low bits of the sum.
// ln2_high has so few bits that n * ln2_high is exact for every n that occurs.
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr float round_to_int = 12582912.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -86.0f, highest = 88.0f;
  static constexpr int mantissa_bits = 23, degree = 7;
};

template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr double round_to_int = 6755399441055744.0;
  static constexpr double ln2_high = 0.693145751953125, ln2_low = 1.42860682030941723212e-6;
  static constexpr double lowest = -707.0, highest = 709.0;
  static constexpr int mantissa_bits = 52, degree = 13;
};

// exp(x), clamped to the finite normal range; a NaN stays a NaN.
// Only additions and multiplications, so that every instruction set gives the same bits.
template <class T>
FRICTION_INLINE T clamped_exp(T x) {
  using C = ExpConstants<T>;
  constexpr T log2_e = T(1.44269504088896340736);
  constexpr T inverse[] = {T(1),      T(1),      T(1.0 / 2), T(1.0 / 3),  T(1.0 / 4),
                           T(1.0 / 5), T(1.0 / 6), T(1.0 / 7), T(1.0 / 8),  T(1.0 / 9),
                           T(1.0 / 10), T(1.0 / 11), T(1.0 / 12), T(1.0 / 13)};
  x = x < C::lowest ? C::lowest : x;
  x = x > C::highest ? C::highest : x;
  const T shifted = x * log2_e + C::round_to_int;
  const T n = shifted - C::round_to_int;
  const T r = (x - n * C::ln2_high) - n * C::ln2_low;
  // Taylor series on |r| <= ln(2)/2, nested: 1 + r/1 (1 + r/2 (1 + r/3 (...)))
  T sum = T(1);
#pragma GCC unroll 16
  for (int k = C::degree; k > 0; --k) sum = T(1) + (r * inverse[k]) * sum;
  typename C::Bits scale, bits;
  std::memcpy(&scale, &shifted, sizeof scale);
  std::memcpy(&bits, &sum, sizeof bits);
  bits += static_cast<typename C::Bits>(
      static_cast<typename std::make_unsigned<typename C::Bits>::type>(scale) << C::mantissa_bits);
  std::memcpy(&sum, &bits, sizeof sum);
  return sum;
}

// sigma(x) = 1 / (1 + exp(-x)), with small relative error also where it nears 0.
template <class T>
FRICTION_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + clamped_exp(-x));
}

}  // namespace friction
