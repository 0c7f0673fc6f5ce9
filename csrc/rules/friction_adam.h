// Friction Adam: sigSignGrad, tanhSignGrad and their AdamW forms (arXiv 2408.11839).
//
//   m_t = b1 m_{t-1} + (1-b1) g_t                 v_t = b2 v_{t-1} + (1-b2) g_t^2
//   S_t = sigma(b3 x) or tanh(b3 x) + 1,          x = g_{t-1} g_t               (published)
//                                                 x = g_{t-1} g_t / (v^ + eps)  (ours: normalized)
//   p_t = p_{t-1} (1 - lr decay) - lr S_t m^ / (sqrt(v^) + eps)
//
// One formula serves both frictions, because tanh(y) + 1 = 2 sigma(2 y); the right-hand form also
// keeps its relative accuracy as S nears 0, where the left-hand one cancels.
#pragma once

#include "portable.h"

namespace friction {

struct FrictionAdam {
  static constexpr const char* kName = "friction_adam";
  enum List { kParam, kGrad, kExpAvg, kExpAvgSq, kPrevGrad, kLists };
  static constexpr bool kWrites[kLists] = {true, false, true, true, true};
  static constexpr const char* kStateKeys[] = {"exp_avg", "exp_avg_sq", "prev_grad"};
  static constexpr bool kCountsSteps = true;
  static constexpr bool kObserves = true;  // the friction, for statistics

  // A parameter group's settings. delta and wd_ratio are read by the projection (adamp.h) alone.
  struct Settings {
    double lr, beta1, beta2, beta3, eps, weight_decay, delta, wd_ratio;
    double tanh, normalized, decoupled, maximize, nesterov;  // 0 or 1
  };
  static constexpr const char* kSettings[] = {
      "lr",      "beta1", "beta2",      "beta3",     "eps",      "weight_decay", "delta",
      "wd_ratio", "tanh",  "normalized", "decoupled", "maximize", "nesterov"};

  // Choices that hold for a whole group and get a loop of their own.
  enum Variant { kProduct, kNormalized, kVariants };
  static int variant(const Settings& s) { return s.normalized != 0 ? kNormalized : kProduct; }

  // The settings at step t, in the type the arithmetic runs in.
  template <class T>
  struct Scalars {
    T sign;                           // -1 where the objective is maximized
    T coupled_decay;                  // times the parameter, added to the gradient
    T decay;                          // 1 - lr * decoupled weight decay
    T lr, eps;
    T beta1, one_minus_beta1, beta2, one_minus_beta2;
    T m_hat;                          // 1 / (1 - beta1^t)
    T v_hat, sqrt_v_hat;              // 1 / (1 - beta2^t) and its root
    T of_m, of_grad;                  // numerator of_m m + of_grad g: 1, 0, or b1, 1 - b1 for nesterov
    T friction_scale, friction_beta;  // S = scale sigma(beta x): 1, b3, or 2, 2 b3 for tanh

    Scalars(const Settings& s, double step) {
      const double correction1 = 1 - std::pow(s.beta1, step);
      const double correction2 = 1 - std::pow(s.beta2, step);
      sign = T(s.maximize != 0 ? -1 : 1);
      coupled_decay = T(s.decoupled != 0 ? 0 : s.weight_decay);
      decay = T(s.decoupled != 0 ? 1 - s.lr * s.weight_decay : 1);
      lr = T(s.lr), eps = T(s.eps);
      beta1 = T(s.beta1), one_minus_beta1 = T(1 - s.beta1);
      beta2 = T(s.beta2), one_minus_beta2 = T(1 - s.beta2);
      m_hat = T(1 / correction1);
      v_hat = T(1 / correction2), sqrt_v_hat = T(1 / std::sqrt(correction2));
      of_m = T(s.nesterov != 0 ? s.beta1 : 1), of_grad = T(s.nesterov != 0 ? 1 - s.beta1 : 0);
      friction_scale = T(s.tanh != 0 ? 2 : 1);
      friction_beta = T(s.tanh != 0 ? 2 * s.beta3 : s.beta3);
    }
  };

  // Advances the moments and prev_grad of one element; returns S m^ / (sqrt(v^) + eps).
  // observed: S less its value without friction.
  template <int kVariant, class T>
  static FRICTION_INLINE T direction(T (&x)[kLists], const Scalars<T>& s, T& observed) {
    T g = s.sign * x[kGrad];
    g = s.coupled_decay != T(0) ? g + s.coupled_decay * x[kParam] : g;
    const T m = s.beta1 * x[kExpAvg] + s.one_minus_beta1 * g;
    const T v = s.beta2 * x[kExpAvgSq] + s.one_minus_beta2 * g * g;
    T agreement = x[kPrevGrad] * g;
    if constexpr (kVariant == kNormalized) agreement = agreement / (v * s.v_hat + s.eps);
    const T share = sigmoid(s.friction_beta * agreement);
    x[kExpAvg] = m;
    x[kExpAvgSq] = v;
    x[kPrevGrad] = g;
    observed = s.friction_scale * (share - T(0.5));
    return s.friction_scale * share * ((s.of_m * m + s.of_grad * g) * s.m_hat) /
           (std::sqrt(v) * s.sqrt_v_hat + s.eps);
  }

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kLists], const Scalars<T>& s, T& observed) {
    const T param = x[kParam];
    x[kParam] = param * s.decay - s.lr * direction<kVariant>(x, s, observed);
  }
};

}  // namespace friction
