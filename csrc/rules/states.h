// The names and kinds of the rules' states: one table for C++ and Python.
#pragma once

#include <array>
#include <stdexcept>
#include <string_view>

namespace friction {

enum class StateKind { average, square, copy };  // see states.def

struct StateLine {
  std::string_view rule;
  const char* name;
  StateKind kind;
};

constexpr StateLine kStateLines[] = {
#define STATE(rule, state, kind) {#rule, #state, StateKind::kind},
#include "../../friction_kernels/optim/states.def"
#undef STATE
};

// A rule's states, in the order of its operands after parameter and gradient.
template <int kCount>
struct States {
  const char* names[kCount] = {};
  StateKind kinds[kCount] = {};
};

template <int kCount>
constexpr States<kCount> states_of(std::string_view rule) {
  States<kCount> states{};
  int count = 0;
  for (const StateLine& line : kStateLines) {
    if (line.rule != rule) continue;
    if (count == kCount) throw std::logic_error("the table has more states of this rule");
    states.names[count] = line.name;
    states.kinds[count] = line.kind;
    ++count;
  }
  if (count != kCount) throw std::logic_error("the table has fewer states of this rule");
  return states;
}

// The names of a rule's settings, in the order of its Settings' fields.
template <class... Name>
constexpr std::array<const char*, sizeof...(Name)> names(Name... name) {
  return {name...};
}

template <size_t kFirst, size_t kSecond>
constexpr std::array<const char*, kFirst + kSecond> joined(
    const std::array<const char*, kFirst>& first, const std::array<const char*, kSecond>& second) {
  std::array<const char*, kFirst + kSecond> all{};
  for (size_t i = 0; i < kFirst; ++i) all[i] = first[i];
  for (size_t i = 0; i < kSecond; ++i) all[kFirst + i] = second[i];
  return all;
}

// The first two operands of every rule.
constexpr int kParamOperand = 0, kGradOperand = 1;

constexpr bool is_written(int operand) { return operand != kGradOperand; }

// Whether an operand is a state that is kept in at least float32.
template <class Rule>
constexpr bool is_average(int operand) {
  return operand > kGradOperand && Rule::kStates.kinds[operand - 2] != StateKind::copy;
}

// The state that keeps the gradient for the next step, the one of kind copy; -1: none.
template <class Rule>
constexpr int kept_gradient() {
  for (int operand = 2; operand < Rule::kOperands; ++operand)
    if (Rule::kStates.kinds[operand - 2] == StateKind::copy) return operand;
  return -1;
}

template <class Rule>
constexpr bool is_non_negative(int operand) {
  return operand > kGradOperand && Rule::kStates.kinds[operand - 2] == StateKind::square;
}

}  // namespace friction
