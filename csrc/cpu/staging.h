// Stages a chunk of every operand for a rule, as plain arrays of the arithmetic type. An operand
// that is stored like that is used in place. Any other is converted, gathered or dequantized into a
// buffer, and written back if the rule writes it. Included only where an instruction set is
// compiled.
#pragma once

#include "../formats/blockwise.h"
#include "../formats/master_weight.h"
#include "../tensor_lists.h"

namespace friction {
namespace {

// Splits the elements [begin, begin + count) of a tensor into runs along the innermost dimension,
// and calls visit(offset of the first element, stride, first position, count) for each.
template <class Visit>
inline void for_each_run(const Layout& layout, int operand, int64_t begin, int64_t count,
                         Visit&& visit) {
  const int inner = layout.dims - 1;
  const int64_t* strides = layout.strides + int64_t(operand) * layout.dims;
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

// Calls f(codes, scale, count, position) for every block of a quantized operand within the elements
// [begin, begin + count); begin must be a multiple of kBlock.
template <class F>
inline void for_each_block(const TensorEntry& t, int operand, int64_t begin, int64_t count, F&& f) {
  auto* memory = static_cast<char*>(t.data[operand]);
  auto* scales = reinterpret_cast<float*>(memory) + begin / kBlock;
  auto* codes = reinterpret_cast<uint8_t*>(memory + codes_begin(t.numel)) + begin;
  for (int64_t at = 0; at < count; at += kBlock)
    f(codes + at, scales[at / kBlock], count - at < kBlock ? count - at : kBlock, at);
}

// Loops over plain arrays, which do not overlap and which the compiler vectorises.
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
inline void dequantize_block(const uint8_t* __restrict codes, float scale, int64_t count,
                             T* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(Map::decode(codes[i], scale));
}

template <class T>
inline float largest_magnitude(const T* __restrict x, int64_t count) {
  uint32_t largest = 0;  // magnitudes compare like their bits, NaN being the largest
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(static_cast<float>(x[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return float_of(largest);
}

template <class Map, class T>
inline void quantize_block(const T* __restrict from, int64_t count, float scale, float threshold,
                           uint8_t* __restrict codes) {
  const float inverse = inverse_of(scale);
  const uint32_t rounding = Map::rounding(threshold);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i)
    codes[i] = Map::encode(static_cast<float>(from[i]), inverse, rounding);
}

template <class Param, class Master, class T>
inline void join_all(const Param* __restrict params, const Master* __restrict masters,
                     int64_t count, T* __restrict to) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(join(params[i], masters[i]));
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

// Copy between an operand of any layout and an array.
template <class Stored>
inline void gather(const TensorEntry& t, int operand, int64_t begin, int64_t count, Stored* to) {
  const auto* data = static_cast<const Stored*>(t.data[operand]);
  for_each_run(*t.layout, operand, begin, count,
               [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                 for (int64_t i = 0; i < length; ++i) to[first + i] = data[offset + i * stride];
               });
}

template <class Stored>
inline void scatter(const Stored* from, const TensorEntry& t, int operand, int64_t begin,
                    int64_t count) {
  auto* data = static_cast<Stored*>(t.data[operand]);
  for_each_run(*t.layout, operand, begin, count,
               [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                 for (int64_t i = 0; i < length; ++i) data[offset + i * stride] = from[first + i];
               });
}

// An operand's elements as they are stored: in place if the operand is contiguous, else copied, and
// copied back by `put`.
template <class Stored>
class ContiguousRun {
 public:
  ContiguousRun(const TensorEntry& t, int operand, int64_t begin, int64_t count)
      : t_(t), operand_(operand), begin_(begin), count_(count) {
    data = t.layout == nullptr ? static_cast<Stored*>(t.data[operand]) + begin : copy_;
  }
  const Stored* get() {
    if (t_.layout != nullptr) gather(t_, operand_, begin_, count_, copy_);
    return data;
  }
  void put() {
    if (t_.layout != nullptr) scatter(copy_, t_, operand_, begin_, count_);
  }

  Stored* data;

 private:
  const TensorEntry& t_;
  int operand_;
  int64_t begin_, count_;
  Stored copy_[kChunk];
};

// 16 random bits for each of the elements [begin, begin + count).
inline void draw(const TensorEntry& t, const RandomKey& key, int64_t begin, int64_t count,
                 uint16_t* random) {
  constexpr int kBatch = 32;  // Philox calls at a time, which the compiler vectorises
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

// Prefetches the elements [begin, begin + count) of an operand, up to its end. Staging alternates
// between reading and computing, and the CPU does not prefetch across passes by itself.
inline void prefetch(const TensorEntry& t, int operand, int64_t begin, int64_t count) {
  constexpr int64_t kLine = 64;
  const int64_t size = bytes_of(t.dtype[operand]), rest = t.numel - begin;
  const auto* data = static_cast<const char*>(t.data[operand]) + begin * size;
  if (t.dtype[operand] == DType::kQuantized) data += codes_begin(t.numel);
  const int64_t bytes = (count < rest ? count : rest) * size;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(data + at, 1);
}

// How a step rounds what it stores in fewer bits.
struct Rounding {
  RandomKey key;
  float threshold;  // for averages in 8 bits or bfloat16
};

// A chunk of a rule's operands, or of its first kOperands; x points to their elements.
template <class T, class Rule, int kOperands = Rule::kOperands>
struct Stage {
  static constexpr DType kDType = std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32;
  static constexpr int kKept = kept_gradient<Rule>();

  T* x[kOperands];
  alignas(64) T buffer[kOperands][kChunk];

  // Whether any operand of a tensor goes through a buffer.
  static bool buffers(const TensorEntry& t) {
    bool in_place = t.layout == nullptr && t.master == 0;
    for (int operand = 0; operand < kOperands; ++operand)
      in_place = in_place && t.dtype[operand] == kDType;
    return !in_place;
  }

  // Prefetches the elements of the next load.
  static void look_ahead(const TensorEntry& t, int64_t begin, int64_t count) {
    if (t.layout != nullptr || begin >= t.numel) return;
    for (int operand = 0; operand < kOperands; ++operand) prefetch(t, operand, begin, count);
    if (t.master != 0) prefetch(t, t.master, begin, count);
  }

  void load(const TensorEntry& t, int64_t begin, int64_t count) {
    for (int operand = 0; operand < kOperands; ++operand) load_operand(t, operand, begin, count);
  }

  void load_operand(const TensorEntry& t, int operand, int64_t begin, int64_t count) {
    x[operand] = buffer[operand];
    if (operand == Rule::kParam && t.master != 0) return load_param(t, begin, count);
    if (t.dtype[operand] == DType::kQuantized) return load_quantized(t, operand, begin, count);
    with_stored_type(t.dtype[operand], [&](auto* type) {
      using Stored = std::remove_pointer_t<decltype(type)>;
      if constexpr (std::is_same_v<Stored, T>) {
        if (t.layout == nullptr) {
          x[operand] = static_cast<T*>(t.data[operand]) + begin;
          return;
        }
      }
      widen_all(ContiguousRun<Stored>(t, operand, begin, count).get(), count, buffer[operand]);
    });
  }

  // Where the rule writes the gradient that it keeps: into the gradient itself if that is taken.
  T* kept(const TensorEntry& t) {
    if constexpr (kKept < 0) return nullptr;
    if (!t.takes) return x[kKept];
    return x[Rule::kGrad] != buffer[Rule::kGrad] ? x[Rule::kGrad] : buffer[kKept];
  }

  void store(const TensorEntry& t, int64_t begin, int64_t count, bool scaled,
             const Rounding& rounding) {
    // Finds the scales of all operands first, because quantizing waits for them.
    for (int operand = 0; operand < kOperands; ++operand)
      if (is_written(operand) && t.dtype[operand] == DType::kQuantized)
        find_scales(t, operand, begin, count);
    for (int operand = 0; operand < kOperands; ++operand) {
      if (!is_written(operand) || x[operand] != buffer[operand]) continue;
      const bool taken = t.takes && operand == kKept;
      if (taken && !scaled) continue;
      if (operand == Rule::kParam && t.master != 0)
        store_param(t, begin, count);
      else if (operand == Rule::kParam && t.stochastic)
        store_stochastically(t, begin, count, rounding.key);
      else if (t.dtype[operand] == DType::kQuantized)
        store_quantized(t, operand, begin, count,
                        is_average<Rule>(operand) ? rounding.threshold : kNearest);
      else if (is_average<Rule>(operand) && t.dtype[operand] == DType::kBFloat16)
        store_average(t, operand, buffer[operand], begin, count, rounding.threshold);
      else
        with_stored_type(t.dtype[operand], [&](auto* type) {
          store_floats<std::remove_pointer_t<decltype(type)>>(t, taken ? kGradOperand : operand,
                                                              buffer[operand], begin, count);
        });
    }
  }

 private:
  // Calls f with null pointers to the types of a parameter and its master.
  template <class F>
  static void with_pair(const TensorEntry& t, F&& f) {
    const auto with_master = [&](auto* param) {
      if (t.dtype[t.master] == DType::kInt8) return f(param, static_cast<int8_t*>(nullptr));
      if (t.dtype[t.master] == DType::kInt16) return f(param, static_cast<int16_t*>(nullptr));
      f(param, static_cast<float*>(nullptr));
    };
    if (t.dtype[Rule::kParam] == DType::kBFloat16)
      with_master(static_cast<BFloat16*>(nullptr));
    else
      with_master(static_cast<Half*>(nullptr));
  }

  template <class Stored>
  static void store_floats(const TensorEntry& t, int operand, const T* from, int64_t begin,
                           int64_t count) {
    ContiguousRun<Stored> to(t, operand, begin, count);
    narrow_all(from, count, to.data);
    to.put();
  }

  static void store_average(const TensorEntry& t, int operand, const T* from, int64_t begin,
                            int64_t count, float threshold) {
    ContiguousRun<BFloat16> to(t, operand, begin, count);
    narrow_all_from(threshold, from, count, to.data);
    to.put();
  }

  void load_param(const TensorEntry& t, int64_t begin, int64_t count) {
    with_pair(t, [&](auto* param, auto* master) {
      ContiguousRun<std::remove_pointer_t<decltype(param)>> params(t, Rule::kParam, begin, count);
      ContiguousRun<std::remove_pointer_t<decltype(master)>> masters(t, t.master, begin, count);
      join_all(params.get(), masters.get(), count, buffer[Rule::kParam]);
    });
  }

  void store_param(const TensorEntry& t, int64_t begin, int64_t count) {
    const T* from = buffer[Rule::kParam];
    with_pair(t, [&](auto* param, auto* master) {
      using Param = std::remove_pointer_t<decltype(param)>;
      using Master = std::remove_pointer_t<decltype(master)>;
      if constexpr (std::is_same_v<Master, float>) {
        store_floats<float>(t, t.master, from, begin, count);
        store_floats<Param>(t, Rule::kParam, from, begin, count);
      } else {
        ContiguousRun<Param> params(t, Rule::kParam, begin, count);
        ContiguousRun<Master> residuals(t, t.master, begin, count);
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
      ContiguousRun<Stored> to(t, Rule::kParam, begin, count);
      round_all(from, random, count, to.data);
      to.put();
    };
    if (t.dtype[Rule::kParam] == DType::kBFloat16)
      put(static_cast<BFloat16*>(nullptr));
    else
      put(static_cast<Half*>(nullptr));
  }

  template <class F>
  static void with_code(int operand, F&& f) {
    if (is_non_negative<Rule>(operand))
      f(UnsignedCode());
    else
      f(SignedCode());
  }

  void load_quantized(const TensorEntry& t, int operand, int64_t begin, int64_t count) {
    with_code(operand, [&](auto map) {
      using Map = decltype(map);
      for_each_block(t, operand, begin, count,
                     [&](auto* codes, float scale, int64_t length, int64_t at) {
                       dequantize_block<Map>(codes, scale, length, buffer[operand] + at);
                     });
    });
  }

  void find_scales(const TensorEntry& t, int operand, int64_t begin, int64_t count) {
    for_each_block(t, operand, begin, count, [&](auto*, float& scale, int64_t length, int64_t at) {
      scale = largest_magnitude(buffer[operand] + at, length);
    });
  }

  void store_quantized(const TensorEntry& t, int operand, int64_t begin, int64_t count,
                       float threshold) {
    with_code(operand, [&](auto map) {
      using Map = decltype(map);
      for_each_block(t, operand, begin, count,
                     [&](auto* codes, float scale, int64_t length, int64_t at) {
                       quantize_block<Map>(buffer[operand] + at, length, scale, threshold, codes);
                     });
    });
  }
};

}  // namespace
}  // namespace friction
