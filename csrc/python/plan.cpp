#include "plan.h"

#include <algorithm>
#include <utility>

#include "../formats/blockwise.h"
#include "../rules/states.h"

namespace friction {
namespace py = pybind11;

Plan::Plan(std::shared_ptr<const TensorReader> reader, py::list entries,
           const std::vector<const char*>& state_keys, bool projects_rows, int kept_gradient)
    : entries_(entries.size()),
      reader_(std::move(reader)),
      projects_rows_(projects_rows),
      kept_gradient_(size_t(kept_gradient)) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    const auto fields =
        py::reinterpret_borrow<py::tuple>(PyList_GET_ITEM(entries.ptr(), Py_ssize_t(i)));
    entries_[i].param = fields[0];
    entries_[i].state = fields[1];
    entries_[i].group = fields[2].cast<int32_t>();
    entries_[i].native = fields[3].cast<bool>();
    if (entries_[i].native) note_parameter(entries_[i]);
    if (!fields[4].is_none()) {
      entries_[i].master = fields[4].cast<py::str>();
      entries_[i].has_master = true;
    }
    if (!fields[5].is_none()) {
      const auto rounding = fields[5].cast<py::tuple>();
      entries_[i].stochastic = true;
      entries_[i].parameter = rounding[0].cast<uint32_t>();
      entries_[i].global = {rounding[1].cast<int64_t>(), rounding[2].cast<int64_t>(),
                            rounding[3].cast<int64_t>()};
    }
    entries_[i].takes = kept_gradient > 0 && fields[6].cast<bool>();
  }
  for (const char* key : state_keys)
    state_keys_.push_back(py::reinterpret_steal<py::str>(PyUnicode_InternFromString(key)));
  active_.reserve(entries_.size());
  counts_steps_ = std::string(state_keys[0]) == "step";
  operands_ = 2 + state_keys_.size() - (counts_steps_ ? 1 : 0);
  for (PlanEntry& entry : entries_) entry.strides.assign((operands_ + 1) * entry.shape.size(), 0);
}

void Plan::note_parameter(PlanEntry& entry) const {
  TensorView view;
  const py::object part = reader_->part_of(entry.param.ptr());
  entry.has_memory = reader_->read(part.ptr(), view);
  if (!entry.has_memory) return;  // not yet
  entry.dtype = view.dtype;
  entry.is_complex = view.is_complex;
  entry.device = view.device;
  entry.shape.assign(view.shape, view.shape + view.ndim);
}

int Plan::traverse(visitproc visit, void* arg) const {
  const auto visit_all = [&](auto&&... objects) {
    int result = 0;
    ((result = result != 0 || !objects ? result : visit(objects.ptr(), arg)), ...);
    return result;
  };
  for (const PlanEntry& entry : entries_)
    if (const int result = visit_all(entry.param, entry.part, entry.state)) return result;
  for (const py::object& object : held_)
    if (const int result = visit_all(object)) return result;
  return visit_all(updated_);
}

// Freeing the objects may run user code, which must find the plan empty but usable.
void Plan::clear() {
  const auto entries = std::move(entries_);
  const auto held = std::move(held_);
  const auto updated = std::exchange(updated_, py::list());
  entries_.clear();
  held_.clear();
  active_.clear();
  updated_entries_.clear();
  tables_.clear();
}

