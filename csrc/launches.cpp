#include "launches.h"

#include <mutex>

namespace friction {
namespace {

std::mutex mutex;
std::map<std::string, int64_t> counts;

}  // namespace

void count_launch(const char* kernel) {
  const std::lock_guard lock(mutex);
  ++counts[kernel];
}

std::map<std::string, int64_t> launch_counts() {
  const std::lock_guard lock(mutex);
  return counts;
}

}  // namespace friction
