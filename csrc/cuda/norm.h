// What a thread does for the squared norm of a list of tensors: first the sums of runs of chunks,
// then the sum over runs, both in a fixed order.
#pragma once

#include "block_reduce.h"
#include "dynamic_dtypes.h"

namespace friction::cuda {

// Stands in for a rule if tensors have a single operand. As they have no group, Entry::group_step
// is the tensor's DType.
struct SingleOperand {
  enum Operand { kParam, kOperands };
  static constexpr bool kProjects = false;
  struct Settings {
    double unused;
  };
};

// The sum of squares of a thread's eight consecutive elements of a part: in float64 for float64
// tensors, else in float32, or in double if that sum is not finite.
template <class Stored>
FRICTION_INLINE double squares_of_eight(const Launch<SingleOperand>& launch, const Part<1>& part,
                                        int thread) {
  using T = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
  const auto* data = static_cast<const Stored*>(part.data[0]);
  const int rest = part.count - thread * kVec8, count = rest < kVec8 ? rest : kVec8;
  const int64_t first = part.begin + thread * kVec8;
  T sum = T(0);
  if (part.aligned && count == kVec8) {
    Stored stored[kVec8];
    Vector<Stored, kVec8>::load(data + first, stored);
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) sum += T(widen(stored[i])) * T(widen(stored[i]));
    if (std::isfinite(sum)) return double(sum);
    double wide = 0;
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) wide += double(widen(stored[i])) * double(widen(stored[i]));
    return wide;
  }
  const int64_t* layout = layout_of(launch, part.tensor);
  double wide = 0;
  FRICTION_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    int64_t offsets[SingleOperand::kOperands];
    find_offsets(layout, first + i, offsets);
    const T x = T(widen(read_one(data + offsets[0])));
    sum += x * x;
    wide += double(x) * double(x);
  }
  return std::isfinite(sum) ? double(sum) : wide;
}

// A thread's share of a part's sum.
FRICTION_INLINE double squares_of_part(const Launch<SingleOperand>& launch, const Part<1>& part,
                                       int thread) {
  double sum = 0;
  with_stored_type(DType(launch.entries()[part.tensor].group_step), [&](auto* type) {
    sum = squares_of_eight<std::remove_pointer_t<decltype(type)>>(launch, part, thread);
  });
  return sum;
}

// Consecutive chunks whose squares a thread adds before it meets the others of its block.
constexpr int kNormRun = 4;

FRICTION_INLINE int64_t norm_runs(int64_t chunks) { return (chunks + kNormRun - 1) / kNormRun; }

// A thread's share of a run's sum.
FRICTION_INLINE double squares_of_run(const Launch<SingleOperand>& launch,
                                      Walk<Launch<SingleOperand>>& walk, int64_t run, int thread) {
  double sum = 0;
  const int64_t begin = run * kNormRun, rest = launch.chunks - begin;
  const int count = rest < kNormRun ? int(rest) : kNormRun;
  for (int i = 0; i < count; ++i) sum += squares_of_part(launch, walk.part_of(begin + i), thread);
  return sum;
}

// A thread's share of the sum over runs.
FRICTION_INLINE double share_of_runs(const double* of_run, int64_t runs, int thread) {
  double sum = 0;
  for (int64_t run = thread; run < runs; run += kThreads) sum += of_run[run];
  return sum;
}

}  // namespace friction::cuda
