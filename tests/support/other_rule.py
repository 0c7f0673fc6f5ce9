"""A rule whose states have names of their own: what tests add to a copy of the project, file by file."""

STATES = """
STATE(other, mean_square, square)
STATE(other, last, copy)
"""

HEADER = """
#pragma once

#include "portable.h"
#include "states.h"

namespace friction {

struct Other {
  static constexpr const char* kName = "other";
  enum Operand { kParam, kGrad, kMeanSquare, kLast, kOperands };
  static constexpr auto kStates = states_of<kOperands - 2>("other");
  static constexpr bool kCountsSteps = true;
  static constexpr bool kProjects = false, kHasStatistic = false;

  struct Settings {
    double lr, grad_factor, max_norm, seed;
  };
  static constexpr auto kSettings = names("lr", "grad_factor", "max_norm", "seed");

  enum Variant { kOnly, kVariants };
  static constexpr int kFullVariants[] = {kOnly};
  static FRICTION_INLINE int variant(const Settings&) { return kOnly; }

  template <class T>
  struct Scalars {
    T lr, grad_scale;

    Scalars() = default;
    FRICTION_INLINE Scalars(const Settings& s, double /*step*/)
        : lr(T(s.lr)), grad_scale(T(s.grad_factor)) {}
  };

  template <int kVariant, class T>
  static FRICTION_INLINE void update(T (&x)[kOperands], const Scalars<T>& s) {
    const T g = s.grad_scale * x[kGrad];
    x[kMeanSquare] = T(0.875) * x[kMeanSquare] + T(0.125) * g * g;
    x[kParam] = x[kParam] - s.lr * (g + T(0.5) * x[kLast]) / (std::sqrt(x[kMeanSquare]) + T(0.01));
    x[kLast] = g;
  }
};

}  // namespace friction
"""

OPTIMIZER = """
from friction_kernels.optim import checks, options
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.rule import Rule


class OtherRule(Rule):
    name = states_of = "other"

    def check_group(self, group):
        checks.check_number("lr", group["lr"])

    def settings(self, group):
        return {"lr": group["lr"]}

    def update(self, x, group):
        v, last = x.states["mean_square"], x.states["last"]
        v.mul_(0.875).add_(0.125 * x.grad * x.grad)
        x.param.sub_(group["lr"] * (x.grad + 0.5 * last) / (v.sqrt() + 0.01))
        last.copy_(x.grad)


class Other(PlannedOptimizer):
    rule = OtherRule()

    def __init__(self, params, state_dtype=None, backend="auto"):
        how = {"capturable": False, "backend": backend, **options.DEFAULTS}
        super().__init__(params, {"lr": 0.01, **how, "state_dtype": state_dtype})
"""

CHECK = """
import torch
from friction_kernels.optim.other import Other
from friction_kernels.optim.blockwise import quantize, dequantize

torch.manual_seed(0)
scales = torch.logspace(-1.6, 0, 1000)[torch.randperm(1000)]
start, gradients = torch.randn(1000), scales * torch.randn(20, 1000)
found = {}
for backend in ("native", "reference"):
    for dtype in (None, "8bit"):
        param = start.clone().requires_grad_()
        opt = Other([param], state_dtype=dtype, backend=backend)
        for gradient in gradients:
            param.grad = gradient.clone()
            opt.step()
        found[backend, dtype] = param.detach(), opt
    wide, kept = found[backend, None], found[backend, "8bit"]
    state, numbers = (each.state_dict()["state"][0] for each in (wide[1], kept[1]))
    assert all(value.dtype == torch.uint8 for value in (opt.state[param][k] for k in state if k != "step"))
    # The unsigned map has twice the octaves: small squares keep their size.
    torch.testing.assert_close(numbers["mean_square"], state["mean_square"], rtol=0.25, atol=1e-5)
    # What is copied is rounded to nearest.
    assert torch.equal(numbers["last"], dequantize(quantize(gradients[-1], signed=True), 1000, signed=True))
    torch.testing.assert_close(kept[0], wide[0], rtol=0.05, atol=0.02)
    # And what is copied may be missing.
    saved = wide[1].state_dict()
    del saved["state"][0]["last"]
    again = Other([start.clone().requires_grad_()])
    again.load_state_dict(saved)
    again.param_groups[0]["params"][0].grad = gradients[0].clone()
    again.step()
    del saved["state"][0]["mean_square"]
    try:
        again.load_state_dict(saved)
    except ValueError as error:
        assert "no 'mean_square'" in str(error)
    else:
        raise AssertionError("an average was missing, and nobody minded")
torch.testing.assert_close(found["native", "8bit"][0], found["reference", "8bit"][0], rtol=0, atol=2e-3)
torch.testing.assert_close(found["native", None][0], found["reference", None][0], rtol=1e-5, atol=1e-6)
"""
