// A list of tensors with one operand each: the input of operations on lists of tensors. It is made
// from a list of the user's tensors, or from one operand of the tensors that a plan has read.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "../order.h"
#include "tensor_reader.h"

namespace friction {

class OperandList {
 public:
  OperandList() = default;

  // One operand of a plan's tensors, in the same element order. The tensors must outlive the list.
  OperandList(const std::vector<TensorEntry>& tensors, int operand) {
    for (const TensorEntry& tensor : tensors) {
      TensorEntry& entry = add(tensor.data[operand], tensor.dtype[operand], tensor.numel);
      if (tensor.layout == nullptr) continue;
      Layout& layout = borrowed_.emplace_back(*tensor.layout);
      layout.strides += operand * layout.dims;
      entry.layout = &layout;
    }
  }

  // Adds a plain dense tensor; complex numbers count as pairs.
  void add(const TensorView& view) {
    const int64_t numel = view.numel() * (view.is_complex ? 2 : 1);
    if (numel == 0) return;
    std::vector<int64_t> shape(view.shape, view.shape + view.ndim);
    std::vector<std::vector<int64_t>> strides{{view.strides, view.strides + view.ndim}};
    if (view.is_complex) as_pairs(shape, strides);
    OwnedLayout& layout = owned_.emplace_back();
    layout.keep(stride_order(shape, strides, false));
    add(view.data, view.dtype, numel).layout = layout.get();
  }

  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  int64_t chunks() const { return chunks_; }
  int64_t elements() const { return elements_; }

 private:
  TensorEntry& add(void* data, DType dtype, int64_t numel) {
    TensorEntry& entry = tensors_.emplace_back();
    entry.data[0] = data;
    entry.dtype[0] = dtype;
    entry.scalars = int32_t(dtype);  // on a GPU, replaces the group and step
    entry.numel = numel;
    entry.first_chunk = chunks_;
    chunks_ += (numel + kChunk - 1) / kChunk;
    elements_ += numel;
    return entry;
  }

  std::vector<TensorEntry> tensors_;
  std::deque<OwnedLayout> owned_;  // a deque keeps addresses valid
  std::deque<Layout> borrowed_;
  int64_t chunks_ = 0, elements_ = 0;
};

// Groups a list of tensors by device. Throws std::invalid_argument if one is not a plain dense
// tensor of a floating or complex type.
inline std::map<int, OperandList> read_tensors(const TensorReader& reader,
                                               const pybind11::list& tensors) {
  std::map<int, OperandList> of_device;
  for (size_t i = 0; i < tensors.size(); ++i) {
    TensorView view;
    const pybind11::object tensor = tensors[i];
    if (!reader.read(tensor.ptr(), view) || !is_floating(view.dtype) || view.device == kElsewhere)
      throw std::invalid_argument(
          "tensor " + std::to_string(i) +
          " is not a plain dense tensor of a floating or complex type on the CPU or a GPU");
    of_device[view.device].add(view);
  }
  return of_device;
}

}  // namespace friction
