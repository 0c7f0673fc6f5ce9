// The list of tensors one launch goes through, in chunks: chunk -> (tensor, elements).
//
// A tensor has up to kMaxOperands parallel operands (parameter, gradient, states). Its elements are
// walked in chunks of kChunk, and chunks are numbered through all tensors, so that a launch of any
// number of workers is balanced by elements. A chunk never depends on who walks it: sums taken per
// chunk (and per row within a chunk) are the same for every launch shape.
#pragma once

#include "formats/random.h"

namespace friction {

constexpr int kMaxOperands = 6;  // with a parameter's master
constexpr int64_t kChunk = 2048;

// Where the operands of a tensor lie that is not contiguous, or not alike, in all of them:
// sizes and strides (in elements) of the dimensions in element order, outermost first.
struct Layout {
  int dims;
  const int64_t* sizes;    // [dims]
  const int64_t* strides;  // [operands, dims]
};

struct TensorEntry {
  void* data[kMaxOperands];  // the rule's operands, then the master
  DType dtype[kMaxOperands];
  int8_t master;         // its operand; 0: none
  bool quantized;        // whether some operand is
  bool stochastic;       // how the parameter is rounded
  uint32_t parameter;    // its number, for stochastic rounding
  GlobalIndex global;    // likewise
  const Layout* layout;  // null where every operand is contiguous in element order
  int64_t numel;
  int64_t first_chunk;  // chunks of all tensors before this one
  int32_t scalars;      // which (group, step) the update's scalars belong to
  float* step;          // where the device counts the steps; null: the host does
  // Rows of a matrix that may be projected; 0 rows: never.
  int64_t rows, row_length;
  int64_t first_row;  // rows of all tensors before this one
};

// The tensor that holds a chunk: the last one, from `low` on, that starts at or before it. (One of
// no elements starts where the next one does, and is never found.)
template <class Entries>
FRICTION_INLINE int64_t tensor_of(const Entries& entries, int64_t count, int64_t chunk,
                                  int64_t low = 0) {
  int64_t high = count - 1;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (static_cast<int64_t>(entries[middle].first_chunk) <= chunk)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

struct TensorTable {
  const TensorEntry* tensors;
  int64_t count;

  FRICTION_INLINE int64_t chunks() const {
    if (count == 0) return 0;
    const TensorEntry& last = tensors[count - 1];
    return last.first_chunk + (last.numel + kChunk - 1) / kChunk;
  }

  FRICTION_INLINE int64_t tensor_of(int64_t chunk) const {
    return friction::tensor_of(tensors, count, chunk);
  }

  // Calls visit(tensor, begin, end) for every chunk in [first, last).
  template <class Visit>
  FRICTION_INLINE void for_each_chunk(int64_t first, int64_t last, Visit&& visit) const {
    int64_t tensor = tensor_of(first);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      while (tensor + 1 < count && tensors[tensor + 1].first_chunk <= chunk) ++tensor;
      const int64_t begin = (chunk - tensors[tensor].first_chunk) * kChunk;
      const int64_t rest = tensors[tensor].numel - begin;
      visit(tensors[tensor], begin, begin + (rest < kChunk ? rest : kChunk));
    }
  }
};

// A row's partial sums, one slot for each (row, chunk) that meet. Both only ever grow along a
// tensor, so row + chunk numbers the pairs without a gap for another pair.
FRICTION_INLINE int64_t row_slot(const TensorEntry& t, int64_t row, int64_t element) {
  return (t.first_row + row) + (t.first_chunk + element / kChunk);
}

}  // namespace friction
