#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void statistic(const Launch<Rule>& launch, DtypeConfig config, const Target& target) {
  with_kernels_for(config, [&](auto type) {
    launch_kernel("friction_stats", statistic_kernel<Launch<Rule>, decltype(type)>, launch,
                  launch.chunks, kThreads, over_tensors(launch), target);
  });
}

FRICTION_INSTANTIATE(statistic, Rule::kHasStatistic);

}  // namespace friction::cuda
