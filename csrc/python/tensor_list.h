// A list of tensors, read for one operation on them: no optimizer, no plan.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "norms.h"

namespace friction {

class TensorList {
 public:
  // Throws std::invalid_argument where one is no plain dense tensor of a floating or complex type.
  TensorList(const TensorReader& reader, const pybind11::list& tensors) {
    layouts_.reserve(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      TensorView view;
      const pybind11::object tensor = tensors[i];
      if (!reader.read(tensor.ptr(), view) || !is_floating(view.dtype) || view.device == kElsewhere)
        throw std::invalid_argument(
            "tensor " + std::to_string(i) +
            " is not a plain dense tensor of a floating or complex type on the CPU or a GPU");
      add(view);
    }
  }

  // The sum of squares of what lies on a device.
  void squared_norm(const NormTarget& target, int threads, const TensorReader& reader,
                    const DeviceAllocator& allocator) const {
    const auto found = of_device_.find(target.device);
    const std::vector<TensorEntry> none;
    const std::vector<TensorEntry>& tensors = found == of_device_.end() ? none : found->second;
    if (target.device == kCpu)
      *target.address = squared_norm_on_cpu(tensors, threads);
    else
      NormOnGpu().launch(tensors, target.address, allocator,
                         {target.device, reader.current_stream(target.device)});
  }

 private:
  struct Owned {
    ElementOrder order;
    std::vector<int64_t> strides;
    Layout layout;
  };

  void add(const TensorView& view) {
    TensorEntry entry{};
    constexpr int kGrad = Gradients::kGrad;
    entry.data[kGrad] = view.data;
    entry.dtype[kGrad] = view.dtype;
    const int64_t each = view.is_complex ? 2 : 1;
    entry.numel = view.numel() * each;
    if (entry.numel == 0) return;
    std::vector<int64_t> shape(view.shape, view.shape + view.ndim);
    std::vector<std::vector<int64_t>> strides{{view.strides, view.strides + view.ndim}};
    for (int64_t& stride : strides[0]) stride *= each;
    if (view.is_complex) {
      shape.push_back(2);
      strides[0].push_back(1);
    }
    ElementOrder order = stride_order(shape, strides, false);
    if (!order.contiguous()) {
      auto owned = std::make_unique<Owned>();
      owned->order = std::move(order);
      const std::vector<int64_t>& of_operand = owned->order.strides[0];
      // A look at gradients goes by their place among a parameter's operands.
      owned->strides.resize(of_operand.size() * kGrad);
      owned->strides.insert(owned->strides.end(), of_operand.begin(), of_operand.end());
      owned->layout = {int(of_operand.size()), owned->order.sizes.data(), owned->strides.data()};
      entry.layout = &owned->layout;
      layouts_.push_back(std::move(owned));
    }
    of_device_[view.device].push_back(entry);
  }

  std::map<int, std::vector<TensorEntry>> of_device_;
  std::vector<std::unique_ptr<Owned>> layouts_;
};

}  // namespace friction
