#include "plan.h"

#include <algorithm>

namespace friction {
namespace py = pybind11;

Plan::Plan(std::shared_ptr<const TensorReader> reader, py::list entries,
           const std::vector<const char*>& state_keys, bool projects_rows)
    : reader_(std::move(reader)), projects_rows_(projects_rows) {
  for (const py::handle entry : entries) {
    const auto fields = py::reinterpret_borrow<py::tuple>(entry);
    PlanEntry& e = entries_.emplace_back();
    e.param = fields[0];
    e.state = fields[1];
    e.group = fields[2].cast<int32_t>();
    e.native = fields[3].cast<bool>();
  }
  for (const char* key : state_keys)
    state_keys_.push_back(py::reinterpret_steal<py::str>(PyUnicode_InternFromString(key)));
  counts_steps_ = std::string(state_keys[0]) == "step";
  lists_ = 2 + static_cast<int>(state_keys_.size()) - (counts_steps_ ? 1 : 0);
}

// The groups hold the planned parameters in the planned order, and each parameter's state is the planned dict.
Problem Plan::check_structure(const py::dict& state, const py::list& param_groups) const {
  static const py::str params_key("params");
  size_t planned = 0;
  const Py_ssize_t groups = PyList_GET_SIZE(param_groups.ptr());
  for (Py_ssize_t group = 0; group < groups; ++group) {
    PyObject* params = PyDict_GetItemWithError(PyList_GET_ITEM(param_groups.ptr(), group), params_key.ptr());
    if (params == nullptr || !PyList_Check(params)) return {-1, "the parameter groups are not as planned"};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i, ++planned)
      if (planned >= entries_.size() || entries_[planned].group != group ||
          entries_[planned].param.ptr() != PyList_GET_ITEM(params, i))
        return {-1, "the parameter groups are not as planned"};
  }
  if (planned != entries_.size()) return {-1, "the parameter groups are not as planned"};

  // States were created in the order of the parameters at first, so this walk meets them in order;
  // it asks the dict, at the price of hashing a tensor, only where it does not.
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (size_t index = 0; index < entries_.size(); ++index) {
    const PlanEntry& entry = entries_[index];
    if (!entry.native || entry.state.is_none()) continue;
    if (!PyDict_Next(state.ptr(), &position, &key, &value) || key != entry.param.ptr())
      value = PyDict_GetItemWithError(state.ptr(), entry.param.ptr());
    if (value != entry.state.ptr()) return {static_cast<int64_t>(index), "its state was replaced"};
  }
  return {};
}

// state[key], expected next in the dict's order. Borrowed.
PyObject* Plan::state_item(PyObject* state, size_t key, Py_ssize_t& position) const {
  PyObject *found, *value;
  if (PyDict_Next(state, &position, &found, &value) && found == state_keys_[key].ptr()) return value;
  return PyDict_GetItemWithError(state, state_keys_[key].ptr());
}

std::string Plan::read_lists(const PlanEntry& entry, PyObject* grad, TensorView* lists,
                             TensorView& step) {
  if (!reader_->read(entry.param.ptr(), lists[0])) return "it is not a plain dense tensor of a floating or complex type";
  if (!reader_->read(grad, lists[1])) return "its gradient is not a plain dense tensor of a floating or complex type";
  Py_ssize_t position = 0;
  TensorView* list = lists + 2;
  for (size_t key = 0; key < state_keys_.size(); ++key) {
    TensorView& view = counts_steps_ && key == 0 ? step : *list++;
    PyObject* value = state_item(entry.state.ptr(), key, position);
    if (value == nullptr) return "its state has no '" + state_keys_[key].cast<std::string>() + "'";
    if (!reader_->read(value, view) || !view.on_cpu)
      return "its state '" + state_keys_[key].cast<std::string>() + "' is not a plain dense CPU tensor";
    held_.push_back(py::reinterpret_borrow<py::object>(value));
  }
  for (int i = 0; i < lists_; ++i) {
    if (!lists[i].on_cpu) return "it or its gradient is not on the CPU";
    if (!lists[i].same_shape(lists[0])) return "its shape differs from its gradient's or state's";
    if (lists[0].dtype == DType::kFloat64 && i > 1 && lists[i].dtype != DType::kFloat64)
      return "it is float64 and its state is not";
  }
  if (counts_steps_ && (step.is_complex || step.numel() != 1 ||
                        (step.dtype != DType::kFloat32 && step.dtype != DType::kFloat64)))
    return "its state 'step' is not one float32 or float64 number";
  return "";
}

bool Plan::walk_is_known(const PlanEntry& entry, const TensorView* lists) const {
  const size_t dims = entry.shape.size(), bytes = dims * sizeof(int64_t);
  if (!entry.known || static_cast<size_t>(lists[0].ndim) != dims ||
      entry.is_complex != lists[0].is_complex ||
      std::memcmp(entry.shape.data(), lists[0].shape, bytes) != 0)
    return false;
  for (int list = 0; list < lists_; ++list)
    if (std::memcmp(entry.strides.data() + static_cast<size_t>(list) * dims, lists[list].strides, bytes))
      return false;
  return true;
}

