// What every kernel launch needs from the CUDA runtime. Included only by CUDA sources.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../launches.h"
#include "driver.h"

namespace friction::cuda {

inline void check(cudaError_t error, const std::string& what, const Target& target) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(what + " on cuda:" + std::to_string(target.device) + " failed: " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

// Makes a device current, and restores the previous one at the end.
class DeviceGuard {
 public:
  DeviceGuard(const std::string& what, const Target& target) {
    check(cudaGetDevice(&before_), what, target);
    changed_ = before_ != target.device;
    if (changed_) check(cudaSetDevice(target.device), what, target);
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Lets this thread make calls that may allocate or synchronize while a stream captures a graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// The number of a kernel's blocks that the current device can hold at once. The first call loads
// the kernel, which CUDA does lazily, and which may happen in a capture.
inline int64_t resident_blocks(const void* kernel, int threads, const std::string& what,
                               const Target& target) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int64_t> known;
  const std::lock_guard lock(mutex);
  int64_t& blocks = known[{kernel, target.device}];
  if (blocks == 0) {
    const RelaxedCapture relaxed;
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, target.device), what,
          target);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0), what, target);
    blocks = int64_t(processors) * (each > 0 ? each : 1);
  }
  return blocks;
}

// Launches a kernel over `items`, with no more blocks than the device holds: each takes many items.
template <class Parameter>
void launch_kernel(const char* name, void (*kernel)(Parameter), const Parameter& parameter,
                   int64_t items, int threads, const std::string& over, const Target& target) {
  if (items == 0) return;
  const std::string what = std::string(name) + over;
  const DeviceGuard guard(what, target);
  const auto* function = reinterpret_cast<const void*>(kernel);
  const int64_t most = resident_blocks(function, threads, what, target);
  const dim3 grid(static_cast<unsigned>(items < most ? items : most));
  void* arguments[] = {const_cast<Parameter*>(&parameter)};
  check(cudaLaunchKernel(function, grid, dim3(static_cast<unsigned>(threads)), arguments, 0,
                         static_cast<cudaStream_t>(target.stream)),
        what, target);
  count_launch(name);
}

}  // namespace friction::cuda
