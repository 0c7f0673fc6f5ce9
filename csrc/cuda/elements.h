// How a thread's elements come from memory and return: in vectors of 16 bytes where every list of
// a tensor is contiguous and aligned, else one by one; either way neighbouring threads read
// neighbouring memory.
#pragma once

#include "../dtypes.h"
#include "launch.h"

namespace friction::cuda {

// The storage of a launch's lists. kVector: elements to a vector; kVectors: how many of them a
// thread has in flight. with_list calls f with a null pointer of a list's storage type; kWide: the
// list is a state that is kept in float32 at least.
struct Float32Storage {
  using Arithmetic = float;
  static constexpr int kVector = 4, kVectors = 2;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType, F&& f) {
    f(static_cast<float*>(nullptr));
  }
};

struct BFloat16Storage {
  using Arithmetic = float;
  static constexpr int kVector = 8, kVectors = 1;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType, F&& f) {
    f(static_cast<std::conditional_t<kWide, float, BFloat16>*>(nullptr));
  }
};

// Mixtures, looked up as the launch runs; all threads branch alike. A gradient may have any type;
// a parameter and the states kept in its type any but float64.
struct MixedStorage {
  using Arithmetic = float;
  static constexpr int kVector = 4, kVectors = 1;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType dtype, F&& f) {
    if constexpr (kWide)
      f(static_cast<float*>(nullptr));
    else if constexpr (kList == 1)
      with_storage(dtype, std::forward<F>(f));
    else if (dtype == DType::kBFloat16)
      f(static_cast<BFloat16*>(nullptr));
    else if (dtype == DType::kFloat16)
      f(static_cast<Half*>(nullptr));
    else
      f(static_cast<float*>(nullptr));
  }
};

struct Float64Storage {
  using Arithmetic = double;
  static constexpr int kVector = 2, kVectors = 1;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType dtype, F&& f) {
    if constexpr (kList == 1)
      with_storage(dtype, std::forward<F>(f));
    else
      f(static_cast<double*>(nullptr));
  }
};

// One access of 2 to 16 bytes.
template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<2> {
  using Type = unsigned short;
};
template <>
struct AccessOf<4> {
  using Type = unsigned int;
};
template <>
struct AccessOf<8> {
  using Type = unsigned long long;
};
template <>
struct AccessOf<16> {
#if defined(__CUDACC__)
  using Type = uint4;
#else
  struct alignas(16) Type {
    uint64_t low, high;
  };
#endif
};

// Lists lie in global memory; the compiler cannot know it of addresses that it finds in a table.
template <class T>
FRICTION_INLINE T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// kCount consecutive elements in as few accesses as their bytes allow, 16 at most in one.
template <class Stored, int kCount>
struct Vector {
  static constexpr int kBytes = int(sizeof(Stored)) * kCount;
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  static constexpr int kAccesses = kBytes / kAccess;
  using Access = typename AccessOf<kAccess>::Type;

  static FRICTION_INLINE bool aligned(const void* data) {
    return reinterpret_cast<uintptr_t>(data) % kAccess == 0;
  }
  static FRICTION_INLINE void load(const Stored* from, Stored (&to)[kCount]) {
    const Access* memory = global(reinterpret_cast<const Access*>(from));
    Access accesses[kAccesses];
    FRICTION_UNROLL
    for (int i = 0; i < kAccesses; ++i) accesses[i] = memory[i];
    std::memcpy(to, accesses, kBytes);
  }
  static FRICTION_INLINE void store(const Stored (&from)[kCount], Stored* to) {
    Access* memory = global(reinterpret_cast<Access*>(to));
    Access accesses[kAccesses];
    std::memcpy(accesses, from, kBytes);
    FRICTION_UNROLL
    for (int i = 0; i < kAccesses; ++i) store_access(accesses[i], memory + i);
  }

 private:
  static FRICTION_INLINE void store_access(const Access& access, Access* to) {
#if defined(__CUDA_ARCH__)
    if constexpr (kAccess == 16) {  // which the compiler would take apart
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                   "r"(access.x), "r"(access.y), "r"(access.z), "r"(access.w)
                   : "memory");
      return;
    }
#endif
    *to = access;
  }
};

// Calls f(list as a constant, null pointer of its storage's type) for every list.
template <class Rule, class Storage, int kList = 0, class F>
FRICTION_INLINE void for_each_list(const DType* dtype, F&& f) {
  if constexpr (kList < Rule::kLists) {
    Storage::template with_list<kList, Rule::kWide[kList]>(
        dtype[kList], [&](auto* type) { f(std::integral_constant<int, kList>{}, type); });
    for_each_list<Rule, Storage, kList + 1>(dtype, f);
  }
}

// The layout of a tensor of gaps: dims, sizes [dims], strides [lists, dims]. Null: contiguous.
template <class Launch>
FRICTION_INLINE const int64_t* layout_of(const Launch& launch, int64_t tensor) {
  if (launch.extras == nullptr || launch.extras[tensor].layout == kContiguous) return nullptr;
  return launch.layouts + launch.extras[tensor].layout;
}

