#include "../rules.h"
#include "kernels.cuh"

namespace friction::cuda {

template <class Rule>
void update(const Launch<Rule>& launch, Storage storage, const Target& target) {
  with_kernels_for(storage, [&](auto type) {
    launch_kernel(Rule::kName, update_kernel<Launch<Rule>, decltype(type), false>, launch,
                  items_of(launch), kThreads, over_tensors(launch), target);
  });
}

// FRICTION_RULE: the rule this object file is made for; each gets its own, to be compiled at once.
template void update(const Launch<FRICTION_RULE>&, Storage, const Target&);

}  // namespace friction::cuda
