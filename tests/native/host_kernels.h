// Runs CUDA launches on the host, block by block and thread by thread, with the kernels' functions.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../../csrc/cuda/norm.h"
#include "../../csrc/cuda/projection.h"

namespace friction::cuda {

template <class Rule>
typename Rule::Settings settings_of(const Launch<Rule>& launch, int64_t tensor) {
  typename Rule::Settings settings;
  for (int i = 0; i < GroupStep<Rule>::kSettings; ++i)
    reinterpret_cast<double*>(&settings)[i] = launch.group_step(tensor).resolve(i);
  return scaled(launch, settings);
}

template <class Rule, class T>
Shared<Rule, T> shared_of(const Launch<Rule>& launch, int64_t tensor) {
  return {settings_of(launch, tensor), step_of(launch, tensor), launch.group_step(tensor).types};
}

template <class Visit, class Rule>
void for_each_part(const Launch<Rule>& launch, int64_t blocks, Visit&& visit) {
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t tensor = 0;
    for (int64_t chunk = block; chunk < launch.chunks; chunk += blocks) {
      const Part part = part_of(launch, chunk, tensor);
      tensor = part.tensor;
      visit(block, chunk, part);
    }
  }
}

// Runs the phases of a part's threads, warp by warp.
template <class Config, class Rule>
void update_dynamic(const Launch<Rule>& launch, const Part& part,
                    const Shared<Rule, float>& shared) {
  using Update = DynamicUpdate<Config, Launch<Rule>>;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    std::vector<Update> lanes;
    for (int lane = 0; lane < kWarp; ++lane)
      lanes.emplace_back(launch, part, warp * kWarp + lane, shared);
    const bool by_vectors = lanes[0].by_vectors();
    for (Update& lane : lanes)
      if (by_vectors)
        lane.compute();
      else if (lane.quantizes())
        lane.one_by_one(false);
    for (int operand = 0; operand < Rule::kOperands; ++operand) {
      uint32_t largest = 0;
      for (const Update& lane : lanes) largest = std::max(largest, lane.largest[operand]);
      for (Update& lane : lanes) lane.largest[operand] = largest;
    }
    for (Update& lane : lanes)
      if (by_vectors)
        lane.store();
      else
        lane.one_by_one(true);
    for (Update& lane : lanes) lane.write_scales();
  }
}

template <class Config, class Rule>
void update_all(const Launch<Rule>& launch, int64_t blocks) {
  using T = typename Config::Arithmetic;
  if (launch.scaling.skip()) return;
  for_each_part(launch, blocks, [&](int64_t, int64_t, const Part& part) {
    const auto shared = shared_of<Rule, T>(launch, part.tensor);
    if constexpr (Config::kLookedUp)
      update_dynamic<Config>(launch, part, shared);
    else
      for (int thread = 0; thread < kThreads; ++thread)
        update_part<Config>(launch, part, thread, shared);
  });
  if (launch.blocks_done == nullptr) return;
  for (int64_t tensor = 0; tensor < launch.count; ++tensor)
    if (float* step = launch.extras[tensor].step) *step += 1;
}

template <class Config, class Rule>
void statistic_all(const Launch<Rule>& launch, int64_t blocks) {
  using T = typename Config::Arithmetic;
  for_each_part(launch, blocks, [&](int64_t, int64_t chunk, const Part& part) {
    const auto shared = shared_of<Rule, T>(launch, part.tensor);
    std::vector<Moments> moments;
    for (int thread = 0; thread < kThreads; ++thread)
      moments.push_back(statistic_of_part<Config>(launch, part, thread, shared));
    launch.statistics[chunk] = team_sum_on_host(moments.data(), kThreads);
  });
}

