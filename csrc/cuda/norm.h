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

// Sums are in float64 for float64 tensors, else in float32.
template <class Stored>
using SumOf = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// The sum of eight squares, or the sum in double if that is not finite.
template <class Stored>
FRICTION_INLINE double squares_of(const Stored (&stored)[kVec8]) {
  SumOf<Stored> sum = 0;
  FRICTION_UNROLL
  for (int i = 0; i < kVec8; ++i) {
    const SumOf<Stored> x = widen(stored[i]);
    sum += x * x;
  }
  if (std::isfinite(sum)) return double(sum);
  double wide = 0;
  FRICTION_UNROLL
  for (int i = 0; i < kVec8; ++i) wide += double(widen(stored[i])) * double(widen(stored[i]));
  return wide;
}

// The same of a thread's eight consecutive elements of a part, one by one.
template <class Stored>
FRICTION_INLINE double squares_one_by_one(const Launch<SingleOperand>& launch, const Part<1>& part,
                                          int thread) {
  const auto* data = static_cast<const Stored*>(part.data[0]);
  const int64_t* layout = layout_of(launch, part.tensor);
  const int rest = part.count - thread * kVec8, count = rest < kVec8 ? rest : kVec8;
  SumOf<Stored> sum = 0;
  double wide = 0;
  FRICTION_NO_UNROLL
  for (int i = 0; i < count; ++i) {
    int64_t offsets[SingleOperand::kOperands];
    find_offsets(layout, part.begin + thread * kVec8 + i, offsets);
    const SumOf<Stored> x = widen(read_one(data + offsets[0]));
    sum += x * x;
    wide += double(x) * double(x);
  }
  return std::isfinite(sum) ? double(sum) : wide;
}

// A thread's share of the sum over kParts consecutive parts, from the given one on. In vectors, all
// loads are under way before the first is used.
template <int kParts>
FRICTION_INLINE double squares_of_parts(const Launch<SingleOperand>& launch, const Part<1>& part,
                                        int thread) {
  double sum = 0;
  with_stored_type(DType(launch.entries()[part.tensor].group_step), [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    const int first = thread * kVec8;
    if (!part.aligned || first + kVec8 > part.count) {
      sum = squares_one_by_one<Stored>(launch, part, thread);
      return;
    }
    Stored stored[kParts][kVec8];
    FRICTION_UNROLL
    for (int i = 0; i < kParts; ++i)
      Vector<Stored, kVec8>::load(
          static_cast<const Stored*>(part.data[0]) + part.begin + i * kChunk + first, stored[i]);
    FRICTION_UNROLL
    for (int i = 0; i < kParts; ++i) sum += squares_of(stored[i]);
  });
  return sum;
}

// Chunks whose squares a thread adds before it meets the others of its block.
constexpr int kNormRun = 4;

FRICTION_INLINE int64_t norm_runs(int64_t chunks) { return (chunks + kNormRun - 1) / kNormRun; }

// A thread's share of a run's sum.
FRICTION_INLINE double squares_of_run(const Launch<SingleOperand>& launch,
                                      Walk<Launch<SingleOperand>>& walk, int64_t run, int thread) {
  const int64_t begin = run * kNormRun, rest = launch.chunks - begin;
  const Part<1>& part = walk.part_of(begin);
  if (part.aligned && walk.are_whole(begin, kNormRun))
    return squares_of_parts<kNormRun>(launch, part, thread);
  const int count = rest < kNormRun ? int(rest) : kNormRun;
  double sum = 0;
  FRICTION_NO_UNROLL
  for (int i = 0; i < count; ++i)
    sum += squares_of_parts<1>(launch, walk.part_of(begin + i), thread);
  return sum;
}

// A thread's share of the sum over runs.
FRICTION_INLINE double share_of_runs(const double* of_run, int64_t runs, int thread) {
  double sum = 0, sums[4] = {};
  const int64_t most = runs - 3 * kThreads;
  int64_t run = thread;
  for (; run < most; run += 4 * kThreads) {
    FRICTION_UNROLL
    for (int i = 0; i < 4; ++i) sums[i] += of_run[run + i * kThreads];
  }
  for (; run < runs; run += kThreads) sum += of_run[run];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]) + sum;
}

}  // namespace friction::cuda
