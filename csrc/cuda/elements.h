// Loads and stores a thread's elements: in vectors of 16 bytes if every operand of a tensor is
// contiguous and aligned, else one by one. Either way, neighbouring threads access neighbouring
// memory. For dtypes that are looked up at run time, see dynamic_dtypes.h.
#pragma once

#include "dynamic_dtypes.h"

namespace friction::cuda {

// Calls f(operand as a constant, null pointer to its stored type) for every operand.
template <class Rule, class Config, int kOperand = 0, class F>
FRICTION_INLINE void for_each_operand(const Types& types, F&& f) {
  if constexpr (kOperand < Rule::kOperands) {
    Config::template with_operand<kOperand, is_average<Rule>(kOperand)>(
        types.operand[kOperand],
        [&](auto* type) { f(std::integral_constant<int, kOperand>{}, type); });
    for_each_operand<Rule, Config, kOperand + 1>(types, f);
  }
}

// The elements x[i][operand] that a thread of a team holds at a time of a part accessed in vectors.
template <class Rule, class Config, int kTeam>
struct Vectors {
  using T = typename Config::Arithmetic;
  static constexpr int kVector = Config::kVector;
  static constexpr int kCount = kVector * Config::kVectors;
  static constexpr int kRound = kTeam * kCount;  // elements that the team holds at a time
  static_assert(kChunk % kRound == 0);

  T x[kCount][Rule::kOperands];
  int round_begin, thread;  // in the part

  // The position of the thread's i-th element in the part.
  FRICTION_INLINE int position(int i) const {
    return round_begin + (i / kVector * kTeam + thread) * kVector + i % kVector;
  }

  FRICTION_INLINE void load(const Part<Rule::kOperands>& part, const Types& types) {
    for_each_operand<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      const auto* data = static_cast<const Stored*>(part.data[operand]);
      FRICTION_UNROLL
      for (int first = 0; first < kCount; first += kVector) {
        Stored stored[kVector];
        Vector<Stored, kVector>::load(data + part.begin + position(first), stored);
        FRICTION_UNROLL
        for (int i = 0; i < kVector; ++i) x[first + i][operand] = static_cast<T>(widen(stored[i]));
      }
    });
  }

  FRICTION_INLINE void store(const Part<Rule::kOperands>& part, const Types& types) const {
    for_each_operand<Rule, Config>(types, [&](auto operand, auto* type) {
      if constexpr (is_written(operand)) {
        using Stored = std::remove_pointer_t<decltype(type)>;
        auto* data = static_cast<Stored*>(part.template destination<Rule>(operand));
        if (operand == kept_gradient<Rule>() && data == nullptr) return;
        FRICTION_UNROLL
        for (int first = 0; first < kCount; first += kVector) {
          Stored stored[kVector];
          FRICTION_UNROLL
          for (int i = 0; i < kVector; ++i) stored[i] = narrow<Stored>(x[first + i][operand]);
          Vector<Stored, kVector>::store(stored, data + part.begin + position(first));
        }
      }
    });
  }
};

// One element of a part that is not accessed in vectors.
template <class Rule, class Config>
struct Single {
  using T = typename Config::Arithmetic;
  T x[1][Rule::kOperands];
  int64_t offsets[Rule::kOperands];

  FRICTION_INLINE Single(const int64_t* layout, int64_t index) {
    find_offsets(layout, index, offsets);
  }

  FRICTION_INLINE void load(const Part<Rule::kOperands>& part, const Types& types) {
    for_each_operand<Rule, Config>(types, [&](auto operand, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      const auto* data = static_cast<const Stored*>(part.data[operand]);
      Stored stored[1];
      Vector<Stored, 1>::load(data + offsets[operand], stored);
      x[0][operand] = static_cast<T>(widen(stored[0]));
    });
  }

  FRICTION_INLINE void store(const Part<Rule::kOperands>& part, const Types& types) const {
    for_each_operand<Rule, Config>(types, [&](auto operand, auto* type) {
      if constexpr (is_written(operand)) {
        using Stored = std::remove_pointer_t<decltype(type)>;
        auto* data = static_cast<Stored*>(part.template destination<Rule>(operand));
        if (operand == kept_gradient<Rule>() && data == nullptr) return;
        const Stored stored[1] = {narrow<Stored>(x[0][operand])};
        Vector<Stored, 1>::store(stored,
                                 data + part.template destination_offset<Rule, operand()>(offsets));
      }
    });
  }
};

// Calls visit(elements[i][operand], position(i) in the part) until it has seen all of a thread's
// elements of a part that is shared by a team of threads: a block, or a warp. Stores them after
// each call if kStores.
template <class Config, bool kStores, int kTeam = kThreads, class Launch, class Visit>
FRICTION_INLINE void visit_elements(const Launch& launch, const PartOf<Launch>& part,
                                    const Types& types, int thread, Visit&& visit) {
  using Rule = typename Launch::Rule;
  if constexpr (Config::kLookedUp) {
    static_assert(!kStores);
    visit_dynamic<Config, kTeam>(launch, part, types, thread, visit);
  } else if (part.aligned && part.count % Vectors<Rule, Config, kTeam>::kRound == 0) {
    using Mine = Vectors<Rule, Config, kTeam>;
    FRICTION_NO_UNROLL
    for (int begin = 0; begin < part.count; begin += Mine::kRound) {
      Mine mine;
      mine.round_begin = begin, mine.thread = thread;
      mine.load(part, types);
      visit(mine.x, [&](int i) { return mine.position(i); });
      if constexpr (kStores) mine.store(part, types);
    }
  } else {
    const int64_t* layout = layout_of(launch, part.tensor);
    FRICTION_NO_UNROLL
    for (int at = thread; at < part.count; at += kTeam) {
      Single<Rule, Config> mine(layout, part.begin + at);
      mine.load(part, types);
      visit(mine.x, [&](int) { return at; });
      if constexpr (kStores) mine.store(part, types);
    }
  }
}

}  // namespace friction::cuda
