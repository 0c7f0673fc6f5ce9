#include "kernels.cuh"
#include "norm.h"

namespace friction::cuda {

__global__ void __launch_bounds__(kThreads)
    squared_norm_kernel(const __grid_constant__ Launch<SingleOperand> launch) {
  __shared__ Scratch<double, kWarps> scratch;
  Walk<Launch<SingleOperand>> walk(launch);
  const int64_t runs = norm_runs(launch.chunks);
  for (int64_t run = blockIdx.x; run < runs; run += gridDim.x) {
    const double sum =
        block_sum(squares_of_run(launch, walk, run, int(threadIdx.x)), scratch.values());
    if (threadIdx.x == 0) launch.norm.of_run[run] = sum;
    __syncthreads();  // scratch may be written again
  }
  if (!is_last_block(launch.blocks_done)) return;
  const double sum =
      block_sum(share_of_runs(launch.norm.of_run, runs, int(threadIdx.x)), scratch.values());
  if (threadIdx.x == 0) *launch.norm.squared = sum;
}

void squared_norm(const Launch<SingleOperand>& launch, const Target& target) {
  launch_kernel("squared_norm", squared_norm_kernel, launch,
                launch.chunks > 0 ? norm_runs(launch.chunks) : 1, kThreads, over_tensors(launch),
                target);
}

}  // namespace friction::cuda
