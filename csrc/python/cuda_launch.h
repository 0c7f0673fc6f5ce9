// Builds the launch that updates a table's tensors on a GPU.
#pragma once

#include <memory>
#include <optional>

#include "../cuda/driver.h"
#include "../cuda/fill_launch.h"
#include "plan.h"

namespace friction {

// A group's setting: a number, or the address of one on a GPU.
struct SettingValue {
  double number = 0;
  const void* address = nullptr;
  DType dtype = DType::kFloat32;
  int device = kCpu;
};

// The kernels that serve a tensor's dtypes; none for states that load_state_dict would not create.
template <class Rule>
std::optional<cuda::DtypeConfig> config_of(const TensorEntry& tensor) {
  const DType param = tensor.dtype[0], grad = tensor.dtype[1];
  bool all_float64 = param == DType::kFloat64, some_float64 = all_float64, all_quantized = true;
  bool as_float32 = param == DType::kFloat32 && grad == param;
  bool as_bfloat16 = param == DType::kBFloat16 && grad == param && tensor.master == 0;
  for (int operand = 2; operand < Rule::kOperands; ++operand) {
    const DType type = tensor.dtype[operand];
    all_float64 = all_float64 && type == DType::kFloat64;
    some_float64 = some_float64 || type == DType::kFloat64;
    all_quantized = all_quantized && type == DType::kQuantized;
    as_float32 = as_float32 && type == DType::kFloat32;
    as_bfloat16 = as_bfloat16 && type == (is_average<Rule>(operand) ? DType::kFloat32 : param);
  }
  if (all_float64) return cuda::DtypeConfig::kFloat64;
  if (some_float64) return std::nullopt;
  if (as_float32) return cuda::DtypeConfig::kFloat32;
  if (as_bfloat16 && !tensor.stochastic) return cuda::DtypeConfig::kBFloat16;
  if (all_quantized && grad != DType::kFloat64) return cuda::DtypeConfig::kQuantized;
  return cuda::DtypeConfig::kMixed;
}

// The gradient scaling of one device.
struct DeviceScaling {
  int device;
  cuda::GradientScaling scaling;
};

inline cuda::GradientScaling scaling_of(const std::vector<DeviceScaling>& scaling,
                                        const Table& table) {
  for (const DeviceScaling& of_device : scaling)
    if (table.device != kCpu && of_device.device == table.device) return of_device.scaling;
  return {};
}

// Types as an integer, for comparison.
inline uint64_t bits_of_types(const TensorEntry& tensor) {
  const cuda::Types types = cuda::types_of(tensor);
  uint64_t bits;
  std::memcpy(&bits, &types, sizeof bits);
  return bits;
}

inline cuda::Types types_of_bits(uint64_t bits) {
  cuda::Types types;
  std::memcpy(&types, &bits, sizeof bits);
  return types;
}

template <class Rule>
class LaunchMaker {
 public:
  using Launch = cuda::Launch<Rule>;
  using GroupStep = cuda::GroupStep<Rule>;

  static GroupStep group_step(const std::vector<SettingValue>& settings, double step,
                              const cuda::Types& types) {
    GroupStep made{};
    made.types = types;
    for (size_t i = 0; i < settings.size(); ++i) {
      if (settings[i].address == nullptr) {
        made.settings[i].number = settings[i].number;
      } else if (settings[i].dtype == DType::kFloat32) {
        made.settings[i].float32 = static_cast<const float*>(settings[i].address);
        made.is_float32 |= 1u << i;
      } else {
        made.settings[i].float64 = static_cast<const double*>(settings[i].address);
        made.is_float64 |= 1u << i;
      }
    }
    made.step = step;
    return made;
  }

  // Builds a table's launch and what it refers to in device memory. Valid until the next call.
  Launch& make(Table& table, const std::vector<GroupStep>& group_steps,
               const cuda::GradientScaling& scaling, const DeviceAllocator& allocator,
               const cuda::Target& target) {
    const DeviceUse use{target.device, target.stream, cuda::is_capturing(target)};
    const auto send = [&](const void* bytes, size_t count, void* to) {
      cuda::store(bytes, count, to, target);
    };
    const auto reserve = [&](DeviceMemory& memory, int64_t bytes) {
      return memory.reserve(allocator, bytes, use);
    };
    if (launch_ == nullptr) launch_ = std::make_unique<Launch>();
    Launch& launch = *launch_;
    static_cast<cuda::Header<Rule>&>(launch) = {};  // stale content of `room` is never read
    launch.count = static_cast<int64_t>(table.tensors.size());
    launch.chunks = table.chunks;
    launch.scaling = scaling;
    cuda::fill_launch(launch, cuda::entries_of<Rule::kOperands>(table.tensors), group_steps,
                      [&](const std::vector<char>& bytes, bool is_entries) {
                        DeviceCopy& copy = is_entries ? table.entries : table.group_steps;
                        return copy.of(bytes, allocator, use, send);
                      });
    if (Rule::kProjects || cuda::needs_extras(table.tensors)) {
      const std::vector<char> extras = cuda::extras_of<Rule::kOperands>(table.tensors);
      cuda::refer_to_extras(launch, table.tensors, table.extras.of(extras, allocator, use, send));
    }
    if constexpr (Rule::kProjects) {
      const bool in_float64 = cuda::DtypeConfig(table.kernels) == cuda::DtypeConfig::kFloat64;
      const size_t arithmetic = in_float64 ? sizeof(double) : sizeof(float);
      launch.projection.sums = static_cast<cuda::ProjectionSums*>(
          reserve(table.sums, int64_t(sizeof(cuda::ProjectionSums)) *
                                  cuda::sums_slots(table.rows, table.chunks, arithmetic)));
      launch.projection.coefficients =
          static_cast<double*>(reserve(table.coefficients, int64_t(sizeof(double)) * table.rows));
      launch.projection.groups = static_cast<cuda::RowGroupSums*>(reserve(
          table.row_groups, int64_t(sizeof(cuda::RowGroupSums)) * cuda::kRowGroups * launch.count));
      launch.projection.as_one_row =
          static_cast<double*>(reserve(table.as_one_row, int64_t(sizeof(double)) * launch.count));
      launch.projection.projected =
          static_cast<cuda::Projected*>(reserve(table.projected, launch.count));
      launch.projection.blocks_done =
          cuda::counter_of(static_cast<const void*>(launch.extras), launch.count);
    }
    return launch;
  }

 private:
  std::unique_ptr<Launch> launch_;
};

}  // namespace friction
