#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void update_projected(const Launch<Rule>& launch, DtypeConfig config, const Target& target) {
  static const std::string names[] = {std::string(Rule::kName) + "_reduce",
                                      std::string(Rule::kName) + "_decide",
                                      std::string(Rule::kName) + "_apply"};
  const std::string over = over_tensors(launch);
  with_kernels_for(config, [&](auto type) {
    using Type = decltype(type);
    using T = typename Type::Arithmetic;
    launch_kernel(names[0].c_str(), projection_reduce_kernel<Launch<Rule>, Type>, launch,
                  launch.chunks, kThreads, over, target);
    launch_kernel(names[1].c_str(), projection_decide_kernel<Launch<Rule>, T>, launch,
                  launch.count * kRowGroups, kDecideThreads, over, target);
    launch_kernel(names[2].c_str(), update_kernel<Launch<Rule>, Type>, launch, items_of(launch),
                  kThreads, over, target);
  });
}

FRICTION_INSTANTIATE(update_projected, Rule::kProjects);

}  // namespace friction::cuda
