#include "layout.h"

#include <algorithm>
#include <numeric>

namespace friction {

bool Walk::contiguous() const {
  return sizes.size() <= 1 && std::all_of(strides.begin(), strides.end(),
                                          [](const auto& s) { return s.empty() || s[0] == 1; });
}

Walk order_walk(const std::vector<int64_t>& shape, const std::vector<std::vector<int64_t>>& strides,
                bool rows_first) {
  std::vector<size_t> order;
  for (size_t d = 0; d < shape.size(); ++d)
    if (shape[d] != 1) order.push_back(d);
  const bool keep_first = rows_first && !order.empty() && order[0] == 0;
  std::stable_sort(order.begin() + (keep_first ? 1 : 0), order.end(),
                   [&](size_t a, size_t b) { return strides[0][a] > strides[0][b]; });
  Walk walk;
  walk.strides.resize(strides.size());
  for (const size_t d : order) {
    const bool merges = !walk.sizes.empty() && [&] {
      for (size_t list = 0; list < strides.size(); ++list)
        if (walk.strides[list].back() != strides[list][d] * shape[d]) return false;
      return true;
    }();
    if (merges)
      walk.sizes.back() *= shape[d];
    else
      walk.sizes.push_back(shape[d]);
    for (size_t list = 0; list < strides.size(); ++list) {
      if (merges)
        walk.strides[list].back() = strides[list][d];
      else
        walk.strides[list].push_back(strides[list][d]);
    }
  }
  if (walk.sizes.empty()) {  // one element
    walk.sizes.push_back(1);
    for (auto& list : walk.strides) list.push_back(1);
  }
  return walk;
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

bool overlaps(const Walk& walk, size_t list) {
  const std::vector<int64_t>& strides = walk.strides[list];
  std::vector<size_t> order(walk.sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t extent = 1;  // elements the dimensions so far reach over
  for (const size_t d : order) {
    if (strides[d] < extent) return true;
    extent = strides[d] * (walk.sizes[d] - 1) + extent;
  }
  return false;
}

}  // namespace friction
