// A thread's elements where the types of lists are looked up: eight consecutive ones, so that the
// 256 elements of a block of 8-bit codes are one warp's.
#pragma once

#include "rounding.h"
#include "storages.h"

namespace friction::cuda {

static_assert(kThreads * kEight == kChunk && kWarp * kEight == kBlock);

// Calls f with a null pointer of what a list is stored as (forms.h). All threads branch alike.
template <class Rule, class Storage, int kList, class F>
FRICTION_INLINE void with_type(const Types& types, F&& f) {
  using Map = CodeOf<is_non_negative<Rule>(kList)>;
  constexpr bool kState = kList > 1, kFloat64 = kList == 1 && !Storage::kStatesPacked;
  if constexpr (kState && Storage::kStatesPacked) {
    f(static_cast<Map*>(nullptr));
  } else {
    const DType type = types.list[kList];
    if constexpr (kState)
      if (type == DType::kPacked) return f(static_cast<Map*>(nullptr));
    if constexpr (kFloat64)
      if (type == DType::kFloat64) return f(static_cast<double*>(nullptr));
    if (type == DType::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
    if (type == DType::kFloat16) return f(static_cast<Half*>(nullptr));
    f(static_cast<float*>(nullptr));
  }
}

// The same of the parameter with its companion, if it has one.
template <class Rule, class Storage, class F>
FRICTION_INLINE void with_parameter(const Types& types, F&& f) {
  if (!types.companion) return with_type<Rule, Storage, 0>(types, f);
  const DType companion = types.list[Rule::kLists];
  const auto pair = [&](auto* param) {
    using Param = std::remove_pointer_t<decltype(param)>;
    if (companion == DType::kInt8) return f(static_cast<Pair<Param, int8_t>*>(nullptr));
    if (companion == DType::kInt16) return f(static_cast<Pair<Param, int16_t>*>(nullptr));
    f(static_cast<Pair<Param, float>*>(nullptr));
  };
  if (types.list[0] == DType::kBFloat16) return pair(static_cast<BFloat16*>(nullptr));
  pair(static_cast<Half*>(nullptr));
}

// Calls f(list as a constant, null pointer as above) for every list.
template <class Rule, class Storage, int kList = 0, class F>
FRICTION_INLINE void for_each_type(const Types& types, F&& f) {
  if constexpr (kList < Rule::kLists) {
    const auto with_list = [&](auto* type) { f(std::integral_constant<int, kList>{}, type); };
    if constexpr (kList == 0)
      with_parameter<Rule, Storage>(types, with_list);
    else
      with_type<Rule, Storage, kList>(types, with_list);
    for_each_type<Rule, Storage, kList + 1>(types, f);
  }
}

template <class Launch>
FRICTION_INLINE char* companion_of(const Launch& launch, const Part& part, const Types& types) {
  return types.companion ? static_cast<char*>(launch.extras[part.tensor].companion) : nullptr;
}

template <class Launch>
FRICTION_INLINE RandomBits random_bits(const Launch& launch, const Part& part, RandomKey key) {
  const Extra& extra = launch.extras[part.tensor];
  key.parameter = uint32_t(extra.parameter);
  return {key, extra.global};
}

// How a step rounds what it stores in few bits.
struct StepRounding {
  RandomKey key;    // but for the parameter's number
  float threshold;  // of averages in 8 bits or bfloat16

  template <class Rule, int kList>
  FRICTION_INLINE Packing packing(uint32_t scale) const {
    return {scale, is_average<Rule>(kList) ? threshold : kNearest};
  }
};

// Eight elements of a part that goes by vectors, those from position on.
template <class Rule, class Storage>
struct Eight {
  static constexpr int kLists = Rule::kLists;
  float x[kEight][kLists];

  FRICTION_INLINE void clear() {
    FRICTION_UNROLL
    for (auto& element : x) {
      FRICTION_UNROLL
      for (float& value : element) value = 0.0f;
    }
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const Part& part, const Types& types,
                            int position) {
    Raw raw[kLists] = {};  // zero, as above
    for_each_type<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      Form<Stored>::fetch(place(launch, part, types, position, list), raw[list]);
    });
    for_each_type<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      float column[kEight];
      Form<Stored>::widen_all(raw[list], column);
      FRICTION_UNROLL
      for (int i = 0; i < kEight; ++i) x[i][list] = column[i];
    });
  }

  // scales: the bits of those of the lists' blocks.
  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const Part& part, const Types& types,
                             int position, const uint32_t (&scales)[kLists],
                             const StepRounding& rounding) const {
    for_each_type<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (is_written(list)) {
        const Place to = place(launch, part, types, position, list);
        float column[kEight];
        FRICTION_UNROLL
        for (int i = 0; i < kEight; ++i) column[i] = x[i][list];
        if constexpr (list == 0 && kIsHalf<Stored>) {
          if (types.stochastic) {
            const RandomBlock random =
                random_bits(launch, part, rounding.key).of_eight(part.begin + position);
            Stored stored[kEight];
            FRICTION_UNROLL
            for (int i = 0; i < kEight; ++i)
              stored[i] = narrow_stochastically<Stored>(column[i], random.at(i));
            Vector<Stored, kEight>::store(stored, to.template list<Stored>());
            return;
          }
        }
        if constexpr (is_average<Rule>(list) && std::is_same_v<Stored, BFloat16>) {
          BFloat16 stored[kEight];
          FRICTION_UNROLL
          for (int i = 0; i < kEight; ++i) stored[i] = narrow_from(column[i], rounding.threshold);
          Vector<BFloat16, kEight>::store(stored, to.template list<BFloat16>());
          return;
        }
        Form<Stored>::store(column, to, rounding.packing<Rule, list()>(scales[list]));
      }
    });
  }

 private:
  template <class Launch>
  static FRICTION_INLINE Place place(const Launch& launch, const Part& part, const Types& types,
                                     int position, int list) {
    const int64_t at = part.begin + position;
    char* data = static_cast<char*>(launch.entries()[part.tensor].data[list]);
    return {data, at, list == 0 ? companion_of(launch, part, types) : nullptr, at, part.numel};
  }
};

