// RSGDM: momentum with a differential correction (arXiv 2409.15314), in its one-buffer form.
//
//   m_t = b m_{t-1} + (1-b) g_t      z_t = b z_{t-1} + (1-b) (g_t - g_{t-1})
//   p_t = p_{t-1} - lr (m_t + b z_t)
//
// m_0 = z_0 = g_0 = 0 implies z_t = m_t - m_{t-1}, so neither z nor g_{t-1} needs to be stored:
//   m_t + b z_t = b^2 m_{t-1} + (1 - b^2) g_t.
#pragma once

#include "portable.h"
#include "states.h"

namespace friction {

struct Rsgdm {
  static constexpr const char* kName = "rsgdm";
  enum Operand { kParam, kGrad, kMomentum, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("rsgdm");
  static constexpr bool kProjects = false;
  static constexpr bool kCountsSteps = true;  // for stochastic rounding
  static constexpr bool kHasStatistic = false;

  struct Settings {
    double lr, momentum, weight_decay;
    double decoupled, maximize;          // 0 or 1
    double grad_factor, max_norm, seed;  // see FrictionAdam
  };
  static constexpr const char* kSettings[] = {
      "lr", "momentum", "weight_decay", "decoupled", "maximize", "grad_factor", "max_norm", "seed"};

  enum Variant { kOnly, kVariants };
  static constexpr int kFullVariants[] = {kOnly};
  static FRICTION_INLINE int variant(const Settings&) { return kOnly; }

  template <class T>
  struct Scalars {
    T grad_scale, coupled_decay, decay, lr;  // grad_scale: see FrictionAdam
    T momentum, one_minus_momentum, momentum_squared, one_minus_momentum_squared;

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double /*step*/) {
      grad_scale = T(s.maximize != 0 ? -s.grad_factor : s.grad_factor);
      coupled_decay = T(s.decoupled != 0 ? 0 : s.weight_decay);
      decay = T(s.decoupled != 0 ? 1 - s.lr * s.weight_decay : 1);
      lr = T(s.lr);
      momentum = T(s.momentum), one_minus_momentum = T(1 - s.momentum);
      momentum_squared = T(s.momentum * s.momentum);
      one_minus_momentum_squared = T(1 - s.momentum * s.momentum);
    }
  };

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>& s) {
    T g = s.grad_scale * x[kGrad];
    g = s.coupled_decay != T(0) ? g + s.coupled_decay * x[kParam] : g;
    const T m = x[kMomentum];
    x[kMomentum] = s.momentum * m + s.one_minus_momentum * g;
    x[kParam] =
        x[kParam] * s.decay - s.lr * (s.momentum_squared * m + s.one_minus_momentum_squared * g);
  }
};

}  // namespace friction
