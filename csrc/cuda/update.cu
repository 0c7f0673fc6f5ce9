#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void update(const Launch<Rule>& launch, DtypeConfig config, const Target& target) {
  with_kernels_for(config, [&](auto type) {
    launch_kernel(Rule::kName, update_kernel<Launch<Rule>, decltype(type)>, launch,
                  items_of(launch), kThreads, over_tensors(launch), target);
  });
}

FRICTION_INSTANTIATE(update, !Rule::kProjects);

}  // namespace friction::cuda
