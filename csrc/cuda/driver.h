// Runs launches on a GPU. Compiled by nvcc and called by the plans, which need no CUDA header.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../rules.h"
#include "launch.h"
#include "norm.h"

namespace friction::cuda {

// Where a launch runs. The device is current only during the launch.
struct Target {
  int device;
  void* stream;
};

// The combinations of dtypes that a rule's kernels are compiled for (dtype_configs.h).
enum class DtypeConfig { kFloat32, kBFloat16, kMixed, kFloat64, kQuantized };

// On failure, every function below throws std::runtime_error with the kernel's name, the number of
// tensors, the device and CUDA's message.

// Updates every tensor in one launch. For rules that do not project.
template <class Rule>
void update(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// Updates every tensor in three launches, whatever their number. For rules that project.
template <class Rule>
void update_projected(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// Writes the moments of the rule's statistic over each chunk to launch.statistics, in one launch.
// Changes nothing else.
template <class Rule>
void statistic(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// Instantiates one of these templates, where it is defined, for the rules that it is for.
template <class... Rule, class Choose>
auto of_rules(RuleList<Rule...>, Choose choose) {
  return std::make_tuple(choose(static_cast<Rule*>(nullptr))...);
}
#define FRICTION_INSTANTIATE(function, is_for_rule)                                 \
  [[gnu::used]] const auto function##_of_rules = of_rules(Rules(), [](auto* rule) { \
    using Rule = std::remove_pointer_t<decltype(rule)>;                             \
    if constexpr (is_for_rule)                                                      \
      return &function<Rule>;                                                       \
    else                                                                            \
      return nullptr;                                                               \
  })

// Writes the squared norm of all tensors to launch.norm.squared in one launch, with the same bits
// on every GPU. launch.blocks_done must point to a zero.
void squared_norm(const Launch<SingleOperand>& launch, const Target& target);

// Writes bytes to device memory in stream order, in a launch for each kStoreBytes. They are passed
// as kernel parameters, so the host memory may be freed at once, and a captured graph holds them
// too.
constexpr size_t kStoreBytes = 32736;
void store(const void* bytes, size_t count, void* to, const Target& target);

// Whether the stream is capturing a graph.
bool is_capturing(const Target& target);

// Why kernels cannot run on this device; empty if they can.
std::string unavailable_reason(int device);

// Runs an empty kernel and waits for it.
void probe(int device);

// The architectures that the library was built for, in CMake's notation: "80-real".
std::vector<std::string> architectures();

}  // namespace friction::cuda
