// Brings a chunk of every list before a rule as plain arrays of the type the arithmetic runs in.
// A list that lies so already is used in place; any other is converted, gathered or unpacked into a
// buffer, and put back if the rule writes it. Included by kernels.cpp alone.
#pragma once

#include "../companion.h"
#include "../packed.h"
#include "../tensor_table.h"

namespace friction {
namespace {

// Calls visit(offset of the first element, stride, first position, count) for every run along the
// innermost dimension that the elements [begin, begin + count) of the walk consist of.
template <class Visit>
inline void for_each_run(const Layout& layout, int list, int64_t begin, int64_t count,
                         Visit&& visit) {
  const int inner = layout.dims - 1;
  const int64_t* strides = layout.strides + int64_t(list) * layout.dims;
  for (int64_t done = 0; done < count;) {
    int64_t rest = begin + done, offset = 0;
    const int64_t column = rest % layout.sizes[inner];
    rest /= layout.sizes[inner];
    for (int d = inner - 1; d >= 0; --d) {
      offset += (rest % layout.sizes[d]) * strides[d];
      rest /= layout.sizes[d];
    }
    const int64_t to_row_end = layout.sizes[inner] - column;
    const int64_t length = to_row_end < count - done ? to_row_end : count - done;
    visit(offset + column * strides[inner], strides[inner], done, length);
    done += length;
  }
}

// Calls f(codes, scale, count, position) for every block of a packed list among the elements
// [begin, begin + count); begin is a multiple of kBlock.
template <class F>
inline void for_each_block(const TensorEntry& t, int list, int64_t begin, int64_t count, F&& f) {
  auto* memory = static_cast<char*>(t.data[list]);
  auto* scales = reinterpret_cast<float*>(memory) + begin / kBlock;
  auto* codes = reinterpret_cast<uint8_t*>(memory + codes_begin(t.numel)) + begin;
  for (int64_t at = 0; at < count; at += kBlock)
    f(codes + at, scales[at / kBlock], count - at < kBlock ? count - at : kBlock, at);
}

// The loops over plain arrays, which the compiler vectorises; nothing overlaps.
template <class Stored, class T>
inline void widen_all(const Stored* __restrict from, int64_t count, T* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(widen(from[i]));
}

template <class Stored, class T>
inline void narrow_all(const T* __restrict from, int64_t count, Stored* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = narrow<Stored>(from[i]);
}

template <class T>
inline void narrow_all_from(float threshold, const T* __restrict from, int64_t count,
                            BFloat16* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    to[i].bits = narrow_from(static_cast<float>(from[i]), threshold).bits;
}

template <class Map, class T>
inline void unpack_block(const uint8_t* __restrict codes, float scale, int64_t count,
                         T* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(Map::decode(codes[i], scale));
}

template <class T>
inline float largest_magnitude(const T* __restrict x, int64_t count) {
  uint32_t largest = 0;  // magnitudes compare as their bits do, NaN above all
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(static_cast<float>(x[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return float_of(largest);
}

template <class Map, class T>
inline void pack_block(const T* __restrict from, int64_t count, float scale, float threshold,
                       uint8_t* __restrict codes) {
  const float inverse = inverse_of(scale);
  const uint32_t rounding = Map::rounding(threshold);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    codes[i] = Map::encode(static_cast<float>(from[i]), inverse, rounding);
}

template <class Param, class Companion, class T>
inline void join_all(const Param* __restrict params, const Companion* __restrict companions,
                     int64_t count, T* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(join(params[i], companions[i]));
}

template <class Param, class Residual, class T>
inline void split_all(const T* __restrict from, int64_t count, Param* __restrict params,
                      Residual* __restrict residuals) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float x = static_cast<float>(from[i]);
    const auto bits = upper_part<Param, Residual>(x).bits;
    params[i].bits = bits;
    residuals[i] = residual_of<Residual>(x, Param{bits});
  }
}

template <class Stored, class T>
inline void round_all(const T* __restrict from, const uint16_t* __restrict random, int64_t count,
                      Stored* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    to[i] = narrow_stochastically<Stored>(static_cast<float>(from[i]), random[i]);
}

// Copies between a list's memory, in whatever layout, and an array.
template <class Stored>
inline void gather(const TensorEntry& t, int list, int64_t begin, int64_t count, Stored* to) {
  const auto* data = static_cast<const Stored*>(t.data[list]);
  for_each_run(*t.layout, list, begin, count,
               [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                 for (int64_t i = 0; i < length; ++i) to[first + i] = data[offset + i * stride];
               });
}

template <class Stored>
inline void scatter(const Stored* from, const TensorEntry& t, int list, int64_t begin,
                    int64_t count) {
  auto* data = static_cast<Stored*>(t.data[list]);
  for_each_run(*t.layout, list, begin, count,
               [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                 for (int64_t i = 0; i < length; ++i) data[offset + i * stride] = from[first + i];
               });
}

// A list's elements as they are stored: where they lie if that is one run, or else copied, and
// copied back by `put`.
template <class Stored>
class Raw {
 public:
  Raw(const TensorEntry& t, int list, int64_t begin, int64_t count)
      : t_(t), list_(list), begin_(begin), count_(count) {
    data = t.layout == nullptr ? static_cast<Stored*>(t.data[list]) + begin : copy_;
  }
  const Stored* get() {
    if (t_.layout != nullptr) gather(t_, list_, begin_, count_, copy_);
    return data;
  }
  void put() {
    if (t_.layout != nullptr) scatter(copy_, t_, list_, begin_, count_);
  }

  Stored* data;

 private:
  const TensorEntry& t_;
  int list_;
  int64_t begin_, count_;
  Stored copy_[kChunk];
};

// 16 random bits for each of the elements [begin, begin + count).
inline void draw(const TensorEntry& t, const RandomKey& key, int64_t begin, int64_t count,
                 uint16_t* random) {
  constexpr int kBatch = 32;  // calls side by side, which the compiler makes vectors of
  for (int64_t done = 0; done < count;) {
    const int64_t column = (begin + done) % t.global.row_length;
    const int64_t to_row_end = t.global.row_length - column;
    const int64_t length = to_row_end < count - done ? to_row_end : count - done;
    const int64_t first = t.global.of(begin + done), last = first + length;
    for (int64_t block = first / kPerBlock; block * kPerBlock < last; block += kBatch) {
      uint32_t words[4][kBatch], in_order[kBatch * 4];
      for (int i = 0; i < kBatch; ++i) {
        const RandomBlock drawn = random_block(key, uint64_t(block + i));
        for (int word = 0; word < 4; ++word) words[word][i] = drawn.words[word];
      }
      for (int i = 0; i < kBatch; ++i)
        for (int word = 0; word < 4; ++word) in_order[4 * i + word] = words[word][i];
      uint16_t halves[kBatch * kPerBlock];  // the low half of a word first
      static_assert(sizeof halves == sizeof in_order);
      std::memcpy(halves, in_order, sizeof halves);
      const int64_t batch = block * kPerBlock;
      const int64_t from = first > batch ? first : batch;
      const int64_t to = last < batch + kBatch * kPerBlock ? last : batch + kBatch * kPerBlock;
      std::memcpy(random + done + (from - first), halves + (from - batch),
                  sizeof(uint16_t) * static_cast<size_t>(to - from));
    }
    done += length;
  }
}

// Asks for the elements [begin, begin + count) of a list, as far as there are so many: what is
// staged is read and computed by turns, and the processor does not look ahead across these.
inline void prefetch(const TensorEntry& t, int list, int64_t begin, int64_t count) {
  constexpr int64_t kLine = 64;
  const int64_t size = bytes_of(t.dtype[list]), rest = t.numel - begin;
  const auto* data = static_cast<const char*>(t.data[list]) + begin * size;
  if (t.dtype[list] == DType::kPacked) data += codes_begin(t.numel);
  const int64_t bytes = (count < rest ? count : rest) * size;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(data + at, 1);
}

// How a step rounds what it stores in few bits.
struct Rounding {
  RandomKey key;
  float threshold;  // of averages in 8 bits or bfloat16
};

// A chunk of a rule's lists, or of its first kLists. x: where they lie.
template <class T, class Rule, int kLists = Rule::kLists>
struct Stage {
  static constexpr DType kDType = std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32;

  T* x[kLists];
  alignas(64) T buffer[kLists][kChunk];

  // Whether any list of a tensor goes through a buffer.
  static bool buffers(const TensorEntry& t) {
    bool in_place = t.layout == nullptr && t.companion == 0;
    for (int list = 0; list < kLists; ++list) in_place = in_place && t.dtype[list] == kDType;
    return !in_place;
  }

  // Those that the next load will bring.
  static void look_ahead(const TensorEntry& t, int64_t begin, int64_t count) {
    if (t.layout != nullptr || begin >= t.numel) return;
    for (int list = 0; list < kLists; ++list) prefetch(t, list, begin, count);
    if (t.companion != 0) prefetch(t, t.companion, begin, count);
  }

  void load(const TensorEntry& t, int64_t begin, int64_t count) {
    for (int list = 0; list < kLists; ++list) load_list(t, list, begin, count);
  }

  void load_list(const TensorEntry& t, int list, int64_t begin, int64_t count) {
    x[list] = buffer[list];
    if (list == Rule::kParam && t.companion != 0) return load_param(t, begin, count);
    if (t.dtype[list] == DType::kPacked) return load_packed(t, list, begin, count);
    with_storage(t.dtype[list], [&](auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (std::is_same_v<Stored, T>) {
        if (t.layout == nullptr) {
          x[list] = static_cast<T*>(t.data[list]) + begin;
          return;
        }
      }
      widen_all(Raw<Stored>(t, list, begin, count).get(), count, buffer[list]);
    });
  }

  void store(const TensorEntry& t, int64_t begin, int64_t count, const Rounding& rounding) {
    // Of all lists before any is packed, which waits for them.
    for (int list = 0; list < kLists; ++list)
      if (is_written(list) && t.dtype[list] == DType::kPacked) find_scales(t, list, begin, count);
    for (int list = 0; list < kLists; ++list) {
      if (!is_written(list) || x[list] != buffer[list]) continue;
      if (list == Rule::kParam && t.companion != 0)
        store_param(t, begin, count);
      else if (list == Rule::kParam && t.stochastic)
        store_stochastically(t, begin, count, rounding.key);
      else if (t.dtype[list] == DType::kPacked)
        store_packed(t, list, begin, count, is_average<Rule>(list) ? rounding.threshold : kNearest);
      else if (is_average<Rule>(list) && t.dtype[list] == DType::kBFloat16)
        store_average(t, list, buffer[list], begin, count, rounding.threshold);
      else
        with_storage(t.dtype[list], [&](auto* type) {
          store_floats<std::remove_pointer_t<decltype(type)>>(t, list, buffer[list], begin, count);
        });
    }
  }

 private:
  // Calls f with null pointers of a parameter's and its companion's storage types.
  template <class F>
  static void with_pair(const TensorEntry& t, F&& f) {
    const auto with_companion = [&](auto* param) {
      if (t.dtype[t.companion] == DType::kInt8) return f(param, static_cast<int8_t*>(nullptr));
      if (t.dtype[t.companion] == DType::kInt16) return f(param, static_cast<int16_t*>(nullptr));
      f(param, static_cast<float*>(nullptr));
    };
    if (t.dtype[Rule::kParam] == DType::kBFloat16)
      with_companion(static_cast<BFloat16*>(nullptr));
    else
      with_companion(static_cast<Half*>(nullptr));
  }

  template <class Stored>
  static void store_floats(const TensorEntry& t, int list, const T* from, int64_t begin,
                           int64_t count) {
    Raw<Stored> to(t, list, begin, count);
    narrow_all(from, count, to.data);
    to.put();
  }

  static void store_average(const TensorEntry& t, int list, const T* from, int64_t begin,
                            int64_t count, float threshold) {
    Raw<BFloat16> to(t, list, begin, count);
    narrow_all_from(threshold, from, count, to.data);
    to.put();
  }

  void load_param(const TensorEntry& t, int64_t begin, int64_t count) {
    with_pair(t, [&](auto* param, auto* companion) {
      Raw<std::remove_pointer_t<decltype(param)>> params(t, Rule::kParam, begin, count);
      Raw<std::remove_pointer_t<decltype(companion)>> companions(t, t.companion, begin, count);
      join_all(params.get(), companions.get(), count, buffer[Rule::kParam]);
    });
  }

  void store_param(const TensorEntry& t, int64_t begin, int64_t count) {
    const T* from = buffer[Rule::kParam];
    with_pair(t, [&](auto* param, auto* companion) {
      using Param = std::remove_pointer_t<decltype(param)>;
      using Companion = std::remove_pointer_t<decltype(companion)>;
      if constexpr (std::is_same_v<Companion, float>) {
        store_floats<float>(t, t.companion, from, begin, count);
        store_floats<Param>(t, Rule::kParam, from, begin, count);
      } else {
        Raw<Param> params(t, Rule::kParam, begin, count);
        Raw<Companion> residuals(t, t.companion, begin, count);
        split_all(from, count, params.data, residuals.data);
        params.put();
        residuals.put();
      }
    });
  }

  void store_stochastically(const TensorEntry& t, int64_t begin, int64_t count,
                            const RandomKey& key) {
    uint16_t random[kChunk];
    draw(t, key, begin, count, random);
    const T* from = buffer[Rule::kParam];
    const auto put = [&](auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      Raw<Stored> to(t, Rule::kParam, begin, count);
      round_all(from, random, count, to.data);
      to.put();
    };
    if (t.dtype[Rule::kParam] == DType::kBFloat16)
      put(static_cast<BFloat16*>(nullptr));
    else
      put(static_cast<Half*>(nullptr));
  }

  template <class F>
  static void with_code(int list, F&& f) {
    if (is_non_negative<Rule>(list))
      f(UnsignedCode());
    else
      f(SignedCode());
  }

  void load_packed(const TensorEntry& t, int list, int64_t begin, int64_t count) {
    with_code(list, [&](auto map) {
      using Map = decltype(map);
      for_each_block(t, list, begin, count,
                     [&](auto* codes, float scale, int64_t length, int64_t at) {
                       unpack_block<Map>(codes, scale, length, buffer[list] + at);
                     });
    });
  }

  void find_scales(const TensorEntry& t, int list, int64_t begin, int64_t count) {
    for_each_block(t, list, begin, count, [&](auto*, float& scale, int64_t length, int64_t at) {
      scale = largest_magnitude(buffer[list] + at, length);
    });
  }

  void store_packed(const TensorEntry& t, int list, int64_t begin, int64_t count, float threshold) {
    with_code(list, [&](auto map) {
      using Map = decltype(map);
      for_each_block(t, list, begin, count,
                     [&](auto* codes, float scale, int64_t length, int64_t at) {
                       pack_block<Map>(buffer[list] + at, length, scale, threshold, codes);
                     });
    });
  }
};

}  // namespace
}  // namespace friction
