// Parallel regions on the threads that torch already has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace friction {

// Runs work(first, last) over [0, items) on `threads` threads (1, or as many as torch uses) and
// waits for all of them. A free thread takes the next `grain` items, so a slow thread does not
// delay the others. Counts one launch under `kernel`.
void parallel_region(const char* kernel, int64_t items, int64_t grain, int threads,
                     const std::function<void(int64_t, int64_t)>& work);

// Describes the threads in use: those of torch's OpenMP library, or our own if torch has none.
std::string thread_source();

}  // namespace friction
