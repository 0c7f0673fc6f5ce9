// The kernels: how blocks process a launch. What a thread does is in update.h and projection.h.
#pragma once

#include "projection.h"
#include "runtime.h"

namespace friction::cuda {

// Blocks per multiprocessor: a projection's kernels would spill in the 80 registers that three
// leave.
template <class Rule, class Config>
constexpr int kBlocksEach = Rule::kProjects ? 2 : Config::kBlocksEach;

// Shared memory for types with constructors, which are not allowed there.
template <class Value, int kCount>
struct Scratch {
  alignas(16) unsigned char bytes[sizeof(Value) * kCount];
  __device__ Value* values() { return reinterpret_cast<Value*>(bytes); }
};

// Resolves a group's settings, one per thread. Thread 0 then computes the gradients' factor from
// all of them. Every thread of the block must participate.
template <class Launch>
__device__ void resolve(const Launch& launch, int64_t tensor,
                        typename Launch::Rule::Settings& settings) {
  const auto& group_step = launch.group_step(tensor);
  if (threadIdx.x < group_step.kSettings)
    reinterpret_cast<double*>(&settings)[threadIdx.x] = group_step.resolve(int(threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) settings = scaled(launch, settings);
  __syncthreads();
}

// The values that the threads of a block share, recomputed when the group or the step changes.
template <class Launch, class T>
class BlockShared {
 public:
  using Rule = typename Launch::Rule;
  struct Memory {
    typename Rule::Settings settings;
    Shared<Rule, T> shared;
  };

  __device__ explicit BlockShared(Memory& memory) : memory_(memory) {}

  __device__ const Shared<Rule, T>& of(const Launch& launch, int64_t tensor) {
    if (tensor == tensor_) return memory_.shared;
    tensor_ = tensor;
    const int group_step = launch.entries()[tensor].group_step;
    const double step = step_of(launch, tensor);
    if (group_step == group_step_ && step == step_) return memory_.shared;
    group_step_ = group_step;
    step_ = step;
    __syncthreads();  // no thread reads the previous one any more
    resolve(launch, tensor, memory_.settings);
    if (threadIdx.x == 0)
      memory_.shared = Shared<Rule, T>(memory_.settings, step, launch.group_step(tensor).types);
    __syncthreads();
    return memory_.shared;
  }

 private:
  Memory& memory_;
  int64_t tensor_ = -1;
  int group_step_ = -1;
  double step_ = -1;
};

// Whether all other blocks of the launch have already arrived here, so that what they wrote is
// visible and what they read may be changed. Every thread of the block must participate.
__device__ inline bool is_last_block(uint32_t* blocks_done) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(blocks_done, 1u) == gridDim.x - 1;
    if (last) *blocks_done = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

template <class Launch>
__device__ void count_steps(const Launch& launch) {
  if (!is_last_block(launch.blocks_done)) return;
  for (int64_t tensor = threadIdx.x; tensor < launch.count; tensor += kThreads)
    if (float* step = launch.extras[tensor].step) *global(step) += 1;
}

// update_part for dynamic dtypes.
template <class Config, class Launch>
__device__ __forceinline__ void update_dynamic(const Launch& launch, const PartOf<Launch>& part,
                                               const Shared<typename Launch::Rule, float>& shared) {
  DynamicUpdate<Config, Launch> mine(launch, part, int(threadIdx.x), shared);
  const auto find_largest = [&] {
    if (!mine.quantizes()) return;
    FRICTION_UNROLL
    for (uint32_t& largest : mine.largest) largest = warp_largest(largest);
  };
  if (mine.by_vectors()) {
    mine.compute();
    find_largest();
    mine.store();
  } else {
    FRICTION_NO_UNROLL
    for (int phase = mine.quantizes() ? 0 : 1; phase < 2; ++phase) {
      mine.one_by_one(phase == 1);
      if (phase == 0) find_largest();
    }
  }
  __syncwarp();
  mine.write_scales();
}

template <class Launch, class Config>
__global__ void __launch_bounds__(kThreads, kBlocksEach<typename Launch::Rule, Config>)
    update_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  constexpr bool kKeeps = kept_gradient<typename Launch::Rule>() > 0;
  BlockShared<Launch, T> shared(memory);
  Walk<Launch> walk(launch);
  if (launch.scaling.skip()) {
    if constexpr (kKeeps)
      for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x)
        keep_previous(launch, walk.part_of(chunk), int(threadIdx.x));
    return;
  }
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const auto& part = walk.part_of(chunk);
    const auto& scalars = shared.of(launch, part.tensor);
    if constexpr (kKeeps) walk.place_kept(scalars.scalars.grad_scale != 1);
    if constexpr (Config::kLookedUp)
      update_dynamic<Config>(launch, part, scalars);
    else
      update_part<Config>(launch, part, int(threadIdx.x), scalars);
  }
  if (launch.blocks_done != nullptr) count_steps(launch);
}

