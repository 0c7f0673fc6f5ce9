// A plan that steps by one rule: reads, counts the steps, and launches.
#pragma once

#include <map>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "plan.h"

namespace friction {

// Sums over a group's observed elements at the last step of what the rule observes.
struct GroupObservation {
  int64_t count = 0;
  double sum = 0, square_sum = 0;
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
  using Settings = typename Rule::Settings;

  RulePlan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
           bool projects_rows = false)
      : Plan(std::move(reader), std::move(entries), state_keys(), projects_rows) {}

  // One step with the groups' settings on up to `threads` threads. Where there is a problem,
  // nothing changed.
  Problem step(const pybind11::dict& state, const pybind11::list& param_groups,
               const std::vector<Settings>& groups, int threads) {
    const Running running(running_);
    const Problem problem = read(state, param_groups);
    if (problem.what != nullptr) return problem;
    advance(groups);
    Region<Rule> region{
        {tensors_.data(), static_cast<int64_t>(tensors_.size())}, scalars_.data(), nullptr};
    if (const int64_t chunks = region.table.chunks(); chunks > 0) {
      if constexpr (Rule::kObserves) {
        observations_.resize(static_cast<size_t>(chunks));
        region.observations = observations_.data();
      }
      const pybind11::gil_scoped_release no_gil;
      launch(region, Shares(elements_, chunks, threads));
    }
    release_gradients();
    return {};
  }

  std::vector<GroupObservation> observations(size_t groups) const {
    std::vector<GroupObservation> sums(groups);
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const TensorEntry& t = tensors_[i];
      GroupObservation& group = sums.at(static_cast<size_t>(group_of(i)));
      for (int64_t begin = 0; begin < t.numel; begin += kObserveEvery * kChunk) {
        const Observation& seen = observations_[static_cast<size_t>(observation_slot(t, begin))];
        group.count += seen.count;
        group.sum += seen.sum;
        group.square_sum += seen.square_sum;
      }
    }
    return sums;
  }

 protected:
  virtual void launch(const Region<Rule>& region, const Shares& shares) {
    run(Rule::kName, region, region.table.chunks(), shares,
        std::get<Kernel<Region<Rule>>>(kernels().update));
  }

  template <class RegionType>
  static void run(const char* name, const RegionType& region, int64_t items, const Shares& shares,
                  Kernel<RegionType> kernel) {
    parallel_region(
        name, items, shares.grain, shares.threads,
        [&region, kernel](int64_t first, int64_t last) { kernel(region, first, last); });
  }

  int64_t rows() const { return rows_; }

 private:
  static std::vector<const char*> state_keys() {
    std::vector<const char*> keys;
    if (Rule::kCountsSteps) keys.push_back("step");
    for (const char* key : Rule::kStateKeys) keys.push_back(key);
    return keys;
  }

  int32_t group_of(size_t tensor) const {
    return entries_[active_[active_of_tensor_[tensor]]].group;
  }

  // Counts each parameter's step and finds its scalars, made once for each (group, step) there is.
  void advance(const std::vector<Settings>& groups) {
    std::map<std::pair<int32_t, double>, int32_t> known;
    std::pair<int32_t, double> last{-1, 0};
    int32_t index = 0;
    size_t tensor = 0;
    scalars_.clear();
    for (size_t i = 0; i < active_.size(); ++i) {
      const PlanEntry& entry = entries_[active_[i]];
      const std::pair<int32_t, double> at{entry.group,
                                          Rule::kCountsSteps ? count_step(entry.states[0]) : 0};
      if (at != last) {
        const auto [found, added] = known.try_emplace(at, static_cast<int32_t>(scalars_.size()));
        if (added) scalars_.emplace_back(groups.at(static_cast<size_t>(at.first)), at.second);
        index = found->second;
        last = at;
      }
      if (tensor < tensors_.size() && active_of_tensor_[tensor] == i)
        tensors_[tensor++].scalars = index;
    }
  }

  static double count_step(const StateTensor& step) {
    if (step.dtype == DType::kFloat64) return *static_cast<double*>(step.data) += 1;
    return *static_cast<float*>(step.data) += 1;
  }

  std::vector<StepScalars<Rule>> scalars_;
  std::vector<Observation> observations_;
};

// AdamP: reduce (reads parameters and gradients), decide, apply.
class AdamPPlan : public RulePlan<FrictionAdam> {
 public:
  AdamPPlan(std::shared_ptr<const TensorReader> reader, pybind11::list entries)
      : RulePlan(std::move(reader), std::move(entries), true) {}

 protected:
  void launch(const Region<FrictionAdam>& region, const Shares& shares) override {
    const int64_t chunks = region.table.chunks();
    slots_.resize(static_cast<size_t>(rows() + chunks));
    decisions_.resize(static_cast<size_t>(region.table.count));
    const ProjectedRegion projected{region, slots_.data(), decisions_.data()};
    const KernelSet& kernel = kernels();
    run("friction_adamp_reduce", projected, chunks, shares, kernel.adamp_reduce);
    run("friction_adamp_decide", projected, region.table.count, Shares(shares.threads),
        kernel.adamp_decide);
    run("friction_adamp_apply", projected, chunks, shares, kernel.adamp_apply);
  }

 private:
  std::vector<RowSums> slots_;
  std::vector<ProjectionDecision> decisions_;
};

}  // namespace friction
