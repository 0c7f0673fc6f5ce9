// Runs launches on a GPU. Compiled by nvcc, called by the plans; no CUDA header is needed to call.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../rules.h"
#include "launch.h"
#include "norm.h"

namespace friction::cuda {

// Where a launch runs. The device is made current only while it is launched.
struct Target {
  int device;
  void* stream;
};

// Which of the kernels compiled for a rule serves a launch's types (dtype_configs.h).
enum class DtypeConfig { kFloat32, kBFloat16, kMixed, kFloat64, kQuantized };

// Every function below throws std::runtime_error with the kernel's name, the number of tensors, the
// device, and what CUDA says.

// One launch: every tensor updated. Of rules that do not project.
template <class Rule>
void update(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// Three launches, whatever the number of tensors. Of rules that project.
template <class Rule>
void update_projected(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// One launch: launch.statistics[chunk] becomes what the rule's statistic is there, and nothing else
// changes.
template <class Rule>
void statistic(const Launch<Rule>& launch, DtypeConfig config, const Target& target);

// Whoever defines one of these templates has the compiler make it for the rules that it is for.
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

// One launch: launch.norm.squared becomes the sum of all gradients' squares, the same bits on every
// card. launch.blocks_done must lead to a zero.
void squared_norm(const Launch<SingleOperand>& launch, const Target& target);

// Writes bytes to device memory, in stream order, without keeping the host's memory: they travel as
// kernel parameters, so a captured graph holds them too.
void store(const void* bytes, size_t count, void* to, const Target& target);

// Whether the stream is recording a graph.
bool is_capturing(const Target& target);

// Why kernels cannot run on this device; empty where they can.
std::string unavailable_reason(int device);

// Runs a kernel that does nothing, and waits for it.
void probe(int device);

// What the library was built for, as nvcc spells it: "80-real".
std::vector<std::string> architectures();

}  // namespace friction::cuda
