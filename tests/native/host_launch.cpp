// Runs CUDA launches on the host for tests, through ctypes. Compiled by g++ and nvcc.
#include <algorithm>
#include <memory>
#include <vector>

#include "../../csrc/cuda/fill_launch.h"
#include "host_kernels.h"

using namespace friction;
using namespace friction::cuda;

// A tensor as described by Python.
struct HostTensor {
  void* data[kMaxOperands];
  const int64_t* sizes;    // in element order; null: contiguous
  const int64_t* strides;  // [operands, dims]
  float* step;
  int64_t numel, rows, dims;
  uint8_t dtype[kMaxOperands];
  int32_t group_step;
};

namespace {

// A rule that adds 1 to each element.
struct Count {
  static constexpr const char* kName = "count";
  enum Operand { kParam, kOperands };
  static constexpr States<1> kStates{};
  static constexpr bool kProjects = false, kHasStatistic = false;
  struct Settings {
    double grad_factor, max_norm, seed;
  };
  enum Variant { kOnly, kVariants };
  static constexpr int kFullVariants[] = {kOnly};
  static FRICTION_INLINE int variant(const Settings&) { return kOnly; }
  template <class T>
  struct Scalars {
    T grad_scale = T(1);
    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings&, double) {}
  };
  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>&) {
    x[kParam] += T(1);
  }
};

// The same for states, which may be quantized; the parameter is left unchanged.
struct CountStates : Count {
  enum Operand { kParam, kGrad, kSigned, kUnsigned, kOperands };
  static constexpr States<2> kStates{{"signed", "unsigned"}, {StateKind::copy, StateKind::square}};
  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>&) {
    x[kSigned] -= T(1);
    x[kUnsigned] += T(1);
  }
};

constexpr Count::Settings kCountSettings{1, 1, 0};

template <class Rule>
struct Table {
  std::vector<Layout> layouts;
  std::vector<TensorEntry> tensors;
  std::vector<Entry<Rule::kOperands>> entries;
  std::vector<GroupStep<Rule>> group_steps;
  std::vector<char> extras;
  std::vector<Moments> statistics;
  Launch<Rule> launch{};
  int64_t rows = 0;

  Table(const HostTensor* given, int64_t count, const double* settings, const double* steps,
        int64_t pairs, bool stored)
      : layouts(size_t(count)) {
    for (int64_t i = 0; i < count; ++i) {
      const HostTensor& host = given[i];
      TensorEntry tensor{};
      for (int operand = 0; operand < Rule::kOperands; ++operand) {
        tensor.data[operand] = host.data[operand];
        tensor.dtype[operand] = DType(host.dtype[operand]);
        tensor.quantized = tensor.quantized || tensor.dtype[operand] == DType::kQuantized;
      }
      if (host.sizes != nullptr) {
        layouts[size_t(i)] = {int(host.dims), host.sizes, host.strides};
        tensor.layout = &layouts[size_t(i)];
      }
      tensor.numel = host.numel;
      tensor.first_chunk = launch.chunks;
      tensor.scalars = host.group_step;
      tensor.step = host.step;
      tensor.rows = host.rows;
      tensor.row_length = host.rows > 0 ? host.numel / host.rows : 0;
      tensor.first_row = rows;
      rows += host.rows;
      launch.chunks += (host.numel + kChunk - 1) / kChunk;
      tensors.push_back(tensor);
    }
    launch.count = count;
    entries = entries_of<Rule::kOperands>(tensors);
    constexpr int kSettings = GroupStep<Rule>::kSettings;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      GroupStep<Rule>& made = group_steps.emplace_back();
      made = {};
      for (int i = 0; i < kSettings; ++i) made.settings[i].number = settings[pair * kSettings + i];
      made.step = steps[pair];
    }
    for (const TensorEntry& tensor : tensors)  // all tensors of a group have the same types
      if (pairs > 0) group_steps[size_t(tensor.scalars)].types = types_of(tensor);
    fill_launch(launch, entries, group_steps, [&](const std::vector<char>&, bool is_entries) {
      return is_entries ? static_cast<const void*>(entries.data()) : group_steps.data();
    });
    if (stored) {
      launch.stored_entries = entries.data();
      launch.stored_group_steps = group_steps.data();
    }
    extras = extras_of<Rule::kOperands>(tensors);
    refer_to_extras(launch, tensors, extras.data());
    statistics.resize(size_t(launch.chunks));
    launch.statistics = statistics.data();
  }
};

}  // namespace

