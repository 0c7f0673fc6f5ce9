// Adam (arXiv 1412.6980), and AdamW (arXiv 1711.05101), whose decay is decoupled.
//
//   m_t = b1 m_{t-1} + (1-b1) g_t                 v_t = b2 v_{t-1} + (1-b2) g_t^2
//   p_t = p_{t-1} (1 - lr decay) - lr m^ / (sqrt(v^) + eps)
//   m^ = m_t / (1 - b1^t),                        v^ = v_t / (1 - b2^t)
#pragma once

#include "portable.h"
#include "states.h"

namespace friction {

struct Adam {
  static constexpr const char* kName = "adam";
  enum Operand { kParam, kGrad, kExpAvg, kExpAvgSq, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("adam");
  static constexpr bool kProjects = false;
  static constexpr bool kCountsSteps = true;
  static constexpr bool kHasStatistic = false;

  // A parameter group's settings.
  struct Settings {
    double lr, beta1, beta2, eps, weight_decay;
    double decoupled, maximize, nesterov;  // 0 or 1
    // For the drivers: the factor of the gradients (clipping, loss scale), the norm that a GPU
    // clips them to, and the seed of stochastic rounding.
    double grad_factor, max_norm, seed;
  };
  static constexpr auto kSettings =
      names("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled", "maximize", "nesterov",
            "grad_factor", "max_norm", "seed");

  // Options of a whole group that get a loop of their own, as bits. kGeneral: maximize, coupled
  // decay, nesterov or scaled gradients; without it, their arithmetic is left out.
  enum Variant { kGeneral = 1, kVariants };
  // Each variant is contained in one of these, which suffice where arithmetic costs nothing.
  static constexpr int kFullVariants[] = {kGeneral};
  static FRICTION_INLINE int variant(const Settings& s) {
    const bool coupled = s.decoupled == 0 && s.weight_decay != 0;
    return s.maximize != 0 || coupled || s.nesterov != 0 || s.grad_factor != 1 ? kGeneral : 0;
  }

  // The settings at step t, in the arithmetic type. Constant factors are merged, as the paper
  // proposes. With c = sqrt(1 - b2^t),
  //   lr m^ / (sqrt(v^) + eps) = (lr c / (1 - b1^t)) m / (sqrt(v) + c eps).
  template <class T>
  struct Scalars {
    T grad_scale;     // factor of the gradient, negative if the objective is maximized
    T coupled_decay;  // multiple of the parameter that is added to the gradient
    T decay;          // 1 - lr * decoupled weight decay
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T m_coefficient, grad_coefficient;  // lr c / (1 - b1^t); nesterov splits it between m and g
    T c_eps;                            // c eps

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double step) {
      const double c = std::sqrt(1 - integer_power(s.beta2, step));
      const double factor = s.lr * c / (1 - integer_power(s.beta1, step));
      grad_scale = T(s.maximize != 0 ? -s.grad_factor : s.grad_factor);
      coupled_decay = T(s.decoupled != 0 ? 0 : s.weight_decay);
      decay = T(s.decoupled != 0 ? 1 - s.lr * s.weight_decay : 1);
      beta1 = T(s.beta1), one_minus_beta1 = T(1 - s.beta1);
      beta2 = T(s.beta2), one_minus_beta2 = T(1 - s.beta2);
      m_coefficient = T(factor * (s.nesterov != 0 ? s.beta1 : 1));
      grad_coefficient = T(factor * (s.nesterov != 0 ? 1 - s.beta1 : 0));
      c_eps = T(c * s.eps);
    }
  };

  // The following also serve rules with more operands and scalars, after these.

  // g_t: scaled, negated if the objective is maximized, with coupled decay.
  template <int kVariant, class T, int kCount>
  static FRICTION_INLINE T gradient(const T (&x)[kCount], const Scalars<T>& s) {
    T g = x[kGrad];
    if constexpr (kVariant & kGeneral) {
      g = s.grad_scale * g;
      g = s.coupled_decay != T(0) ? g + s.coupled_decay * x[kParam] : g;
    }
    return g;
  }

  // v_t
  template <class T, int kCount>
  static FRICTION_INLINE T second_moment(const T (&x)[kCount], T g, const Scalars<T>& s) {
    return s.beta2 * x[kExpAvgSq] + s.one_minus_beta2 * g * g;
  }

  // Advances the moments to v_t and m_t; returns lr m^ / (sqrt(v^) + eps) divided by `divisor`.
  template <int kVariant, class T, int kCount>
  static FRICTION_INLINE T advance(T (&x)[kCount], T g, T v, T divisor, const Scalars<T>& s) {
    const T m = s.beta1 * x[kExpAvg] + s.one_minus_beta1 * g;
    x[kExpAvg] = m;
    x[kExpAvgSq] = v;
    T numerator = s.m_coefficient * m;
    if constexpr (kVariant & kGeneral) {
      numerator = s.grad_coefficient != T(0) ? numerator + s.grad_coefficient * g : numerator;
    }
    return numerator / (divisor * (std::sqrt(v) + s.c_eps));
  }

  // Advances the moments of one element; returns lr m^ / (sqrt(v^) + eps).
  template <int kVariant, class T>
  static FRICTION_INLINE T direction(T (&x)[kOperands], const Scalars<T>& s) {
    const T g = gradient<kVariant>(x, s);
    return advance<kVariant>(x, g, second_moment(x, g, s), T(1), s);
  }

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>& s) {
    const T param = x[kParam];
    x[kParam] = param * s.decay - direction<kVariant>(x, s);
  }
};

}  // namespace friction
