// What a thread does in a projection's first two launches: the sums of each row, and the decision.
// The third launch is an update that projects (update.h).
//
// The first launch reads all operands and writes none, because u needs moments that are not yet
// advanced. A stage is the part of a tensor that a warp keeps in shared memory. Each overlapping
// pair of a row and a stage has a slot for its sums.
#pragma once

#include "block_reduce.h"
#include "update.h"

namespace friction::cuda {

template <class T>
struct Stage {
  static constexpr int kSize = kStageBytes / int(sizeof(T));
  alignas(16) T param[kSize], grad[kSize], direction[kSize];
};

// The stage of a part that begins at `staged`.
template <class T, int kOperands>
FRICTION_INLINE Part<kOperands> stage_of(const Part<kOperands>& whole, int staged) {
  Part<kOperands> part = whole;
  const int rest = whole.count - staged;
  part.begin += staged;
  part.count = rest < Stage<T>::kSize ? rest : Stage<T>::kSize;
  return part;
}

// Along a tensor, each overlapping pair advances row, stage or both, so row + stage is unique.
template <class T>
FRICTION_INLINE int64_t sums_slot(const Extra& extra, int64_t first_chunk, int64_t row,
                                  int64_t element) {
  return extra.first_row + row + (first_chunk * kChunk + element) / Stage<T>::kSize;
}

// Whether elements leave registers for all variants of a rule, and for the sums of a row.
template <class Config>
constexpr bool kLeavesRegisters =
    !Config::kLookedUp && std::is_same_v<typename Config::Arithmetic, float>;

// Copies kCount consecutive values, in as few accesses as possible, to a multiple of 16 bytes.
template <int kCount, class T>
FRICTION_INLINE void put(const T* values, T* to) {
  using Access = typename AccessOf<int(sizeof(T)) * kCount>::Type;
  Access access;
  std::memcpy(&access, values, sizeof access);
  *reinterpret_cast<Access*>(to) = access;
}

// Writes a lane's parameters, gradients and directions to the stage, where the warp reads them.
template <class Config, class Launch, class T>
FRICTION_INLINE void stage_directions(const Launch& launch, const PartOf<Launch>& part, int lane,
                                      const Shared<typename Launch::Rule, T>& shared,
                                      Stage<T>& stage) {
  using Rule = typename Launch::Rule;
  visit_elements<Config, false, kWarp>(
      launch, part, shared.types, lane, [&](auto& elements, auto&& position) {
        constexpr int kCount = int(std::extent_v<std::remove_reference_t<decltype(elements)>>);
        constexpr int kAccess = kCount > 1 ? 16 / int(sizeof(T)) : 1;
        with_variant<Rule, kLeavesRegisters<Config>>(shared.variant, [&](auto variant) {
          FRICTION_UNROLL
          for (int first = 0; first < kCount; first += kAccess) {
            T param[kAccess], grad[kAccess], direction[kAccess];
            FRICTION_UNROLL
            for (int i = 0; i < kAccess; ++i) {
              auto& x = elements[first + i];
              param[i] = x[Rule::kParam];
              grad[i] = x[Rule::kGrad];
              direction[i] = Rule::template direction<variant()>(x, shared.scalars);
            }
            const int at = position(first);
            put<kAccess>(param, stage.param + at);
            put<kAccess>(grad, stage.grad + at);
            put<kAccess>(direction, stage.direction + at);
          }
        });
      });
}

// The sums of a lane's elements of a part that lies in one row, without a stage. Whether they are
// finite in T.
template <class Config, class Launch, class T>
FRICTION_INLINE bool sum_one_row(const Launch& launch, const PartOf<Launch>& part, int lane,
                                 const Shared<typename Launch::Rule, T>& shared,
                                 ProjectionSums& sums) {
  using Rule = typename Launch::Rule;
  T param_grad = T(0), param_param = T(0), grad_grad = T(0), param_direction = T(0);
  visit_elements<Config, false, kWarp>(
      launch, part, shared.types, lane, [&](auto& elements, auto&&) {
        with_variant<Rule, kLeavesRegisters<Config>>(shared.variant, [&](auto variant) {
          FRICTION_UNROLL
          for (auto& x : elements) {
            const T p = x[Rule::kParam], g = x[Rule::kGrad];
            param_grad += p * g;
            param_param += p * p;
            grad_grad += g * g;
            param_direction += p * Rule::template direction<variant()>(x, shared.scalars);
          }
        });
      });
  sums = {{double(param_grad), double(param_param), double(grad_grad)}, double(param_direction)};
  return std::isfinite(param_grad + param_param + grad_grad + param_direction);
}

// The rows that overlap a stage: [first, first + count).
struct Rows {
  int64_t first;
  int count;
  int64_t length, begin, end;  // elements per row; the stage's range in the tensor

