// Lists of tensors with one operand each, all of the same shapes: the input of operations on lists.
// They are made from lists of the user's tensors, or from one operand of the tensors that a plan
// has read.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "../order.h"
#include "tensor_reader.h"

namespace friction {

class OperandLists {
 public:
  explicit OperandLists(int lists = 1, size_t tensors = 0) : lists_(size_t(lists)) {
    for (auto& list : lists_) list.reserve(tensors);
  }

  // One operand of a plan's tensors, in the same element order. The tensors must outlive the list.
  OperandLists(const std::vector<TensorEntry>& tensors, int operand) : lists_(1) {
    for (const TensorEntry& tensor : tensors) {
      TensorEntry& entry = add(0, tensor.data[operand], tensor.dtype[operand], tensor.numel);
      count_elements(tensor.numel);
      if (tensor.layout == nullptr) continue;
      Layout& layout = borrowed_.emplace_back(*tensor.layout);
      layout.strides += operand * layout.dims;
      entry.layout = &layout;
    }
  }

  // Adds a plain dense tensor to each list, all of the same shape; null: that list misses it.
  // Complex numbers count as pairs.
  void add(const std::vector<const TensorView*>& views) {
    const auto first = std::find_if(views.begin(), views.end(), [](auto* view) { return view; });
    if (first == views.end()) return;
    const TensorView& shaped = **first;
    const int64_t numel = shaped.numel() * (shaped.is_complex ? 2 : 1);
    if (numel == 0) return;
    if (std::all_of(views.begin(), views.end(), is_contiguous)) {
      for (size_t list = 0; list < views.size(); ++list)
        add(list, views[list] == nullptr ? nullptr : views[list]->data,
            views[list] == nullptr ? DType::kFloat32 : views[list]->dtype, numel);
      return count_elements(numel);
    }
    std::vector<int64_t> shape(shaped.shape, shaped.shape + shaped.ndim);
    std::vector<std::vector<int64_t>> strides;
    for (const TensorView* view : views)
      if (view != nullptr) strides.emplace_back(view->strides, view->strides + view->ndim);
    if (shaped.is_complex) as_pairs(shape, strides);
    const ElementOrder order = stride_order(shape, strides, false);
    size_t present = 0;
    for (size_t list = 0; list < views.size(); ++list) {
      const TensorView* view = views[list];
      if (view == nullptr) {
        add(list, nullptr, DType::kFloat32, numel);
        continue;
      }
      add(list, view->data, view->dtype, numel).layout = layout_of(order, present++);
    }
    count_elements(numel);
  }

  // Ends a segment, over which sums are taken. Without segments, all are one.
  void end_segment() { segment_ends_.push_back(chunks_); }

  size_t size() const { return lists_.size(); }
  const std::vector<TensorEntry>& operator[](size_t list) const { return lists_[list]; }
  const std::vector<int64_t>& segment_ends() const { return segment_ends_; }
  int64_t chunks() const { return chunks_; }
  int64_t elements() const { return elements_; }

  // All lists, one after another.
  std::vector<TensorEntry> joined() const {
    std::vector<TensorEntry> all;
    for (const auto& list : lists_) all.insert(all.end(), list.begin(), list.end());
    return all;
  }

 private:
  TensorEntry& add(size_t list, void* data, DType dtype, int64_t numel) {
    TensorEntry& entry = lists_[list].emplace_back();
    entry.data[0] = data;
    entry.dtype[0] = dtype;
    entry.scalars = int32_t(dtype);  // on a GPU, replaces the group and step
    entry.numel = numel;
    entry.first_chunk = chunks_;
    return entry;
  }

  static bool is_contiguous(const TensorView* view) {
    if (view == nullptr) return true;
    int64_t stride = 1;
    for (int d = view->ndim - 1; d >= 0; --d) {
      if (view->shape[d] != 1 && view->strides[d] != stride) return false;
      stride *= view->shape[d];
    }
    return true;
  }

  void count_elements(int64_t numel) {
    chunks_ += (numel + kChunk - 1) / kChunk;
    elements_ += numel;
  }

  // Null if the operand alone is contiguous in this order.
  const Layout* layout_of(const ElementOrder& order, size_t operand) {
    if (order.strides[operand] == dense_strides(order.sizes)) return nullptr;
    OwnedLayout& layout = owned_.emplace_back();
    layout.keep({order.sizes, {order.strides[operand]}});
    return layout.get();
  }

  std::vector<std::vector<TensorEntry>> lists_;
  std::deque<OwnedLayout> owned_;  // a deque keeps addresses valid
  std::deque<Layout> borrowed_;
  std::vector<int64_t> segment_ends_;
  int64_t chunks_ = 0, elements_ = 0;
};

// A tensor that cannot be read as its place in the lists demands.
struct Unread {
  size_t list, tensor;
};

// Reads lists of tensors, or of None where one is missing, by device. They have the same number of
// tensors; segments: the segment of each, in ascending order. Returns false, and whose fault it is,
// unless all are plain dense tensors of floating or complex types, of one shape and device in every
// list.
inline bool read_lists(const TensorReader& reader, const std::vector<pybind11::list>& lists,
                       const std::vector<int64_t>& segments, std::map<int, OperandLists>& of_device,
                       Unread& unread) {
  const size_t tensors = lists.empty() ? 0 : lists[0].size();
  std::vector<TensorView> views(lists.size());
  std::vector<const TensorView*> present(lists.size());
  for (size_t tensor = 0; tensor < tensors; ++tensor) {
    if (tensor > 0 && !segments.empty())
      for (int64_t ended = segments[tensor - 1]; ended < segments[tensor]; ++ended)
        for (auto& [device, read] : of_device) read.end_segment();
    const TensorView* first = nullptr;
    for (size_t list = 0; list < lists.size(); ++list) {
      PyObject* object = PyList_GET_ITEM(lists[list].ptr(), Py_ssize_t(tensor));
      TensorView& view = views[list];
      present[list] = nullptr;
      if (object == Py_None) continue;
      unread = {list, tensor};
      if (!reader.read(object, view) || !is_floating(view.dtype) || view.device == kElsewhere ||
          reader.is_lazy_view(object, view.is_complex))
        return false;
      if (first != nullptr && (view.device != first->device || !view.same_shape(*first)))
        return false;
      present[list] = &view;
      if (first == nullptr) first = &view;
    }
    if (first == nullptr) continue;
    const auto [found, is_new] = of_device.try_emplace(first->device, int(lists.size()), tensors);
    if (is_new && !segments.empty())
      for (int64_t ended = 0; ended < segments[tensor]; ++ended) found->second.end_segment();
    found->second.add(present);
  }
  return true;
}

}  // namespace friction
