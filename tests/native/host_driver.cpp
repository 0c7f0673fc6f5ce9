// Implements csrc/cuda/driver.h on the host, which runs the launches that plans make for a GPU.
// Built with FRICTION_CUDA=host, only for tests.
#include <cstdlib>

#include "../../csrc/cuda/driver.h"
#include "../../csrc/launches.h"
#include "host_kernels.h"

namespace friction::cuda {
namespace {

constexpr int64_t kBlocks = 5;

}  // namespace

template <class Rule>
void update(const Launch<Rule>& launch, DtypeConfig config, const Target&) {
  with_host_config(int(config), [&](auto type) { update_all<decltype(type)>(launch, kBlocks); });
  count_launch(Rule::kName);
}

template <class Rule>
void update_projected(const Launch<Rule>& launch, DtypeConfig config, const Target&) {
  with_host_config(int(config),
                   [&](auto type) { update_projected_all<decltype(type)>(launch, kBlocks); });
  static const std::string name = Rule::kName;
  static const std::string names[] = {name + "_reduce", name + "_decide", name + "_apply"};
  for (const std::string& launched : names) count_launch(launched.c_str());
}

template <class Rule>
void statistic(const Launch<Rule>& launch, DtypeConfig config, const Target&) {
  with_host_config(int(config), [&](auto type) { statistic_all<decltype(type)>(launch, kBlocks); });
  count_launch("friction_stats");
}

FRICTION_INSTANTIATE(update, !Rule::kProjects);
FRICTION_INSTANTIATE(update_projected, Rule::kProjects);
FRICTION_INSTANTIATE(statistic, Rule::kHasStatistic);

void gram(const ListLaunch& launch, const Target&) {
  with_most_lists(launch.lists.count,
                  [&](auto most) { gram_all<decltype(most)::value>(launch, kBlocks); });
  count_launch(gram_name(launch.lists.count));
}

void combine(const ListLaunch& launch, const Target&) {
  combine_all(launch, kBlocks);
  count_launch("combine");
}

void store(const void* bytes, size_t count, void* to, const Target&) {
  std::memcpy(to, bytes, count);
  for (size_t done = 0; done < count; done += kStoreBytes) count_launch("store_table");
}

bool is_capturing(const Target&) { return std::getenv("FRICTION_HOST_CAPTURES") != nullptr; }
void probe(int) {}
std::string unavailable_reason(int) { return ""; }
std::vector<std::string> architectures() { return {"host"}; }

}  // namespace friction::cuda
