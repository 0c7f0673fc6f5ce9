#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>
#include <vector>

#include "../launches.h"

namespace friction {
namespace {

// A second pool of threads would compete with torch's, whose workers spin for a while after each
// operator. So the region runs on torch's own pool, through the entry point that every OpenMP
// runtime for gcc-compatible code exports. It always asks for as many threads as torch does:
// libgomp ends the threads that a smaller region does not use, and torch's next operator would have
// to restart them.
using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

GompParallel find_torch_openmp() {
  // RTLD_NOLOAD: if torch is not loaded yet, there is no pool to share.
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return nullptr;
  return reinterpret_cast<GompParallel>(dlsym(torch, "GOMP_parallel"));
}

GompParallel torch_openmp() {
  static const GompParallel found = find_torch_openmp();
  return found;
}

struct Shared {
  const std::function<void(int64_t, int64_t)>& work;
  int64_t items, grain;
  std::atomic<int64_t> next{0};

  void run() {
    for (;;) {
      const int64_t first = next.fetch_add(grain, std::memory_order_relaxed);
      if (first >= items) return;
      work(first, first + grain < items ? first + grain : items);
    }
  }
};

}  // namespace

void parallel_region(const char* kernel, int64_t items, int64_t grain, int threads,
                     const std::function<void(int64_t, int64_t)>& work) {
  count_launch(kernel);
  Shared shared{work, items, grain};
  if (threads <= 1 || items <= grain) return shared.run();
  if (const GompParallel parallel = torch_openmp()) {
    parallel([](void* data) { static_cast<Shared*>(data)->run(); }, &shared,
             static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> workers;
  for (int i = 1; i < threads; ++i) workers.emplace_back([&] { shared.run(); });
  shared.run();
  for (std::thread& worker : workers) worker.join();
}

std::string thread_source() {
  Dl_info info;
  if (torch_openmp() == nullptr || !dladdr(reinterpret_cast<void*>(torch_openmp()), &info))
    return "own threads, started for each region";
  const std::string path = info.dli_fname;
  return "torch's OpenMP (" + path.substr(path.rfind('/') + 1) + ")";
}

}  // namespace friction