std::string Plan::find_walk(PlanEntry& entry, const TensorView* lists) const {
  const TensorView& param = lists[0];
  const auto dims = static_cast<size_t>(param.ndim);
  const int64_t per_element = param.is_complex ? 2 : 1;
  entry.known = false;
  entry.is_complex = param.is_complex;
  entry.shape.assign(param.shape, param.shape + dims);
  entry.strides.clear();
  std::vector<int64_t> shape = entry.shape;
  if (param.is_complex) shape.push_back(2);
  std::vector<std::vector<int64_t>> strides;
  for (int list = 0; list < lists_; ++list) {
    const TensorView& view = lists[list];
    entry.strides.insert(entry.strides.end(), view.strides, view.strides + dims);
    auto& real = strides.emplace_back(view.strides, view.strides + dims);
    for (int64_t& stride : real) stride *= per_element;
    if (param.is_complex) real.push_back(1);
  }
  entry.numel = param.numel() * per_element;
  const bool matrix = projects_rows_ && dims > 1 && entry.numel > 0;
  entry.rows = matrix ? param.shape[0] : 0;
  entry.row_length = matrix ? entry.numel / entry.rows : 0;
  if (entry.numel > 0) {
    const Walk walk = order_walk(shape, strides, matrix);
    for (int list = 0; list < lists_; ++list)
      if (list != 1 && overlaps(walk, list)) return "elements of it or of its state share memory";
    entry.contiguous = walk.contiguous();
    entry.walk_sizes = walk.sizes;
    entry.walk_strides.clear();
    for (const auto& list : walk.strides)
      entry.walk_strides.insert(entry.walk_strides.end(), list.begin(), list.end());
    entry.layout = {static_cast<int>(walk.sizes.size()), entry.walk_sizes.data(),
                    entry.walk_strides.data()};
  }
  entry.known = true;
  return "";
}

std::string Plan::read_entry(size_t index) {
  PlanEntry& entry = entries_[index];
  py::object grad = reader_->grad(entry.param.ptr());
  if (!grad) throw py::error_already_set();
  if (grad.is_none()) return "";
  if (entry.state.is_none()) return "it got its first gradient";
  TensorView lists[kMaxLists], step{};
  std::string problem = read_lists(entry, grad.ptr(), lists, step);
  if (!problem.empty()) return problem;
  if (!walk_is_known(entry, lists)) {
    problem = find_walk(entry, lists);
    if (!problem.empty()) return problem;
  }
  // torch may keep a conjugation or a minus sign as a flag on a view of a complex tensor. Such a view is
  // complex, or has gaps, or a single element.
  if (entry.is_complex || !entry.contiguous || entry.numel == 1) {
    if (entry.param.attr("is_conj")().cast<bool>() || entry.param.attr("is_neg")().cast<bool>())
      return "it is a conjugated or negated view";
    const py::object resolved = grad.attr("resolve_conj")().attr("resolve_neg")();
    if (!resolved.is(grad)) {
      grad = resolved;
      problem = read_lists(entry, grad.ptr(), lists, step);
      if (problem.empty() && !walk_is_known(entry, lists)) problem = find_walk(entry, lists);
      if (!problem.empty()) return problem;
    }
  }
  active_.push_back({index, step});
  held_.push_back(std::move(grad));
  if (entry.numel == 0) return "";
  TensorEntry& tensor = tensors_.emplace_back();
  for (int list = 0; list < lists_; ++list) {
    tensor.data[list] = lists[list].data;
    tensor.dtype[list] = lists[list].dtype;
  }
  active_of_tensor_.push_back(active_.size() - 1);
  return "";
}

Problem Plan::read(const py::dict& state, const py::list& param_groups) {
  const Problem changed = check_structure(state, param_groups);
  if (!changed.what.empty()) return changed;
  const std::vector<Active> before = std::move(active_);
  active_.clear();
  held_.clear();
  tensors_.clear();
  active_of_tensor_.clear();
  for (size_t index = 0; index < entries_.size(); ++index) {
    if (!entries_[index].native) continue;
    const std::string what = read_entry(index);
    if (what.empty()) continue;
    active_.clear();
    held_.clear();
    tensors_.clear();
    return {static_cast<int64_t>(index), what};
  }
  int64_t chunks = 0;
  rows_ = 0;
  elements_ = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    TensorEntry& tensor = tensors_[i];
    const PlanEntry& entry = entries_[active_[active_of_tensor_[i]].entry];
    tensor.layout = entry.contiguous ? nullptr : &entry.layout;
    tensor.numel = entry.numel;
    tensor.first_chunk = chunks;
    tensor.rows = entry.rows;
    tensor.row_length = entry.row_length;
    tensor.first_row = rows_;
    chunks += (entry.numel + kChunk - 1) / kChunk;
    rows_ += entry.rows;
    elements_ += entry.numel;
  }
  const bool same = before.size() == active_.size() &&
                    std::equal(before.begin(), before.end(), active_.begin(),
                               [](const Active& a, const Active& b) { return a.entry == b.entry; });
  if (!same) {
    updated_ = py::list();
    for (const Active& active : active_) updated_.append(entries_[active.entry].param);
  }
  return {};
}

}  // namespace friction
