// Friction Adam: Adam times a friction of consecutive gradients, S_t.
//
//   p_t = p_{t-1} (1 - lr decay) - lr S_t m^ / (sqrt(v^) + eps)
//   S_t = sigma(b3 x) or tanh(b3 x) + 1,  x = g_{t-1} g_t               (arXiv 2408.11839)
//                                         x = g_{t-1} g_t / (v^ + eps)  (ours: normalized)
//   S_t = sigma(b3 x),                    x = |g_{t-1} - g_t|           (diffGrad, arXiv
//   1909.11015)
//
// One formula covers all of them, because tanh(y) + 1 = 2 sigma(2 y). The right-hand side also
// keeps its relative accuracy as S nears 0, where the left-hand side cancels. With e = exp(-y),
// sigma(y) = 1 / (1 + e), and its division is merged with the update's.
#pragma once

#include "adam.h"

namespace friction {

struct FrictionAdam : Adam {
  static constexpr const char* kName = "friction_adam";
  enum Operand { kParam, kGrad, kExpAvg, kExpAvgSq, kPrevGrad, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("friction_adam");
  static constexpr bool kHasStatistic = true;  // the friction

  struct Settings : Adam::Settings {
    double beta3;
    double tanh, normalized, difference;  // 0 or 1
  };
  static constexpr auto kSettings =
      joined(Adam::kSettings, names("beta3", "tanh", "normalized", "difference"));

  enum Variant { kGeneral = Adam::kGeneral, kNormalized = 2, kVariants = 4 };
  static constexpr int kFullVariants[] = {kGeneral, kNormalized | kGeneral};
  static FRICTION_INLINE int variant(const Settings& s) {
    return Adam::variant(s) | (s.difference != 0 ? kGeneral : 0) |
           (s.normalized != 0 ? kNormalized : 0);
  }

  // With c = sqrt(1 - b2^t),
  //   lr S m^ / (sqrt(v^) + eps) = (lr scale c / (1 - b1^t)) m / ((1 + e) (sqrt(v) + c eps)).
  template <class T>
  struct Scalars : Adam::Scalars<T> {
    T c_squared_eps;  // c^2 eps
    T exponent;    // exp(-y) = 2^(exponent agreement): -b3 log2(e) x / agreement, doubled for tanh
    T scale;       // S = scale / (1 + e): 1, or 2 for tanh
    T difference;  // 0 or 1

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double step) : Adam::Scalars<T>(s, step) {
      const double c_squared = 1 - integer_power(s.beta2, step);
      const double log2_e = 1.44269504088896340736;
      const double friction_scale = s.tanh != 0 ? 2 : 1;
      const double of_agreement = s.normalized != 0 ? c_squared / (1 - s.beta2) : 1;
      scale = T(friction_scale);
      this->m_coefficient *= scale, this->grad_coefficient *= scale;
      c_squared_eps = T(c_squared * s.eps);
      exponent = T(-friction_scale * s.beta3 * log2_e * of_agreement);
      difference = T(s.difference);
    }
  };

  // 1 + exp(-y), where S = scale / (1 + exp(-y)).
  template <int kVariant, class T>
  static FRICTION_INLINE T one_plus_exp(const T (&x)[kOperands], T g, T v, const Scalars<T>& s) {
    T agreement = x[kPrevGrad] * g;
    // Normalized: scaled by (1-b2) above and c^2 below, so that neither overflows before v does.
    if constexpr (kVariant & kNormalized)
      agreement = s.one_minus_beta2 * g * x[kPrevGrad] / (v + s.c_squared_eps);
    else if constexpr (kVariant & kGeneral)
      agreement = s.difference != T(0) ? std::fabs(x[kPrevGrad] - g) : agreement;
    T exponent = s.exponent * agreement;
    exponent = exponent == exponent ? exponent : T(0);  // 0 * inf, inf / inf: no friction
    return T(1) + clamped_exp2(exponent);
  }

  // Advances the moments and prev_grad of one element; returns lr S m^ / (sqrt(v^) + eps).
  template <int kVariant, class T>
  static FRICTION_INLINE T direction(T (&x)[kOperands], const Scalars<T>& s) {
    const T g = gradient<kVariant>(x, s);
    const T v = second_moment(x, g, s);
    const T divisor = one_plus_exp<kVariant>(x, g, v, s);
    x[kPrevGrad] = g;
    return advance<kVariant>(x, g, v, divisor, s);
  }

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>& s) {
    const T param = x[kParam];
    x[kParam] = param * s.decay - direction<kVariant>(x, s);
  }

  // S minus its value without friction, at the step that `update` would make.
  template <int kVariant, class T>
  static FRICTION_INLINE T statistic(const T (&x)[kOperands], const Scalars<T>& s) {
    const T g = gradient<kVariant>(x, s);
    const T friction = s.scale / one_plus_exp<kVariant>(x, g, second_moment(x, g, s), s);
    return g == g ? friction - T(0.5) * s.scale : g;
  }
};

}  // namespace friction