// Checks that the groups hold the planned parameters in order, with the planned state dicts.
Problem Plan::check_structure(const py::dict& state, const py::list& param_groups) const {
  static const py::str& params_key = *new py::str("params");
  constexpr Problem changed{-1, "the parameter groups are not as planned"};
  size_t planned = 0;
  const Py_ssize_t groups = PyList_GET_SIZE(param_groups.ptr());
  for (Py_ssize_t group = 0; group < groups; ++group) {
    PyObject* of_group = PyList_GET_ITEM(param_groups.ptr(), group);
    PyObject* params =
        PyDict_Check(of_group) ? PyDict_GetItemWithError(of_group, params_key.ptr()) : nullptr;
    if (params == nullptr || !(PyList_Check(params) || PyTuple_Check(params))) return changed;
    PyObject** items = PySequence_Fast_ITEMS(params);
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(params); ++i, ++planned)
      if (planned >= entries_.size() || entries_[planned].group != group ||
          entries_[planned].param.ptr() != items[i])
        return changed;
  }
  if (planned != entries_.size()) return changed;

  // States are first created in the order of the parameters, so this walk usually meets them in
  // order. Only otherwise does it look a state up, which costs hashing a tensor.
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const PlanEntry& entry = entries_[i];
    if (!entry.native || entry.state.is_none()) continue;
    if (!PyDict_Next(state.ptr(), &position, &key, &value) || key != entry.param.ptr())
      value = PyDict_GetItemWithError(state.ptr(), entry.param.ptr());
    if (value != entry.state.ptr()) {
      PyErr_Clear();
      return {static_cast<int64_t>(i), "its state was replaced"};
    }
  }
  return {};
}

// Records an operand's strides. A change requires a new element order.
void Plan::note_strides(PlanEntry& entry, size_t operand, const TensorView& view) const {
  const size_t dims = entry.shape.size();
  int64_t* known = entry.strides.data() + operand * dims;
  for (size_t d = 0; d < dims; ++d)
    if (known[d] != view.strides[d]) {
      known[d] = view.strides[d];
      entry.order_known = false;
    }
}

// A DTensor's gradient must have the parameter's placements and device mesh.
const char* Plan::compare_parts(const PlanEntry& entry, const py::object& grad) const {
  constexpr const char* kOtherwise = "its gradient is spread over processes otherwise than it is";
  if (reader_->is_dtensor(entry.param.ptr()) != reader_->is_dtensor(grad.ptr())) return kOtherwise;
  if (!reader_->is_dtensor(grad.ptr())) return nullptr;
  static const py::str& spec = *new py::str("_spec");  // FSDP2 gradients share their parameter's
  if (entry.param.attr(spec).is(grad.attr(spec))) return nullptr;
  for (const char* name : {"placements", "device_mesh"})
    if (!entry.param.attr(name).equal(grad.attr(name))) return kOtherwise;
  return nullptr;
}

bool Plan::is_as_planned(const PlanEntry& entry, const TensorView& param) {
  return entry.has_memory && entry.dtype == param.dtype && entry.is_complex == param.is_complex &&
         entry.device == param.device && entry.shape.size() == static_cast<size_t>(param.ndim) &&
         std::equal(entry.shape.begin(), entry.shape.end(), param.shape);
}

const char* Plan::read_param_and_grad(PlanEntry& entry, PyObject* grad, TensorView* operands) {
  const TensorView& param = operands[0];
  if (!reader_->read(entry.part.ptr(), operands[0]) || !is_floating(param.dtype))
    return "it is not a plain dense tensor of a floating or complex type, or has no memory";
  if (!is_as_planned(entry, param))
    return "its type, shape or device has changed since the step was planned";
  if (!reader_->read(grad, operands[1]) || !is_floating(operands[1].dtype))
    return "its gradient is not a plain dense tensor of a floating or complex type, or has no "
           "memory";
  if (param.device == kElsewhere || operands[1].device != param.device)
    return "it and its gradient are not on one device, the CPU or a GPU";
  if (!operands[1].same_shape(param)) return "its shape differs from its gradient's";
  entry.sizes[0] = param.shape;
  entry.moved = entry.moved || entry.param_data != param.data;
  entry.param_data = param.data;
  note_strides(entry, 0, param);
  note_strides(entry, 1, operands[1]);
  return nullptr;
}

