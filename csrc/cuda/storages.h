// The storages that kernels are compiled for.
#pragma once

#include "../packed.h"
#include "launch.h"

namespace friction::cuda {

// The storage of a launch's lists. kVector: elements to a vector; kVectors: how many of them a
// thread has in flight. with_list calls f with a null pointer of a list's storage type; kWide: the
// list is a state that is kept in float32 at least.
struct Float32Storage {
  using Arithmetic = float;
  static constexpr bool kLookedUp = false;
  static constexpr int kVector = 4, kVectors = 2;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType, F&& f) {
    f(static_cast<float*>(nullptr));
  }
};

struct BFloat16Storage {
  using Arithmetic = float;
  static constexpr bool kLookedUp = false;
  static constexpr int kVector = 8, kVectors = 1;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType, F&& f) {
    f(static_cast<std::conditional_t<kWide, float, BFloat16>*>(nullptr));
  }
};

struct Float64Storage {
  using Arithmetic = double;
  static constexpr bool kLookedUp = false;
  static constexpr int kVector = 2, kVectors = 1;
  template <int kList, bool kWide, class F>
  static FRICTION_INLINE void with_list(DType dtype, F&& f) {
    if constexpr (kList == 1)
      with_storage(dtype, std::forward<F>(f));
    else
      f(static_cast<double*>(nullptr));
  }
};

// Mixtures, looked up as the launch runs; all threads branch alike. A gradient may have any type, a
// parameter any but float64, with a companion or without, a state also 8 bits (mixture.h).
struct MixedStorage {
  using Arithmetic = float;
  static constexpr bool kLookedUp = true, kStatesPacked = false;
};

// All states in 8 bits; parameter and gradient looked up, float64 not among them.
struct PackedStorage {
  using Arithmetic = float;
  static constexpr bool kLookedUp = true, kStatesPacked = true;
};

}  // namespace friction::cuda
