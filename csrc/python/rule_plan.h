// A plan that steps by one rule: reads, counts the steps, and launches.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "cuda_launch.h"
#include "plan.h"

namespace friction {

// Sums over a group's observed elements at the last step of what the rule observes.
struct GroupObservation {
  int64_t count = 0;
  double sum = 0, square_sum = 0;
};

// Where a squared norm goes: one double on a device.
struct NormTarget {
  int device;
  void* address;
};

// Refuses a second step of one plan while the first runs without the GIL.
class Running {
 public:
  explicit Running(std::atomic_flag& flag) : flag_(flag) {
    if (flag_.test_and_set())
      throw std::runtime_error("step() of this optimizer is already running in another thread");
  }
  ~Running() { flag_.clear(); }

 private:
  std::atomic_flag& flag_;
};

// How a launch is shared out: all of torch's threads or, where that is not worth waking them, one;
// in spans small enough for balance.
struct Shares {
  int threads;
  int64_t grain = 1;

  explicit Shares(int threads) : threads(threads) {}
  Shares(int64_t elements, int64_t chunks, int torch_threads) {
    constexpr int64_t kWorthThreads = 65536, kElementsPerChunkStart = 32;
    threads = elements + kElementsPerChunkStart * chunks < kWorthThreads ? 1 : torch_threads;
    const int64_t span = chunks / (16 * threads);
    grain = span < 1 ? 1 : span > 64 ? 64 : span;
  }
};

template <class Rule>
class RulePlan : public Plan {
 public:
  // A group's settings, in the order of Rule::kSettings.
  using GroupSettings = std::vector<SettingValue>;

  RulePlan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
           DeviceAllocator allocator, bool projects_rows = false)
      : Plan(std::move(reader), std::move(entries), state_keys(), projects_rows),
        allocator_(std::move(allocator)),
        projects_(projects_rows) {}

  // One step with the groups' settings, on the processor with up to `threads` threads. Where there
  // is a problem, nothing changed.
  Problem step(const pybind11::dict& state, const pybind11::list& param_groups,
               const std::vector<GroupSettings>& groups, int threads) {
    const Running running(running_);
    has_run_ = false;
    Problem problem = read(state, param_groups);
    if (problem.what == nullptr) problem = check_tables(groups);
    if (problem.what != nullptr) return problem;
    find_group_steps();
    if (group_steps_.size() > size_t{UINT16_MAX})
      return {-1, "there are more than 65,535 pairs of a group and a step"};
    for (Table& table : tables_) {
      if (table.device == kCpu)
        run_on_cpu(table, groups, threads);
      else
        run_on_gpu(table, groups);
    }
    count_steps();
    has_run_ = true;
    release_gradients();
    return {};
  }

  // Adds the squares of all counted entries' gradients up, into a number on each device.
  Problem squared_norm(const pybind11::dict& state, const pybind11::list& param_groups,
                       const std::vector<bool>& counted, const std::vector<NormTarget>& targets,
                       int threads) {
    const Running running(running_);
    Problem problem = read(state, param_groups);
    if (problem.what != nullptr) return problem;
    for (const Table& table : tables_)
      if (table.device != kCpu)
        return problem_of(table, 0, "the norm of gradients on a GPU is not built in yet");
    for (const NormTarget& target : targets) *static_cast<double*>(target.address) = 0;
    for (const Table& table : tables_) {
      const auto target = std::find_if(targets.begin(), targets.end(), [&](const NormTarget& t) {
        return t.device == table.device;
      });
      if (target == targets.end())
        throw std::invalid_argument("squared_norm has no target for a device");
      *static_cast<double*>(target->address) += squared_norm_on_cpu(table, counted, threads);
    }
    release_gradients();
    return {};
  }