const char* Plan::read_state(PlanEntry& entry, const TensorView& param, size_t key,
                             PyObject* value) {
  TensorView view;
  const bool is_step = counts_steps_ && key == 0;
  if (!reader_->read(value, view)) return "a state is not a plain dense tensor, or has no memory";
  if (view.device != param.device && !(is_step && view.device == kCpu))
    return "a state lies on another device";
  if (is_step) {
    if (view.is_complex || view.numel() != 1 ||
        (view.dtype != DType::kFloat32 && view.dtype != DType::kFloat64))
      return "its state 'step' is not one float32 or float64 number";
    entry.device_counts = view.device != kCpu;
    if (entry.device_counts && view.dtype != DType::kFloat32)
      return "its state 'step' lies on a GPU and is not float32";
  } else if (key == state_keys_.size()) {
    if (const char* problem = read_master(entry, param, view)) return problem;
    note_strides(entry, operand_of(key), view);
  } else if (view.dtype == DType::kQuantized) {
    const int64_t numel = param.numel() * (param.is_complex ? 2 : 1);
    if (view.ndim != 1 || view.numel() != quantized_bytes(numel) ||
        (view.numel() > 1 && view.strides[0] != 1) ||
        reinterpret_cast<uintptr_t>(view.data) % 16 != 0)
      return "a state of 8 bits does not have the size of its parameter";
    if (param.dtype == DType::kFloat64) return "it is float64 and a state has 8 bits";
    if (!entry.quantized[operand_of(key)]) entry.order_known = false;
    entry.quantized[operand_of(key)] = true;
  } else {
    if (!view.same_shape(param)) return "its shape differs from a state's";
    if (!is_floating(view.dtype)) return "a state is of integers";
    if (param.dtype == DType::kFloat64 && view.dtype != DType::kFloat64)
      return "it is float64 and a state is not";
    if (entry.quantized[operand_of(key)]) entry.order_known = false;
    entry.quantized[operand_of(key)] = false;
    note_strides(entry, operand_of(key), view);
  }
  if (key < state_keys_.size()) entry.sizes[1 + key] = view.shape;
  entry.moved = entry.moved || entry.states[key].data != view.data;
  entry.states[key] = {view.data, view.dtype};
  return nullptr;
}

const char* Plan::read_master(PlanEntry& entry, const TensorView& param, const TensorView& view) {
  if (!view.same_shape(param)) return "its shape differs from its residual's or master's";
  const bool half = param.dtype == DType::kBFloat16 || param.dtype == DType::kFloat16;
  if (!half || entry.is_complex)
    return "it is not bfloat16 or float16, and its state has a residual or a master";
  if (view.dtype != DType::kInt8 && view.dtype != DType::kInt16 && view.dtype != DType::kFloat32)
    return "its residual or master is not int8, int16 or float32";
  return nullptr;
}

const char* Plan::read_states(PlanEntry& entry, const TensorView& param) {
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (size_t k = 0; k < keys_of(entry); ++k) {
    const py::str& wanted = k < state_keys_.size() ? state_keys_[k] : entry.master;
    // The dict's order usually gives the wanted key next.
    if (!PyDict_Next(entry.state.ptr(), &position, &key, &value) || key != wanted.ptr())
      value = PyDict_GetItemWithError(entry.state.ptr(), wanted.ptr());
    if (value == nullptr) return "its state lacks a tensor";
    held_.push_back(py::reinterpret_borrow<py::object>(value));
    if (const char* problem = read_state(entry, param, k, value)) return problem;
  }
  return nullptr;
}

const char* Plan::find_order(PlanEntry& entry, const TensorView& param) const {
  const auto dims = static_cast<std::ptrdiff_t>(entry.shape.size());
  entry.numel = param.numel() * (entry.is_complex ? 2 : 1);
  const bool matrix = projects_rows_ && dims > 1 && entry.numel > 0;
  entry.rows = matrix ? entry.shape[0] : 0;
  entry.layout = {};
  entry.order_known = entry.numel == 0;
  if (entry.order_known) return nullptr;

  std::vector<int64_t> shape = entry.shape;
  const size_t operands = operands_ + entry.has_master;
  std::vector<std::vector<int64_t>> strides;
  for (size_t operand = 0; operand < operands; ++operand) {
    const auto begin = entry.strides.begin() + static_cast<std::ptrdiff_t>(operand) * dims;
    if (!entry.quantized[operand]) strides.emplace_back(begin, begin + dims);
  }
  if (strides.size() < operands) {
    std::vector<int64_t>& known = entry.quantized_strides;
    if (known.empty()) known.assign(entry.strides.begin(), entry.strides.begin() + dims);
    if (!std::equal(known.begin(), known.end(), entry.strides.begin()))
      return "its memory layout is not the one its state of 8 bits was quantized in";
  }
  if (entry.is_complex) as_pairs(shape, strides);
  ElementOrder order = stride_order(shape, strides, matrix);
  for (size_t operand = 0; operand < operands; ++operand)
    if (entry.quantized[operand])
      order.strides.insert(order.strides.begin() + static_cast<std::ptrdiff_t>(operand),
                           dense_strides(order.sizes));
  for (size_t operand = 0; operand < operands; ++operand)
    if (operand != kGradOperand && overlaps(order, operand))
      return "elements of it or of its state share memory; make it of a clone()";
  entry.layout.keep(order);
  entry.order_known = true;
  return nullptr;
}