template <class T, class Config, class Rule>
void reduce_all(const Launch<Rule>& launch, int64_t blocks) {
  for_each_part(launch, blocks, [&](int64_t, int64_t, const Part& whole) {
    const Extra& extra = launch.extras[whole.tensor];
    if (extra.rows == 0) return;
    const auto shared = shared_of<Rule, T>(launch, whole.tensor);
    auto stage = std::make_unique<Stage<T>>();
    for (int staged = 0; staged < whole.count; staged += Stage<T>::kSize) {
      const int rest = whole.count - staged;
      const Part part{whole.tensor, whole.begin + staged,
                      rest < Stage<T>::kSize ? rest : Stage<T>::kSize, whole.numel};
      for (int thread = 0; thread < kThreads; ++thread)
        stage_directions<Config>(launch, part, thread, shared, *stage);
      const Rows rows(extra.row_length, part.begin, part.begin + part.count);
      const int team = rows.team();
      for (int row = 0; row < rows.count; ++row) {
        std::vector<ProjectionSums> sums;
        for (int member = 0; member < team; ++member)
          sums.push_back(member_sums(*stage, rows.begin_of(row), rows.end_of(row), member, team));
        launch.projection.sums[sums_slot<T>(extra, launch.entries()[part.tensor].first_chunk,
                                            rows.first + row, part.begin)] =
            team_sum_on_host(sums.data(), team);
      }
    }
  });
}

template <class T, class Rule>
void decide_all(const Launch<Rule>& launch) {
  constexpr int kDecideThreads = 1024;
  for (int64_t tensor = 0; tensor < launch.count; ++tensor) {
    const Extra& extra = launch.extras[tensor];
    const typename Rule::Settings settings = settings_of(launch, tensor);
    const int lanes = rows_are_long<T>(extra) ? kWarp : 1, members = kDecideThreads / lanes;
    bool rows_pass = extra.rows > 0;
    std::vector<ProjectionSums> mine(kDecideThreads);
    for (int member = 0; member < members; ++member)
      for (int64_t row = member; row < extra.rows; row += members) {
        const Slots<T> slots(extra, launch.entries()[tensor].first_chunk, row);
        std::vector<ProjectionSums> parts;
        for (int lane = 0; lane < lanes; ++lane)
          parts.push_back(slot_sums(launch.projection.sums, slots.first, slots.count, lane, lanes));
        const ProjectionSums sums =
            of_scaled(team_sum_on_host(parts.data(), lanes), settings.grad_factor);
        rows_pass = row_passes(sums, double(extra.row_length), settings.delta, settings.eps,
                               launch.projection.coefficients[extra.first_row + row]) &&
                    rows_pass;
        mine[size_t(member * lanes)] += sums;
      }
    launch.projection.projected[tensor] = rows_pass;
    if (rows_pass || extra.rows == 0) continue;
    const ProjectionSums whole = team_sum_on_host(mine.data(), kDecideThreads);
    double coefficient;
    if (!row_passes(whole, double(extra.rows) * double(extra.row_length), settings.delta,
                    settings.eps, coefficient))
      continue;
    launch.projection.projected[tensor] = true;
    for (int64_t row = 0; row < extra.rows; ++row)
      launch.projection.coefficients[extra.first_row + row] = coefficient;
  }
}

template <class Config, class Rule>
void update_projected_all(const Launch<Rule>& launch, int64_t blocks) {
  using T = typename Config::Arithmetic;
  if (launch.scaling.skip()) return;
  reduce_all<T, Config>(launch, blocks);
  decide_all<T>(launch);
  update_all<Config>(launch, blocks);
}

inline double squared_norm_of(const Launch<SingleOperand>& launch, int64_t blocks) {
  std::vector<double> of_chunk(size_t(launch.chunks)), threads(kThreads);
  for_each_part(launch, blocks, [&](int64_t, int64_t chunk, const Part& part) {
    for (int thread = 0; thread < kThreads; ++thread)
      threads[size_t(thread)] = squares_of_part(launch, part, thread);
    of_chunk[size_t(chunk)] = team_sum_on_host(threads.data(), kThreads);
  });
  for (int thread = 0; thread < kThreads; ++thread)
    threads[size_t(thread)] = share_of_chunks(of_chunk.data(), launch.chunks, thread);
  return team_sum_on_host(threads.data(), kThreads);
}

// 0: float32, 1: bfloat16, 2: mixed, 3: float64, 4: quantized, as in DtypeConfig of driver.h.
template <class F>
void with_host_config(int number, F&& f) {
  if (number == 0) return f(Float32Config());
  if (number == 1) return f(BFloat16Config());
  if (number == 2) return f(MixedConfig());
  if (number == 3) return f(Float64Config());
  return f(QuantizedConfig());
}

}  // namespace friction::cuda
