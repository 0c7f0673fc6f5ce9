// A plan for one rule: launches its kernels and counts the steps.
#pragma once

#include <algorithm>
#include <map>
#include <tuple>

#include "cuda_launch.h"
#include "list_operations.h"
#include "partition.h"
#include "plan.h"
#include "projection.h"

namespace friction {

// A rule's statistic over those elements of a group that have a gradient.
struct GroupStatistic {
  int64_t count = 0;
  Moments moments;
};

template <class Rule>
class RulePlan : public Plan {
 public:
  // A group's settings, in the order of Rule::kSettings.
  using GroupSettings = std::vector<SettingValue>;

  RulePlan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
           DeviceAllocator allocator)
      : Plan(std::move(reader), std::move(entries), state_keys(), Rule::kProjects,
             kept_gradient<Rule>()),
        allocator_(std::move(allocator)) {}

  // The following operate on the tensors of the current Reading.

  // Runs one step, on the CPU with up to `threads` threads, on a GPU with its gradient scaling. If
  // a problem is returned, nothing has changed.
  Problem step(const std::vector<GroupSettings>& groups, int threads,
               const std::vector<DeviceScaling>& scaling) {
    const Problem problem = prepare(groups, scaling);
    if (problem.what != nullptr) return problem;
    for (Table& table : tables_) {
      if (table.device == kCpu)
        run_on_cpu(table, groups, [&](const Region<Rule>& region) {
          update_on_cpu(region, table, Partition(table.elements, table.chunks, threads));
        });
      else
        run_on_gpu(table, groups, scaling_of(scaling, table),
                   [&](const cuda::Launch<Rule>& launch, const cuda::Target& target) {
                     if constexpr (Rule::kProjects)
                       cuda::update_projected(launch, cuda::DtypeConfig(table.kernels), target);
                     else
                       cuda::update(launch, cuda::DtypeConfig(table.kernels), target);
                   });
    }
    count_steps();
    take_gradients();
    return {};
  }

  // Computes each group's statistic at the step that `step` would make. Waits for GPUs.
  Problem statistics(const std::vector<GroupSettings>& groups, int threads,
                     const std::vector<DeviceScaling>& scaling,
                     std::vector<GroupStatistic>& statistics) {
    const Problem problem = prepare(groups, scaling);
    if (problem.what != nullptr) return problem;
    statistics.resize(groups.size());
    for (Table& table : tables_) {
      if (table.chunks == 0) continue;
      const std::vector<Moments> of_chunk =
          table.device == kCpu ? statistics_on_cpu(table, groups, threads)
                               : statistics_on_gpu(table, groups, scaling_of(scaling, table));
      for (size_t i = 0; i < table.tensors.size(); ++i) {
        const TensorEntry& tensor = table.tensors[i];
        GroupStatistic& group = statistics.at(size_t(entry_of(table, i).group));
        group.count += tensor.numel;
        for (int64_t chunk = 0; chunk * kChunk < tensor.numel; ++chunk)
          group.moments += of_chunk.at(size_t(tensor.first_chunk + chunk));
      }
    }
    return {};
  }

  // Writes the squared norm of the counted entries' gradients to a number on each device.
  Problem squared_norm(const std::vector<bool>& counted, const std::vector<DeviceNumbers>& targets,
                       int threads) {
    std::map<int, std::vector<TensorEntry>> of_device;
    for (const DeviceNumbers& target : targets) of_device[target.device];
    for (const Table& table : tables_) {
      const auto found = of_device.find(table.device);
      if (found == of_device.end())
        throw std::invalid_argument("squared_norm has no target for a device");
      for (size_t i = 0; i < table.tensors.size(); ++i)
        if (counted.at(active_[table.active[i]])) found->second.push_back(table.tensors[i]);
    }
    for (const DeviceNumbers& target : targets) {
      const OperandLists gradients(of_device[target.device], kGradOperand);
      if (target.device == kCpu) {
        gram_on_cpu(gradients, 1, target.address, threads);
        continue;
      }
      if (gradients.chunks() > cuda::kMostChunks) return kTooManyElements;
      norms_[target.device].gram(gradients, 1, target.address, allocator_,
                                 {target.device, reader_->current_stream(target.device)});
    }
    return {};
  }

  int traverse(visitproc visit, void* arg) const override {
    Py_VISIT(allocator_.allocate.ptr());
    Py_VISIT(allocator_.keep.ptr());
    return Plan::traverse(visit, arg);
  }

