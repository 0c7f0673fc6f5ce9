// What a thread does for the squared norm of a list of tensors: first the sums of every
// kNormSums-th chunk, then the sum of these, both in a fixed order.
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

// A thread's share of a part's sum.
FRICTION_INLINE double squares_of_part(const Launch<SingleOperand>& launch, const Part<1>& part,
                                       int thread) {
  double sum = 0;
  with_stored_type(DType(launch.entries()[part.tensor].group_step), [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    const int first = thread * kVec8;
    if (!part.aligned || first + kVec8 > part.count) {
      sum = squares_one_by_one<Stored>(launch, part, thread);
      return;
    }
    Stored stored[kVec8];
    Vector<Stored, kVec8>::load(static_cast<const Stored*>(part.data[0]) + part.begin + first,
                                stored);
    sum = squares_of(stored);
  });
  return sum;
}

// As many sums as keep every processor busy, and no more than a block adds up at once.
constexpr int kNormSums = 4096;

FRICTION_INLINE int norm_sums(int64_t chunks) {
  return chunks < kNormSums ? int(chunks) : kNormSums;
}

// A thread's share of one of the sums.
FRICTION_INLINE double share_of_sum(const Launch<SingleOperand>& launch, int number, int thread) {
  Walk<Launch<SingleOperand>> walk(launch);
  double sum = 0;
  for (int64_t chunk = number; chunk < launch.chunks; chunk += kNormSums)
    sum += squares_of_part(launch, walk.part_of(chunk), thread);
  return sum;
}

// A thread's share of the sum of these.
FRICTION_INLINE double share_of_all(const double* sums, int count, int thread) {
  double sum = 0;
  for (int i = thread; i < count; i += kThreads) sum += sums[i];
  return sum;
}

}  // namespace friction::cuda
