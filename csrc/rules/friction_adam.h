// Friction Adam: sigSignGrad, tanhSignGrad and their AdamW forms (arXiv 2408.11839).
//
//   m_t = b1 m_{t-1} + (1-b1) g_t                 v_t = b2 v_{t-1} + (1-b2) g_t^2
//   S_t = sigma(b3 x) or tanh(b3 x) + 1,          x = g_{t-1} g_t               (published)
//                                                 x = g_{t-1} g_t / (v^ + eps)  (ours: normalized)
//   p_t = p_{t-1} (1 - lr decay) - lr S_t m^ / (sqrt(v^) + eps)
//
// One formula covers both frictions, because tanh(y) + 1 = 2 sigma(2 y). The right-hand side also
// keeps its relative accuracy as S nears 0, where the left-hand side cancels. With e = exp(-y),
// sigma(y) = 1 / (1 + e), and its division is merged with the update's.
#pragma once

#include "portable.h"
#include "states.h"

namespace friction {

struct FrictionAdam {
  static constexpr const char* kName = "friction_adam";
  enum Operand { kParam, kGrad, kExpAvg, kExpAvgSq, kPrevGrad, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("friction_adam");
  static constexpr bool kProjects = false;
  static constexpr bool kCountsSteps = true;
  static constexpr bool kHasStatistic = true;  // the friction

  // A parameter group's settings.
  struct Settings {
    double lr, beta1, beta2, beta3, eps, weight_decay;
    double tanh, normalized, decoupled, maximize, nesterov;  // 0 or 1
    // For the drivers: the factor of the gradients (clipping, loss scale), the norm that a GPU
    // clips them to, and the seed of stochastic rounding.
    double grad_factor, max_norm, seed;
  };
  static constexpr const char* kSettings[] = {
      "lr",         "beta1",     "beta2",    "beta3",    "eps",         "weight_decay", "tanh",
      "normalized", "decoupled", "maximize", "nesterov", "grad_factor", "max_norm",     "seed"};

  // Options of a whole group that get a loop of their own, as bits. kGeneral: maximize, coupled
  // decay, nesterov or scaled gradients; without it, their arithmetic is left out.
  enum Variant { kNormalized = 1, kGeneral = 2, kVariants = 4 };
  // Each variant is contained in one of these, which suffice where arithmetic costs nothing.
  static constexpr int kFullVariants[] = {kGeneral, kNormalized | kGeneral};
  static FRICTION_INLINE int variant(const Settings& s) {
    const bool coupled = s.decoupled == 0 && s.weight_decay != 0;
    return (s.normalized != 0 ? kNormalized : 0) |
           (s.maximize != 0 || coupled || s.nesterov != 0 || s.grad_factor != 1 ? kGeneral : 0);
  }

  // The settings at step t, in the arithmetic type. Constant factors are merged. With
  // c = sqrt(1 - b2^t),
  //   lr S m^ / (sqrt(v^) + eps) = (lr scale c / (1 - b1^t)) m / ((1 + e) (sqrt(v) + c eps)).
  template <class T>
  struct Scalars {
    T grad_scale;     // factor of the gradient, negative if the objective is maximized
    T coupled_decay;  // multiple of the parameter that is added to the gradient
    T decay;          // 1 - lr * decoupled weight decay
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T m_coefficient,
        grad_coefficient;  // lr scale c / (1 - b1^t); nesterov splits it between m and g
    T c_eps;               // c eps
    T c_squared_eps;       // c^2 eps
    T exponent;  // exp(-y) = 2^(exponent agreement): -b3 log2(e) x / agreement, doubled for tanh
    T scale;     // S = scale / (1 + e): 1, or 2 for tanh

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double step) {
      const double c_squared = 1 - integer_power(s.beta2, step), c = std::sqrt(c_squared);
      const double log2_e = 1.44269504088896340736;
      const double friction_scale = s.tanh != 0 ? 2 : 1;
      const double of_agreement = s.normalized != 0 ? c_squared / (1 - s.beta2) : 1;
      const double factor = s.lr * friction_scale * c / (1 - integer_power(s.beta1, step));
      grad_scale = T(s.maximize != 0 ? -s.grad_factor : s.grad_factor);
      coupled_decay = T(s.decoupled != 0 ? 0 : s.weight_decay);
      decay = T(s.decoupled != 0 ? 1 - s.lr * s.weight_decay : 1);
      beta1 = T(s.beta1), one_minus_beta1 = T(1 - s.beta1);
      beta2 = T(s.beta2), one_minus_beta2 = T(1 - s.beta2);
      m_coefficient = T(factor * (s.nesterov != 0 ? s.beta1 : 1));
      grad_coefficient = T(factor * (s.nesterov != 0 ? 1 - s.beta1 : 0));
      c_eps = T(c * s.eps), c_squared_eps = T(c_squared * s.eps);
      exponent = T(-friction_scale * s.beta3 * log2_e * of_agreement);
      scale = T(friction_scale);
    }
  };

  // g_t: scaled, negated if the objective is maximized, with coupled decay.
  template <int kVariant, class T>
  static FRICTION_INLINE T gradient(const T (&x)[kOperands], const Scalars<T>& s) {
    T g = x[kGrad];
    if constexpr (kVariant & kGeneral) {
      g = s.grad_scale * g;
      g = s.coupled_decay != T(0) ? g + s.coupled_decay * x[kParam] : g;
    }
    return g;
  }

  // v_t
  template <class T>
  static FRICTION_INLINE T second_moment(const T (&x)[kOperands], T g, const Scalars<T>& s) {
    return s.beta2 * x[kExpAvgSq] + s.one_minus_beta2 * g * g;
  }

  // 1 + exp(-y), where S = scale / (1 + exp(-y)).
  template <int kVariant, class T>
  static FRICTION_INLINE T one_plus_exp(const T (&x)[kOperands], T g, T v, const Scalars<T>& s) {
    // Normalized: scaled by (1-b2) above and c^2 below, so that neither overflows before v does.
    T agreement = x[kPrevGrad] * g;
    if constexpr (kVariant & kNormalized)
      agreement = s.one_minus_beta2 * g * x[kPrevGrad] / (v + s.c_squared_eps);
    T exponent = s.exponent * agreement;
    exponent = exponent == exponent ? exponent : T(0);  // 0 * inf, inf / inf: no friction
    return T(1) + clamped_exp2(exponent);
  }

  // Advances the moments and prev_grad of one element; returns lr S m^ / (sqrt(v^) + eps).
  template <int kVariant, class T>
  static FRICTION_INLINE T direction(T (&x)[kOperands], const Scalars<T>& s) {
    const T g = gradient<kVariant>(x, s);
    const T m = s.beta1 * x[kExpAvg] + s.one_minus_beta1 * g;
    const T v = second_moment(x, g, s);
    const T denominator = one_plus_exp<kVariant>(x, g, v, s) * (std::sqrt(v) + s.c_eps);
    x[kExpAvg] = m;
    x[kExpAvgSq] = v;
    x[kPrevGrad] = g;
    T numerator = s.m_coefficient * m;
    if constexpr (kVariant & kGeneral) {
      numerator = s.grad_coefficient != T(0) ? numerator + s.grad_coefficient * g : numerator;
    }
    return numerator / denominator;
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
