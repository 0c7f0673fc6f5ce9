// A region on the processor: who takes what.
#pragma once

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"

namespace friction {

// How a launch is shared out: all of torch's threads or, where that is not worth waking them, one;
// in spans small enough for balance.
struct Shares {
  int threads;
  int64_t grain = 1;

  explicit Shares(int threads) : threads(threads) {}
  Shares(int64_t elements, int64_t chunks, int torch_threads) {
    constexpr int64_t kWorthThreads = 65536, kElementsPerChunkStart = 32;
    threads = elements + kElementsPerChunkStart * chunks < kWorthThreads ? 1 : torch_threads;
    const int64_t span = chunks / (16 * threads);
    grain = span < 1 ? 1 : span > 64 ? 64 : span;
  }
};

// Runs a kernel over the items of a region.
template <class RegionType>
void run_region(const char* name, const RegionType& region, int64_t items, const Shares& shares,
                Kernel<RegionType> kernel) {
  parallel_region(name, items, shares.grain, shares.threads,
                  [&region, kernel](int64_t first, int64_t last) { kernel(region, first, last); });
}

}  // namespace friction
