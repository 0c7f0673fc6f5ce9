// Makes a launch for a GPU of a table.
#pragma once

#include <memory>
#include <optional>

#include "../cuda/driver.h"
#include "../cuda/pack.h"
#include "plan.h"

namespace friction {

// A setting of a group as it arrives: a number, or where it lies on a GPU.
struct SettingValue {
  double number = 0;
  const void* address = nullptr;
  DType dtype = DType::kFloat32;
  int device = kCpu;
};

// The kernels that serve a table's types; none serves states that load_state_dict would not make.
template <class Rule>
std::optional<cuda::Storage> storage_of(const DType* dtype) {
  const DType param = dtype[0], grad = dtype[1];
  const bool wide = param == DType::kFloat64;
  bool as_param = grad == param;
  for (int list = 2; list < Rule::kLists; ++list) {
    const DType expected = wide                ? DType::kFloat64
                           : Rule::kWide[list] ? DType::kFloat32
                                               : dtype[list];
    if (dtype[list] != expected) return std::nullopt;
    if (!Rule::kWide[list]) {
      if (!wide && dtype[list] == DType::kFloat64) return std::nullopt;
      as_param = as_param && dtype[list] == param;
    }
  }
  if (wide) return cuda::Storage::kFloat64;
  if (as_param && param == DType::kFloat32) return cuda::Storage::kFloat32;
  if (as_param && param == DType::kBFloat16) return cuda::Storage::kBFloat16;
  return cuda::Storage::kMixed;
}

template <class Rule>
class LaunchMaker {
 public:
  using Launch = cuda::Launch<Rule>;
  using GroupStep = cuda::GroupStep<Rule>;

  static GroupStep group_step(const std::vector<SettingValue>& settings, double step) {
    GroupStep made{};
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

  // The launch over a table, with all that it refers to in device memory. Valid until the next one.
  const Launch& make(Table& table, const std::vector<GroupStep>& group_steps, bool projects,
                     const DeviceAllocator& allocator, const cuda::Target& target) {
    const DeviceUse use{target.device, target.stream, cuda::is_capturing(target)};
    const auto send = [&](const void* bytes, size_t count, void* to) {
      cuda::store(bytes, count, to, target);
    };
    const auto reserve = [&](DeviceMemory& memory, int64_t bytes) {
      return memory.reserve(allocator, bytes, use);
    };
    if (launch_ == nullptr) launch_ = std::make_unique<Launch>();
    Launch& launch = *launch_;
    static_cast<cuda::Header<Rule>&>(launch) = {};  // what is left in its room is not read
    launch.count = static_cast<int64_t>(table.tensors.size());
    launch.chunks = table.chunks;
    std::copy(table.dtype, table.dtype + Rule::kLists, launch.dtype);
    cuda::fill(launch, cuda::entries_of<Rule::kLists>(table.tensors), group_steps,
               [&](const std::vector<char>& bytes, bool is_entries) {
                 DeviceCopy& copy = is_entries ? table.entries : table.group_steps;
                 return copy.of(bytes, allocator, use, send);
               });
    if (projects || cuda::needs_extras(table.tensors)) {
      const std::vector<char> extras = cuda::extras_of<Rule::kLists>(table.tensors);
      cuda::refer_to_extras(launch, table.tensors, table.extras.of(extras, allocator, use, send));
    }
    if constexpr (Rule::kObserves)
      launch.observations = static_cast<Observation*>(
          reserve(table.observations,
                  int64_t(sizeof(Observation)) * observation_slots(launch.count, launch.chunks)));
    if (projects) {
      launch.projection.sums = static_cast<cuda::ProjectionSums*>(reserve(
          table.sums,
          int64_t(sizeof(cuda::ProjectionSums)) * cuda::sums_slots(table.rows, table.chunks)));
      launch.projection.coefficients =
          static_cast<double*>(reserve(table.coefficients, int64_t(sizeof(double)) * table.rows));
      launch.projection.projected = static_cast<bool*>(reserve(table.projected, launch.count));
    }
    return launch;
  }

 private:
  std::unique_ptr<Launch> launch_;
};

}  // namespace friction
