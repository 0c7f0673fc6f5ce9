// Brings a chunk of every list before a rule as plain arrays of the type the arithmetic runs in.
// A list that lies so already is used in place; any other is converted or gathered into a buffer,
// and put back if the rule writes it. Included by kernels.cpp alone.
#pragma once

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

template <class T, int kLists>
struct Stage {
  T* x[kLists];
  alignas(64) T buffer[kLists][kChunk];

  void load(const TensorEntry& t, int64_t begin, int64_t count) {
    for (int list = 0; list < kLists; ++list)
      with_storage(t.dtype[list], [&](auto* type) { load_list(type, t, list, begin, count); });
  }

  template <size_t kSize>
  void store(const TensorEntry& t, int64_t begin, int64_t count, const bool (&writes)[kSize]) {
    for (int list = 0; list < kLists; ++list)
      if (writes[list] && x[list] == buffer[list])
        with_storage(t.dtype[list], [&](auto* type) { store_list(type, t, list, begin, count); });
  }

 private:
  template <class Stored>
  void load_list(Stored*, const TensorEntry& t, int list, int64_t begin, int64_t count) {
    auto* data = static_cast<Stored*>(t.data[list]);
    if (t.layout == nullptr) {
      if constexpr (std::is_same_v<Stored, T>) {
        x[list] = data + begin;
        return;
      }
      x[list] = buffer[list];
      for (int64_t i = 0; i < count; ++i) buffer[list][i] = static_cast<T>(widen(data[begin + i]));
      return;
    }
    x[list] = buffer[list];
    for_each_run(*t.layout, list, begin, count,
                 [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                   for (int64_t i = 0; i < length; ++i)
                     buffer[list][first + i] = static_cast<T>(widen(data[offset + i * stride]));
                 });
  }

  template <class Stored>
  void store_list(Stored*, const TensorEntry& t, int list, int64_t begin, int64_t count) {
    auto* data = static_cast<Stored*>(t.data[list]);
    if (t.layout == nullptr) {
      for (int64_t i = 0; i < count; ++i) data[begin + i] = narrow<Stored>(buffer[list][i]);
      return;
    }
    for_each_run(*t.layout, list, begin, count,
                 [&](int64_t offset, int64_t stride, int64_t first, int64_t length) {
                   for (int64_t i = 0; i < length; ++i)
                     data[offset + i * stride] = narrow<Stored>(buffer[list][first + i]);
                 });
  }
};

}  // namespace
}  // namespace friction
