// What a step on a GPU is told of its gradients in device memory, so that the host never waits:
// their norm, the loss scale, whether to leave the step out.
#pragma once

#include <cmath>

#include "../rules/portable.h"

namespace friction::cuda {

struct GradientScaling {
  const double* squared;    // the squared norm of all gradients as they are; null: not asked for
  const float* grad_scale;  // what they were scaled by; null: 1
  const float* found_inf;   // not 0: some of them are not finite
  bool skip_nonfinite;      // `squared` decides that, too

  FRICTION_INLINE bool may_skip() const { return found_inf != nullptr || skip_nonfinite; }

  // Whether the step changes nothing.
  FRICTION_INLINE bool skip() const {
    if (found_inf != nullptr && *found_inf != 0.0f) return true;
    return skip_nonfinite && squared != nullptr && !std::isfinite(*squared);
  }

  // What gradients are multiplied by: 1 / scale, and what clips their norm to max_norm. A norm that
  // is NaN gives NaN, as torch's clipping does; where there is no limit, nothing does.
  FRICTION_INLINE double factor(double max_norm) const {
    const double scale = grad_scale != nullptr ? double(*grad_scale) : 1.0;
    if (squared == nullptr || !std::isfinite(max_norm)) return 1.0 / scale;
    const double norm = std::sqrt(*squared) / scale;
    const double clip = max_norm / (norm + 1e-6);
    return (clip > 1.0 ? 1.0 : clip) / scale;
  }
};

}  // namespace friction::cuda
