// How a thread's elements come from memory and return: in vectors of 16 bytes where every list of
// a tensor is contiguous and aligned, else one by one; either way neighbouring threads read
// neighbouring memory. Lists whose types are looked up are in mixture.h.
#pragma once

#include "mixture.h"

namespace friction::cuda {

// Calls f(list as a constant, null pointer of its storage's type) for every list.
template <class Rule, class Storage, int kList = 0, class F>
FRICTION_INLINE void for_each_list(const Types& types, F&& f) {
  if constexpr (kList < Rule::kLists) {
    Storage::template with_list<kList, is_average<Rule>(kList)>(
        types.list[kList], [&](auto* type) { f(std::integral_constant<int, kList>{}, type); });
    for_each_list<Rule, Storage, kList + 1>(types, f);
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
  FRICTION_INLINE void load(const Launch& launch, const Part& part, const Types& types) {
    for_each_list<Rule, Storage>(types, [&](auto list, auto* type) {
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
  FRICTION_INLINE void store(const Launch& launch, const Part& part, const Types& types) const {
    for_each_list<Rule, Storage>(types, [&](auto list, auto* type) {
      if constexpr (is_written(list)) {
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
FRICTION_INLINE bool by_vectors(const Launch& launch, const Part& part, const Types& types) {
  constexpr int kRound = Vectors<typename Launch::Rule, Storage>::kRound;
  bool aligned = part.count % kRound == 0 && layout_of(launch, part.tensor) == nullptr;
  for_each_list<typename Launch::Rule, Storage>(types, [&](auto list, auto* type) {
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
  FRICTION_INLINE void load(const Launch& launch, const Part& part, const Types& types) {
    for_each_list<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      const auto* data = static_cast<const Stored*>(launch.entries()[part.tensor].data[list]);
      Stored stored[1];
      Vector<Stored, 1>::load(data + offsets[list], stored);
      x[0][list] = static_cast<T>(widen(stored[0]));
    });
  }

  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const Part& part, const Types& types) const {
    for_each_list<Rule, Storage>(types, [&](auto list, auto* type) {
      if constexpr (is_written(list)) {
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
FRICTION_INLINE void visit_elements(const Launch& launch, const Part& part, const Types& types,
                                    int thread, Visit&& visit) {
  using Rule = typename Launch::Rule;
  if constexpr (Storage::kLookedUp) {
    static_assert(!kStores);
    visit_mixture<Storage>(launch, part, types, thread, visit);
  } else if (by_vectors<Storage>(launch, part, types)) {
    using Mine = Vectors<Rule, Storage>;
    FRICTION_NO_UNROLL
    for (int begin = 0; begin < part.count; begin += Mine::kRound) {
      Mine mine;
      mine.round_begin = begin, mine.thread = thread;
      mine.load(launch, part, types);
      visit(mine.x, [&](int i) { return mine.position(i); });
      if constexpr (kStores) mine.store(launch, part, types);
    }
  } else {
    const int64_t* layout = layout_of(launch, part.tensor);
    FRICTION_NO_UNROLL
    for (int at = thread; at < part.count; at += kThreads) {
      Single<Rule, Storage> mine(layout, part.begin + at);
      mine.load(launch, part, types);
      visit(mine.x, [&](int) { return at; });
      if constexpr (kStores) mine.store(launch, part, types);
    }
  }
}

}  // namespace friction::cuda
