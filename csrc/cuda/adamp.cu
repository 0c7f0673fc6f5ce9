#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void adamp(const Launch<Rule>& launch, Storage storage, const Target& target) {
  const std::string over = over_tensors(launch);
  with_kernels_for(storage, [&](auto type) {
    using Type = decltype(type);
    using T = typename Type::Arithmetic;
    launch_kernel("friction_adamp_reduce", adamp_reduce_kernel<Launch<Rule>, Type>, launch,
                  launch.chunks, kThreads, over, target);
    launch_kernel("friction_adamp_decide", adamp_decide_kernel<Launch<Rule>, T>, launch,
                  launch.count, kDecideThreads, over, target);
    launch_kernel("friction_adamp_apply", update_kernel<Launch<Rule>, Type, true>, launch,
                  items_of(launch), kThreads, over, target);
  });
}

template void adamp(const Launch<FrictionAdam>&, Storage, const Target&);

}  // namespace friction::cuda
