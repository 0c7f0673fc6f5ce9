// What a step leaves behind of the quantity a rule observes (friction), for statistics.
//
// Every eighth chunk of a tensor is observed, the first one always: observing all would cost a
// fifth of the arithmetic, and a step cannot be asked later, since it replaces what the quantity
// was made from.
#pragma once

#include "tensor_table.h"

namespace friction {

struct Observation {
  double sum = 0, square_sum = 0;
  int64_t count = 0;

  FRICTION_INLINE Observation& operator+=(const Observation& other) {
    sum += other.sum;
    square_sum += other.square_sum;
    count += other.count;
    return *this;
  }
};

constexpr int64_t kObserveEvery = 8;

FRICTION_INLINE bool is_observed(int64_t element) { return element / kChunk % kObserveEvery == 0; }

// Where a tensor's observed chunk goes. Within a tensor slots follow each other; the tensor's index
// keeps them apart from those of the tensors before.
FRICTION_INLINE int64_t observation_slot(int64_t tensor, int64_t first_chunk, int64_t element) {
  return tensor + (first_chunk + element / kChunk) / kObserveEvery;
}

FRICTION_INLINE int64_t observation_slots(int64_t tensors, int64_t chunks) {
  return tensors + chunks / kObserveEvery + 1;
}

}  // namespace friction
