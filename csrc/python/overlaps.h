// Which outputs share memory with another tensor.
#pragma once

#include <string>

#include "operand_lists.h"

namespace friction {

// The memory that a tensor's elements span. They may repeat with a period, as the columns of a
// matrix do, each time within `length` bytes.
struct Span {
  uintptr_t begin, end;
  size_t tensor;
  uintptr_t period = 0, length = 0;

  explicit Span(const TensorEntry& entry, size_t tensor)
      : begin(reinterpret_cast<uintptr_t>(entry.data[0])), tensor(tensor) {
    int64_t last = entry.numel - 1;
    if (const Layout* layout = entry.layout) {
      last = 0;
      for (int d = 0; d < layout->dims; ++d) last += (layout->sizes[d] - 1) * layout->strides[d];
    }
    end = begin + uintptr_t((last + 1) * bytes_of(entry.dtype[0]));
    if (const Layout* layout = entry.layout) {
      period = uintptr_t(layout->strides[0] * bytes_of(entry.dtype[0]));
      length = end - begin - uintptr_t(layout->sizes[0] - 1) * period;
    }
  }

  // False if no element of one is in the other's memory.
  bool may_share(const Span& other) const {
    if (begin >= other.end || other.begin >= end) return false;
    if (period == 0 || period != other.period || length > period || other.length > period)
      return true;
    if (begin < other.begin) return other.may_share(*this);
    const uintptr_t ahead = (begin - other.begin) % period;
    return ahead < other.length || ahead + length > period;
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
  std::vector<uintptr_t> ends;  // of all spans so far
  for (size_t i = 0; i < spans.size(); ++i) {
    ends.push_back(i == 0 ? spans[i].end : std::max(ends.back(), spans[i].end));
    for (size_t j = i + 1; j < spans.size() && spans[j].begin < spans[i].end; ++j)
      if (spans[i].may_share(spans[j]))
        throw std::invalid_argument("two tensors of out share memory; each needs its own");
  }
  for (size_t list = 0; list < last; ++list)
    for (size_t i = 0; i < lists[list].size(); ++i) {
      const TensorEntry& entry = lists[list][i];
      if (entry.data[0] == nullptr) continue;
      const Span span(entry, i);
      const auto first = std::upper_bound(ends.begin(), ends.end(), span.begin) - ends.begin();
      for (auto found = spans.begin() + first; found != spans.end() && found->begin < span.end;
           ++found)
        if (found->may_share(span) && (found->tensor != i || !are_the_same(entry, outputs[i])))
          throw std::invalid_argument(
              "out shares memory with list " + std::to_string(list) +
              " but is not the same tensors; give that list itself, or other memory");
    }
}

}  // namespace friction
