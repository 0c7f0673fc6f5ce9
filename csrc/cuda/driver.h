// Runs launches on a GPU. Compiled by nvcc and called by the plans, which need no CUDA header.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../rules.h"
#include "launch.h"
#include "lists.h"

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

// Writes the products of all pairs of lists to launch.lists.products in one launch, with the same
// bits on every GPU. launch.blocks_done must point to a zero.
void gram(const ListLaunch& launch, const Target& target);

// Writes the weighted sum of all lists to one more list, in one launch.
void combine(const ListLaunch& launch, const Target& target);

// Under which name a Gram matrix is counted.
inline const char* gram_name(int lists) { return lists == 1 ? "squared_norm" : "gram"; }

// Calls f with a constant: for how many lists, at least as many as given, there is a kernel.
template <class F>
void with_most_lists(int lists, F&& f) {
  if (lists == 1) return f(std::integral_constant<int, 1>());
  if (lists == 2) return f(std::integral_constant<int, 2>());
  if (lists <= 4) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, kMostLists>());
}

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
