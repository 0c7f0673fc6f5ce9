// Random bits for the elements that a thread rounds stochastically.
#pragma once

#include "../formats/random.h"
#include "codecs.h"

namespace friction::cuda {

static_assert(kPerBlock == kVec8);

// A 64-bit division costs four times as much as a 32-bit one.
FRICTION_INLINE int64_t row_of(int64_t element, int64_t row_length) {
  if (((element | row_length) >> 32) == 0) return uint32_t(element) / uint32_t(row_length);
  return element / row_length;
}

// A tensor's random bits at one step.
struct RandomBits {
  RandomKey key;
  GlobalIndex global;

  // The 16 bits of an element, given its index in element order.
  FRICTION_INLINE uint32_t of(int64_t element) const {
    const uint64_t index = uint64_t(index_of(element));
    const RandomBlock block = random_block(key, index / kPerBlock);
    const int place = int(index % kPerBlock);  // selected, since registers cannot be indexed
    const uint32_t low = place < 4 ? block.words[0] : block.words[2];
    const uint32_t high = place < 4 ? block.words[1] : block.words[3];
    return (place % 4 < 2 ? low : high) >> (16 * (place % 2)) & 0xffffu;
  }

  // The bits of eight elements, starting at `first` in element order; one call if they form a
  // block.
  FRICTION_INLINE RandomBlock of_eight(int64_t first) const {
    const int64_t column = first - row_of(first, global.row_length) * global.row_length;
    const uint64_t index = uint64_t(index_of(first));
    if (index % kPerBlock == 0 && column + kPerBlock <= global.row_length)
      return random_block(key, index / kPerBlock);
    RandomBlock bits{};
    FRICTION_NO_UNROLL
    for (int i = 0; i < kPerBlock; ++i) {  // shifts all down by 16 bits and adds the next on top
      bits.words[0] = bits.words[0] >> 16 | bits.words[1] << 16;
      bits.words[1] = bits.words[1] >> 16 | bits.words[2] << 16;
      bits.words[2] = bits.words[2] >> 16 | bits.words[3] << 16;
      bits.words[3] = bits.words[3] >> 16 | of(first + i) << 16;
    }
    return bits;
  }

 private:
  FRICTION_INLINE int64_t index_of(int64_t element) const {
    const int64_t row = row_of(element, global.row_length);
    return row * global.row_stride + (element - row * global.row_length) + global.offset;
  }
};

}  // namespace friction::cuda