const char* Plan::read_entry(size_t index) {
  PlanEntry& entry = entries_[index];
  py::object grad = reader_->grad(entry.param.ptr());
  if (!grad) throw py::error_already_set();
  if (grad.is_none()) return nullptr;
  if (entry.state.is_none()) return "it has a gradient, and no state that was planned for";
  const char* problem = compare_parts(entry, grad);
  if (problem != nullptr) return problem;
  entry.part = reader_->part_of(entry.param.ptr());
  grad = reader_->part_of(grad.ptr());
  TensorView operands[2];
  const size_t first_state = held_.size();
  problem = read_param_and_grad(entry, grad.ptr(), operands);
  if (problem == nullptr) problem = read_states(entry, operands[0]);
  if (problem == nullptr && !entry.order_known) problem = find_order(entry, operands[0]);
  if (problem == nullptr && entry.takes &&
      operands[1].dtype != entry.states[key_of(kept_gradient_)].dtype)
    problem = "its gradient is to be taken as a state of another dtype";
  if (problem != nullptr) return problem;

  // torch may represent conjugation or negation as a flag on a view. Checking it costs more than
  // reading, so it is checked only if a view is likely or the memory is new.
  const bool may_be_view =
      entry.is_complex || entry.layout.get() != nullptr || entry.numel == 1 || entry.moved;
  if (may_be_view) {
    bool found = reader_->is_lazy_view(entry.part.ptr(), entry.is_complex);
    for (size_t i = first_state; i < held_.size(); ++i)
      found = found || reader_->is_lazy_view(held_[i].ptr(), entry.is_complex);
    if (found) return "it or a state of it is a conjugated or negated view";
  }
  if (entry.moved) {
    bool within = reader_->is_within_storage(entry.part.ptr());
    for (size_t i = first_state; i < held_.size(); ++i)
      within = within && reader_->is_within_storage(held_[i].ptr());
    if (!within) return "its storage, or a state's, has fewer bytes than it has elements for";
    entry.moved = false;
  }
  if (reader_->is_lazy_view(grad.ptr(), entry.is_complex)) {
    grad = grad.attr("resolve_conj")().attr("resolve_neg")();
    problem = read_param_and_grad(entry, grad.ptr(), operands);
    if (problem == nullptr && !entry.order_known) problem = find_order(entry, operands[0]);
    if (problem != nullptr) return problem;
  }
  active_.push_back(index);
  if (entry.takes) taken_.emplace_back(index, held_.size());
  held_.push_back(std::move(grad));
  if (entry.numel == 0 && !entry.device_counts) return nullptr;
  TensorEntry tensor{};
  const StateAddress* states = entry.states + (counts_steps_ ? 1 : 0);
  for (size_t operand = 0; operand < operands_; ++operand) {
    tensor.data[operand] = operand < 2 ? operands[operand].data : states[operand - 2].data;
    tensor.dtype[operand] = operand < 2 ? operands[operand].dtype : states[operand - 2].dtype;
  }
  if (entry.has_master) {
    tensor.master = static_cast<int8_t>(operands_);
    tensor.data[operands_] = states[operands_ - 2].data;
    tensor.dtype[operands_] = states[operands_ - 2].dtype;
  }
  for (size_t operand = 2; operand < operands_; ++operand)
    tensor.quantized = tensor.quantized || entry.quantized[operand];
  const bool half = tensor.dtype[0] == DType::kBFloat16 || tensor.dtype[0] == DType::kFloat16;
  tensor.stochastic = entry.stochastic && half;
  tensor.takes = entry.takes;
  tensor.parameter = entry.parameter;
  tensor.global = entry.global;
  if (tensor.global.row_length == 0) tensor.global = {0, entry.numel, entry.numel};
  if (entry.device_counts) tensor.step = static_cast<float*>(entry.states[0].data);
  Table& table = table_of(entry.device, entry.device == kCpu ? 0 : kernels_of(tensor));
  table.tensors.push_back(tensor);
  table.active.push_back(active_.size() - 1);
  return nullptr;
}

