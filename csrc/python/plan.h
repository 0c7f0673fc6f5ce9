// A plan: which parameters one step() updates and where their states hang.
//
// No address outlives a step: those of parameters, gradients and states are all read anew by each
// one, which holds the tensors while it runs.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../order.h"
#include "device_memory.h"
#include "running.h"
#include "tensor_reader.h"

namespace friction {

constexpr int kMaxStates = kMaxOperands - 2 + 1;  // with the step counter and the master

// Where a state lies during the step at hand.
struct StateAddress {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// A tensor of the plan, in the order of the parameter groups.
struct PlanEntry {
  pybind11::object param;
  pybind11::object part;   // what of it is on this process: itself, but for a DTensor
  pybind11::object state;  // its dict in optimizer.state; None before its first gradient
  pybind11::str master;    // its key in the state; empty: none
  bool has_master = false, stochastic = false;
  uint32_t parameter = 0;  // its number among all parameters, for stochastic rounding
  GlobalIndex global{};    // likewise; row_length 0: it is whole
  int32_t group;
  bool native;  // otherwise the reference serves it, and the plan only checks that it is there
  // The parameter as it was planned. Another type, shape or device asks for another plan, in which
  // Python looks at the states.
  bool has_memory = false;
  DType dtype = DType::kFloat32;
  bool is_complex = false;
  int device = kCpu;
  std::vector<int64_t> shape;
  bool order_known = false;
  StateAddress states[kMaxStates];
  // Whether memory is another than at the step before, which is compared and never followed.
  bool moved = true;
  const void* param_data = nullptr;
  bool device_counts = false;  // its step lies on its GPU

  // What the element order is made from, beside the shape: compared each step.
  std::vector<int64_t> strides;            // [operands, dims], the master's last
  bool quantized[kMaxOperands] = {};       // operands that lie in element order
  std::vector<int64_t> quantized_strides;  // the parameter's, whose order quantized operands are in
  OwnedLayout layout;
  int64_t numel = 0, rows = 0;
};

// The tensors that one launch updates: all on the processor, or those of one GPU that the same
// kernels serve.
struct Table {
  int device = kCpu;
  int kernels = 0;  // of a GPU's tensors, see Plan::kernels_of
  std::vector<TensorEntry> tensors;
  std::vector<size_t> active;  // of each tensor, its place among the active entries
  int64_t chunks = 0, rows = 0, elements = 0;
  // What a GPU's launch needs in device memory, kept from step to step.
  DeviceCopy entries, group_steps, extras;
  DeviceMemory sums, coefficients, projected;
};

// Why a step could not run as planned; nothing was changed then.
struct Problem {
  int64_t entry = -1;  // which parameter, counted through the groups; -1: the groups themselves
  const char* what = nullptr;  // null: no problem
};

class Plan {
 public:
  // entries: (parameter, state dict or None, group index, native, master, rounding) for all
  // parameters of all groups. master: a further key of the state, or None; rounding: (number of
  // the parameter, offset, row length, row stride of its elements in the whole) where it is
  // stochastic, or None.
  // state_keys: "step" where the rule counts steps, then the rule's states in order.
  Plan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
       const std::vector<const char*>& state_keys, bool projects_rows);
  virtual ~Plan() = default;

  // Checks that the optimizer is as it was planned, finds every address, and holds the tensors
  // until `release`: for one step, or a look at what it would do. Nothing is changed.
  Problem read(const pybind11::dict& state, const pybind11::list& param_groups);
  void release() { held_.clear(); }

  // Parameters the last step updated, for torch.autograd.graph.increment_version.
  pybind11::list updated() const { return updated_; }
  const TensorReader& reader() const { return *reader_; }
  RunningProcess& running() { return running_; }

  // For the garbage collector: a parameter's hook or attribute may lead back to its optimizer.
  virtual int traverse(visitproc visit, void* arg) const;
  virtual void clear();

 protected:
  // Which of a GPU's kernels serve a tensor; negative: none.
  virtual int kernels_of(const TensorEntry& tensor) const = 0;

  std::vector<PlanEntry> entries_;
  std::vector<size_t> active_;  // entries with a gradient
  std::vector<Table> tables_;   // of the active ones that have elements, or steps to be counted
  std::shared_ptr<const TensorReader> reader_;

 private:
  Problem check_structure(const pybind11::dict& state, const pybind11::list& param_groups) const;
  void note_parameter(PlanEntry& entry) const;
  static bool is_as_planned(const PlanEntry& entry, const TensorView& param);
  const char* read_entry(size_t index);
  const char* compare_parts(const PlanEntry& entry, const pybind11::object& grad) const;
  const char* read_param_and_grad(PlanEntry& entry, PyObject* grad, TensorView* operands);
  const char* read_states(PlanEntry& entry, const TensorView& param);
  const char* read_state(PlanEntry& entry, const TensorView& param, size_t key, PyObject* value);
  const char* read_master(PlanEntry& entry, const TensorView& param, const TensorView& view);
  size_t keys_of(const PlanEntry& entry) const { return state_keys_.size() + entry.has_master; }
  size_t operand_of(size_t key) const { return 2 + key - (counts_steps_ ? 1 : 0); }
  const char* find_order(PlanEntry& entry, const TensorView& param) const;
  void note_strides(PlanEntry& entry, size_t operand, const TensorView& view) const;
  Table& table_of(int device, int kernels);
  void forget_step();
  void lay_out_tables();

  std::vector<pybind11::str> state_keys_;
  bool counts_steps_, projects_rows_;
  size_t operands_;
  RunningProcess running_{0};
  std::vector<pybind11::object> held_;  // what the step at hand reads: alive without the GIL
  pybind11::list updated_;
  std::vector<size_t> updated_entries_;  // what updated_ lists
};

// The one reading of a plan at a time: what was read is held until its end.
class Reading {
 public:
  Reading(Plan& plan, const pybind11::dict& state, const pybind11::list& param_groups)
      : plan_(plan), running_(std::in_place, plan.running()) {
    problem_ = plan.read(state, param_groups);
  }
  ~Reading() { end(); }
  void end() {
    if (running_) plan_.release();
    running_.reset();
  }
  const Problem& problem() const { return problem_; }

 private:
  Plan& plan_;
  std::optional<Running> running_;
  Problem problem_;
};

}  // namespace friction