  void clear() override {
    allocator_ = {};
    Plan::clear();
  }

 private:
  using GroupStepKey = std::tuple<int32_t, double, uint64_t>;  // group, step, types on a GPU

  static constexpr Problem kTooManyElements{
      -1, "a GPU has more elements to update than a launch can number"};

  static std::vector<const char*> state_keys() {
    std::vector<const char*> keys;
    if (Rule::kCountsSteps) keys.push_back("step");
    for (const char* key : Rule::kStates.names) keys.push_back(key);
    return keys;
  }

  const PlanEntry& entry_of(const Table& table, size_t tensor) const {
    return entries_[active_[table.active[tensor]]];
  }

  int kernels_of(const TensorEntry& tensor) const override {
    const auto config = config_of<Rule>(tensor);
    return config ? int(*config) : -1;
  }

  // Checks tensors, groups and scaling, and finds the pairs of a group and a step.
  Problem prepare(const std::vector<GroupSettings>& groups,
                  const std::vector<DeviceScaling>& scaling) {
    Problem problem = check_steps();
    if (problem.what == nullptr) problem = check_tables(groups, scaling);
    if (problem.what != nullptr) return problem;
    find_group_steps();
    const bool on_gpu = std::any_of(tables_.begin(), tables_.end(),
                                    [](const Table& table) { return table.device != kCpu; });
    if (on_gpu && group_steps_.size() > size_t{UINT16_MAX})
      return {-1, "a launch on a GPU takes up to 65,535 pairs of a group and a step; merge groups"};
    return {};
  }

  static constexpr double kMostFloat32Steps = 1 << 24;  // adding 1 gives the same number

  // Checks the counts on the host only, since reading a GPU's would wait for it.
  Problem check_steps() const {
    if (!Rule::kCountsSteps) return {};
    for (const size_t index : active_) {
      const PlanEntry& entry = entries_[index];
      if (entry.device_counts) continue;
      const double step = step_of(entry.states[0]);
      if (!is_step_count(step))
        return {static_cast<int64_t>(index), "its state 'step' is no count of steps"};
      if (step >= kMostFloat32Steps && entry.states[0].dtype == DType::kFloat32)
        return {static_cast<int64_t>(index),
                "its state 'step' is float32 and cannot count further"};
    }
    return {};
  }

  // Checks that concern only GPUs.
  Problem check_tables(const std::vector<GroupSettings>& groups,
                       const std::vector<DeviceScaling>& scaling) {
    for (const Table& table : tables_) {
      if (table.device != kCpu) {
        if (table.kernels < 0)
          return problem_of(table, 0,
                            "a state has a type that the CUDA kernels do not serve; load "
                            "states with load_state_dict(), which converts them");
        if (table.chunks > cuda::kMostChunks) return kTooManyElements;
      }
      if (scaling_of(scaling, table).may_skip())
        for (size_t i = 0; i < table.tensors.size(); ++i)
          if (!entry_of(table, i).device_counts)
            return problem_of(table, i,
                              "its GPU may skip the step and the host counts steps; make the group "
                              "capturable=True, so that its state 'step' lies on the GPU");
      for (size_t i = 0; i < table.tensors.size(); ++i)
        for (const SettingValue& setting : groups.at(size_t(entry_of(table, i).group)))
          if (setting.address != nullptr && setting.device != table.device)
            return problem_of(table, i,
                              "a setting of its group is a tensor on another device; make it a "
                              "number, or give each device a group of its own");
    }
    return {};
  }

  Problem problem_of(const Table& table, size_t tensor, const char* what) const {
    return {static_cast<int64_t>(active_[table.active[tensor]]), what};
  }

  static double step_of(const StateAddress& step) {
    return step.dtype == DType::kFloat64 ? *static_cast<double*>(step.data)
                                         : *static_cast<float*>(step.data);
  }

