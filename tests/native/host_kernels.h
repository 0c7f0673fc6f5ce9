// Runs CUDA launches on the host, block by block and thread by thread, with the kernels' functions.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "../../csrc/cuda/lists.h"
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
    Walk<Launch<Rule>> walk(launch);
    for (int64_t chunk = block; chunk < launch.chunks; chunk += blocks)
      visit(block, chunk, walk.part_of(chunk), walk);
  }
}

// Runs the phases of a part's threads, warp by warp.
template <class Config, class Rule>
void update_dynamic(const Launch<Rule>& launch, const PartOf<Launch<Rule>>& part,
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
  if (launch.scaling.skip()) {
    if constexpr (kept_gradient<Rule>() > 0)
      for_each_part(launch, blocks, [&](int64_t, int64_t, const auto& part, auto&) {
        for (int thread = 0; thread < kThreads; ++thread) keep_previous(launch, part, thread);
      });
    return;
  }
  for_each_part(launch, blocks, [&](int64_t, int64_t, const auto& part, auto& walk) {
    const auto shared = shared_of<Rule, T>(launch, part.tensor);
    if constexpr (kept_gradient<Rule>() > 0) walk.place_kept(shared.scalars.grad_scale != 1);
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
  for_each_part(launch, blocks, [&](int64_t, int64_t chunk, const auto& part, auto&) {
    const auto shared = shared_of<Rule, T>(launch, part.tensor);
    std::vector<Moments> moments;
    for (int thread = 0; thread < kThreads; ++thread)
      moments.push_back(statistic_of_part<Config>(launch, part, thread, shared));
    launch.statistics[chunk] = team_sum_on_host(moments.data(), kThreads);
  });
}

template <class T, class Config, class Rule>
void reduce_all(const Launch<Rule>& launch, int64_t blocks) {
  for_each_part(launch, blocks, [&](int64_t, int64_t, const auto& whole, auto&) {
    const Extra& extra = launch.extras[whole.tensor];
    if (extra.rows == 0) return;
    const auto shared = shared_of<Rule, T>(launch, whole.tensor);
    auto stage = std::make_unique<Stage<T>>();
    for (int staged = 0; staged < whole.count; staged += Stage<T>::kSize) {
      const auto part = stage_of<T>(whole, staged);
      const Rows rows(extra.row_length, part.begin, part.begin + part.count);
      ProjectionSums* slots =
          launch.projection.sums +
          sums_slot<T>(extra, launch.entries()[part.tensor].first_chunk, rows.first, part.begin);
      if (kLeavesRegisters<Config> && rows.count == 1) {
        bool finite = true;
        std::vector<ProjectionSums> sums(kWarp);
        for (int lane = 0; lane < kWarp; ++lane)
          finite = sum_one_row<Config>(launch, part, lane, shared, sums[size_t(lane)]) && finite;
        slots[0] = team_sum_on_host(sums.data(), kWarp);
        if (finite) continue;
      }
      for (int lane = 0; lane < kWarp; ++lane)
        stage_directions<Config>(launch, part, lane, shared, *stage);
      const int lanes = rows.shared_by_lanes() ? kWarp : 1;
      for (int row = 0; row < rows.count; ++row) {
        std::vector<ProjectionSums> sums;
        for (int lane = 0; lane < lanes; ++lane)
          sums.push_back(member_sums(*stage, rows.begin_of(row), rows.end_of(row), lane, lanes));
        slots[row] = team_sum_on_host(sums.data(), lanes);
      }
    }
  });
}

template <class T, class Rule>
void decide_all(const Launch<Rule>& launch) {
  for (int64_t item = 0; item < launch.count * kRowGroups; ++item) {
    const int64_t tensor = item / kRowGroups;
    const Extra& extra = launch.extras[tensor];
    if (item % kRowGroups >= RowGroup::count(extra.rows)) continue;
    const RowGroup group(extra.rows, int(item % kRowGroups));
    const typename Rule::Settings settings = settings_of(launch, tensor);
    const int lanes = lanes_of_row<T>(extra), members = kDecideThreads / lanes;
    bool rows_pass = true;
    std::vector<ProjectionSums> mine(kDecideThreads);
    for (int member = 0; member < members; ++member)
      for (int64_t row = group.begin + member; row < group.end; row += members) {
        std::vector<ProjectionSums> parts;
        for (int lane = 0; lane < lanes; ++lane)
          parts.push_back(share_of_row<T>(launch, tensor, row, lane, lanes));
        const ProjectionSums sums =
            of_scaled(team_sum_on_host(parts.data(), lanes), settings.grad_factor);
        rows_pass = row_passes(sums, double(extra.row_length), settings,
                               launch.projection.coefficients[extra.first_row + row]) &&
                    rows_pass;
        mine[size_t(member * lanes)] += sums;
      }
    launch.projection.groups[item] = {team_sum_on_host(mine.data(), kDecideThreads), rows_pass};
  }
  for (int64_t tensor = 0; tensor < launch.count; ++tensor) decide(launch, tensor);
}

template <class Config, class Rule>
void update_projected_all(const Launch<Rule>& launch, int64_t blocks) {
  using T = typename Config::Arithmetic;
  if (launch.scaling.skip()) return update_all<Config>(launch, blocks);
  reduce_all<T, Config>(launch, blocks);
  decide_all<T>(launch);
  update_all<Config>(launch, blocks);
}

// Fills launch.lists.of_run, and from it the products.
template <int kMost>
void gram_all(const ListLaunch& launch, int64_t blocks) {
  const int64_t runs = runs_of(launch);
  const int pairs = pairs_of(launch.lists.count);
  std::vector<double> of_thread(kThreads);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t run = block; run < runs; run += blocks) {
      std::vector<std::array<double, kPairs<kMost>>> sums(kThreads);
      for (int thread = 0; thread < kThreads; ++thread) {
        Walk<ListLaunch> walk(launch);
        double mine[kPairs<kMost>] = {};
        add_run<kMost>(launch, walk, run, thread, mine);
        std::copy(mine, mine + kPairs<kMost>, sums[size_t(thread)].begin());
      }
      for (int pair = 0; pair < pairs; ++pair) {
        for (size_t thread = 0; thread < kThreads; ++thread)
          of_thread[thread] = sums[thread][size_t(pair)];
        launch.lists.of_run[pair * runs + run] = team_sum_on_host(of_thread.data(), kThreads);
      }
    }
  const int team = launch.lists.segments == 1 ? kThreads : kWarp;
  for (int64_t segment = 0; segment < launch.lists.segments; ++segment)
    for (int pair = 0; pair < pairs; ++pair) {
      for (int member = 0; member < team; ++member)
        of_thread[size_t(member)] = share_of_runs(launch, segment, pair, member, team);
      store_product(launch, segment, pair, team_sum_on_host(of_thread.data(), team));
    }
}

inline void combine_all(const ListLaunch& launch, int64_t blocks) {
  for_each_part(launch, blocks, [&](int64_t, int64_t, const auto& part, auto&) {
    for (int thread = 0; thread < kThreads; ++thread) combine_part(launch, part, thread);
  });
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
