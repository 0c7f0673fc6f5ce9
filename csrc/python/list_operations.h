// Operations on lists of tensors on one device.
#pragma once

#include <memory>

#include "../cuda/driver.h"
#include "../cuda/fill_launch.h"
#include "device_memory.h"
#include "overlaps.h"
#include "partition.h"

namespace friction {

// Where results or weights are: an array on a device.
struct DeviceNumbers {
  int device;
  double* address;
};

template <class RegionType>
RegionType region_of(const OperandLists& lists, int count) {
  RegionType region{};
  for (size_t list = 0; list < lists.size(); ++list)
    region.lists[list] = {lists[list].data(), int64_t(lists[list].size())};
  region.count = count;
  return region;
}

// Writes the products of all pairs of lists, for each of the segments, to [segments, lists, lists].
inline void gram_on_cpu(const OperandLists& lists, int64_t segments, double* products,
                        int threads) {
  const int count = int(lists.size()), pairs = pairs_of(count);
  std::vector<double> of_chunk(size_t(lists.chunks() * pairs));
  auto region = region_of<GramRegion>(lists, count);
  region.of_chunk = of_chunk.data();
  if (lists.chunks() > 0) {
    const pybind11::gil_scoped_release no_gil;
    run_region(cuda::gram_name(count), region, lists.chunks(),
               Partition(lists.elements(), lists.chunks(), threads), kernels().lists.gram);
  }
  std::fill_n(products, segments * count * count, 0.0);
  int64_t chunk = 0;
  for (int64_t segment = 0; segment < segments; ++segment, products += count * count) {
    const bool whole = segment >= int64_t(lists.segment_ends().size());
    const int64_t end = whole ? lists.chunks() : lists.segment_ends()[size_t(segment)];
    for (; chunk < end; ++chunk)
      for (int second = 0; second < count; ++second)
        for (int first = 0; first <= second; ++first)
          products[first * count + second] +=
              of_chunk[size_t(chunk * pairs + pairs_of(second) + first)];
    for (int second = 0; second < count; ++second)
      for (int first = 0; first < second; ++first)
        products[second * count + first] = products[first * count + second];
  }
}

inline void combine_on_cpu(const OperandLists& lists, const std::vector<double>& weights,
                           int threads) {
  auto region = region_of<CombineRegion>(lists, int(weights.size()));
  std::copy(weights.begin(), weights.end(), region.weights);
  if (lists.chunks() == 0) return;
  const pybind11::gil_scoped_release no_gil;
  run_region("combine", region, lists.chunks(),
             Partition(lists.elements(), lists.chunks(), threads), kernels().lists.combine);
}

inline auto sender(const cuda::Target& target) {
  return [target](const void* bytes, size_t count, void* to) {
    cuda::store(bytes, count, to, target);
  };
}

// Launches over lists, and their device memory, reused from step to step.
class ListsOnGpu {
 public:
  void gram(const OperandLists& lists, int64_t segments, double* products,
            const DeviceAllocator& allocator, const cuda::Target& target) {
    constexpr int kRun = 4;
    cuda::ListLaunch& launch = make(lists, int(lists.size()), true, allocator, target);
    const DeviceUse use = use_of(target);
    launch.lists.segments = segments;
    launch.lists.run = segments == 1 ? kRun : 1;  // a run is of one segment
    if (segments > 1) {
      std::vector<int64_t> ends = lists.segment_ends();
      ends.resize(size_t(segments), lists.chunks());
      launch.lists.segment_ends = static_cast<const int64_t*>(
          segment_ends_.of(cuda::bytes_of(ends), allocator, use, sender(target)));
    }
    launch.lists.of_run = static_cast<double*>(of_run_.reserve(
        allocator, int64_t(sizeof(double)) * cuda::runs_of(launch) * pairs_of(launch.lists.count),
        use));
    launch.lists.products = products;
    cuda::gram(launch, target);
  }

  // The weights are `there` if that is not null.
  void combine(const OperandLists& lists, const std::vector<double>& weights, const double* there,
               const DeviceAllocator& allocator, const cuda::Target& target) {
    cuda::ListLaunch& launch = make(lists, int(lists.size()) - 1, false, allocator, target);
    std::copy(weights.begin(), weights.end(), launch.lists.weights);
    launch.lists.weights_there = there;
    cuda::combine(launch, target);
  }

 private:
  static DeviceUse use_of(const cuda::Target& target) {
    return {target.device, target.stream, cuda::is_capturing(target)};
  }

  cuda::ListLaunch& make(const OperandLists& lists, int count, bool counts_blocks,
                         const DeviceAllocator& allocator, const cuda::Target& target) {
    using cuda::SingleOperand;
    const DeviceUse use = use_of(target);
    const auto send = sender(target);
    if (launch_ == nullptr) launch_ = std::make_unique<cuda::ListLaunch>();
    cuda::ListLaunch& launch = *launch_;
    static_cast<cuda::Header<SingleOperand>&>(launch) = {};
    if (lists.chunks() > cuda::kMostChunks)
      throw std::invalid_argument("a GPU has more elements in a list than a launch can number");
    const std::vector<TensorEntry> tensors = lists.joined();
    launch.count = int64_t(lists[0].size());
    launch.chunks = lists.chunks();
    launch.lists.count = count;
    cuda::fill_launch(launch, cuda::entries_of<SingleOperand::kOperands>(tensors), {},
                      [&](const std::vector<char>& bytes, bool) {
                        return entries_.of(bytes, allocator, use, send);
                      });
    const bool extras = cuda::needs_extras(tensors);
    if (!extras && !counts_blocks) return launch;
    const std::vector<char> bytes = extras ? cuda::extras_of<SingleOperand::kOperands>(tensors)
                                           : std::vector<char>(sizeof(int64_t));  // the counter
    const void* memory = extras_.of(bytes, allocator, use, send);
    if (extras) cuda::refer_to_extras(launch, tensors, memory);
    launch.blocks_done = cuda::counter_of(memory, extras ? int64_t(tensors.size()) : 0);
    return launch;
  }

  std::unique_ptr<cuda::ListLaunch> launch_;
  DeviceCopy entries_, extras_, segment_ends_;
  DeviceMemory of_run_;
};

}  // namespace friction
