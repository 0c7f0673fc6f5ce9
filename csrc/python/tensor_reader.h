// Reads a tensor's address, dtype and strides, and a parameter's gradient, in tens of nanoseconds.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <unordered_set>

#include "../formats/dtypes.h"
#include "dlpack_abi.h"

namespace friction {

// A tensor's device: the number of a CUDA device, or one of these.
constexpr int kCpu = -1, kElsewhere = -2;

struct TensorView {
  void* data;
  DType dtype;
  bool is_complex;  // each element is a pair of dtype
  int device;
  int ndim;
  const int64_t *shape, *strides;  // in elements; owned by the tensor

  int64_t numel() const;
  bool same_shape(const TensorView& other) const;
};

class TensorReader {
 public:
  // Takes torch.Tensor and torch.nn.Parameter, the types that are read natively. Subclasses may
  // keep their data elsewhere, so each must be allowed. Throws std::runtime_error if this torch
  // does not publish the interface.
  TensorReader(pybind11::type tensor, pybind11::type parameter);

  // Also reads this subclass natively while it exists: its data is stored as a plain tensor's.
  void allow(const pybind11::type& subclass);

  // Reads DTensors as their local tensors. Before this call, no object counts as a DTensor.
  void unwrap(pybind11::type dtensor) { dtensor_ = std::move(dtensor); }

  bool is_dtensor(PyObject* object) const {
    return dtensor_.ptr() != nullptr &&
           reinterpret_cast<PyObject*>(Py_TYPE(object)) == dtensor_.ptr();
  }

  // The local tensor of a DTensor; any other object unchanged.
  pybind11::object part_of(PyObject* object) const;

  // False unless the object is a plain strided tensor of a type in DType or complex, with memory.
  bool read(PyObject* object, TensorView& out) const;

  // Whether a tensor's storage, which may have been resized, holds all its elements. Slow.
  bool is_within_storage(PyObject* tensor) const;

  // Whether a tensor is a view that negates or (only if complex) conjugates its memory.
  bool is_lazy_view(PyObject* tensor, bool is_complex) const {
    return is_true(is_neg_, tensor) || (is_complex && is_true(is_conj_, tensor));
  }

  // torch's current stream on a CUDA device.
  void* current_stream(int device) const;

  // The parameter's gradient or None (a new reference).
  pybind11::object grad(PyObject* parameter) const {
    return pybind11::reinterpret_steal<pybind11::object>(
        get_grad_(grad_.ptr(), parameter, reinterpret_cast<PyObject*>(Py_TYPE(parameter))));
  }

 private:
  static bool is_true(const pybind11::object& method, PyObject* tensor) {
    PyObject* answer = PyObject_CallOneArg(method.ptr(), tensor);
    if (answer == nullptr) throw pybind11::error_already_set();
    Py_DECREF(answer);  // True and False are never freed
    return answer == Py_True;
  }

  bool allows(const PyObject* type) const {
    return type == tensor_.ptr() || type == parameter_.ptr() || subclasses_->count(type) != 0;
  }

  pybind11::type tensor_, parameter_;
  // Those that exist; shared with the callbacks that remove them.
  std::shared_ptr<std::unordered_set<const PyObject*>> subclasses_;
  pybind11::object dtensor_;
  pybind11::object grad_, is_neg_, is_conj_;
  descrgetfunc get_grad_;
  const dlpack::ExchangeApi* api_;
};

}  // namespace friction
