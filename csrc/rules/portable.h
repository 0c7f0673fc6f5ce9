// Macros that let both g++ and nvcc compile a rule, and the two functions that rules need beyond
// arithmetic: 2^x and base^step.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define FRICTION_INLINE __host__ __device__ __forceinline__
#define FRICTION_UNROLL _Pragma("unroll")
#define FRICTION_NO_UNROLL _Pragma("unroll 1")
#else
// Always inlined: otherwise the linker could keep a copy built for AVX-512 for all callers.
#define FRICTION_INLINE inline __attribute__((always_inline))
#define FRICTION_UNROLL
#define FRICTION_NO_UNROLL
#endif

namespace friction {

// For clamped_exp2. Adding round_to_int = 1.5 * 2^mantissa leaves round(x) in the sum's low bits.
template <class T>
struct Exp2Constants;

template <>
struct Exp2Constants<float> {
  using Bits = uint32_t;
  static constexpr float round_to_int = 12582912.0f;
  static constexpr float lowest = -125.0f, highest = 127.0f;
  static constexpr int mantissa_bits = 23;
};

template <>
struct Exp2Constants<double> {
  using Bits = uint64_t;
  static constexpr double round_to_int = 6755399441055744.0;
  static constexpr double lowest = -1021.0, highest = 1023.0;
  static constexpr int mantissa_bits = 52;
};

// 2^f for |f| <= 1/2: minimax polynomials, relative error 1.9e-9 and 3.1e-18, exactly 1 at 0.
FRICTION_INLINE float exp2_fraction(float f) {
  float sum = 1.5345812161311629759e-4f;
  sum = sum * f + 1.3399931177239737967e-3f;
  sum = sum * f + 9.6184889563311816196e-3f;
  sum = sum * f + 5.550328777105324799e-2f;
  sum = sum * f + 2.4022646890645520696e-1f;
  sum = sum * f + 6.9314720573719575134e-1f;
  return sum * f + 1.0f;
}

FRICTION_INLINE double exp2_fraction(double f) {
  double sum = 4.4352827069572771511e-10;
  sum = sum * f + 7.0741056135081427963e-9;
  sum = sum * f + 1.0178198021671930844e-7;
  sum = sum * f + 1.321543308967639918e-6;
  sum = sum * f + 1.5252733489988525649e-5;
  sum = sum * f + 1.5403530462514432062e-4;
  sum = sum * f + 1.3333558146789921722e-3;
  sum = sum * f + 9.6181291075883352443e-3;
  sum = sum * f + 5.5504108664819921605e-2;
  sum = sum * f + 2.4022650695910156204e-1;
  sum = sum * f + 6.9314718055994533046e-1;
  return sum * f + 1.0;
}

// 2^x, clamped to the finite normal range; x must not be NaN. Uses only additions, multiplications
// and integer operations, so that every instruction set gives the same bits.
template <class T>
FRICTION_INLINE T clamped_exp2(T x) {
  using C = Exp2Constants<T>;
  x = C::lowest > x ? C::lowest : x;
  x = C::highest < x ? C::highest : x;
  const T shifted = x + C::round_to_int;
  T power = exp2_fraction(x - (shifted - C::round_to_int));
  typename C::Bits scale, bits;
  std::memcpy(&scale, &shifted, sizeof scale);
  std::memcpy(&bits, &power, sizeof bits);
  bits += scale << C::mantissa_bits;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

constexpr double kMostSteps = 9007199254740992.0;  // 2^53, the limit of counting in a double

FRICTION_INLINE bool is_step_count(double count) {
  return count >= 0 && count <= kMostSteps && count == std::floor(count);
}

// A step count as an integer. A GPU's counter may hold anything: NaN and negative numbers give 0.
FRICTION_INLINE uint64_t whole_steps(double count) {
  if (!(count >= 0)) return 0;
  return static_cast<uint64_t>(count < kMostSteps ? count : kMostSteps);
}

// base^step by repeated squaring. Using only multiplications gives the same bits on CPU and GPU,
// which a library's pow does not guarantee. NaN if the exponent is negative or NaN.
FRICTION_INLINE double integer_power(double base, double exponent) {
  if (!(exponent >= 0)) return NAN;
  double result = 1;
  for (uint64_t bits = whole_steps(exponent); bits != 0; bits >>= 1) {
    if (bits & 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace friction
