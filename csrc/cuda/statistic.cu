#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void statistic(const Launch<Rule>& launch, Storage storage, const Target& target) {
  with_kernels_for(storage, [&](auto type) {
    launch_kernel("friction_stats", statistic_kernel<Launch<Rule>, decltype(type)>, launch,
                  launch.chunks, kThreads, over_tensors(launch), target);
  });
}

[[gnu::used]] const auto statistics = of_rules(Rules(), [](auto* rule) {
  using Rule = RuleOf<decltype(rule)>;
  if constexpr (Rule::kHasStatistic)
    return &statistic<Rule>;
  else
    return nullptr;
});

}  // namespace friction::cuda