// Where element `index` of a walk lies in each list.
template <int kLists>
FRICTION_INLINE void find_offsets(const int64_t* layout, int64_t index,
                                  int64_t (&offsets)[kLists]) {
  for (int list = 0; list < kLists; ++list) offsets[list] = layout == nullptr ? index : 0;
  if (layout == nullptr) return;
  const int64_t dims = layout[0];
  const int64_t *sizes = layout + 1, *strides = sizes + dims;
  FRICTION_NO_UNROLL
  for (int64_t d = dims - 1; d >= 0; --d) {
    const int64_t next = index / sizes[d], here = index - next * sizes[d];
    FRICTION_UNROLL
    for (int list = 0; list < kLists; ++list) offsets[list] += here * strides[list * dims + d];
    index = next;
  }
}

// What a thread holds at a time of a part that goes by vectors: x[i][list].
template <class Rule, class Storage>
struct Vectors {
  using T = typename Storage::Arithmetic;
  static constexpr int kVector = Storage::kVector;
  static constexpr int kCount = kVector * Storage::kVectors;
  static constexpr int kRound = kThreads * kCount;  // what the block holds at a time
  static_assert(kChunk % kRound == 0);

  T x[kCount][Rule::kLists];
  int round_begin, thread;  // in the part

  // Where the thread's i-th element lies in the part.
  FRICTION_INLINE int position(int i) const {
    return round_begin + (i / kVector * kThreads + thread) * kVector + i % kVector;
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const Part& part) {
    for_each_list<Rule, Storage>(launch.dtype, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      const auto* data = static_cast<const Stored*>(launch.entries()[part.tensor].data[list]);
      FRICTION_UNROLL
      for (int first = 0; first < kCount; first += kVector) {
        Stored stored[kVector];
        Vector<Stored, kVector>::load(data + part.begin + position(first), stored);
        FRICTION_UNROLL
        for (int i = 0; i < kVector; ++i) x[first + i][list] = static_cast<T>(widen(stored[i]));
      }
    });
  }

  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const Part& part) const {
    for_each_list<Rule, Storage>(launch.dtype, [&](auto list, auto* type) {
      if constexpr (Rule::kWrites[list]) {
        using Stored = std::remove_pointer_t<decltype(type)>;
        auto* data = static_cast<Stored*>(launch.entries()[part.tensor].data[list]);
        FRICTION_UNROLL
        for (int first = 0; first < kCount; first += kVector) {
          Stored stored[kVector];
          FRICTION_UNROLL
          for (int i = 0; i < kVector; ++i) stored[i] = narrow<Stored>(x[first + i][list]);
          Vector<Stored, kVector>::store(stored, data + part.begin + position(first));
        }
      }
    });
  }
};

// Whether a part goes by vectors: whole rounds, every list contiguous and aligned.
template <class Storage, class Launch>
FRICTION_INLINE bool by_vectors(const Launch& launch, const Part& part) {
  constexpr int kRound = Vectors<typename Launch::Rule, Storage>::kRound;
  bool aligned = part.count % kRound == 0 && layout_of(launch, part.tensor) == nullptr;
  for_each_list<typename Launch::Rule, Storage>(launch.dtype, [&](auto list, auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    const void* data = launch.entries()[part.tensor].data[list];
    aligned = aligned && Vector<Stored, Storage::kVector>::aligned(data);
  });
  return aligned;
}

// One element of a part that does not.
template <class Rule, class Storage>
struct Single {
  using T = typename Storage::Arithmetic;
  T x[1][Rule::kLists];
  int64_t offsets[Rule::kLists];

  FRICTION_INLINE Single(const int64_t* layout, int64_t index) {
    find_offsets(layout, index, offsets);
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const Part& part) {
    for_each_list<Rule, Storage>(launch.dtype, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      const auto* data = static_cast<const Stored*>(launch.entries()[part.tensor].data[list]);
      Stored stored[1];
      Vector<Stored, 1>::load(data + offsets[list], stored);
      x[0][list] = static_cast<T>(widen(stored[0]));
    });
  }

  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const Part& part) const {
    for_each_list<Rule, Storage>(launch.dtype, [&](auto list, auto* type) {
      if constexpr (Rule::kWrites[list]) {
        using Stored = std::remove_pointer_t<decltype(type)>;
        auto* data = static_cast<Stored*>(launch.entries()[part.tensor].data[list]);
        const Stored stored[1] = {narrow<Stored>(x[0][list])};
        Vector<Stored, 1>::store(stored, data + offsets[list]);
      }
    });
  }
};

// Calls visit(a thread's elements, how many, where the i-th lies in the part) for all of a thread's
// elements of a part; each visit is given lists[i][list] and stores them after, where it should.
template <class Storage, bool kStores, class Launch, class Visit>
FRICTION_INLINE void visit_elements(const Launch& launch, const Part& part, int thread,
                                    Visit&& visit) {
  using Rule = typename Launch::Rule;
  if (by_vectors<Storage>(launch, part)) {
    using Mine = Vectors<Rule, Storage>;
    FRICTION_NO_UNROLL
    for (int begin = 0; begin < part.count; begin += Mine::kRound) {
      Mine mine;
      mine.round_begin = begin, mine.thread = thread;
      mine.load(launch, part);
      visit(mine.x, [&](int i) { return mine.position(i); });
      if constexpr (kStores) mine.store(launch, part);
    }
    return;
  }
  const int64_t* layout = layout_of(launch, part.tensor);
  FRICTION_NO_UNROLL
  for (int at = thread; at < part.count; at += kThreads) {
    Single<Rule, Storage> mine(layout, part.begin + at);
    mine.load(launch, part);
    visit(mine.x, [&](int) { return at; });
    if constexpr (kStores) mine.store(launch, part);
  }
}

}  // namespace friction::cuda
