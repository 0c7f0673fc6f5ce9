#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void update(const Launch<Rule>& launch, Storage storage, const Target& target) {
  with_kernels_for(storage, [&](auto type) {
    launch_kernel(Rule::kName, update_kernel<Launch<Rule>, decltype(type)>, launch,
                  items_of(launch), kThreads, over_tensors(launch), target);
  });
}

[[gnu::used]] const auto updates = of_rules(Rules(), [](auto* rule) {
  using Rule = RuleOf<decltype(rule)>;
  if constexpr (!Rule::kProjects)
    return &update<Rule>;
  else
    return nullptr;
});

}  // namespace friction::cuda
