// Stands in for the driver if the library is built without CUDA.
#include <stdexcept>

#include "driver.h"

namespace friction::cuda {
namespace {

constexpr const char* kAbsent =
    "this build has no CUDA kernels; build it with FRICTION_CUDA=1 where nvcc is installed";

}  // namespace

template <class Rule>
void update(const Launch<Rule>&, DtypeConfig, const Target&) {
  throw std::runtime_error(kAbsent);
}

template <class Rule>
void update_projected(const Launch<Rule>&, DtypeConfig, const Target&) {
  throw std::runtime_error(kAbsent);
}

template <class Rule>
void statistic(const Launch<Rule>&, DtypeConfig, const Target&) {
  throw std::runtime_error(kAbsent);
}

FRICTION_INSTANTIATE(update, !Rule::kProjects);
FRICTION_INSTANTIATE(update_projected, Rule::kProjects);
FRICTION_INSTANTIATE(statistic, Rule::kHasStatistic);

void gram(const ListLaunch&, const Target&) { throw std::runtime_error(kAbsent); }
void combine(const ListLaunch&, const Target&) { throw std::runtime_error(kAbsent); }
void store(const void*, size_t, void*, const Target&) { throw std::runtime_error(kAbsent); }
bool is_capturing(const Target&) { throw std::runtime_error(kAbsent); }
void probe(int) { throw std::runtime_error(kAbsent); }
std::string unavailable_reason(int) { return kAbsent; }
std::vector<std::string> architectures() { return {}; }

}  // namespace friction::cuda
