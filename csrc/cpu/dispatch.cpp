#include "dispatch.h"

#include <stdexcept>

namespace friction {
namespace {

std::vector<KernelSet> runnable_kernels() {
  std::vector<KernelSet> sets{kernels_baseline()};
#if defined(FRICTION_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) sets.push_back(kernels_avx2());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    sets.push_back(kernels_avx512());
#endif
  return sets;
}

const std::vector<KernelSet>& runnable() {
  static const std::vector<KernelSet> sets = runnable_kernels();
  return sets;
}

KernelSet& chosen() {
  static KernelSet set = runnable().back();
  return set;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const KernelSet& set : runnable()) names.push_back(set.instruction_set);
  return names;
}

const KernelSet& kernels() { return chosen(); }

void use_instruction_set(const std::string& name) {
  for (const KernelSet& set : runnable())
    if (name == set.instruction_set) {
      chosen() = set;
      return;
    }
  throw std::invalid_argument("this processor or build has no instruction set '" + name + "'");
}

}  // namespace friction
