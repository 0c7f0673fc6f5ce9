// Sums over threads in a fixed order, so that the same inputs give the same bits. The host
// functions add in the same order as the device, for tests.
//
// Each thread of a team (a thread, a warp or a block) adds its own numbers in order. The threads'
// sums are added in a tree: value i += value i + half, for half = team / 2, ..., 1 within a warp,
// then likewise across the warps.
#pragma once

#include "launch.h"

namespace friction::cuda {

constexpr int kWarps = kThreads / kWarp;

// Adds `count` values, a power of two, in a tree.
template <class Sums>
FRICTION_INLINE Sums halving_sum(Sums* values, int count) {
  for (int half = count / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

// Sums as the device does: within warps first, then across them.
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

// Returns the whole sum in the first lane. Every lane of the warp must participate.
template <class Sums>
__device__ __forceinline__ Sums warp_sum(Sums value) {
  FRICTION_UNROLL
  for (int half = kWarp / 2; half > 0; half /= 2) value += from_lane(value, half);
  return value;
}

// Stores the whole sums. Each lane adds only what it passes on: with every exchange, half of the
// sums move to the other half of the lanes. The tree is that of warp_sum.
__device__ __forceinline__ void store_warp_sum(const ProjectionSums& mine, ProjectionSums* sums) {
  static_assert(sizeof(ProjectionSums) == 4 * sizeof(double));
  const int lane = int(threadIdx.x) % kWarp;
  const auto exchanged = [](double kept, double passed, int distance) {
    return kept + __shfl_xor_sync(0xffffffffu, passed, distance);
  };
  const bool later = lane & 16;  // these lanes take the last two sums
  const double first = exchanged(later ? mine.grad_grad : mine.param_grad,
                                 later ? mine.param_grad : mine.grad_grad, 16);
  const double second = exchanged(later ? mine.param_direction : mine.param_param,
                                  later ? mine.param_param : mine.param_direction, 16);
  const bool latter = lane & 8;  // and these the second of two
  double sum = exchanged(latter ? second : first, latter ? first : second, 8);
  FRICTION_UNROLL
  for (int half = 4; half > 0; half /= 2) sum += shuffle_down(sum, half);
  // Lanes 0, 8, 16, 24 hold param_grad, param_param, grad_grad, param_direction.
  if (lane % 8 == 0) reinterpret_cast<double*>(sums)[lane / 8] = sum;
}

// Returns the largest of a warp's values, in all lanes. Every lane must participate.
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

// Returns the whole sum in thread 0. Every thread of the block must participate. `scratch` is
// shared memory [kSize / kWarp], which may be reused after the next barrier.
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