// Whether a part goes by vectors: eights, every list contiguous and aligned.
template <class Launch>
FRICTION_INLINE bool by_eights(const Launch& launch, const Part& part, const Types& types) {
  auto addresses = reinterpret_cast<uintptr_t>(companion_of(launch, part, types));
  FRICTION_UNROLL
  for (int list = 0; list < Launch::Rule::kLists; ++list)
    addresses |= reinterpret_cast<uintptr_t>(launch.entries()[part.tensor].data[list]);
  return addresses % 16 == 0 && part.count % kEight == 0 &&
         layout_of(launch, part.tensor) == nullptr;
}

// One element of a part that does not.
template <class Rule, class Storage>
struct One {
  static constexpr int kLists = Rule::kLists;
  float x[1][kLists];
  int64_t index, offsets[kLists + 1];  // in the walk; in each list

  FRICTION_INLINE One(const int64_t* layout, int64_t index) : index(index) {
    find_offsets(layout, index, offsets);
  }

  template <class Launch>
  FRICTION_INLINE void load(const Launch& launch, const Part& part, const Types& types) {
    for_each_type<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      x[0][list] = Form<Stored>::read(place<Stored>(launch, part, types, list));
    });
  }

  template <class Launch>
  FRICTION_INLINE void store(const Launch& launch, const Part& part, const Types& types,
                             const uint32_t (&scales)[kLists], const StepRounding& rounding) const {
    for_each_type<Rule, Storage>(types, [&](auto list, auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (is_written(list)) {
        const Place to = place<Stored>(launch, part, types, list);
        if constexpr (list == 0 && kIsHalf<Stored>) {
          if (types.stochastic) {
            const uint32_t random = random_bits(launch, part, rounding.key).of(index);
            write_one(narrow_stochastically<Stored>(x[0][list], random),
                      to.template list<Stored>());
            return;
          }
        }
        if constexpr (is_average<Rule>(list) && std::is_same_v<Stored, BFloat16>) {
          write_one(narrow_from(x[0][list], rounding.threshold), to.template list<BFloat16>());
          return;
        }
        Form<Stored>::write(x[0][list], to, rounding.packing<Rule, list()>(scales[list]));
      }
    });
  }

 private:
  template <class Stored, class Launch>
  FRICTION_INLINE Place place(const Launch& launch, const Part& part, const Types& types,
                              int list) const {
    char* data = static_cast<char*>(launch.entries()[part.tensor].data[list]);
    return {data, offsets[list], list == 0 ? companion_of(launch, part, types) : nullptr,
            offsets[kLists], part.numel};
  }
};

// Calls visit(one element, its position) for each of a thread's that does not go by vectors. They
// are eight consecutive ones where a list is packed, else neighbours are neighbouring threads'.
template <class Storage, class Launch, class Visit>
FRICTION_INLINE void visit_ones(const Launch& launch, const Part& part, const Types& types,
                                int thread, Visit&& visit) {
  const int64_t* layout = layout_of(launch, part.tensor);
  const int first = types.packed ? thread * kEight : thread, step = types.packed ? 1 : kThreads;
  FRICTION_NO_UNROLL
  for (int i = 0; i < kEight; ++i) {
    const int at = first + i * step;
    if (at >= part.count) break;
    One<typename Launch::Rule, Storage> one(layout, part.begin + at);
    one.load(launch, part, types);
    visit(one, at);
  }
}

// What visit_elements (elements.h) does where nothing is stored.
template <class Storage, class Launch, class Visit>
FRICTION_INLINE void visit_mixture(const Launch& launch, const Part& part, const Types& types,
                                   int thread, Visit&& visit) {
  if (by_eights(launch, part, types)) {
    const int position = thread * kEight;
    if (position >= part.count) return;
    Eight<typename Launch::Rule, Storage> eight;
    eight.load(launch, part, types, position);
    visit(eight.x, [&](int i) { return position + i; });
  } else {
    visit_ones<Storage>(launch, part, types, thread,
                        [&](auto& one, int at) { visit(one.x, [&](int) { return at; }); });
  }
}

}  // namespace friction::cuda
