// Operations on lists of tensors. Compiled once per instruction set, as rule_kernels.h is.
#include <algorithm>

#include "instruction_set.h"
#include "region.h"
#include "staging.h"
#include "sums.h"

namespace friction {
namespace {

#if defined(__AVX512F__)
constexpr int kRegister = 64;  // bytes
#elif defined(__AVX__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// Numbers in memory that the compiler adds and multiplies at once.
template <class T>
struct InRegister {
  typedef T Type __attribute__((vector_size(kRegister), aligned(alignof(T)), may_alias));
  static constexpr int kCount = kRegister / int(sizeof(T));
  static constexpr int kOfLanes = kLanes / kCount;  // registers

  static FRICTION_INLINE Type& at(T* numbers) { return *reinterpret_cast<Type*>(numbers); }
  static FRICTION_INLINE const Type& at(const T* numbers) {
    return *reinterpret_cast<const Type*>(numbers);
  }
};

// Adds the products of a[j] and b over [begin, end), a multiple of kLanes, to the lanes of each j.
template <class T, int kCount>
FRICTION_INLINE void add_products(const T* const* a, const T* b, int64_t begin, int64_t end,
                                  T (*lanes)[kLanes]) {
  using Register = InRegister<T>;
  typename Register::Type sums[kCount][Register::kOfLanes];
  for (int j = 0; j < kCount; ++j)
    for (int lane = 0; lane < kLanes; lane += Register::kCount)
      sums[j][lane / Register::kCount] = Register::at(lanes[j] + lane);
  for (int64_t i = begin; i < end; i += kLanes)
    for (int j = 0; j < kCount; ++j)
      for (int lane = 0; lane < kLanes; lane += Register::kCount)
        sums[j][lane / Register::kCount] +=
            Register::at(a[j] + i + lane) * Register::at(b + i + lane);
  for (int j = 0; j < kCount; ++j)
    for (int lane = 0; lane < kLanes; lane += Register::kCount)
      Register::at(lanes[j] + lane) = sums[j][lane / Register::kCount];
}

// Elements of each list before the next: few, so that they are all read at once from memory.
constexpr int64_t kPass = 256;

// The products of all pairs of `lists` arrays, each of them as dot(x[first], x[second]).
template <class T>
void all_products(const T* const* x, int lists, int64_t count, double* products) {
  constexpr int kTogether = 4;  // sums, whose additions do not wait for each other
  if (count <= kLanes) {
    for (int second = 0; second < lists; ++second)
      for (int first = 0; first <= second; ++first)
        products[pairs_of(second) + first] = dot(x[first], x[second], count);
    return;
  }
  T lanes[pairs_of(kMostLists)][kLanes];
  std::fill_n(lanes[0], pairs_of(lists) * kLanes, T(0));
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kPass) {
    const int64_t end = begin + kPass < whole ? begin + kPass : whole;
    for (int second = 0; second < lists; ++second)
      for (int first = 0; first <= second; first += kTogether) {
        T(*to)[kLanes] = lanes + pairs_of(second) + first;
        switch (second + 1 - first) {
          case 1: add_products<T, 1>(x + first, x[second], begin, end, to); break;
          case 2: add_products<T, 2>(x + first, x[second], begin, end, to); break;
          case 3: add_products<T, 3>(x + first, x[second], begin, end, to); break;
          default: add_products<T, kTogether>(x + first, x[second], begin, end, to);
        }
      }
  }
  for (int second = 0; second < lists; ++second)
    for (int first = 0; first <= second; ++first) {
      const T *a = x[first], *b = x[second];
      double& product = products[pairs_of(second) + first];
      T(&sums)[kLanes] = lanes[pairs_of(second) + first];
      for (int64_t i = whole; i < count; ++i) sums[i - whole] += a[i] * b[i];
      product = tree_sum(sums);
      if (!std::isfinite(product)) product = wide_dot(a, b, count);
    }
}

// Calls visit(tensor, begin, count, null pointer to the arithmetic type) for every chunk of a
// region: double if any of the first `lists` is.
template <class Visit>
FRICTION_INLINE void for_each_chunk_of_lists(const ListsRegion& r, int lists, int64_t first,
                                             int64_t last, Visit&& visit) {
  r.lists[0].for_each_chunk(first, last, [&](const TensorEntry& t, int64_t begin, int64_t end) {
    const int64_t tensor = &t - r.lists[0].tensors;
    bool wide = false;
    for (int list = 0; list < lists; ++list)
      wide = wide || r.lists[list].tensors[tensor].dtype[0] == DType::kFloat64;
    if (wide)
      visit(tensor, begin, end - begin, static_cast<double*>(nullptr));
    else
      visit(tensor, begin, end - begin, static_cast<float*>(nullptr));
  });
}

template <class T>
void gram_of_chunk(const GramRegion& r, int64_t tensor, int64_t begin, int64_t count,
                   double* products) {
  static constexpr T kZeros[kChunk] = {};
  Stage<T, SingleOperand> stages[kMostLists];
  const T* x[kMostLists];
  for (int list = 0; list < r.count; ++list) {
    const TensorEntry& t = r.lists[list].tensors[tensor];
    x[list] = kZeros;
    if (t.data[0] == nullptr) continue;
    stages[list].load(t, begin, count);
    x[list] = stages[list].x[0];
  }
  all_products(x, r.count, count, products);
}

void gram(const GramRegion& r, int64_t first, int64_t last) {
  double* products = r.of_chunk + first * pairs_of(r.count);
  for_each_chunk_of_lists(
      r, r.count, first, last, [&](int64_t tensor, int64_t begin, int64_t count, auto* type) {
        gram_of_chunk<std::remove_pointer_t<decltype(type)>>(r, tensor, begin, count, products);
        products += pairs_of(r.count);
      });
}

// to = weight x, or to = sum + weight x. They overlap only at equal indices.
template <class T>
FRICTION_INLINE void add_weighted(const T* sum, T weight, const T* x, int64_t count, T* to) {
  if (sum == nullptr) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = weight * x[i];
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) to[i] = sum[i] + weight * x[i];
  }
}

template <class T>
void combine_part(const CombineRegion& r, int64_t tensor, int64_t begin, int64_t count) {
  const TensorEntry& out = r.lists[r.count].tensors[tensor];
  Stage<T, SingleOperand> stage, result;
  result.x[0] = result.buffers(out) ? result.buffer[0] : static_cast<T*>(out.data[0]) + begin;
  const T* sum = nullptr;
  int last = r.count - 1;
  while (last >= 0 && r.lists[last].tensors[tensor].data[0] == nullptr) --last;
  if (last < 0) std::fill_n(result.x[0], count, T(0));
  for (int list = 0; list <= last; ++list) {
    const TensorEntry& t = r.lists[list].tensors[tensor];
    if (t.data[0] == nullptr) continue;
    stage.load(t, begin, count);
    // The result may be an input in place, so it is written when all have been read.
    T* to = list == last ? result.x[0] : result.buffer[0];
    add_weighted(sum, T(r.weights[list]), stage.x[0], count, to);
    sum = to;
  }
  result.store(out, begin, count, false, {});
}

void combine(const CombineRegion& r, int64_t first, int64_t last) {
  for_each_chunk_of_lists(
      r, r.count + 1, first, last, [&](int64_t tensor, int64_t begin, int64_t count, auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        for (int64_t done = 0; done < count; done += kPass)
          combine_part<T>(r, tensor, begin + done, std::min(kPass, count - done));
      });
}

}  // namespace

ListKernels FRICTION_JOIN(list_kernels_, FRICTION_ISA)() { return {gram, combine}; }

}  // namespace friction