  std::vector<GroupObservation> observations(size_t groups) const {
    std::vector<GroupObservation> sums(groups);
    if (!has_run_) return sums;
    for (const Table& table : tables_) {
      const std::vector<Observation> on_host =
          table.device == kCpu ? std::vector<Observation>() : copy_to_host(table);
      const std::vector<Observation>& observations = table.device == kCpu ? observations_ : on_host;
      for (size_t i = 0; i < table.tensors.size(); ++i) {
        const TensorEntry& t = table.tensors[i];
        GroupObservation& group = sums.at(static_cast<size_t>(entry_of(table, i).group));
        for (int64_t begin = 0; begin < t.numel; begin += kObserveEvery * kChunk) {
          const Observation& seen = observations.at(
              static_cast<size_t>(observation_slot(int64_t(i), t.first_chunk, begin)));
          group.count += seen.count;
          group.sum += seen.sum;
          group.square_sum += seen.square_sum;
        }
      }
    }
    return sums;
  }

 protected:
  virtual void launch_on_cpu(const Region<Rule>& region, const Table& table, const Shares& shares) {
    run(Rule::kName, region, table.chunks, shares,
        std::get<Kernel<Region<Rule>>>(kernels().update));
  }

  virtual void launch_on_gpu(const cuda::Launch<Rule>& launch, cuda::Storage storage,
                             const cuda::Target& target) {
    cuda::update(launch, storage, target);
  }

  template <class RegionType>
  static void run(const char* name, const RegionType& region, int64_t items, const Shares& shares,
                  Kernel<RegionType> kernel) {
    parallel_region(
        name, items, shares.grain, shares.threads,
        [&region, kernel](int64_t first, int64_t last) { kernel(region, first, last); });
  }

 private:
  static std::vector<const char*> state_keys() {
    std::vector<const char*> keys;
    if (Rule::kCountsSteps) keys.push_back("step");
    for (const char* key : Rule::kStateKeys) keys.push_back(key);
    return keys;
  }

  const PlanEntry& entry_of(const Table& table, size_t tensor) const {
    return entries_[active_[table.active[tensor]]];
  }

