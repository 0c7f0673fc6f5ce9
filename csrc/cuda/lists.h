// What a thread does for operations on lists of tensors. Elements are taken eight at a time.
//
// Products are summed over a thread's elements of a run of chunks, over the run, and over the runs
// of a segment: always in the same order.
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

using ListLaunch = Launch<SingleOperand>;

// The index of a tensor of one list. Its data is null if the list misses it.
FRICTION_INLINE int64_t index_of(const ListLaunch& launch, int list, int64_t tensor) {
  return list * launch.count + tensor;
}

// The eight elements that a thread takes of a part, or as many as there are.
struct ThreadElements {
  int64_t first;
  int count;

  FRICTION_INLINE ThreadElements(const Part<1>& part, int thread)
      : first(part.begin + thread * kVec8) {
    const int rest = part.count - thread * kVec8;
    count = rest < 0 ? 0 : rest < kVec8 ? rest : kVec8;
  }
};

struct PartTypes {
  bool vectors = true;  // whether every list is contiguous and aligned
  bool wide = false;    // whether any list is float64
};

FRICTION_INLINE PartTypes types_of(const ListLaunch& launch, int64_t tensor, int lists) {
  PartTypes types;
  for (int list = 0; list < lists; ++list) {
    const Entry<1>& entry = launch.entries()[index_of(launch, list, tensor)];
    if (entry.data[0] == nullptr) continue;
    types.vectors = types.vectors && entry.aligned;
    types.wide = types.wide || DType(entry.group_step) == DType::kFloat64;
  }
  return types;
}

// Reads as T; float64 is read only as such.
template <class T, class F>
FRICTION_INLINE void with_readable_type(const Entry<1>& entry, F&& f) {
  with_stored_type(DType(entry.group_step), [&](auto* type) {
    if constexpr (sizeof(*type) <= sizeof(T)) f(type);
  });
}

template <class T>
FRICTION_INLINE void load_vector(const Entry<1>& entry, int64_t first, T (&x)[kVec8]) {
  with_readable_type<T>(entry, [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    Stored stored[kVec8];
    Vector<Stored, kVec8>::load(static_cast<const Stored*>(entry.data[0]) + first, stored);
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) x[i] = T(widen(stored[i]));
  });
}

FRICTION_INLINE int64_t offset_of(const ListLaunch& launch, int64_t index, int64_t element) {
  int64_t offsets[SingleOperand::kOperands];
  find_offsets(layout_of(launch, index), element, offsets);
  return offsets[0];
}

template <class T>
FRICTION_INLINE T load_one(const ListLaunch& launch, int64_t index, int64_t element) {
  const Entry<1>& entry = launch.entries()[index];
  const int64_t offset = offset_of(launch, index, element);
  T x = T(0);
  with_readable_type<T>(entry, [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    x = T(widen(read_one(static_cast<const Stored*>(entry.data[0]) + offset)));
  });
  return x;
}

// The Gram matrix.

template <int kMost>
constexpr int kPairs = pairs_of(kMost);

// Adds the products of eight elements: in T, or in double if that sum is not finite.
template <class T, int kMost>
FRICTION_INLINE void add_products(const T (&x)[kMost][kVec8], double (&sums)[kPairs<kMost>]) {
  FRICTION_UNROLL
  for (int second = 0; second < kMost; ++second) {
    FRICTION_UNROLL
    for (int first = 0; first <= second; ++first) {
      T sum = T(0);
      FRICTION_UNROLL
      for (int i = 0; i < kVec8; ++i) sum += x[first][i] * x[second][i];
      double wide = double(sum);
      if (!std::isfinite(sum)) {
        wide = 0;
        FRICTION_UNROLL
        for (int i = 0; i < kVec8; ++i) wide += double(x[first][i]) * double(x[second][i]);
      }
      sums[pairs_of(second) + first] += wide;
    }
  }
}

template <class T, int kMost>
FRICTION_INLINE void add_vectors(const ListLaunch& launch, int64_t tensor,
                                 const ThreadElements& mine, double (&sums)[kPairs<kMost>]) {
  T x[kMost][kVec8] = {};
  FRICTION_UNROLL
  for (int list = 0; list < kMost; ++list) {
    if (list >= launch.lists.count) break;
    const Entry<1>& entry = launch.entries()[index_of(launch, list, tensor)];
    if (entry.data[0] != nullptr) load_vector(entry, mine.first, x[list]);
  }
  add_products(x, sums);
}

// The same of elements that are read one by one, in double.
template <int kMost>
FRICTION_INLINE void add_one_by_one(const ListLaunch& launch, int64_t tensor,
                                    const ThreadElements& mine, double (&sums)[kPairs<kMost>]) {
  FRICTION_NO_UNROLL
  for (int i = 0; i < mine.count; ++i) {
    double x[kMost] = {};
    FRICTION_UNROLL
    for (int list = 0; list < kMost; ++list) {
      if (list >= launch.lists.count) break;
      const int64_t index = index_of(launch, list, tensor);
      if (launch.entries()[index].data[0] != nullptr)
        x[list] = load_one<double>(launch, index, mine.first + i);
    }
    FRICTION_UNROLL
    for (int second = 0; second < kMost; ++second) {
      FRICTION_UNROLL
      for (int first = 0; first <= second; ++first)
        sums[pairs_of(second) + first] += x[first] * x[second];
    }
  }
}

