// AdamP's projection (arXiv 2006.08217) for a tensor viewed as a matrix of rows, or as one row.
//
//   if |cos(p_row, g_row)| < delta / sqrt(length) for every row:
//     u_row <- u_row - p^_row (p^_row . u_row),   p^ = p / (|p| + eps)
//     decay <- decay * wd_ratio
//   rows (channels) are tried first, then the whole tensor as one row; otherwise no projection
#pragma once

#include "friction_adam.h"

namespace friction {

// A rule whose direction is projected. Such a rule sets kProjects and has a `direction` and these
// settings.
template <class Base>
struct WithProjection : Base {
  static constexpr bool kProjects = true;

  struct Settings : Base::Settings {
    double delta, wd_ratio;
    // The decay of a projected update.
    FRICTION_INLINE double projected_decay() const {
      return 1 - this->lr * this->weight_decay * wd_ratio;
    }
  };
  static constexpr auto kSettings = joined(Base::kSettings, names("delta", "wd_ratio"));
};

struct AdamP : WithProjection<Adam> {
  static constexpr const char* kName = "adamp";
};

struct FrictionAdamP : WithProjection<FrictionAdam> {
  static constexpr const char* kName = "friction_adamp";
};

// The sums over a row that the test needs. The sums of a row's parts add up.
struct RowSums {
  double param_grad = 0, param_param = 0, grad_grad = 0;

  RowSums() = default;
  FRICTION_INLINE RowSums(double param_grad, double param_param, double grad_grad)
      : param_grad(param_grad), param_param(param_param), grad_grad(grad_grad) {}

  FRICTION_INLINE RowSums& operator+=(const RowSums& other) {
    param_grad += other.param_grad;
    param_param += other.param_param;
    grad_grad += other.grad_grad;
    return *this;
  }

  // The sums of the same row with its gradient multiplied by a factor.
  FRICTION_INLINE RowSums of_scaled(double factor) const {
    return {param_grad * factor, param_param, grad_grad * factor * factor};
  }
};

// Clamps each norm to at least eps, as torch.nn.functional.cosine_similarity does. Any NaN gives
// false, so such a tensor is not projected.
FRICTION_INLINE bool nearly_orthogonal(const RowSums& row, double length, double delta,
                                       double eps) {
  const double param_norm = std::sqrt(row.param_param), grad_norm = std::sqrt(row.grad_grad);
  const double cosine = row.param_grad / ((param_norm < eps ? eps : param_norm) *
                                          (grad_norm < eps ? eps : grad_norm));
  return std::fabs(cosine) < delta / std::sqrt(length);
}

// c such that u - c p = u - p^ (p^ . u), given |p|^2 and p . u.
FRICTION_INLINE double projection_coefficient(double param_param, double param_direction,
                                              double eps) {
  const double norm = std::sqrt(param_param) + eps;
  return param_direction / norm / norm;
}

}  // namespace friction