  // What only a GPU asks for.
  Problem check_tables(const std::vector<GroupSettings>& groups) {
    for (const Table& table : tables_) {
      if (table.device != kCpu) {
        for (size_t i = 0; i < table.tensors.size(); ++i)
          if (const TensorEntry& t = table.tensors[i]; t.packed || t.companion || t.stochastic)
            return problem_of(table, i, "its options are not built in on GPUs yet");
        if (!storage_of<Rule>(table.dtype))
          return problem_of(table, 0,
                            "a state has a type that the CUDA kernels do not serve; load "
                            "states with load_state_dict(), which converts them");
        if (table.chunks > int64_t{UINT32_MAX} - 1)
          return {-1, "a GPU has more elements to update than a launch can number"};
      }
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

  static double step_of(const StateTensor& step) {
    return step.dtype == DType::kFloat64 ? *static_cast<double*>(step.data)
                                         : *static_cast<float*>(step.data);
  }

  // Finds each tensor's group and the step it is about to make, as few pairs as there are.
  void find_group_steps() {
    std::map<std::pair<int32_t, double>, int32_t> known;
    std::pair<int32_t, double> last{-1, 0};
    int32_t index = 0;
    group_steps_.clear();
    for (Table& table : tables_)
      for (size_t i = 0; i < table.tensors.size(); ++i) {
        const PlanEntry& entry = entry_of(table, i);
        const bool host_counts = Rule::kCountsSteps && !entry.device_counts;
        const std::pair<int32_t, double> at{entry.group,
                                            host_counts ? step_of(entry.states[0]) + 1 : 0};
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

  // After the launches, which may fail.
  void count_steps() {
    if (!Rule::kCountsSteps) return;
    for (const size_t index : active_) {
      const PlanEntry& entry = entries_[index];
      if (entry.device_counts) continue;
      const StateTensor& step = entry.states[0];
      if (step.dtype == DType::kFloat64)
        *static_cast<double*>(step.data) += 1;
      else
        *static_cast<float*>(step.data) += 1;
    }
  }

  double squared_norm_on_cpu(const Table& table, const std::vector<bool>& entries, int threads) {
    std::vector<uint8_t> counted(table.tensors.size());
    for (size_t i = 0; i < counted.size(); ++i) counted[i] = entries.at(active_[table.active[i]]);
    std::vector<double> squares(static_cast<size_t>(table.chunks));
    const NormRegion region{
        {table.tensors.data(), int64_t(table.tensors.size())}, counted.data(), squares.data()};
    if (table.chunks > 0) {
      const pybind11::gil_scoped_release no_gil;
      run("squared_norm", region, table.chunks, Shares(table.elements, table.chunks, threads),
          kernels().squared_norm);
    }
    return std::accumulate(squares.begin(), squares.end(), 0.0);
  }

  void run_on_cpu(const Table& table, const std::vector<GroupSettings>& groups, int threads) {
    std::vector<StepScalars<Rule>> scalars;
    for (const auto& [group, step] : group_steps_) {
      double numbers[std::size(Rule::kSettings)];
      for (size_t i = 0; i < std::size(Rule::kSettings); ++i)
        numbers[i] = groups.at(size_t(group)).at(i).number;
      typename Rule::Settings settings;
      static_assert(sizeof settings == sizeof numbers);
      std::memcpy(&settings, numbers, sizeof settings);
      scalars.emplace_back(settings, step);
    }
    Region<Rule> region{
        {table.tensors.data(), int64_t(table.tensors.size())}, scalars.data(), nullptr};
    if (table.chunks == 0) return;
    if constexpr (Rule::kObserves) {
      observations_.resize(size_t(observation_slots(region.table.count, table.chunks)));
      region.observations = observations_.data();
    }
    const pybind11::gil_scoped_release no_gil;
    launch_on_cpu(region, table, Shares(table.elements, table.chunks, threads));
  }

  void run_on_gpu(Table& table, const std::vector<GroupSettings>& groups) {
    std::vector<cuda::GroupStep<Rule>> group_steps;
    for (const auto& [group, step] : group_steps_)
      group_steps.push_back(LaunchMaker<Rule>::group_step(groups.at(size_t(group)), step));
    const cuda::Target target{table.device, reader_->current_stream(table.device)};
    launch_on_gpu(maker_.make(table, group_steps, projects_, allocator_, target),
                  *storage_of<Rule>(table.dtype), target);
  }

  static std::vector<Observation> copy_to_host(const Table& table) {
    const pybind11::object host = table.observations.tensor().attr("cpu")();
    const auto* data =
        reinterpret_cast<const Observation*>(host.attr("data_ptr")().cast<uintptr_t>());
    return {data, data + observation_slots(int64_t(table.tensors.size()), table.chunks)};
  }

  DeviceAllocator allocator_;
  bool projects_;
  bool has_run_ = false;  // the last step, with the tables as they are
  std::vector<std::pair<int32_t, double>> group_steps_;
  std::vector<Observation> observations_;  // of the processor's tensors
  LaunchMaker<Rule> maker_;
};

// AdamP: reduce, decide, apply.
class AdamPPlan : public RulePlan<FrictionAdam> {
 public:
  AdamPPlan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
            DeviceAllocator allocator)
      : RulePlan(std::move(reader), std::move(entries), std::move(allocator), true) {}

 protected:
  void launch_on_cpu(const Region<FrictionAdam>& region, const Table& table,
                     const Shares& shares) override {
    slots_.resize(static_cast<size_t>(table.rows + table.chunks));
    decisions_.resize(table.tensors.size());
    const bool packed = std::any_of(table.tensors.begin(), table.tensors.end(),
                                    [](const TensorEntry& t) { return t.packed; });
    if (packed) directions_.resize(slots_.size());
    const ProjectedRegion projected{region, slots_.data(), directions_.data(), decisions_.data()};
    const KernelSet& kernel = kernels();
    run("friction_adamp_reduce", projected, table.chunks, shares, kernel.adamp_reduce);
    run("friction_adamp_decide", projected, region.table.count, Shares(shares.threads),
        kernel.adamp_decide);
    if (packed)
      run("friction_adamp_directions", projected, table.chunks, shares, kernel.adamp_directions);
    run("friction_adamp_apply", projected, table.chunks, shares, kernel.adamp_apply);
  }

  void launch_on_gpu(const cuda::Launch<FrictionAdam>& launch, cuda::Storage storage,
                     const cuda::Target& target) override {
    cuda::adamp(launch, storage, target);
  }

 private:
  std::vector<RowSums> slots_;
  std::vector<double> directions_;
  std::vector<ProjectionDecision> decisions_;
};

}  // namespace friction
