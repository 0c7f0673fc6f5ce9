// The parallel regions of a projecting step on the CPU: reduce, decide, apply.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "partition.h"
#include "plan.h"

namespace friction {

template <class Rule>
class ProjectionOnCpu {
 public:
  void run(const Region<Rule>& region, const Table& table, const Partition& partition) {
    static const std::string name = Rule::kName;
    static const std::string names[] = {name + "_reduce", name + "_decide", name + "_directions",
                                        name + "_apply"};
    slots_.resize(static_cast<size_t>(table.rows + table.chunks));
    decisions_.resize(table.tensors.size());
    const bool quantized = std::any_of(table.tensors.begin(), table.tensors.end(),
                                       [](const TensorEntry& t) { return t.quantized; });
    if (quantized) directions_.resize(slots_.size());
    const ProjectedRegion<Rule> projected{region, slots_.data(), directions_.data(),
                                          decisions_.data()};
    const RuleKernels<Rule>& kernel = kernels().of<Rule>();
    run_region(names[0].c_str(), projected, table.chunks, partition, kernel.reduce);
    run_region(names[1].c_str(), projected, region.table.count, Partition(partition.threads),
               kernel.decide);
    if (quantized)
      run_region(names[2].c_str(), projected, table.chunks, partition, kernel.directions);
    run_region(names[3].c_str(), projected, table.chunks, partition, kernel.apply);
  }

 private:
  std::vector<RowSums> slots_;
  std::vector<double> directions_;
  std::vector<ProjectionDecision> decisions_;
};

}  // namespace friction
