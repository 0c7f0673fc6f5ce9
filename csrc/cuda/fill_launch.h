// Converts a table to the form that a launch carries.
#pragma once

#include <algorithm>
#include <vector>

#include "launch.h"

namespace friction::cuda {

template <class Value>
std::vector<char> bytes_of(const std::vector<Value>& values) {
  std::vector<char> bytes(values.size() * sizeof(Value));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline uintptr_t address_of(const void* data) { return reinterpret_cast<uintptr_t>(data); }

template <int kOperands>
std::vector<Entry<kOperands>> entries_of(const std::vector<TensorEntry>& tensors) {
  std::vector<Entry<kOperands>> entries(tensors.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const TensorEntry& tensor = tensors[i];
    uintptr_t addresses = tensor.master != 0 ? address_of(tensor.data[tensor.master]) : 0;
    for (int operand = 0; operand < kOperands; ++operand) {
      entries[i].data[operand] = tensor.data[operand];
      addresses |= address_of(tensor.data[operand]);
    }
    entries[i].takes = tensor.takes;
    entries[i].aligned = tensor.layout == nullptr && addresses % 16 == 0;
    entries[i].first_chunk = static_cast<uint32_t>(tensor.first_chunk);
    entries[i].last_count =
        static_cast<uint16_t>(tensor.numel > 0 ? (tensor.numel - 1) % kChunk + 1 : 0);
    entries[i].group_step = static_cast<uint16_t>(tensor.scalars);
  }
  return entries;
}

// Copies entries and group steps into the launch. If they do not both fit, store(bytes, is_entries)
// returns the address of a copy elsewhere: of the entries first, since they change less often.
template <class Rule, class Store>
void fill_launch(Launch<Rule>& launch, const std::vector<Entry<Rule::kOperands>>& entries,
                 const std::vector<GroupStep<Rule>>& group_steps, Store&& store) {
  const std::vector<char> entry_bytes = bytes_of(entries), step_bytes = bytes_of(group_steps);
  const bool steps_fit = step_bytes.size() <= sizeof launch.room;
  const size_t left = sizeof launch.room - (steps_fit ? step_bytes.size() : 0);
  size_t used = 0;
  if (entry_bytes.size() <= left) {
    std::copy(entry_bytes.begin(), entry_bytes.end(), launch.room);
    used = entry_bytes.size();
  } else {
    launch.stored_entries = static_cast<const Entry<Rule::kOperands>*>(store(entry_bytes, true));
  }
  if (steps_fit) {
    std::copy(step_bytes.begin(), step_bytes.end(), launch.room + used);
    launch.group_steps_begin = static_cast<int64_t>(used);
  } else {
    launch.stored_group_steps = static_cast<const GroupStep<Rule>*>(store(step_bytes, false));
  }
}

inline Types types_of(const TensorEntry& tensor) {
  Types types{};
  std::copy(tensor.dtype, tensor.dtype + kMaxOperands, types.operand);
  types.master = tensor.master != 0;
  types.quantized = tensor.quantized;
  types.stochastic = tensor.stochastic;
  return types;
}

inline bool needs_extras(const std::vector<TensorEntry>& tensors) {
  for (const TensorEntry& tensor : tensors)
    if (tensor.layout != nullptr || tensor.step != nullptr || tensor.master != 0 ||
        tensor.stochastic)
      return true;
  return false;
}

// One block of memory: the extras, the counter of finished blocks (0), the layouts.
template <int kOperands>
std::vector<char> extras_of(const std::vector<TensorEntry>& tensors) {
  std::vector<Extra> extras(tensors.size());
  std::vector<int64_t> rest{0};
  for (size_t i = 0; i < extras.size(); ++i) {
    const TensorEntry& tensor = tensors[i];
    extras[i] = {tensor.step,      kContiguous, tensor.rows,   tensor.row_length,
                 tensor.first_row, nullptr,     tensor.global, tensor.parameter};
    if (tensor.master != 0) extras[i].master = tensor.data[tensor.master];
    if (tensor.layout == nullptr) continue;
    const Layout& layout = *tensor.layout;
    const int64_t known = layout.dims * (kOperands + (tensor.master != 0 ? 1 : 0));
    extras[i].layout = static_cast<int64_t>(rest.size()) - 1;
    rest.push_back(layout.dims);
    rest.insert(rest.end(), layout.sizes, layout.sizes + layout.dims);
    rest.insert(rest.end(), layout.strides, layout.strides + known);
    rest.resize(rest.size() + size_t(layout.dims * (kOperands + 1) - known));
  }
  std::vector<char> bytes = bytes_of(extras);
  const std::vector<char> more = bytes_of(rest);
  bytes.insert(bytes.end(), more.begin(), more.end());
  return bytes;
}

// The counter of finished blocks, which follows the given number of extras.
inline uint32_t* counter_of(const void* memory, int64_t extras) {
  return reinterpret_cast<uint32_t*>(const_cast<Extra*>(static_cast<const Extra*>(memory)) +
                                     extras);
}

// `memory` holds the result of extras_of.
template <class Rule>
void refer_to_extras(Launch<Rule>& launch, const std::vector<TensorEntry>& tensors,
                     const void* memory) {
  launch.extras = static_cast<const Extra*>(memory);
  const auto* rest = reinterpret_cast<const int64_t*>(launch.extras + tensors.size());
  launch.layouts = rest + 1;
  for (const TensorEntry& tensor : tensors)
    if (tensor.step != nullptr) launch.blocks_done = counter_of(memory, int64_t(tensors.size()));
}

}  // namespace friction::cuda