void Plan::take_gradients() {
  for (const auto& [index, place] : taken_) {
    PlanEntry& entry = entries_[index];
    const size_t key = key_of(kept_gradient_);
    TensorView grad;
    reader_->read(held_[place].ptr(), grad);
    if (PyDict_SetItem(entry.state.ptr(), state_keys_[key].ptr(), held_[place].ptr()) != 0)
      throw py::error_already_set();
    entry.states[key].data = grad.data;  // known, so that the next step need not check it anew
    entry.param.attr("grad") = py::none();
  }
  taken_.clear();
}

Table& Plan::table_of(int device, int kernels) {
  for (Table& table : tables_)
    if (table.device == device && table.kernels == kernels) return table;
  Table& table = tables_.emplace_back();
  table.device = device;
  table.kernels = kernels;
  table.tensors.reserve(entries_.size());  // growing would over-allocate
  table.active.reserve(entries_.size());
  return table;
}

void Plan::lay_out_tables() {
  tables_.erase(std::remove_if(tables_.begin(), tables_.end(),
                               [](const Table& table) { return table.tensors.empty(); }),
                tables_.end());
  for (Table& table : tables_) {
    table.chunks = table.rows = table.elements = 0;
    for (size_t i = 0; i < table.tensors.size(); ++i) {
      TensorEntry& tensor = table.tensors[i];
      const PlanEntry& entry = entries_[active_[table.active[i]]];
      tensor.layout = entry.layout.get();
      tensor.numel = entry.numel;
      tensor.first_chunk = table.chunks;
      tensor.rows = entry.rows;
      tensor.row_length = entry.rows > 0 ? entry.numel / entry.rows : 0;
      tensor.first_row = table.rows;
      table.chunks += (entry.numel + kChunk - 1) / kChunk;
      table.rows += entry.rows;
      table.elements += entry.numel;
    }
  }
}

// Keeps each table's device memory for the next step.
void Plan::forget_step() {
  active_.clear();
  release();
  for (Table& table : tables_) {
    table.tensors.clear();
    table.active.clear();
  }
}

void Plan::prefetch(const PlanEntry& entry) const {
  constexpr int kLine = 64;
  for (size_t i = 0; i < 1 + state_keys_.size() && entry.sizes[i] != nullptr; ++i)
    // torch keeps sizes within the tensor, behind its storage and before its type.
    for (int line = -1; line <= 1; ++line)
      __builtin_prefetch(static_cast<const char*>(entry.sizes[i]) + line * kLine);
}

Problem Plan::read(const py::dict& state, const py::list& param_groups) {
  const Problem changed = check_structure(state, param_groups);
  if (changed.what != nullptr) return changed;
  forget_step();
  constexpr size_t kAhead = 3;
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (i + kAhead < entries_.size()) prefetch(entries_[i + kAhead]);
    if (!entries_[i].native) continue;
    if (const char* what = read_entry(i)) {
      forget_step();
      return {static_cast<int64_t>(i), what};
    }
  }
  lay_out_tables();
  if (active_ != updated_entries_) {
    updated_ = py::list();
    for (const size_t index : active_) updated_.append(entries_[index].param);
    updated_entries_ = active_;
  }
  return {};
}

}  // namespace friction
