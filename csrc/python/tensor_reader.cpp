#include "tensor_reader.h"

#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>

namespace friction {
namespace py = pybind11;

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int d = 0; d < ndim; ++d) n *= shape[d];
  return n;
}

bool TensorView::same_shape(const TensorView& other) const {
  return ndim == other.ndim && is_complex == other.is_complex &&
         std::memcmp(shape, other.shape, sizeof(int64_t) * static_cast<size_t>(ndim)) == 0;
}

namespace {

int64_t storage_bytes(PyObject* tensor) {
  const py::object storage = py::reinterpret_borrow<py::object>(tensor).attr("untyped_storage")();
  return storage.attr("nbytes")().cast<int64_t>();
}

}  // namespace

TensorReader::TensorReader(py::type tensor, py::type parameter)
    : tensor_(std::move(tensor)),
      parameter_(std::move(parameter)),
      subclasses_(std::make_shared<std::unordered_set<const PyObject*>>()),
      grad_(tensor_.attr("grad")),
      is_neg_(tensor_.attr("is_neg")),
      is_conj_(tensor_.attr("is_conj")) {
  get_grad_ = Py_TYPE(grad_.ptr())->tp_descr_get;
  const py::object capsule = py::getattr(tensor_, "__dlpack_c_exchange_api__", py::none());
  if (capsule.is_none() || get_grad_ == nullptr)
    throw std::runtime_error("this torch does not publish torch.Tensor.__dlpack_c_exchange_api__");
  api_ = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  if (api_ == nullptr) throw py::error_already_set();
  if (api_->major_version != dlpack::kMajorVersion || api_->tensor_from_py_object == nullptr)
    throw std::runtime_error("this torch publishes DLPack " + std::to_string(api_->major_version) +
                             ", read here is DLPack 1");
}

void TensorReader::allow(const py::type& subclass) {
  const PyObject* type = subclass.ptr();
  if (allows(type)) return;
  // Removed before another type can reuse the address.
  const auto forget = [subclasses = subclasses_, type](const py::handle& reference) {
    subclasses->erase(type);
    reference.dec_ref();
  };
  py::weakref(subclass, py::cpp_function(forget)).release();
  subclasses_->insert(type);
}

py::object TensorReader::part_of(PyObject* object) const {
  if (!is_dtensor(object)) return py::reinterpret_borrow<py::object>(object);
  static const py::str& key = *new py::str("_local_tensor");
  py::object part = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, key.ptr()));
  if (!part) throw py::error_already_set();
  const bool plain = reinterpret_cast<PyObject*>(Py_TYPE(part.ptr())) == tensor_.ptr();
  return plain || !py::hasattr(part, "wait") ? part : part.attr("wait")();  // may be unfinished
}

bool TensorReader::read(PyObject* object, TensorView& out) const {
  if (!allows(reinterpret_cast<PyObject*>(Py_TYPE(object)))) return false;
  dlpack::Tensor tensor;
  if (api_->tensor_from_py_object(object, &tensor) != 0) {
    PyErr_Clear();  // sparse, meta and the like: the caller reports it
    return false;
  }
  const int code = tensor.dtype.code;
  out.is_complex = code == dlpack::kComplex;
  const int bits = out.is_complex ? tensor.dtype.bits / 2 : tensor.dtype.bits;
  if (code == dlpack::kBFloat && bits == 16)
    out.dtype = DType::kBFloat16;
  else if (code == dlpack::kUInt && bits == 8)
    out.dtype = DType::kQuantized;
  else if (code == dlpack::kInt && bits == 8)
    out.dtype = DType::kInt8;
  else if (code == dlpack::kInt && bits == 16)
    out.dtype = DType::kInt16;
  else if (code != dlpack::kFloat && code != dlpack::kComplex)
    return false;
  else if (bits == 16)
    out.dtype = DType::kFloat16;
  else if (bits == 32)
    out.dtype = DType::kFloat32;
  else if (bits == 64)
    out.dtype = DType::kFloat64;
  else
    return false;
  out.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  out.device = tensor.device.type == dlpack::kCpu    ? kCpu
               : tensor.device.type == dlpack::kCuda ? tensor.device.index
                                                     : kElsewhere;
#if defined(FRICTION_CUDA_HOST)
  // In tests, the host stands in for a GPU. Scalars (a step, a setting) stay on the CPU by default.
  const bool on_gpu = tensor.ndim > 0 || std::getenv("FRICTION_HOST_NUMBERS_ON_GPU") != nullptr;
  const bool as_usual = std::getenv("FRICTION_HOST_IS_HOST") != nullptr;  // for comparison
  if (out.device == kCpu && on_gpu && !as_usual) out.device = 0;
#endif
  out.ndim = tensor.ndim;
  out.shape = tensor.shape;
  out.strides = tensor.strides;
  // If a storage was resized to zero, a view's address is merely its offset, which is small. Zero
  // tensors of autograd have a null address.
  constexpr uintptr_t kSuspiciouslyLow = uintptr_t{1} << 40;
  const bool suspicious = reinterpret_cast<uintptr_t>(out.data) < kSuspiciouslyLow;
  if (!suspicious || out.numel() == 0) return true;
  return out.data != nullptr && storage_bytes(object) > 0;
}

bool TensorReader::is_within_storage(PyObject* object) const {
  const py::handle tensor(object);
  const int64_t offset = tensor.attr("storage_offset")().cast<int64_t>();
  const auto sizes = tensor.attr("shape").cast<std::vector<int64_t>>();
  const auto strides = tensor.attr("stride")().cast<std::vector<int64_t>>();
  int64_t last = offset;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return true;
    last += (sizes[d] - 1) * strides[d];
  }
  return storage_bytes(object) >= (last + 1) * tensor.attr("itemsize").cast<int64_t>();
}

void* TensorReader::current_stream(int device) const {
#if defined(FRICTION_CUDA_HOST)
  return nullptr;
#endif
  void* stream = nullptr;
  if (api_->current_work_stream == nullptr)
    throw std::runtime_error("this torch does not publish its current stream through DLPack");
  if (api_->current_work_stream(dlpack::kCuda, device, &stream) != 0) throw py::error_already_set();
  return stream;
}

}  // namespace friction
