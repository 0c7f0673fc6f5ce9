// How a parallel region on the CPU is divided among threads.
#pragma once

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"

namespace friction {

// All of torch's threads, or a single one if waking the others would not pay. A thread takes
// `grain` items at a time, few enough for load balance.
struct Partition {
  int threads;
  int64_t grain = 1;

  explicit Partition(int threads) : threads(threads) {}
  Partition(int64_t elements, int64_t chunks, int torch_threads) {
    constexpr int64_t kWorthThreads = 65536, kElementsPerChunkStart = 32;
    threads = elements + kElementsPerChunkStart * chunks < kWorthThreads ? 1 : torch_threads;
    const int64_t span = chunks / (16 * threads);
    grain = span < 1 ? 1 : span > 64 ? 64 : span;
  }
};

// Runs a kernel over the items of a region.
template <class RegionType>
void run_region(const char* name, const RegionType& region, int64_t items,
                const Partition& partition, Kernel<RegionType> kernel) {
  parallel_region(name, items, partition.grain, partition.threads,
                  [&region, kernel](int64_t first, int64_t last) { kernel(region, first, last); });
}

}  // namespace friction
