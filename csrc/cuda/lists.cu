#include "kernels.cuh"
#include "lists.h"

namespace friction::cuda {
namespace {

// Sums of the threads' products: thread `pair` returns that pair's. Every thread must participate.
// The scratch may be reused after the next barrier.
template <int kMost>
__device__ __forceinline__ double block_sums(const double (&sums)[kPairs<kMost>],
                                             double (&scratch)[kPairs<kMost>][kWarps]) {
  FRICTION_UNROLL
  for (int pair = 0; pair < kPairs<kMost>; ++pair) {
    const double of_warp = warp_sum(sums[pair]);
    if (threadIdx.x % kWarp == 0) scratch[pair][threadIdx.x / kWarp] = of_warp;
  }
  __syncthreads();
  return threadIdx.x < kPairs<kMost> ? halving_sum(scratch[threadIdx.x], kWarps) : 0;
}

}  // namespace

// Blocks per multiprocessor, whose loads under way fill its share of memory's latency.
template <int kMost>
constexpr int kGramBlocks = kMost > 4   ? 1
                            : kMost > 2 ? 2
                                        : 3;

template <int kMost>
__global__ void __launch_bounds__(kThreads, kGramBlocks<kMost>)
    gram_kernel(const __grid_constant__ ListLaunch launch) {
  __shared__ double scratch[kPairs<kMost>][kWarps];
  Walk<ListLaunch> walk(launch);
  const int thread = int(threadIdx.x), pairs = pairs_of(launch.lists.count);
  const int64_t runs = runs_of(launch);
  for (int64_t run = blockIdx.x; run < runs; run += gridDim.x) {
    double sums[kPairs<kMost>] = {};
    add_run<kMost>(launch, walk, run, thread, sums);
    const double sum = block_sums<kMost>(sums, scratch);
    if (thread < pairs) launch.lists.of_run[thread * runs + run] = sum;
    __syncthreads();  // scratch may be written again
  }
  if (!is_last_block(launch.blocks_done)) return;
  if (launch.lists.segments == 1) {
    double sums[kPairs<kMost>] = {};
    FRICTION_UNROLL
    for (int pair = 0; pair < kPairs<kMost>; ++pair)
      if (pair < pairs) sums[pair] = share_of_runs(launch, 0, pair, thread, kThreads);
    const double sum = block_sums<kMost>(sums, scratch);
    if (thread < pairs) store_product(launch, 0, thread, sum);
    return;
  }
  for (int64_t segment = thread / kWarp; segment < launch.lists.segments; segment += kWarps)
    for (int pair = 0; pair < pairs; ++pair) {
      const double sum = warp_sum(share_of_runs(launch, segment, pair, thread % kWarp, kWarp));
      if (thread % kWarp == 0) store_product(launch, segment, pair, sum);
    }
}

__global__ void __launch_bounds__(kThreads, 2)
    combine_kernel(const __grid_constant__ ListLaunch launch) {
  Walk<ListLaunch> walk(launch);
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x)
    combine_part(launch, walk.part_of(chunk), int(threadIdx.x));
}

void gram(const ListLaunch& launch, const Target& target) {
  const auto launch_for = [&](auto most) {
    launch_kernel(gram_name(launch.lists.count), gram_kernel<decltype(most)::value>, launch,
                  launch.chunks > 0 ? runs_of(launch) : 1, kThreads, over_tensors(launch), target);
  };
  with_most_lists(launch.lists.count, launch_for);
}

void combine(const ListLaunch& launch, const Target& target) {
  launch_kernel("combine", combine_kernel, launch, launch.chunks, kThreads, over_tensors(launch),
                target);
}

}  // namespace friction::cuda
