// The kernels: how blocks process a launch. What a thread does is in update.h and projection.h.
#pragma once

#include "projection.h"
#include "runtime.h"

namespace friction::cuda {

// Two blocks per multiprocessor leave a thread 128 registers, enough for elements of five operands.
constexpr int kBlocksEach = 2;
constexpr int kDecideThreads = 1024;

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
__device__ __forceinline__ void update_dynamic(const Launch& launch, const Part& part,
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
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    update_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  if (launch.scaling.skip()) return;
  BlockShared<Launch, T> shared(memory);
  int64_t tensor = 0;
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const Part part = part_of(launch, chunk, tensor);
    tensor = part.tensor;
    const auto& scalars = shared.of(launch, tensor);
    if constexpr (Config::kLookedUp)
      update_dynamic<Config>(launch, part, scalars);
    else
      update_part<Config>(launch, part, int(threadIdx.x), scalars);
  }
  if (launch.blocks_done != nullptr) count_steps(launch);
}

// Computes the moments of each chunk's statistic at the step that an update would make.
template <class Launch, class Config>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    statistic_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  __shared__ Scratch<Moments, kWarps> scratch;
  BlockShared<Launch, T> shared(memory);
  int64_t tensor = 0;
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const Part part = part_of(launch, chunk, tensor);
    tensor = part.tensor;
    const Moments mine =
        statistic_of_part<Config>(launch, part, int(threadIdx.x), shared.of(launch, tensor));
    const Moments moments = block_sum(mine, scratch.values());
    if (threadIdx.x == 0) launch.statistics[chunk] = moments;
    __syncthreads();  // scratch may be written again
  }
}

// First launch of a projection: the sums of each row and stage.
template <class Launch, class Config>
__global__ void __launch_bounds__(kThreads, kBlocksEach)
    projection_reduce_kernel(const __grid_constant__ Launch launch) {
  using T = typename Config::Arithmetic;
  __shared__ typename BlockShared<Launch, T>::Memory memory;
  __shared__ Stage<T> stage;
  __shared__ Scratch<ProjectionSums, kWarps> scratch;
  if (launch.scaling.skip()) return;
  BlockShared<Launch, T> shared(memory);
  int64_t tensor = 0;
  for (int64_t chunk = blockIdx.x; chunk < launch.chunks; chunk += gridDim.x) {
    const Part whole = part_of(launch, chunk, tensor);
    tensor = whole.tensor;
    const Extra& extra = launch.extras[tensor];
    if (extra.rows == 0) continue;
    const auto& scalars = shared.of(launch, tensor);
    for (int staged = 0; staged < whole.count; staged += Stage<T>::kSize) {
      const int rest = whole.count - staged;
      const Part part{tensor, whole.begin + staged, rest < Stage<T>::kSize ? rest : Stage<T>::kSize,
                      whole.numel};
      __syncthreads();  // the previous stage has been summed
      stage_directions<Config>(launch, part, int(threadIdx.x), scalars, stage);
      __syncthreads();
      const Rows rows(extra.row_length, part.begin, part.begin + part.count);
      const int team = rows.team(), member = int(threadIdx.x) % team;
      for (int row = int(threadIdx.x) / team; row < rows.count; row += kThreads / team) {
        ProjectionSums sums =
            member_sums(stage, rows.begin_of(row), rows.end_of(row), member, team);
        if (team == kWarp) sums = warp_sum(sums);
        if (team == kThreads) {  // all threads share each row
          sums = block_sum(sums, scratch.values());
          __syncthreads();
        }
        if (member == 0)
          launch.projection.sums[sums_slot<T>(extra, launch.entries()[tensor].first_chunk,
                                              rows.first + row, part.begin)] = sums;
      }
    }
  }
}

// Second launch of a projection: a block decides for a tensor.
template <class Launch, class T>
__global__ void __launch_bounds__(kDecideThreads)
    projection_decide_kernel(const __grid_constant__ Launch launch) {
  __shared__ Scratch<ProjectionSums, kDecideThreads / kWarp> scratch;
  __shared__ typename Launch::Rule::Settings settings;
  __shared__ double whole_coefficient;
  __shared__ bool whole_passes;
  if (launch.scaling.skip()) return;
  for (int64_t tensor = blockIdx.x; tensor < launch.count; tensor += gridDim.x) {
    const Extra& extra = launch.extras[tensor];
    resolve(launch, tensor, settings);
    const int64_t first_chunk = launch.entries()[tensor].first_chunk;
    // A member is a thread, or a warp if a row has many slots.
    const int lanes = rows_are_long<T>(extra) ? kWarp : 1;
    const int lane = int(threadIdx.x) % lanes, members = kDecideThreads / lanes;
    bool pass = true;
    ProjectionSums mine;
    for (int64_t row = int(threadIdx.x) / lanes; row < extra.rows; row += members) {
      const Slots<T> slots(extra, first_chunk, row);
      ProjectionSums sums =
          slot_sums(launch.projection.sums, slots.first, slots.count, lane, lanes);
      if (lanes > 1) sums = warp_sum(sums);
      if (lane != 0) continue;
      sums = of_scaled(sums, settings.grad_factor);
      pass = row_passes(sums, double(extra.row_length), settings.delta, settings.eps,
                        launch.projection.coefficients[extra.first_row + row]) &&
             pass;
      mine += sums;
    }
    const bool rows_pass = __syncthreads_and(pass) && extra.rows > 0;
    if (!rows_pass && extra.rows > 0) {
      const ProjectionSums whole = block_sum<kDecideThreads>(mine, scratch.values());
      if (threadIdx.x == 0)
        whole_passes = row_passes(whole, double(extra.rows) * double(extra.row_length),
                                  settings.delta, settings.eps, whole_coefficient);
      __syncthreads();
      if (whole_passes)
        for (int64_t row = threadIdx.x; row < extra.rows; row += kDecideThreads)
          launch.projection.coefficients[extra.first_row + row] = whole_coefficient;
    }
    if (threadIdx.x == 0)
      launch.projection.projected[tensor] = rows_pass || (extra.rows > 0 && whole_passes);
    __syncthreads();  // shared memory may be written again
  }
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
