// AdamP's plan: the rule's, in the regions and launches that projecting takes.
#pragma once

#include "rule_plan.h"

namespace friction {

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
    run_region("friction_adamp_reduce", projected, table.chunks, shares, kernel.adamp_reduce);
    run_region("friction_adamp_decide", projected, region.table.count, Shares(shares.threads),
               kernel.adamp_decide);
    if (packed)
      run_region("friction_adamp_directions", projected, table.chunks, shares,
                 kernel.adamp_directions);
    run_region("friction_adamp_apply", projected, table.chunks, shares, kernel.adamp_apply);
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
