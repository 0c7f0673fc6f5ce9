// The gradient scaling of a step on a GPU: the gradients' norm, the loss scale, and whether to skip
// the step. Device memory holds them, so that the host never waits.
#pragma once

#include <cmath>

#include "../rules/portable.h"

namespace friction::cuda {

struct GradientScaling {
  const double* squared;    // squared norm of all gradients before unscaling; null: not requested
  const float* grad_scale;  // what the loss was scaled by; null: 1
  const float* found_inf;   // not 0: some gradients are not finite; may be null
  bool skip_nonfinite;      // also skip if `squared` is not finite

  FRICTION_INLINE bool may_skip() const { return found_inf != nullptr || skip_nonfinite; }

  FRICTION_INLINE bool skip() const {
    if (found_inf != nullptr && *found_inf != 0.0f) return true;
    return skip_nonfinite && squared != nullptr && !std::isfinite(*squared);
  }

  // The factor of the gradients: 1 / scale, times what clips their norm to max_norm. As in torch's
  // clipping, a NaN norm gives NaN, unless there is no limit.
  FRICTION_INLINE double factor(double max_norm) const {
    const double scale = grad_scale != nullptr ? double(*grad_scale) : 1.0;
    if (squared == nullptr || !std::isfinite(max_norm)) return 1.0 / scale;
    const double norm = std::sqrt(*squared) / scale;
    const double clip = max_norm / (norm + 1e-6);
    return (clip > 1.0 ? 1.0 : clip) / scale;
  }
};

}  // namespace friction::cuda
