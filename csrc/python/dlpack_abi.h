// The part of DLPack 1.3's C interface through which torch describes a tensor to libraries that
// include no torch header: a table of functions, published as
// torch.Tensor.__dlpack_c_exchange_api__. The order of fields is part of the ABI; see
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace friction::dlpack {

constexpr const char* kCapsuleName = "dlpack_exchange_api";
constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1, kCuda = 2;
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kComplex = 5 };

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major_version, minor_version;
  ExchangeApi* previous;
  void (*allocate_managed)();
  void (*managed_from_py_object)();
  void (*managed_to_py_object)();
  int (*tensor_from_py_object)(void* py_object,
                               Tensor* out);  // borrows; -1 with a Python error set
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** out);
};

}  // namespace friction::dlpack
