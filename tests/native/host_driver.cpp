// The driver of csrc/cuda/driver.h with the host for a GPU: what plans send a card, run here. Built
// with FRICTION_CUDA=host, for tests alone.
#include <cstdlib>

#include "../../csrc/cuda/driver.h"
#include "../../csrc/launches.h"
#include "host_kernels.h"

namespace friction::cuda {
namespace {

constexpr int64_t kBlocks = 5;

}  // namespace

template <class Rule>
void update(const Launch<Rule>& launch, Storage storage, const Target&) {
  with_host_storage(int(storage),
                    [&](auto type) { update_all<decltype(type), false>(launch, kBlocks); });
  count_launch(Rule::kName);
}

template <class Rule>
void adamp(const Launch<Rule>& launch, Storage storage, const Target&) {
  with_host_storage(int(storage), [&](auto type) { adamp_all<decltype(type)>(launch, kBlocks); });
  for (const char* name :
       {"friction_adamp_reduce", "friction_adamp_decide", "friction_adamp_apply"})
    count_launch(name);
}

[[gnu::used]] const auto updates = updates_of(Rules());
template void adamp(const Launch<FrictionAdam>&, Storage, const Target&);

void squared_norm(const Launch<Gradients>& launch, const Target&) {
  *launch.norm.squared = squared_norm_of(launch, kBlocks);
  count_launch("squared_norm");
}

void store(const void* bytes, size_t count, void* to, const Target&) {
  std::memcpy(to, bytes, count);
  count_launch("store_table");
}

bool is_capturing(const Target&) { return std::getenv("FRICTION_HOST_CAPTURES") != nullptr; }
void probe(int) {}
std::string why_not(int) { return ""; }
std::vector<std::string> architectures() { return {"host"}; }

}  // namespace friction::cuda
