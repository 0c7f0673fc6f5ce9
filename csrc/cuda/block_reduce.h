// Sums over threads in a fixed order, so that the same inputs give the same bits. On the device
// values travel between threads; the host functions add in the same order, for the tests.
//
// A team of 1, kWarp or kThreads threads sums a row: its threads take elements in turn, each adds
// its own in order, and the threads' sums meet in a tree: value i takes value i + half, for half =
// team / 2, ..., 1 within a warp, then in the same way over the warps.
#pragma once

#include "launch.h"

namespace friction::cuda {

constexpr int kWarps = kThreads / kWarp;

// The tree over `count` values, a power of two.
template <class Sums>
FRICTION_INLINE Sums halving_sum(Sums* values, int count) {
  for (int half = count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

// As the device does it: within warps first, then over them.
template <class Sums>
inline Sums team_sum_on_host(Sums* values, int team) {
  if (team <= kWarp) return halving_sum(values, team);
  for (int warp = 0; warp < team / kWarp; ++warp)
    values[warp] = halving_sum(values + warp * kWarp, kWarp);
  return halving_sum(values, team / kWarp);
}

#if defined(__CUDACC__)

__device__ __forceinline__ double shuffle_down(double value, int distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}

__device__ __forceinline__ double from_lane(double value, int distance) {
  return shuffle_down(value, distance);
}

__device__ __forceinline__ ProjectionSums from_lane(const ProjectionSums& sums, int distance) {
  ProjectionSums other;
  other.param_grad = shuffle_down(sums.param_grad, distance);
  other.param_param = shuffle_down(sums.param_param, distance);
  other.grad_grad = shuffle_down(sums.grad_grad, distance);
  other.param_direction = shuffle_down(sums.param_direction, distance);
  return other;
}

__device__ __forceinline__ Moments from_lane(const Moments& moments, int distance) {
  return {shuffle_down(moments.sum, distance), shuffle_down(moments.square_sum, distance)};
}

// The whole sum in the first lane. Every lane of the warp must take part.
template <class Sums>
__device__ __forceinline__ Sums warp_sum(Sums value) {
  FRICTION_UNROLL
  for (int half = kWarp / 2; half > 0; half /= 2) value += from_lane(value, half);
  return value;
}

// The largest of a warp's values, in all lanes. Every lane must take part.
__device__ __forceinline__ uint32_t warp_largest(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, value);
#else
  FRICTION_UNROLL
  for (int half = kWarp / 2; half > 0; half /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, value, half);
    value = other > value ? other : value;
  }
  return value;
#endif
}

// The whole sum in thread 0. Every thread of the block must take part; `scratch` is shared memory,
// [kSize / kWarp], free to be written again after the next barrier.
template <int kSize = kThreads, class Sums>
__device__ __forceinline__ Sums block_sum(Sums value, Sums* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) value = halving_sum(scratch, kSize / kWarp);
  return value;
}

#endif

}  // namespace friction::cuda
