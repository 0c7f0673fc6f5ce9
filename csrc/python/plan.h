// A plan: the parameters that one step() updates, and their states.
//
// No address outlives a step. Each step reads the addresses of parameters, gradients and states
// anew and holds the tensors while it runs.
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

constexpr int kMaxStates = kMaxOperands - 2 + 1;  // including the step counter and the master

// A state's address during the current step.
struct StateAddress {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
};

// A parameter of the plan. Entries are in the order of the parameter groups.
struct PlanEntry {
  pybind11::object param;
  pybind11::object part;   // the local tensor of a DTensor, else `param`
  pybind11::object state;  // the dict in optimizer.state; None before the first gradient
  pybind11::str master;    // the master's key in the state; empty: none
  bool has_master = false, stochastic = false;
  bool takes = false;      // the gradient's memory becomes the state that keeps it
  uint32_t parameter = 0;  // number among all parameters, for stochastic rounding
  GlobalIndex global{};    // likewise; row_length 0: the parameter is whole
  int32_t group;
  bool native;  // false: the reference updates it, the plan only checks its presence
  // The parameter when it was planned. If dtype, shape or device change, a new plan is needed, for
  // which Python checks the states.
  bool has_memory = false;
  DType dtype = DType::kFloat32;
  bool is_complex = false;
  int device = kCpu;
  std::vector<int64_t> shape;
  bool order_known = false;
  StateAddress states[kMaxStates];
  // Where the sizes of parameter and states were at the last step: fetched into the cache before
  // the tensors are read anew, never followed. A step of many small tensors waits for little else.
  const void* sizes[kMaxStates] = {};
  // Whether an address has changed since the last step. Old ones are only compared, never followed.
  bool moved = true;  // until what it is now has been checked
  const void* param_data = nullptr;
  bool device_counts = false;  // the step counter is on the parameter's GPU

  // What determines the element order, besides the shape; compared at each step.
  std::vector<int64_t> strides;            // [operands, dims], the master's last
  bool quantized[kMaxOperands] = {};       // operands stored in element order
  std::vector<int64_t> quantized_strides;  // the parameter's when its states were quantized
  OwnedLayout layout;
  int64_t numel = 0, rows = 0;
};

// The tensors that one launch updates: those on the CPU, or those on one GPU with the same kernels.
struct Table {
  int device = kCpu;
  int kernels = 0;  // for a GPU, see Plan::kernels_of
  std::vector<TensorEntry> tensors;
  std::vector<size_t> active;  // each tensor's index among the active entries
  int64_t chunks = 0, rows = 0, elements = 0;
  // Device memory of a GPU's launch, reused from step to step.
  DeviceCopy entries, group_steps, extras;
  DeviceMemory sums, coefficients, row_groups, as_one_row, projected;
};

// Why a step could not run as planned. Nothing has been changed.
struct Problem {
  int64_t entry = -1;  // index of the parameter across all groups; -1: the groups themselves
  const char* what = nullptr;  // null: no problem
};

class Plan {
 public:
  // entries: (parameter, state dict or None, group index, native, master, rounding, takes) for all
  // parameters of all groups. master: the master's key in the state, or None. rounding: (number of
  // the parameter, offset, row length, row stride of its elements in the whole parameter) if it is
  // rounded stochastically, else None. takes: whether its gradient is taken.
  // state_keys: "step" if the rule counts steps, then the rule's states in order.
  // kept_gradient: the operand that keeps the gradient; -1: none.
  Plan(std::shared_ptr<const TensorReader> reader, pybind11::list entries,
       const std::vector<const char*>& state_keys, bool projects_rows, int kept_gradient);
  virtual ~Plan() = default;

  // Checks that the optimizer is as planned, reads every address, and holds the tensors until
  // `release`: for one step, or to inspect what it would do. Changes nothing.
  Problem read(const pybind11::dict& state, const pybind11::list& param_groups);
  void release() { held_.clear(), taken_.clear(); }

  // Parameters that the last step updated, for torch.autograd.graph.increment_version.
  pybind11::list updated() const { return updated_; }
  const TensorReader& reader() const { return *reader_; }
  RunningProcess& running() { return running_; }

  // For the garbage collector: a parameter's hook or attribute may refer back to its optimizer.
  virtual int traverse(visitproc visit, void* arg) const;
  virtual void clear();

 protected:
  // After the launches: makes gradients the states of their parameters, which then have none.
  void take_gradients();

  // The GPU kernels that serve a tensor; negative: none.
  virtual int kernels_of(const TensorEntry& tensor) const = 0;

  std::vector<PlanEntry> entries_;
  std::vector<size_t> active_;  // entries with a gradient
  std::vector<Table> tables_;   // of active entries that have elements, or steps to count
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
  void prefetch(const PlanEntry& entry) const;
  size_t keys_of(const PlanEntry& entry) const { return state_keys_.size() + entry.has_master; }
  size_t operand_of(size_t key) const { return 2 + key - (counts_steps_ ? 1 : 0); }
  size_t key_of(size_t operand) const { return operand - 2 + (counts_steps_ ? 1 : 0); }
  const char* find_order(PlanEntry& entry, const TensorView& param) const;
  void note_strides(PlanEntry& entry, size_t operand, const TensorView& view) const;
  Table& table_of(int device, int kernels);
  void forget_step();
  void lay_out_tables();

  std::vector<pybind11::str> state_keys_;
  bool counts_steps_, projects_rows_;
  size_t kept_gradient_, operands_;
  RunningProcess running_{0};
  std::vector<pybind11::object> held_;  // tensors of the current step, which runs without the GIL
  std::vector<std::pair<size_t, size_t>> taken_;  // entries, and places of their gradients in held_
  pybind11::list updated_;
  std::vector<size_t> updated_entries_;  // the entries in updated_
};

// Reads a plan and holds its tensors until the end. A plan has only one Reading at a time.
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
