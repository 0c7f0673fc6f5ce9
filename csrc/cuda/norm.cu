#include "kernels.cuh"
#include "norm.h"

namespace friction::cuda {

__global__ void __launch_bounds__(kThreads, 5)
    squared_norm_kernel(const __grid_constant__ Launch<SingleOperand> launch) {
  __shared__ Scratch<double, kWarps> scratch;
  const int count = norm_sums(launch.chunks);
  for (int number = int(blockIdx.x); number < count; number += int(gridDim.x)) {
    const double sum = block_sum(share_of_sum(launch, number, int(threadIdx.x)), scratch.values());
    if (threadIdx.x == 0) launch.norm.sums[number] = sum;
    __syncthreads();  // scratch may be written again
  }
  if (!is_last_block(launch.blocks_done)) return;
  const double sum =
      block_sum(share_of_all(launch.norm.sums, count, int(threadIdx.x)), scratch.values());
  if (threadIdx.x == 0) *launch.norm.squared = sum;
}

void squared_norm(const Launch<SingleOperand>& launch, const Target& target) {
  launch_kernel("squared_norm", squared_norm_kernel, launch,
                launch.chunks > 0 ? norm_sums(launch.chunks) : 1, kThreads, over_tensors(launch),
                target);
}

}  // namespace friction::cuda