extern "C" {

int64_t chunk_size() { return kChunk; }
int64_t capacity_of_friction_adam() { return Launch<FrictionAdam>::kMostEntries; }
int64_t capacity_of_sgd() { return Launch<Sgd>::kMostEntries; }
int64_t launch_bytes_of_friction_adam() { return sizeof(Launch<FrictionAdam>); }

// Writes each chunk's tensor, elements and block, in the order of chunks. Reads no tensor's memory.
void walk(const int64_t* numels, int64_t count, int64_t blocks, bool stored, int64_t* tensor,
          int64_t* begin, int64_t* elements, int64_t* block_of) {
  std::vector<HostTensor> given(static_cast<size_t>(count), HostTensor{});
  for (int64_t i = 0; i < count; ++i) given[size_t(i)].numel = numels[i];
  const auto table =
      std::make_unique<Table<Count>>(given.data(), count, nullptr, nullptr, 0, stored);
  for_each_part(table->launch, blocks, [&](int64_t block, int64_t chunk, const auto& part, auto&) {
    tensor[chunk] = part.tensor;
    begin[chunk] = part.begin;
    elements[chunk] = part.count;
    block_of[chunk] = block;
  });
}

void count_visits(const HostTensor* given, int64_t count, int64_t blocks, int config, bool stored) {
  const double step = 1;
  const auto table =
      std::make_unique<Table<Count>>(given, count, &kCountSettings.grad_factor, &step, 1, stored);
  with_host_config(config, [&](auto type) { update_all<decltype(type)>(table->launch, blocks); });
}

// The states may be quantized, so only kernels with dynamic dtypes serve them.
void count_visits_of_states(const HostTensor* given, int64_t count, int64_t blocks, bool quantized,
                            bool stored) {
  const double step = 1;
  const auto table = std::make_unique<Table<CountStates>>(given, count, &kCountSettings.grad_factor,
                                                          &step, 1, stored);
  if (quantized)
    update_all<QuantizedConfig>(table->launch, blocks);
  else
    update_all<MixedConfig>(table->launch, blocks);
}

#define FRICTION_DEFINE_UPDATE(name, Rule)                                                       \
  void name(const HostTensor* given, int64_t count, const double* settings, const double* steps, \
            int64_t pairs, int64_t blocks, int config, bool stored) {                            \
    const auto table =                                                                           \
        std::make_unique<Table<Rule>>(given, count, settings, steps, pairs, stored);             \
    with_host_config(config,                                                                     \
                     [&](auto type) { update_all<decltype(type)>(table->launch, blocks); });     \
  }

FRICTION_DEFINE_UPDATE(adam, Adam)
FRICTION_DEFINE_UPDATE(friction_adam, FrictionAdam)
FRICTION_DEFINE_UPDATE(sgd, Sgd)

// moments: sum and sum of squares of the friction's deviation.
void friction_stats(const HostTensor* given, int64_t count, const double* settings,
                    const double* steps, int64_t pairs, int64_t blocks, int config,
                    double* moments) {
  const auto table =
      std::make_unique<Table<FrictionAdam>>(given, count, settings, steps, pairs, false);
  with_host_config(config,
                   [&](auto type) { statistic_all<decltype(type)>(table->launch, blocks); });
  Moments all;
  for (const Moments& of_chunk : table->statistics) all += of_chunk;
  moments[0] = all.sum, moments[1] = all.square_sum;
}

// Outputs: projected [count] (see Projected), coefficients [rows of all tensors], as_one_row
// [count].
#define FRICTION_DEFINE_PROJECTED(name, Rule)                                                      \
  void name(const HostTensor* given, int64_t count, const double* settings, const double* steps,   \
            int64_t pairs, int64_t blocks, int config, uint8_t* projected, double* coefficients,   \
            double* as_one_row) {                                                                  \
    const auto table = std::make_unique<Table<Rule>>(given, count, settings, steps, pairs, false); \
    std::vector<ProjectionSums> sums(                                                              \
        size_t(sums_slots(table->rows, table->launch.chunks, sizeof(double))));                    \
    std::vector<RowGroupSums> groups(size_t(count * kRowGroups));                                  \
    table->launch.projection = {sums.data(),                                                       \
                                coefficients,                                                      \
                                groups.data(),                                                     \
                                as_one_row,                                                        \
                                reinterpret_cast<Projected*>(projected),                           \
                                nullptr};                                                          \
    with_host_config(                                                                              \
        config, [&](auto type) { update_projected_all<decltype(type)>(table->launch, blocks); });  \
  }

FRICTION_DEFINE_PROJECTED(adamp, AdamP)
FRICTION_DEFINE_PROJECTED(friction_adamp, FrictionAdamP)

// Each tensor may have any floating type.
double squared_norm(HostTensor* given, int64_t count, int64_t blocks) {
  for (int64_t i = 0; i < count; ++i) given[i].group_step = given[i].dtype[0];
  const auto table =
      std::make_unique<Table<SingleOperand>>(given, count, nullptr, nullptr, 0, false);
  ListOperation& lists = table->launch.lists;
  std::vector<double> of_run(size_t(table->launch.chunks));
  double squared = 0;
  lists.count = 1, lists.run = 4, lists.segments = 1;
  lists.of_run = of_run.data(), lists.products = &squared;
  gram_all<1>(table->launch, blocks);
  return squared;
}

// Sums one value per thread of a team, in the order of its tree.
double team_sum(const double* values, int team) {
  std::vector<Moments> sums;
  for (int i = 0; i < team; ++i) sums.push_back({values[i], 0});
  return team_sum_on_host(sums.data(), team).sum;
}

}  // extern "C"
