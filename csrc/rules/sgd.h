// SGD with momentum, as torch.optim.SGD has it, and RSGDM (arXiv 2409.15314).
//
//   m_t = b m_{t-1} + w g_t
//   p_t = p_{t-1} (1 - lr decay) - lr m_t               or, with Nesterov momentum,
//   p_t = p_{t-1} (1 - lr decay) - lr (w g_t + b m_t)
//
// SGD has w = 1. RSGDM is Nesterov momentum with w = 1 - b:
//
//   m_t = b m_{t-1} + (1-b) g_t      z_t = b z_{t-1} + (1-b) (g_t - g_{t-1})
//   p_t = p_{t-1} - lr (m_t + b z_t)
//
// where m_0 = z_0 = g_0 = 0 implies z_t = m_t - m_{t-1}, so that neither z nor g_{t-1} is stored:
//   m_t + b z_t = m_t - b m_{t-1} + b m_t = (1-b) g_t + b m_t.
#pragma once

#include "portable.h"
#include "states.h"

namespace friction {

struct Sgd {
  static constexpr const char* kName = "sgd";
  enum Operand { kParam, kGrad, kMomentum, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("sgd");
  static constexpr bool kProjects = false;
  static constexpr bool kCountsSteps = true;  // for stochastic rounding
  static constexpr bool kHasStatistic = false;

  struct Settings {
    double lr, momentum, weight_decay;
    double averages, nesterov;           // 0 or 1; averages: w = 1 - b
    double decoupled, maximize;          // 0 or 1
    double grad_factor, max_norm, seed;  // see Adam
  };
  static constexpr auto kSettings =
      names("lr", "momentum", "weight_decay", "averages", "nesterov", "decoupled", "maximize",
            "grad_factor", "max_norm", "seed");

  enum Variant { kOnly, kVariants };
  static constexpr int kFullVariants[] = {kOnly};
  static FRICTION_INLINE int variant(const Settings&) { return kOnly; }

  template <class T>
  struct Scalars {
    T grad_scale, coupled_decay, decay, lr;  // grad_scale: see Adam
    T momentum, grad_weight, nesterov;

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double /*step*/) {
      grad_scale = T(s.maximize != 0 ? -s.grad_factor : s.grad_factor);
      coupled_decay = T(s.decoupled != 0 ? 0 : s.weight_decay);
      decay = T(s.decoupled != 0 ? 1 - s.lr * s.weight_decay : 1);
      lr = T(s.lr);
      momentum = T(s.momentum), grad_weight = T(s.averages != 0 ? 1 - s.momentum : 1);
      nesterov = T(s.nesterov);
    }
  };

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>& s) {
    T g = s.grad_scale * x[kGrad];
    g = s.coupled_decay != T(0) ? g + s.coupled_decay * x[kParam] : g;
    g = s.grad_weight * g;
    const T m = s.momentum * x[kMomentum] + g;
    x[kMomentum] = m;
    x[kParam] = x[kParam] * s.decay - s.lr * (s.nesterov != T(0) ? g + s.momentum * m : m);
  }
};

}  // namespace friction
