// Device memory that a plan's launches need besides the tensors, from torch's own allocator.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <vector>

#include "tensor_reader.h"

namespace friction {

// Allocates memory, and keeps what may be used after the plan is gone: by a captured graph whenever
// it is replayed, or by a stream other than the one the memory was allocated for, since the
// allocator does not wait for that stream. `keep` outlives the plan.
struct DeviceAllocator {
  pybind11::object allocate;  // (bytes, device number) -> a tensor of that many bytes
  pybind11::object keep;      // a list
};

// Where and when memory is used.
struct DeviceUse {
  int device;
  void* stream;
  bool capturing;
};

class DeviceMemory {
 public:
  // Returns at least `bytes` bytes of unspecified content.
  void* reserve(const DeviceAllocator& allocator, int64_t bytes, const DeviceUse& use) {
    if (!tensor_ || bytes > bytes_) {
      bytes_ = bytes > 0 ? bytes : 1;
      tensor_ = allocator.allocate(bytes_, use.device);
      data_ = reinterpret_cast<void*>(tensor_.attr("data_ptr")().cast<uintptr_t>());
      stream_ = use.stream;
      kept_ = in_graph_ = false;
    }
    in_graph_ |= use.capturing;
    if (!kept_ && (use.capturing || use.stream != stream_)) {
      allocator.keep.attr("append")(tensor_);
      kept_ = true;
    }
    return data_;
  }

  // The tensor that owns the memory; empty before the first reserve.
  const pybind11::object& tensor() const { return tensor_; }
  // Whether a captured graph reads the memory, so that its content must not change.
  bool in_graph() const { return in_graph_; }

 private:
  pybind11::object tensor_;
  void *data_ = nullptr, *stream_ = nullptr;
  int64_t bytes_ = 0;
  bool kept_ = false, in_graph_ = false;
};

// A device copy of host memory, sent again only when the content has changed.
class DeviceCopy {
 public:
  // send(bytes, count, address) copies in stream order. During graph capture, new content goes to
  // separate memory, and the graph itself repeats the copy at each replay.
  template <class Send>
  const void* of(const std::vector<char>& content, const DeviceAllocator& allocator,
                 const DeviceUse& use, Send&& send) {
    if (memory_.tensor() && content == sent_) return memory_.reserve(allocator, 0, use);
    const auto bytes = static_cast<int64_t>(content.size());
    if (use.capturing) {
      DeviceMemory of_graph;
      void* address = of_graph.reserve(allocator, bytes, use);
      send(content.data(), content.size(), address);
      return address;
    }
    if (memory_.in_graph()) memory_ = DeviceMemory();
    // Earlier launches may still read the previous content; the stream orders the copy after them.
    void* address = memory_.reserve(allocator, bytes, use);
    send(content.data(), content.size(), address);
    sent_ = content;
    return address;
  }

 private:
  DeviceMemory memory_;
  std::vector<char> sent_;
};

}  // namespace friction
