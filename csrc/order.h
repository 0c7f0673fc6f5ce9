// Element order: the order in which a launch visits a tensor's elements, and the strides of each
// operand in that order.
#pragma once

#include <vector>

#include "tensor_lists.h"

namespace friction {

// Sizes and strides in element order, outermost dimension first; strides: [operands][dims].
struct ElementOrder {
  std::vector<int64_t> sizes;
  std::vector<std::vector<int64_t>> strides;

  // Whether every operand is one contiguous run in this order.
  bool contiguous() const;
};

// Sorts the dimensions by the strides of the first operand (the parameter), so that most tensors
// become one contiguous run whatever their layout. With rows_first, dimension 0 stays outermost, so
// that rows are consecutive. Adjacent dimensions are merged where every operand allows it, and
// those of size 1 are dropped.
ElementOrder stride_order(const std::vector<int64_t>& shape,
                          const std::vector<std::vector<int64_t>>& strides, bool rows_first);

// Views complex tensors as real ones, with (real, imaginary) as the innermost dimension.
void as_pairs(std::vector<int64_t>& shape, std::vector<std::vector<int64_t>>& strides);

// The strides of an operand that is contiguous in element order.
std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes);

// Whether two indices of an operand may refer to the same memory.
bool overlaps(const ElementOrder& order, size_t operand);

// A Layout that owns its sizes and strides.
class OwnedLayout {
 public:
  OwnedLayout() = default;
  OwnedLayout(OwnedLayout&&) = default;
  OwnedLayout& operator=(OwnedLayout&&) = default;

  void keep(const ElementOrder& order);

  // Null if every operand is contiguous in element order.
  const Layout* get() const { return sizes_.empty() ? nullptr : &layout_; }

 private:
  std::vector<int64_t> sizes_, strides_;
  Layout layout_{};
};

}  // namespace friction
