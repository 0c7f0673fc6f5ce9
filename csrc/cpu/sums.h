// Sums with the same bits for every instruction set. Included only by what is compiled for each.
#pragma once

#include <cmath>

#include "../rules/portable.h"

namespace friction {
namespace {

constexpr int kLanes = 16;  // parallel partial sums: one AVX-512 register of floats

// Adds kLanes partial sums in a tree.
template <class T>
FRICTION_INLINE double tree_sum(const T (&lanes)[kLanes]) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// The sum of f(i) for i in [0, count), in kLanes interleaved partial sums.
template <class T, class F>
FRICTION_INLINE double lane_sum(int64_t count, F&& f) {
  if (count <= kLanes) {  // a short row: the tree would cost more than the sum
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += f(i);
    return sum;
  }
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += f(i + lane);
  for (int lane = 0; i + lane < count; ++lane) lanes[lane] += f(i + lane);
  return tree_sum(lanes);
}

// The sum of a[i] * b[i] in double.
template <class T>
[[gnu::noinline]] double wide_dot(const T* a, const T* b, int64_t count) {
  return lane_sum<double>(count, [&](int64_t i) { return double(a[i]) * double(b[i]); });
}

// The same in T, or in double if the sum is not finite in T.
template <class T>
FRICTION_INLINE double dot(const T* a, const T* b, int64_t count) {
  const double sum = lane_sum<T>(count, [&](int64_t i) { return a[i] * b[i]; });
  return std::isfinite(sum) ? sum : wide_dot(a, b, count);
}

}  // namespace
}  // namespace friction
