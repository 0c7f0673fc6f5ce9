// What a thread does in a projection's first two launches: the sums of each row, and the decision.
// The third launch is an update that projects (update.h).
//
// The first launch reads all operands and writes none, because u needs moments that are not yet
// advanced. A stage is the part of a tensor that a block keeps in shared memory. Each overlapping
// pair of a row and a stage has a slot for its sums.
#pragma once

#include "block_reduce.h"
#include "update.h"

namespace friction::cuda {

template <class T>
struct Stage {
  static constexpr int kSize = kStageBytes / int(sizeof(T));
  T param[kSize], grad[kSize], direction[kSize];
};

// Along a tensor, each overlapping pair advances row, stage or both, so row + stage is unique.
template <class T>
FRICTION_INLINE int64_t sums_slot(const Extra& extra, int64_t first_chunk, int64_t row,
                                  int64_t element) {
  return extra.first_row + row + (first_chunk * kChunk + element) / Stage<T>::kSize;
}

// Writes a thread's parameters, gradients and directions to the stage, where the block's teams read
// them. The part must be no larger than a stage.
template <class Config, class Launch, class T>
FRICTION_INLINE void stage_directions(const Launch& launch, const Part& part, int thread,
                                      const Shared<typename Launch::Rule, T>& shared,
                                      Stage<T>& stage) {
  using Rule = typename Launch::Rule;
  visit_elements<Config, false>(
      launch, part, shared.types, thread, [&](auto& elements, auto&& position) {
        with_variant<Rule>(shared.variant, [&](auto variant) {
          int i = 0;
          FRICTION_UNROLL
          for (auto& x : elements) {
            const int at = position(i++);
            stage.param[at] = x[Rule::kParam];
            stage.grad[at] = x[Rule::kGrad];
            stage.direction[at] = Rule::template direction<variant()>(x, shared.scalars);
          }
        });
      });
}

// The rows that overlap a stage: [first, first + count).
struct Rows {
  int64_t first;
  int count;
  int64_t length, begin, end;  // elements per row; the stage's range in the tensor

  FRICTION_INLINE Rows(int64_t row_length, int64_t begin, int64_t end)
      : first(row_of(begin, row_length)), length(row_length), begin(begin), end(end) {
    count = int(row_of(end - 1, row_length) - first) + 1;
  }
  FRICTION_INLINE int begin_of(int row) const {  // in the stage
    const int64_t at = (first + row) * length;
    return at > begin ? int(at - begin) : 0;
  }
  FRICTION_INLINE int end_of(int row) const {
    const int64_t at = (first + row + 1) * length;
    return int((at < end ? at : end) - begin);
  }
  // How many threads sum a row; depends only on its length.
  FRICTION_INLINE int team() const {
    return length < kWarp ? 1 : length < kThreads ? kWarp : kThreads;
  }
};

// A team member's share of the sums over the elements [begin, end) of a stage, in type Sum.
template <class Sum, class T>
FRICTION_INLINE ProjectionSums member_sums_in(const Stage<T>& stage, int begin, int end, int member,
                                              int team) {
  Sum param_grad = Sum(0), param_param = Sum(0), grad_grad = Sum(0), param_direction = Sum(0);
  for (int at = begin + member; at < end; at += team) {
    const Sum p = stage.param[at], g = stage.grad[at], u = stage.direction[at];
    param_grad += p * g;
    param_param += p * p;
    grad_grad += g * g;
    param_direction += p * u;
  }
  ProjectionSums sums;
  sums.param_grad = double(param_grad);
  sums.param_param = double(param_param);
  sums.grad_grad = double(grad_grad);
  sums.param_direction = double(param_direction);
  return sums;
}

// The same in T, or in double if a sum is not finite in T.
template <class T>
FRICTION_INLINE ProjectionSums member_sums(const Stage<T>& stage, int begin, int end, int member,
                                           int team) {
  const ProjectionSums sums = member_sums_in<T>(stage, begin, end, member, team);
  if (sums.finite()) return sums;
  return member_sums_in<double>(stage, begin, end, member, team);
}

// The slots of a row. For the decision, a tensor's rows are distributed among threads if a row has
// few slots, or among warps if it has many; a warp's lanes then share the slots.
template <class T>
struct Slots {
  int64_t first, count;

  FRICTION_INLINE Slots(const Extra& extra, int64_t first_chunk, int64_t row)
      : first(sums_slot<T>(extra, first_chunk, row, row * extra.row_length)),
        count(sums_slot<T>(extra, first_chunk, row, (row + 1) * extra.row_length - 1) - first + 1) {
  }
};

template <class T>
FRICTION_INLINE bool rows_are_long(const Extra& extra) {
  return extra.row_length > 32 * int64_t(Stage<T>::kSize);
}

// The sum of a row's slots first + lane, first + lane + lanes, ..., with gradients not yet scaled.
FRICTION_INLINE ProjectionSums slot_sums(const ProjectionSums* sums, int64_t first, int64_t count,
                                         int lane, int lanes) {
  ProjectionSums total;
  for (int64_t slot = lane; slot < count; slot += lanes) total += sums[first + slot];
  return total;
}

// The sums of a row with scaled gradients.
FRICTION_INLINE ProjectionSums of_scaled(const ProjectionSums& sums, double grad_factor) {
  ProjectionSums scaled = sums;
  static_cast<RowSums&>(scaled) = sums.of_scaled(grad_factor);
  return scaled;
}

// Whether a row passes the test, and its coefficient in case all rows pass.
FRICTION_INLINE bool row_passes(const ProjectionSums& row, double length, double delta, double eps,
                                double& coefficient) {
  coefficient = projection_coefficient(row.param_param, row.param_direction, eps);
  return nearly_orthogonal(row, length, delta, eps);
}

}  // namespace friction::cuda
