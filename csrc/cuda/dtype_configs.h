// The dtype configurations that kernels are compiled for.
#pragma once

#include "../formats/blockwise.h"
#include "launch.h"

namespace friction::cuda {

// Blackwell's code needs more registers than three blocks leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kThreeWithoutSpilling = false;
#else
constexpr bool kThreeWithoutSpilling = true;
#endif

// How a launch's operands are stored. kVector: elements per vector; kVectors: vectors that a thread
// has in flight. with_operand calls f with a null pointer to an operand's stored type.
// kAtLeastFloat32: the operand is a state that is kept in at least float32. kBlocksEach: blocks to
// a multiprocessor; more of them make what waits for memory alone slower. kBoundByArithmetic:
// variants of a rule that leave out arithmetic are compiled, too.
struct Float32Config {
  using Arithmetic = float;
  static constexpr bool kLookedUp = false, kBoundByArithmetic = false;
  static constexpr int kBlocksEach = 2;
  static constexpr int kVector = 4, kVectors = 2;
  template <int kOperand, bool kAtLeastFloat32, class F>
  static FRICTION_INLINE void with_operand(DType, F&& f) {
    f(static_cast<float*>(nullptr));
  }
};

struct BFloat16Config {
  using Arithmetic = float;
  static constexpr bool kLookedUp = false, kBoundByArithmetic = false;
  static constexpr int kBlocksEach = 2;
  static constexpr int kVector = 8, kVectors = 1;
  template <int kOperand, bool kAtLeastFloat32, class F>
  static FRICTION_INLINE void with_operand(DType, F&& f) {
    f(static_cast<std::conditional_t<kAtLeastFloat32, float, BFloat16>*>(nullptr));
  }
};

struct Float64Config {
  using Arithmetic = double;
  static constexpr bool kLookedUp = false, kBoundByArithmetic = false;
  static constexpr int kBlocksEach = 2;
  static constexpr int kVector = 2, kVectors = 1;
  template <int kOperand, bool kAtLeastFloat32, class F>
  static FRICTION_INLINE void with_operand(DType dtype, F&& f) {
    if constexpr (kOperand == 1)
      with_stored_type(dtype, std::forward<F>(f));
    else
      f(static_cast<double*>(nullptr));
  }
};

// Dtypes looked up at run time, without divergence (dynamic_dtypes.h). A gradient may have any
// type, a parameter any but float64, with or without a master. A state may also have 8 bits.
struct MixedConfig {
  using Arithmetic = float;
  static constexpr bool kLookedUp = true, kStatesQuantized = false, kBoundByArithmetic = false;
  static constexpr int kBlocksEach = 2;
};

// All states in 8 bits; parameter and gradient looked up, but not float64.
struct QuantizedConfig {
  using Arithmetic = float;
  static constexpr bool kLookedUp = true, kStatesQuantized = true, kBoundByArithmetic = true;
  static constexpr int kBlocksEach = kThreeWithoutSpilling ? 3 : 2;
};

}  // namespace friction::cuda