// Adds a thread's share of a part's products.
template <int kMost>
FRICTION_INLINE void add_part(const ListLaunch& launch, const Part<1>& part, int thread,
                              double (&sums)[kPairs<kMost>]) {
  const ThreadElements mine(part, thread);
  if (mine.count == 0) return;
  const PartTypes types = types_of(launch, part.tensor, launch.lists.count);
  const bool vectors = types.vectors && mine.count == kVec8;
  if (vectors && !types.wide) return add_vectors<float, kMost>(launch, part.tensor, mine, sums);
  if constexpr (kMost <= 2)  // more float64 numbers would not fit into registers
    if (vectors) return add_vectors<double, kMost>(launch, part.tensor, mine, sums);
  add_one_by_one<kMost>(launch, part.tensor, mine, sums);
}

FRICTION_INLINE int64_t runs_of(const ListLaunch& launch) {
  return (launch.chunks + launch.lists.run - 1) / launch.lists.run;
}

// Adds a thread's share of a run's products.
template <int kMost>
FRICTION_INLINE void add_run(const ListLaunch& launch, Walk<ListLaunch>& walk, int64_t run,
                             int thread, double (&sums)[kPairs<kMost>]) {
  const int64_t begin = run * launch.lists.run, rest = launch.chunks - begin;
  const int count = rest < launch.lists.run ? int(rest) : launch.lists.run;
  for (int i = 0; i < count; ++i) add_part<kMost>(launch, walk.part_of(begin + i), thread, sums);
}

// A member's share of one pair's sum over the runs of a segment, which a team adds.
FRICTION_INLINE double share_of_runs(const ListLaunch& launch, int64_t segment, int pair,
                                     int member, int team) {
  const int64_t* ends = launch.lists.segment_ends;
  const int64_t begin = segment == 0 ? 0 : ends[segment - 1];
  const int64_t runs = runs_of(launch), end = ends == nullptr ? runs : ends[segment];
  double sum = 0;
  for (int64_t run = begin + member; run < end; run += team)
    sum += launch.lists.of_run[pair * runs + run];
  return sum;
}

// Writes a pair's product to both of its places.
FRICTION_INLINE void store_product(const ListLaunch& launch, int64_t segment, int pair,
                                   double product) {
  int second = 0;
  while (pairs_of(second + 1) <= pair) ++second;
  const int first = pair - pairs_of(second), lists = launch.lists.count;
  double* products = launch.lists.products + segment * lists * lists;
  products[first * lists + second] = products[second * lists + first] = product;
}

// The combination.

FRICTION_INLINE double weight_of(const ListLaunch& launch, int list) {
  return launch.lists.weights_there != nullptr ? launch.lists.weights_there[list]
                                               : launch.lists.weights[list];
}

// What sums begin with: -0, to which any number adds up to itself; 0 if no list has the tensor.
template <class T>
FRICTION_INLINE T first_sum(const ListLaunch& launch, int64_t tensor) {
  for (int list = 0; list < launch.lists.count; ++list)
    if (launch.entries()[index_of(launch, list, tensor)].data[0] != nullptr) return T(-0.0);
  return T(0);
}

template <class T>
FRICTION_INLINE void combine_vectors(const ListLaunch& launch, int64_t tensor, int64_t first) {
  T y[kVec8];
  FRICTION_UNROLL
  for (int i = 0; i < kVec8; ++i) y[i] = first_sum<T>(launch, tensor);
  FRICTION_NO_UNROLL
  for (int list = 0; list < launch.lists.count; ++list) {
    const Entry<1>& entry = launch.entries()[index_of(launch, list, tensor)];
    if (entry.data[0] == nullptr) continue;
    const T weight = T(weight_of(launch, list));
    T x[kVec8];
    load_vector(entry, first, x);
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) y[i] += weight * x[i];
  }
  const Entry<1>& out = launch.entries()[index_of(launch, launch.lists.count, tensor)];
  with_readable_type<T>(out, [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    Stored stored[kVec8];
    FRICTION_UNROLL
    for (int i = 0; i < kVec8; ++i) stored[i] = narrow<Stored>(y[i]);
    Vector<Stored, kVec8>::store(stored, static_cast<Stored*>(out.data[0]) + first);
  });
}

template <class T>
FRICTION_INLINE void combine_one(const ListLaunch& launch, int64_t tensor, int64_t element) {
  T y = first_sum<T>(launch, tensor);
  FRICTION_NO_UNROLL
  for (int list = 0; list < launch.lists.count; ++list) {
    const int64_t index = index_of(launch, list, tensor);
    if (launch.entries()[index].data[0] != nullptr)
      y += T(weight_of(launch, list)) * load_one<T>(launch, index, element);
  }
  const int64_t index = index_of(launch, launch.lists.count, tensor);
  const Entry<1>& out = launch.entries()[index];
  const int64_t offset = offset_of(launch, index, element);
  with_readable_type<T>(out, [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    const Stored stored[1] = {narrow<Stored>(y)};
    Vector<Stored, 1>::store(stored, static_cast<Stored*>(out.data[0]) + offset);
  });
}

// Combines a thread's elements of a part.
FRICTION_INLINE void combine_part(const ListLaunch& launch, const Part<1>& part, int thread) {
  const ThreadElements mine(part, thread);
  const PartTypes types = types_of(launch, part.tensor, launch.lists.count + 1);
  if (types.vectors && mine.count == kVec8) {
    if (types.wide)
      combine_vectors<double>(launch, part.tensor, mine.first);
    else
      combine_vectors<float>(launch, part.tensor, mine.first);
    return;
  }
  FRICTION_NO_UNROLL
  for (int i = 0; i < mine.count; ++i) {
    if (types.wide)
      combine_one<double>(launch, part.tensor, mine.first + i);
    else
      combine_one<float>(launch, part.tensor, mine.first + i);
  }
}

}  // namespace friction::cuda
