// Stochastic rounding: up or down, with probabilities that make it unbiased. The random bits depend
// only on seed, step, parameter and the element's index in the whole parameter (Philox4x32-10,
// Salmon et al. 2011), so neither launch shape nor sharding changes them.
#pragma once

#include "dtypes.h"

namespace friction {

// Maps an element's index in a shard to its index in the whole parameter.
struct GlobalIndex {
  int64_t offset, row_length, row_stride;

  FRICTION_INLINE int64_t of(int64_t local) const {
    const int64_t row = local / row_length;
    return row * row_stride + (local - row * row_length) + offset;
  }
};

struct RandomKey {
  uint64_t seed;
  uint32_t step, parameter;
};

constexpr int kPerBlock = 8;  // elements per Philox call

struct RandomBlock {
  uint32_t words[4];

  // The 16 bits of the element at this place in the block.
  FRICTION_INLINE uint32_t at(int place) const {
    return words[place / 2] >> (16 * (place % 2)) & 0xffffu;
  }
};

FRICTION_INLINE RandomBlock random_block(const RandomKey& key, uint64_t block) {
  uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = key.step, c3 = key.parameter;
  uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
  FRICTION_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t(0xD2511F53u) * c0, odd = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(odd >> 32) ^ c1 ^ k0;
    c1 = uint32_t(odd);
    c2 = uint32_t(even >> 32) ^ c3 ^ k1;
    c3 = uint32_t(even);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// random: 16 bits. A finite value stays finite.
template <class Stored>
FRICTION_INLINE Stored narrow_stochastically(float x, uint32_t random) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const bool finite = magnitude < 0x7f800000u;
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    const uint32_t up = (magnitude + random) >> 16;
    const uint32_t kept = up < 0x7f80u ? up : 0x7f7fu;
    return {static_cast<uint16_t>(finite ? sign | kept : narrow<BFloat16>(x).bits)};
  } else {
    static_assert(std::is_same_v<Stored, Half>);
    const uint32_t exponent = magnitude >> 23;
    const uint32_t held = exponent < 113u ? 113u : exponent;
    const uint32_t below = held - exponent;  // subnormal halves drop more bits
    const uint32_t dropped = 13u + (below < 35u ? below : 35u);
    const uint64_t significand = (magnitude & 0x7fffffu) | (exponent != 0 ? 0x800000u : 0u);
    const uint64_t added = uint64_t(random) << dropped >> 16;
    const uint32_t up =
        ((held - 113u) << 10) + static_cast<uint32_t>((significand + added) >> dropped);
    const uint32_t kept = up < 0x7c00u ? up : 0x7bffu;
    return {static_cast<uint16_t>(finite ? sign | kept : narrow<Half>(x).bits)};
  }
}

}  // namespace friction
