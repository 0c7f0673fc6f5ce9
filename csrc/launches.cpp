#include "launches.h"

#include <array>
#include <atomic>
#include <stdexcept>

namespace friction {
namespace {

// Lock-free, because the process may be forked while another thread launches.
struct Counter {
  std::atomic<const char*> kernel{nullptr};
  std::atomic<int64_t> launches{0};
};

std::array<Counter, 64> counters;

}  // namespace

void count_launch(const char* kernel) {
  for (Counter& counter : counters) {
    const char* counted = nullptr;
    if (counter.kernel.compare_exchange_strong(counted, kernel) || counted == kernel) {
      ++counter.launches;
      return;
    }
  }
  throw std::logic_error("more kernels are launched than are counted");
}

std::map<std::string, int64_t> launch_counts() {
  std::map<std::string, int64_t> counts;
  for (const Counter& counter : counters)
    if (const char* kernel = counter.kernel) counts[kernel] += counter.launches;
  return counts;
}

}  // namespace friction