// Computes the moments of each chunk's statistic at the step that an update would make.
template <class Launch, class Config>
__global__ void __launch_bounds__(kThreads, Config::kBlocksEach)
    statistic_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  __shared__ Scratch<Moments, kWarps> scratch;
  BlockShared<Launch, T> shared(memory);
  Walk<Launch> walk(launch);
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const auto& part = walk.part_of(chunk);
    const Moments mine =
        statistic_of_part<Config>(launch, part, int(threadIdx.x), shared.of(launch, part.tensor));
    const Moments moments = block_sum(mine, scratch.values());
    if (threadIdx.x == 0) launch.statistics[chunk] = moments;
    __syncthreads();  // scratch may be written again
  }
}

// First launch of a projection: the sums of each row and stage. No warp waits for another.
template <class Launch, class Config>
__global__ void __launch_bounds__(kThreads, kBlocksEach<typename Launch::Rule, Config>)
    projection_reduce_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  __shared__ Stage<T> stages[kWarps];
  if (launch.scaling.skip()) return;
  BlockShared<Launch, T> shared(memory);
  Walk<Launch> walk(launch);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  Stage<T>& stage = stages[warp];
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const auto& whole = walk.part_of(chunk);
    const Extra& extra = launch.extras[whole.tensor];
    if (extra.rows == 0) continue;
    const auto& scalars = shared.of(launch, whole.tensor);
    for (int staged = warp * Stage<T>::kSize; staged < whole.count;
         staged += kWarps * Stage<T>::kSize) {
      const auto part = stage_of<T>(whole, staged);
      const Rows rows(extra.row_length, part.begin, part.begin + part.count);
      ProjectionSums* sums =
          launch.projection.sums +
          sums_slot<T>(extra, launch.entries()[part.tensor].first_chunk, rows.first, part.begin);
      if (kLeavesRegisters<Config> && rows.count == 1) {
        ProjectionSums mine;
        const bool finite = sum_one_row<Config>(launch, part, lane, scalars, mine);
        if (__all_sync(0xffffffffu, finite)) {
          store_warp_sum(mine, sums);
          continue;
        }
      }
      __syncwarp();  // the previous stage has been summed
      stage_directions<Config>(launch, part, lane, scalars, stage);
      __syncwarp();
      if (rows.shared_by_lanes()) {
        for (int row = 0; row < rows.count; ++row)
          store_warp_sum(member_sums(stage, rows.begin_of(row), rows.end_of(row), lane, kWarp),
                         sums + row);
      } else {
        for (int row = lane; row < rows.count; row += kWarp)
          sums[row] = member_sums(stage, rows.begin_of(row), rows.end_of(row), 0, 1);
      }
    }
  }
}

// Second launch of a projection: blocks decide for groups of rows, the last block for tensors.
template <class Launch, class T>
__global__ void __launch_bounds__(kDecideThreads)
    projection_decide_kernel(const __grid_constant__ Launch launch) {
  __shared__ Scratch<ProjectionSums, kDecideThreads / kWarp> scratch;
  __shared__ typename Launch::Rule::Settings settings;
  if (launch.scaling.skip()) return;
  for (int64_t item = blockIdx.x; item < launch.count * kRowGroups; item += gridDim.x) {
    const int64_t tensor = item % launch.count;
    const int number = int(item / launch.count);
    const Extra& extra = launch.extras[tensor];
    if (number >= RowGroup::count(extra.rows)) continue;
    const RowGroup group(extra.rows, number);
    resolve(launch, tensor, settings);
    const int lanes = lanes_of_row<T>(extra);
    bool pass = true;
    ProjectionSums mine;
    for (int64_t row = group.begin + int(threadIdx.x) / lanes; row < group.end;
         row += kDecideThreads / lanes) {
      ProjectionSums sums = share_of_row<T>(launch, tensor, row, int(threadIdx.x) % lanes, lanes);
      if (lanes > 1) sums = warp_sum(sums);
      if (int(threadIdx.x) % lanes != 0) continue;
      sums = of_scaled(sums, settings.grad_factor);
      pass = row_passes(sums, double(extra.row_length), settings,
                        launch.projection.coefficients[extra.first_row + row]) &&
             pass;
      mine += sums;
    }
    pass = __syncthreads_and(pass);
    mine = block_sum<kDecideThreads>(mine, scratch.values());
    if (threadIdx.x == 0) launch.projection.groups[tensor * kRowGroups + number] = {mine, pass};
    __syncthreads();  // shared memory may be written again
  }
  if (!is_last_block(launch.projection.blocks_done)) return;
  for (int64_t tensor = threadIdx.x; tensor < launch.count; tensor += kDecideThreads)
    decide(launch, tensor);
}

// The number of items of an update; at least one if steps are to be counted.
template <class Launch>
int64_t items_of(const Launch& launch) {
  return launch.chunks == 0 && launch.blocks_done != nullptr ? 1 : launch.chunks;
}

template <class Launch>
std::string over_tensors(const Launch& launch) {
  return " over " + std::to_string(launch.count) + " tensors";
}

// Calls f with the configuration's type.
template <class F>
void with_kernels_for(DtypeConfig config, F&& f) {
  switch (config) {
    case DtypeConfig::kFloat32: return f(Float32Config());
    case DtypeConfig::kBFloat16: return f(BFloat16Config());
    case DtypeConfig::kMixed: return f(MixedConfig());
    case DtypeConfig::kQuantized: return f(QuantizedConfig());
    case DtypeConfig::kFloat64: return f(Float64Config());
  }
}

}  // namespace friction::cuda
