// The squared norm of all gradients together, thread by thread: each chunk's sum first, then the
// sum of the chunks, both in a fixed order.
#pragma once

#include "elements.h"
#include "trees.h"

namespace friction::cuda {

// A launch that reads gradients and nothing else.
struct Gradients {
  enum List { kGrad, kLists };
  static constexpr bool kWrites[kLists] = {false}, kWide[kLists] = {false};
  struct Settings {
    double unused;
  };
};

// A thread's share of a part's sum.
template <class Storage>
FRICTION_INLINE double squares_of_part(const Launch<Gradients>& launch, const Part& part,
                                       int thread) {
  using T = typename Storage::Arithmetic;
  T sum = T(0);
  visit_elements<Storage, false>(launch, part, thread, [&](auto& elements, auto&&) {
    FRICTION_UNROLL
    for (auto& x : elements) sum += x[Gradients::kGrad] * x[Gradients::kGrad];
  });
  return double(sum);
}

// A thread's share of the sum over chunks.
FRICTION_INLINE double share_of_chunks(const double* of_chunk, int64_t chunks, int thread) {
  double sum = 0;
  for (int64_t chunk = thread; chunk < chunks; chunk += kThreads) sum += of_chunk[chunk];
  return sum;
}

}  // namespace friction::cuda
