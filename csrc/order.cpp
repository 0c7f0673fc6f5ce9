#include "order.h"

#include <algorithm>
#include <numeric>

namespace friction {

bool ElementOrder::contiguous() const {
  return sizes.size() <= 1 && std::all_of(strides.begin(), strides.end(),
                                          [](const auto& s) { return s.empty() || s[0] == 1; });
}

ElementOrder stride_order(const std::vector<int64_t>& shape,
                          const std::vector<std::vector<int64_t>>& strides, bool rows_first) {
  std::vector<size_t> dims;
  for (size_t d = 0; d < shape.size(); ++d)
    if (shape[d] != 1) dims.push_back(d);
  const bool keep_first = rows_first && !dims.empty() && dims[0] == 0;
  std::stable_sort(dims.begin() + (keep_first ? 1 : 0), dims.end(),
                   [&](size_t a, size_t b) { return strides[0][a] > strides[0][b]; });
  ElementOrder order;
  order.strides.resize(strides.size());
  for (const size_t d : dims) {
    const bool merges = !order.sizes.empty() && [&] {
      for (size_t operand = 0; operand < strides.size(); ++operand)
        if (order.strides[operand].back() != strides[operand][d] * shape[d]) return false;
      return true;
    }();
    if (merges)
      order.sizes.back() *= shape[d];
    else
      order.sizes.push_back(shape[d]);
    for (size_t operand = 0; operand < strides.size(); ++operand) {
      if (merges)
        order.strides[operand].back() = strides[operand][d];
      else
        order.strides[operand].push_back(strides[operand][d]);
    }
  }
  if (order.sizes.empty()) {  // one element
    order.sizes.push_back(1);
    for (auto& operand : order.strides) operand.push_back(1);
  }
  return order;
}

void as_pairs(std::vector<int64_t>& shape, std::vector<std::vector<int64_t>>& strides) {
  shape.push_back(2);
  for (auto& operand : strides) {
    for (int64_t& stride : operand) stride *= 2;
    operand.push_back(1);
  }
}

void OwnedLayout::keep(const ElementOrder& order) {
  sizes_.clear();
  strides_.clear();
  if (order.contiguous()) return;
  sizes_ = order.sizes;
  for (const auto& operand : order.strides)
    strides_.insert(strides_.end(), operand.begin(), operand.end());
  layout_ = {static_cast<int>(sizes_.size()), sizes_.data(), strides_.data()};
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

bool overlaps(const ElementOrder& order, size_t operand) {
  const std::vector<int64_t>& strides = order.strides[operand];
  std::vector<size_t> dims(order.sizes.size());
  std::iota(dims.begin(), dims.end(), size_t{0});
  std::sort(dims.begin(), dims.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t extent = 1;  // elements spanned by the dimensions so far
  for (const size_t d : dims) {
    if (strides[d] < extent) return true;
    extent = strides[d] * (order.sizes[d] - 1) + extent;
  }
  return false;
}

}  // namespace friction