  FRICTION_INLINE Rows(int64_t row_length, int64_t begin, int64_t end)
      : first(row_of(begin, row_length)), length(row_length), begin(begin), end(end) {
    const int64_t last = end - 1 - first * length;  // from the first row's begin on
    count = last < length ? 1 : int(row_of(last, length)) + 1;
  }
  FRICTION_INLINE int begin_of(int row) const {  // in the stage
    const int64_t at = (first + row) * length;
    return at > begin ? int(at - begin) : 0;
  }
  FRICTION_INLINE int end_of(int row) const {
    const int64_t at = (first + row + 1) * length;
    return int((at < end ? at : end) - begin);
  }
  // Whether a warp's lanes share each row, or take a row each.
  FRICTION_INLINE bool shared_by_lanes() const { return length >= kWarp; }
};

// A team member's share of the sums over the elements [begin, end) of a stage: in T, or in double
// if they are not finite in T.
template <class T>
FRICTION_INLINE ProjectionSums member_sums(const Stage<T>& stage, int begin, int end, int member,
                                           int team) {
  T param_grad = T(0), param_param = T(0), grad_grad = T(0), param_direction = T(0);
  for (int at = begin + member; at < end; at += team) {
    const T p = stage.param[at], g = stage.grad[at], u = stage.direction[at];
    param_grad += p * g;
    param_param += p * p;
    grad_grad += g * g;
    param_direction += p * u;
  }
  if (std::isfinite(param_grad + param_param + grad_grad + param_direction))
    return {{double(param_grad), double(param_param), double(grad_grad)}, double(param_direction)};
  ProjectionSums sums;
  FRICTION_NO_UNROLL
  for (int at = begin + member; at < end; at += team) {
    const double p = stage.param[at], g = stage.grad[at], u = stage.direction[at];
    sums += {{p * g, p * p, g * g}, p * u};
  }
  return sums;
}

// How many threads of the second launch share a row: a warp if it has many slots.
template <class T>
FRICTION_INLINE int lanes_of_row(const Extra& extra) {
  return extra.row_length > 32 * int64_t(Stage<T>::kSize) ? kWarp : 1;
}

// A lane's share of the sums over a row's slots, with gradients not yet scaled.
template <class T, class Launch>
FRICTION_INLINE ProjectionSums share_of_row(const Launch& launch, int64_t tensor, int64_t row,
                                            int lane, int lanes) {
  const Extra& extra = launch.extras[tensor];
  const int64_t first_chunk = launch.entries()[tensor].first_chunk;
  const int64_t begin = row * extra.row_length, last = begin + extra.row_length - 1;
  const int64_t first = sums_slot<T>(extra, first_chunk, row, begin);
  const int64_t count = sums_slot<T>(extra, first_chunk, row, last) - first + 1;
  ProjectionSums total;
  for (int64_t slot = lane; slot < count; slot += lanes)
    total += launch.projection.sums[first + slot];
  return total;
}

// The sums of a row with scaled gradients.
FRICTION_INLINE ProjectionSums of_scaled(const ProjectionSums& sums, double grad_factor) {
  ProjectionSums scaled = sums;
  static_cast<RowSums&>(scaled) = sums.of_scaled(grad_factor);
  return scaled;
}

// Whether a row passes the test, and its coefficient in case it is projected.
template <class Settings>
FRICTION_INLINE bool row_passes(const ProjectionSums& row, double length, const Settings& settings,
                                double& coefficient) {
  coefficient = projection_coefficient(row.param_param, row.param_direction, settings.eps);
  return nearly_orthogonal(row, length, settings.delta, settings.eps);
}

// The rows [begin, end) of a tensor's group.
struct RowGroup {
  int64_t begin, end;

  FRICTION_INLINE static int64_t size(int64_t rows) {
    const int64_t each = (rows + kRowGroups - 1) / kRowGroups;
    return each > kDecideThreads ? each : kDecideThreads;
  }
  FRICTION_INLINE static int count(int64_t rows) {
    return int((rows + size(rows) - 1) / size(rows));
  }
  FRICTION_INLINE RowGroup(int64_t rows, int group)
      : begin(group * size(rows)), end(begin + size(rows)) {
    end = end < rows ? end : rows;
  }
};

// Decides for a tensor, given the sums of its groups.
template <class Launch>
FRICTION_INLINE void decide(const Launch& launch, int64_t tensor) {
  const Projection& projection = launch.projection;
  const Extra& extra = launch.extras[tensor];
  bool rows_pass = extra.rows > 0;
  ProjectionSums whole;
  const int count = RowGroup::count(extra.rows);
  FRICTION_UNROLL
  for (int group = 0; group < kRowGroups; ++group) {
    if (group >= count) continue;  // unrolled, so that no load waits for another
    const RowGroupSums of_group = projection.groups[tensor * kRowGroups + group];
    rows_pass = rows_pass & of_group.rows_pass;
    whole += of_group.sums;
  }
  Projected& projected = projection.projected[tensor];
  projected = rows_pass ? Projected::kByRows : Projected::kNot;
  if (rows_pass || extra.rows == 0) return;
  typename Launch::Rule::Settings settings;
  const auto& group_step = launch.group_step(tensor);
  for (int i = 0; i < group_step.kSettings; ++i)
    reinterpret_cast<double*>(&settings)[i] = group_step.resolve(i);
  if (row_passes(whole, double(extra.rows) * double(extra.row_length), settings,
                 projection.as_one_row[tensor]))
    projected = Projected::kAsOneRow;
}

}  // namespace friction::cuda