  // Assigns each tensor its pair of a group and the step it is about to make, on a GPU also with
  // its types. Equal pairs are shared.
  void find_group_steps() {
    std::map<GroupStepKey, int32_t> known;
    GroupStepKey last{-1, 0, 0};
    int32_t index = 0;
    group_steps_.clear();
    for (Table& table : tables_)
      for (size_t i = 0; i < table.tensors.size(); ++i) {
        const PlanEntry& entry = entry_of(table, i);
        const bool host_counts = Rule::kCountsSteps && !entry.device_counts;
        const GroupStepKey at{entry.group, host_counts ? step_of(entry.states[0]) + 1 : 0,
                              table.device == kCpu ? 0 : bits_of_types(table.tensors[i])};
        if (at != last) {
          const auto [found, added] =
              known.try_emplace(at, static_cast<int32_t>(group_steps_.size()));
          if (added) group_steps_.push_back(at);
          index = found->second;
          last = at;
        }
        table.tensors[i].scalars = index;
      }
  }

  // Called after the launches, which may fail.
  void count_steps() {
    if (!Rule::kCountsSteps) return;
    for (const size_t index : active_) {
      const PlanEntry& entry = entries_[index];
      if (entry.device_counts) continue;
      const StateAddress& step = entry.states[0];
      if (step.dtype == DType::kFloat64)
        *static_cast<double*>(step.data) += 1;
      else
        *static_cast<float*>(step.data) += 1;
    }
  }

  template <class Run>
  void run_on_cpu(const Table& table, const std::vector<GroupSettings>& groups, Run&& run) {
    std::vector<StepScalars<Rule>> scalars;
    for (const auto& [group, step, types] : group_steps_) {
      double numbers[std::size(Rule::kSettings)];
      for (size_t i = 0; i < std::size(Rule::kSettings); ++i)
        numbers[i] = groups.at(size_t(group)).at(i).number;
      typename Rule::Settings settings;
      static_assert(sizeof settings == sizeof numbers);
      std::memcpy(&settings, numbers, sizeof settings);
      scalars.emplace_back(settings, step);
    }
    if (table.chunks == 0) return;
    const pybind11::gil_scoped_release no_gil;
    run(Region<Rule>{{table.tensors.data(), int64_t(table.tensors.size())}, scalars.data()});
  }

  template <class Run>
  void run_on_gpu(Table& table, const std::vector<GroupSettings>& groups,
                  const cuda::GradientScaling& scaling, Run&& run) {
    std::vector<cuda::GroupStep<Rule>> group_steps;
    for (const auto& [group, step, types] : group_steps_)
      group_steps.push_back(
          LaunchMaker<Rule>::group_step(groups.at(size_t(group)), step, types_of_bits(types)));
    const cuda::Target target{table.device, reader_->current_stream(table.device)};
    run(maker_.make(table, group_steps, scaling, allocator_, target), target);
  }

  void update_on_cpu(const Region<Rule>& region, const Table& table, const Partition& partition) {
    if constexpr (Rule::kProjects)
      projection_.run(region, table, partition);
    else
      run_region(Rule::kName, region, table.chunks, partition, kernels().of<Rule>().update);
  }

  std::vector<Moments> statistics_on_cpu(const Table& table,
                                         const std::vector<GroupSettings>& groups, int threads) {
    std::vector<Moments> of_chunk(size_t(table.chunks));
    run_on_cpu(table, groups, [&](const Region<Rule>& region) {
      run_region("friction_stats", StatisticRegion<Rule>{region, of_chunk.data()}, table.chunks,
                 Partition(table.elements, table.chunks, threads), kernels().of<Rule>().statistic);
    });
    return of_chunk;
  }

  std::vector<Moments> statistics_on_gpu(Table& table, const std::vector<GroupSettings>& groups,
                                         const cuda::GradientScaling& scaling) {
    DeviceMemory of_chunk;
    run_on_gpu(table, groups, scaling, [&](cuda::Launch<Rule>& launch, const cuda::Target& target) {
      launch.statistics = static_cast<Moments*>(
          of_chunk.reserve(allocator_, int64_t(sizeof(Moments)) * table.chunks,
                           {target.device, target.stream, cuda::is_capturing(target)}));
      if constexpr (Rule::kHasStatistic)
        cuda::statistic(launch, cuda::DtypeConfig(table.kernels), target);
    });
    const pybind11::object host = of_chunk.tensor().attr("cpu")();
    const auto* data = reinterpret_cast<const Moments*>(host.attr("data_ptr")().cast<uintptr_t>());
    return {data, data + table.chunks};
  }

  DeviceAllocator allocator_;
  std::vector<GroupStepKey> group_steps_;
  ProjectionOnCpu<Rule> projection_;  // if the rule projects
  LaunchMaker<Rule> maker_;
  std::map<int, ListsOnGpu> norms_;  // by device
};

}  // namespace friction
