#include "kernels.cuh"
#include "norm.h"

namespace friction::cuda {

__global__ void __launch_bounds__(kThreads)
    squared_norm_kernel(const __grid_constant__ Launch<SingleOperand> launch) {
  __shared__ Scratch<double, kWarps> scratch;
  int64_t tensor = 0;
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const Part part = part_of(launch, chunk, tensor);
    tensor = part.tensor;
    const double sum = block_sum(squares_of_part(launch, part, int(threadIdx.x)), scratch.values());
    if (threadIdx.x == 0) launch.norm.of_chunk[chunk] = sum;
    __syncthreads();  // scratch may be written again
  }
  if (!is_last_block(launch.blocks_done)) return;
  const double sum = block_sum(
      share_of_chunks(launch.norm.of_chunk, launch.chunks, int(threadIdx.x)), scratch.values());
  if (threadIdx.x == 0) *launch.norm.squared = sum;
}

void squared_norm(const Launch<SingleOperand>& launch, const Target& target) {
  launch_kernel("squared_norm", squared_norm_kernel, launch, launch.chunks > 0 ? launch.chunks : 1,
                kThreads, over_tensors(launch), target);
}

}  // namespace friction::cuda
