// The squared norm of all gradients on one device.
#pragma once

#include <memory>
#include <numeric>

#include "../cuda/driver.h"
#include "../cuda/fill_launch.h"
#include "partition.h"
#include "plan.h"

namespace friction {

// Where a squared norm goes: one double on a device.
struct NormTarget {
  int device;
  double* address;
};

inline int64_t chunks_of(const std::vector<TensorEntry>& tensors) {
  return std::accumulate(tensors.begin(), tensors.end(), int64_t{0},
                         [](int64_t chunks, const TensorEntry& tensor) {
                           return chunks + (tensor.numel + kChunk - 1) / kChunk;
                         });
}

// `tensors` are taken out of their tables: chunks are numbered anew.
inline double squared_norm_on_cpu(std::vector<TensorEntry> tensors, int threads) {
  int64_t chunks = 0, elements = 0;
  for (TensorEntry& tensor : tensors) {
    tensor.first_chunk = chunks;
    chunks += (tensor.numel + kChunk - 1) / kChunk;
    elements += tensor.numel;
  }
  std::vector<double> squares(static_cast<size_t>(chunks));
  const NormRegion region{{tensors.data(), int64_t(tensors.size())}, squares.data()};
  if (chunks > 0) {
    const pybind11::gil_scoped_release no_gil;
    run_region("squared_norm", region, chunks, Shares(elements, chunks, threads),
               kernels().squared_norm);
  }
  return std::accumulate(squares.begin(), squares.end(), 0.0);
}

// One launch, and what it needs in device memory, kept from step to step.
class NormOnGpu {
 public:
  void launch(const std::vector<TensorEntry>& tensors, double* squared,
              const DeviceAllocator& allocator, const cuda::Target& target) {
    const DeviceUse use{target.device, target.stream, cuda::is_capturing(target)};
    const auto send = [&](const void* bytes, size_t count, void* to) {
      cuda::store(bytes, count, to, target);
    };
    if (launch_ == nullptr) launch_ = std::make_unique<cuda::Launch<cuda::Gradients>>();
    cuda::Launch<cuda::Gradients>& launch = *launch_;
    static_cast<cuda::Header<cuda::Gradients>&>(launch) = {};
    const std::vector<TensorEntry> gradients = take_gradients(tensors);
    launch.count = int64_t(gradients.size());
    launch.chunks = chunks_of(gradients);
    cuda::fill(launch, cuda::entries_of<cuda::Gradients::kOperands>(gradients), {},
               [&](const std::vector<char>& bytes, bool) {
                 return entries_.of(bytes, allocator, use, send);
               });
    const bool extras = cuda::needs_extras(gradients);
    const std::vector<char> bytes = extras
                                        ? cuda::extras_of<cuda::Gradients::kOperands>(gradients)
                                        : std::vector<char>(sizeof(int64_t));  // the counter alone
    const void* memory = extras_.of(bytes, allocator, use, send);
    if (extras) cuda::refer_to_extras(launch, gradients, memory);
    launch.blocks_done = cuda::counter_of(memory, extras ? launch.count : 0);
    launch.norm.of_chunk = static_cast<double*>(
        of_chunk_.reserve(allocator, int64_t(sizeof(double)) * launch.chunks, use));
    launch.norm.squared = squared;
    cuda::squared_norm(launch, target);
  }

 private:
  // The tensors as those of one operand, whose type stands where others have their group and step.
  std::vector<TensorEntry> take_gradients(const std::vector<TensorEntry>& tensors) {
    constexpr int kGrad = Gradients::kGrad;
    std::vector<TensorEntry> gradients;
    layouts_.assign(tensors.size(), {});
    int64_t chunks = 0;
    for (const TensorEntry& tensor : tensors) {
      TensorEntry& gradient = gradients.emplace_back();
      gradient.data[0] = tensor.data[kGrad];
      gradient.scalars = int32_t(tensor.dtype[kGrad]);
      gradient.numel = tensor.numel;
      gradient.first_chunk = chunks;
      chunks += (tensor.numel + kChunk - 1) / kChunk;
      if (tensor.layout == nullptr) continue;
      Layout& layout = layouts_[gradients.size() - 1];
      layout = *tensor.layout;
      layout.strides += kGrad * layout.dims;
      gradient.layout = &layout;
    }
    return gradients;
  }

  std::unique_ptr<cuda::Launch<cuda::Gradients>> launch_;
  std::vector<Layout> layouts_;
  DeviceCopy entries_, extras_;
  DeviceMemory of_chunk_;
};

}  // namespace friction
