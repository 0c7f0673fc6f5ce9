// The squared norm of all gradients together, thread by thread: each chunk's sum first, then the
// sum of the chunks, both in a fixed order.
#pragma once

#include "mixture.h"
#include "trees.h"

namespace friction::cuda {

// A launch that reads gradients and nothing else. They have no group: Entry::group_step is a
// gradient's DType.
struct Gradients {
  enum List { kGrad, kLists };
  static constexpr bool kProjects = false;
  struct Settings {
    double unused;
  };
};

// The squares of a thread's eight consecutive elements of a part, in the gradient's own type or in
// float32; anew in double where that sum is not finite.
template <class Stored>
FRICTION_INLINE double squares_of_eight(const Launch<Gradients>& launch, const Part& part,
                                        int thread) {
  using T = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
  const auto* data =
      static_cast<const Stored*>(launch.entries()[part.tensor].data[Gradients::kGrad]);
  const int64_t* layout = layout_of(launch, part.tensor);
  const int rest = part.count - thread * kEight, count = rest < kEight ? rest : kEight;
  const int64_t first = part.begin + thread * kEight;
  T sum = T(0);
  if (layout == nullptr && count == kEight && Vector<Stored, kEight>::aligned(data)) {
    Stored stored[kEight];
    Vector<Stored, kEight>::load(data + first, stored);
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) sum += T(widen(stored[i])) * T(widen(stored[i]));
    if (std::isfinite(sum)) return double(sum);
    double wide = 0;
    FRICTION_UNROLL
    for (int i = 0; i < kEight; ++i) wide += double(widen(stored[i])) * double(widen(stored[i]));
    return wide;
  }
  double wide = 0;
  FRICTION_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    int64_t offsets[Gradients::kLists];
    find_offsets(layout, first + i, offsets);
    const T x = T(widen(read_one(data + offsets[Gradients::kGrad])));
    sum += x * x;
    wide += double(x) * double(x);
  }
  return std::isfinite(sum) ? double(sum) : wide;
}

// A thread's share of a part's sum.
FRICTION_INLINE double squares_of_part(const Launch<Gradients>& launch, const Part& part,
                                       int thread) {
  double sum = 0;
  with_storage(DType(launch.entries()[part.tensor].group_step), [&](auto* type) {
    sum = squares_of_eight<std::remove_pointer_t<decltype(type)>>(launch, part, thread);
  });
  return sum;
}

// A thread's share of the sum over chunks.
FRICTION_INLINE double share_of_chunks(const double* of_chunk, int64_t chunks, int thread) {
  double sum = 0;
  for (int64_t chunk = thread; chunk < chunks; chunk += kThreads) sum += of_chunk[chunk];
  return sum;
}

}  // namespace friction::cuda
