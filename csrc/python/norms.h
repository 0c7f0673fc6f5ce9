// The squared norm of a list of tensors on one device.
#pragma once

#include <memory>
#include <numeric>

#include "../cuda/driver.h"
#include "../cuda/fill_launch.h"
#include "../cuda/norm.h"
#include "device_memory.h"
#include "operand_list.h"
#include "partition.h"

namespace friction {

// The destination of a squared norm: one double on a device.
struct NormTarget {
  int device;
  double* address;
};

inline double squared_norm_on_cpu(const OperandList& list, int threads) {
  std::vector<double> squares(static_cast<size_t>(list.chunks()));
  const std::vector<TensorEntry>& tensors = list.tensors();
  const NormRegion region{{tensors.data(), int64_t(tensors.size())}, squares.data()};
  if (list.chunks() > 0) {
    const pybind11::gil_scoped_release no_gil;
    run_region("squared_norm", region, list.chunks(),
               Partition(list.elements(), list.chunks(), threads), kernels().squared_norm);
  }
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

// One launch and its device memory, reused from step to step.
class NormOnGpu {
 public:
  void launch(const OperandList& list, double* squared, const DeviceAllocator& allocator,
              const cuda::Target& target) {
    const DeviceUse use{target.device, target.stream, cuda::is_capturing(target)};
    const auto send = [&](const void* bytes, size_t count, void* to) {
      cuda::store(bytes, count, to, target);
    };
    if (launch_ == nullptr) launch_ = std::make_unique<cuda::Launch<cuda::SingleOperand>>();
    cuda::Launch<cuda::SingleOperand>& launch = *launch_;
    static_cast<cuda::Header<cuda::SingleOperand>&>(launch) = {};
    const std::vector<TensorEntry>& tensors = list.tensors();
    launch.count = int64_t(tensors.size());
    launch.chunks = list.chunks();
    cuda::fill_launch(launch, cuda::entries_of<cuda::SingleOperand::kOperands>(tensors), {},
                      [&](const std::vector<char>& bytes, bool) {
                        return entries_.of(bytes, allocator, use, send);
                      });
    const bool extras = cuda::needs_extras(tensors);
    const std::vector<char> bytes = extras
                                        ? cuda::extras_of<cuda::SingleOperand::kOperands>(tensors)
                                        : std::vector<char>(sizeof(int64_t));  // only the counter
    const void* memory = extras_.of(bytes, allocator, use, send);
    if (extras) cuda::refer_to_extras(launch, tensors, memory);
    launch.blocks_done = cuda::counter_of(memory, extras ? launch.count : 0);
    launch.norm.sums = static_cast<double*>(
        sums_.reserve(allocator, int64_t(sizeof(double)) * cuda::norm_sums(launch.chunks), use));
    launch.norm.squared = squared;
    cuda::squared_norm(launch, target);
  }

 private:
  std::unique_ptr<cuda::Launch<cuda::SingleOperand>> launch_;
  DeviceCopy entries_, extras_;
  DeviceMemory sums_;
};

inline void squared_norm(const OperandList& list, const NormTarget& target, int threads,
                         const TensorReader& reader, const DeviceAllocator& allocator) {
  if (target.device == kCpu)
    *target.address = squared_norm_on_cpu(list, threads);
  else
    NormOnGpu().launch(list, target.address, allocator,
                       {target.device, reader.current_stream(target.device)});
}

}  // namespace friction
