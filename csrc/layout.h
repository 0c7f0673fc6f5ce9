// In which order a tensor's lists are walked, and where their elements lie in it.
#pragma once

#include <optional>
#include <vector>

#include "tensor_table.h"

namespace friction {

// Sizes and strides of a walk: dimensions outermost first, strides [lists][dims] in elements.
struct Walk {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> strides;

  // Every list is contiguous in this order: one run of elements.
  bool contiguous() const;
};

// Orders the dimensions as the first list (the parameter) lies in memory, so that most tensors
// become one contiguous run whatever their layout. With rows_first, dimension 0 stays outermost, so
// that rows are consecutive. Dimensions that all lists lay out as one are merged; those of size 1
// are dropped.
Walk order_walk(const std::vector<int64_t>& shape, const std::vector<std::vector<int64_t>>& strides,
                bool rows_first);

// Strides of a list whose elements follow each other in the order of a walk.
std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes);

// Whether two indices of a list may name the same memory.
bool overlaps(const Walk& walk, size_t list);

}  // namespace friction
