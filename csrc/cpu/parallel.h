// One parallel region on the threads that torch already has.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace friction {

// Runs work(first, last) over [0, items) on `threads` threads (1, or as many as torch uses) and
// waits for all of them. Whoever is free takes the next `grain` items, so a thread that is held up
// delays nobody. Counts one launch under `kernel`.
void parallel_region(const char* kernel, int64_t items, int64_t grain, int threads,
                     const std::function<void(int64_t, int64_t)>& work);

// Which threads serve: the OpenMP library torch runs on, or our own where torch has none.
std::string thread_source();

}  // namespace friction
