// Device memory of a plan, from torch's own allocator: what a launch needs beside the tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <vector>

#include "tensor_reader.h"

namespace friction {

// Where memory comes from, and where it goes that something may use after the plan is gone: a
// captured graph, whenever it is replayed, or another stream than the one that memory was made for,
// on which the allocator does not wait. `keep` outlives the plan.
struct DeviceAllocator {
  pybind11::object allocate;  // (bytes, device number) -> a tensor of that many bytes
  pybind11::object keep;      // a list
};

// For whom memory is asked.
struct DeviceUse {
  int device;
  void* stream;
  bool capturing;
};

class DeviceMemory {
 public:
  // At least so many bytes, whose content may be anything.
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

  // The tensor, empty before the first reserve.
  const pybind11::object& tensor() const { return tensor_; }
  // Whether a graph reads it, which wants its content left alone.
  bool in_graph() const { return in_graph_; }

 private:
  pybind11::object tensor_;
  void *data_ = nullptr, *stream_ = nullptr;
  int64_t bytes_ = 0;
  bool kept_ = false, in_graph_ = false;
};

// A copy of host memory, sent where its content changed.
class DeviceCopy {
 public:
  // send(bytes, count, address) copies in stream order. While a graph is captured, what is not
  // there already is copied by the graph itself, at each replay, to memory of its own.
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
    // Earlier launches may still read what was sent last; the stream orders the copy behind them.
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
