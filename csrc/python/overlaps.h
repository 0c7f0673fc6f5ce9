// Which outputs share memory with another tensor.
#pragma once

#include <string>

#include "operand_lists.h"

namespace friction {

// The memory that a tensor's elements span.
struct Span {
  uintptr_t begin, end;
  size_t tensor;

  explicit Span(const TensorEntry& entry, size_t tensor)
      : begin(reinterpret_cast<uintptr_t>(entry.data[0])), tensor(tensor) {
    int64_t last = entry.numel - 1;
    if (const Layout* layout = entry.layout) {
      last = 0;
      for (int d = 0; d < layout->dims; ++d) last += (layout->sizes[d] - 1) * layout->strides[d];
    }
    end = begin + uintptr_t((last + 1) * bytes_of(entry.dtype[0]));
  }
};

inline bool are_the_same(const TensorEntry& a, const TensorEntry& b) {
  if (a.data[0] != b.data[0] || a.dtype[0] != b.dtype[0]) return false;
  if (a.layout == nullptr || b.layout == nullptr) return a.layout == b.layout;
  const int dims = a.layout->dims;
  return dims == b.layout->dims &&
         std::equal(a.layout->sizes, a.layout->sizes + dims, b.layout->sizes) &&
         std::equal(a.layout->strides, a.layout->strides + dims, b.layout->strides);
}

// Throws std::invalid_argument unless every tensor of the last list has memory of its own, or
// exactly that of the tensor at its place in other lists.
inline void check_output(const OperandLists& lists) {
  const size_t last = lists.size() - 1;
  const std::vector<TensorEntry>& outputs = lists[last];
  std::vector<Span> spans;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Layout* layout = outputs[i].layout;
    if (layout != nullptr) {
      const ElementOrder order{{layout->sizes, layout->sizes + layout->dims},
                               {{layout->strides, layout->strides + layout->dims}}};
      if (overlaps(order, 0))
        throw std::invalid_argument(
            "a tensor of out has elements that share memory, such as one "
            "that was expanded; give a copy of it");
    }
    spans.emplace_back(outputs[i], i);
  }
  std::sort(spans.begin(), spans.end(), [](auto& a, auto& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < spans.size(); ++i)
    if (spans[i].begin < spans[i - 1].end)
      throw std::invalid_argument("two tensors of out share memory; each needs its own");
  for (size_t list = 0; list < last; ++list)
    for (size_t i = 0; i < lists[list].size(); ++i) {
      const TensorEntry& entry = lists[list][i];
      if (entry.data[0] == nullptr) continue;
      const Span span(entry, i);
      auto found = std::upper_bound(spans.begin(), spans.end(), span.begin,
                                    [](uintptr_t begin, auto& other) { return begin < other.end; });
      for (; found != spans.end() && found->begin < span.end; ++found)
        if (found->tensor != i || !are_the_same(entry, outputs[i]))
          throw std::invalid_argument(
              "out shares memory with list " + std::to_string(list) +
              " but is not the same tensors; give that list itself, or other memory");
    }
}

}  // namespace friction
