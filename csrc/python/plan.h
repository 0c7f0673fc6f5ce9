// A plan: which parameters one step() updates and where their states hang. It holds references, never
// addresses: those are read anew each step, so nothing can go stale.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../layout.h"
#include "tensor_reader.h"

namespace friction {

// A tensor of the plan, in the order of the parameter groups.
struct PlanEntry {
  pybind11::object param;
  pybind11::object state;  // its dict in optimizer.state; None before its first gradient
  int32_t group;
  bool native;             // otherwise the reference serves it, and the plan only checks that it is there

  // What the walk below was made from, to be compared each step.
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // [lists, dims]
  bool is_complex = false;
  // The walk.
  bool known = false;
  std::vector<int64_t> walk_sizes, walk_strides;
  Layout layout{};
  bool contiguous = true;
  int64_t numel = 0, rows = 0, row_length = 0;
};

// Why a step could not run as planned; nothing was changed then.
struct Problem {
  int64_t entry = -1;  // which parameter, counted through the groups; -1: the groups themselves
  std::string what;    // empty: no problem
};

class Plan {
 public:
  // entries: (parameter, state dict or None, group index, native) for all parameters of all groups.
  // state_keys: "step" where the rule counts steps, then the rule's state lists in order.
  Plan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
       const std::vector<const char*>& state_keys, bool projects_rows);
  virtual ~Plan() = default;

  // Parameters the last step updated, for torch.autograd.graph.increment_version.
  pybind11::list updated() const { return updated_; }

 protected:
  // Checks that the optimizer is as it was planned and reads every tensor. Nothing is changed.
  Problem read(const pybind11::dict& state, const pybind11::list& param_groups);
  void release_tensors() { held_.clear(); }

  struct Active {
    size_t entry;
    TensorView step;  // unused where the rule counts none
  };

  std::shared_ptr<const TensorReader> reader_;
  std::vector<PlanEntry> entries_;
  std::vector<Active> active_;
  std::vector<TensorEntry> tensors_;      // of the active ones, those with elements
  std::vector<size_t> active_of_tensor_;
  int64_t rows_ = 0, elements_ = 0;
  std::atomic_flag running_ = ATOMIC_FLAG_INIT;

 private:
  Problem check_structure(const pybind11::dict& state, const pybind11::list& param_groups) const;
  std::string read_entry(size_t index);
  std::string read_lists(const PlanEntry& entry, PyObject* grad, TensorView* lists,
                         TensorView& step);
  std::string find_walk(PlanEntry& entry, const TensorView* lists) const;
  bool walk_is_known(const PlanEntry& entry, const TensorView* lists) const;
  PyObject* state_item(PyObject* state, size_t key, Py_ssize_t& position) const;

  std::vector<pybind11::str> state_keys_;
  bool counts_steps_, projects_rows_;
  int lists_;
  std::vector<pybind11::object> held_;  // gradients and states, alive while a step runs without the GIL
  pybind11::list updated_;
};

}  // namespace friction
