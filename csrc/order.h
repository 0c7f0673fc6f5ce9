// Element order: in which order a launch goes through a tensor's operands, and where their elements
// lie.
#pragma once

#include <vector>

#include "tensor_lists.h"

namespace friction {

// Sizes and strides in element order: dimensions outermost first, strides [operands][dims] in
// elements.
struct ElementOrder {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> strides;

  // Every operand is contiguous in this order: one run of elements.
  bool contiguous() const;
};

// Orders the dimensions as the first operand (the parameter) lies in memory, so that most tensors
// become one contiguous run whatever their layout. With rows_first, dimension 0 stays outermost, so
// that rows are consecutive. Dimensions that all operands lay out as one are merged; those of size
// 1 are dropped.
ElementOrder stride_order(const std::vector<int64_t>& shape,
                          const std::vector<std::vector<int64_t>>& strides, bool rows_first);

// Shape and strides of complex tensors as those of their reals: pairs are the innermost dimension.
void as_pairs(std::vector<int64_t>& shape, std::vector<std::vector<int64_t>>& strides);

// Strides of an operand whose elements follow each other in element order.
std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes);

// Whether two indices of an operand may name the same memory.
bool overlaps(const ElementOrder& order, size_t operand);

// A tensor's layout, with the memory that it refers to.
class OwnedLayout {
 public:
  OwnedLayout() = default;
  OwnedLayout(OwnedLayout&&) = default;
  OwnedLayout& operator=(OwnedLayout&&) = default;

  void keep(const ElementOrder& order);

  // Null where every operand is contiguous in element order.
  const Layout* get() const { return sizes_.empty() ? nullptr : &layout_; }

 private:
  std::vector<int64_t> sizes_, strides_;
  Layout layout_{};
};

}  // namespace friction
