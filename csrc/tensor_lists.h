// The list of tensors that one launch processes in chunks: chunk -> (tensor, elements).
//
// A tensor has up to kMaxOperands parallel operands (parameter, gradient, states). Its elements are
// split into chunks of kChunk, numbered consecutively across all tensors, so that any number of
// workers can share the elements evenly. Chunks do not depend on the workers, so sums per chunk
// (and per row within a chunk) are the same for every launch shape.
#pragma once

#include "formats/random.h"

namespace friction {

constexpr int kMaxOperands = 6;  // including the parameter's master
constexpr int64_t kChunk = 2048;

constexpr int kMostLists = 8;  // that one operation on lists takes

// The number of pairs (first, second), first <= second, of lists; also the index of (0, lists).
FRICTION_INLINE constexpr int pairs_of(int lists) { return lists * (lists + 1) / 2; }

// The layout of a tensor whose operands are not all contiguous in the same order: sizes and strides
// (in elements) in element order, outermost dimension first.
struct Layout {
  int dims;
  const int64_t* sizes;    // [dims]
  const int64_t* strides;  // [operands, dims]
};

struct TensorEntry {
  void* data[kMaxOperands];  // the rule's operands, then the master
  DType dtype[kMaxOperands];
  int8_t master;         // index of the master operand; 0: none
  bool quantized;        // whether any operand is quantized
  bool stochastic;       // whether the parameter is rounded stochastically
  bool takes;            // whether the gradient's memory becomes the state that keeps it
  uint32_t parameter;    // the parameter's number, for stochastic rounding
  GlobalIndex global;    // likewise
  const Layout* layout;  // null if every operand is contiguous in element order
  int64_t numel;
  int64_t first_chunk;  // number of chunks in the tensors before this one
  int32_t scalars;      // index of the scalars of its (group, step)
  float* step;          // step counter on the device; null: the host counts
  // Rows of a matrix that may be projected; 0 rows: never.
  int64_t rows, row_length;
  int64_t first_row;  // number of rows in the tensors before this one
};

// The tensor that contains a chunk: the last one, from `low` on, that starts at or before it. (An
// empty tensor starts at the same chunk as the next one, so it is never found.)
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

// The slot of a row's partial sums within a chunk. Along a tensor, each overlapping (row, chunk)
// pair advances the row, the chunk or both, so row + chunk is unique.
FRICTION_INLINE int64_t row_slot(const TensorEntry& t, int64_t row, int64_t element) {
  return (t.first_row + row) + (t.first_chunk + element / kChunk);
}

}  // namespace friction
