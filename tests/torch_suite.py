"""torch's own tests of optimizers over every class of this library, on the CPU.

usage: python tests/torch_suite.py UPSTREAM [part of a test's name ...]

UPSTREAM is PyTorch's source tree of v2.6.0, whose test/test_optim.py is run: a checkout of that tag, or what
`apt-get source pytorch` unpacks on Debian 13. It is not part of this project. TestOptimRenewed's tests run as
they are, but for two declared deviations (see DEVIATIONS).
"""

import os
import sys
import types
import unittest
from collections import Counter
from pathlib import Path

os.environ.setdefault("PYTORCH_TESTING_DEVICE_ONLY_FOR", "cpu")

import torch
from torch.testing._internal import common_optimizers
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from friction_kernels import OPTIMIZERS

TAG = "v2.6.0"
DEVIATIONS = {
    # Gradients of zero leave parameters where they are, but for classes whose default weight_decay is not 0:
    # upstream knows AdamW by its name.
    'optim_cls.__name__ == "AdamW"': 'optim_cls([param]).defaults["weight_decay"] > 0',
    # A complex vector is a vector to AdamP, and upstream's view of it as pairs of reals a matrix, whose rows
    # are projected. Its complex matrices stay.
    "torch.randn(10, device=device, dtype=dtype, requires_grad=True),\n"
    "                torch.randn(\n"
    "                    10, 5, device=device, dtype=torch.float32": (
        'torch.randn(*((10, 3) if optim_cls.__name__.endswith("AdamP") else (10,)), '
        "device=device, dtype=dtype, requires_grad=True),\n"
        "                torch.randn(\n"
        "                    10, 5, device=device, dtype=torch.float32"
    ),
}
# What upstream removes from a state_dict to see that an older one loads.
OPTIONAL = (
    *("backend", "beta3", "capturable", "dampening", "decoupled_weight_decay", "delta"),
    *("friction_input", "master", "max_grad_norm", "maximize", "nesterov", "rounding", "seed"),
    *("skip_nonfinite", "state_dtype", "wd_ratio"),
)


# What optimizers are constructed with.


def rate(*shape):
    """A tensor of its own for each input: schedulers write into it."""
    return torch.full(shape, 1e-3)


def every_class():
    return [
        {},
        {"lr": 1e-2},
        {"lr": rate()},
        {"lr": rate(1)},
        {"lr": rate(1, 1)},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"max_grad_norm": 1.0},
        {"max_grad_norm": float("inf"), "skip_nonfinite": True},
        {"backend": "native"},
        {"backend": "reference"},
        {"backend": "reference", "lr": rate(), "max_grad_norm": 1.0},
        {"capturable": True},
        {"capturable": True, "lr": rate()},
        {"master": "split"},  # these two change nothing in float32
        {"rounding": "stochastic", "seed": 3},
        {"state_dtype": "8bit"},
        {"state_dtype": "fp32"},
    ]


def adam():
    return [
        {"betas": (torch.full((1, 1), 0.9), torch.tensor(0.99)), "eps": torch.tensor(1e-8)},
        {"betas": (0.9, torch.tensor(0.99)), "lr": torch.tensor(1e-3)},
        {"betas": [0.8, 0.99]},
    ]


def measured():
    return [{"beta3": torch.tensor(1.0)}, {"beta3": 0.5, "weight_decay": 0.1}]


def friction():
    return [
        {"friction_input": "normalized"},
        {"friction_input": "normalized", "beta3": 0.5, "weight_decay": 0.1},
        {"friction_input": "normalized", "maximize": True},
        {"friction_input": "normalized", "backend": "reference"},
    ]


def adamp():
    return [
        {"nesterov": True},
        {"delta": 0.5, "wd_ratio": 0.5, "weight_decay": 0.1},
        {"delta": torch.tensor(0.1), "wd_ratio": torch.tensor(0.1)},
    ]


def rsgdm():
    return [
        {"momentum": 0.5, "lr": 1e-2},
        {"momentum": 0.0, "lr": 1e-2},
        {"momentum": torch.tensor(0.9)},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ]


def sgd():
    return [
        {"momentum": 0.9, "lr": 1e-2},
        {"momentum": torch.tensor(0.9), "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ]


def few_bits():
    return [{"state_dtype": "bf16"}, {"state_dtype": "8bit"}]


def inputs(*options_of):
    """As upstream asks for them: a function of device and type that makes them anew."""

    def make(device, dtype=None):
        found = [options for each in options_of for options in each()]
        return [OptimizerInput(params=None, kwargs=each, desc=str(each)) for each in found]

    return make


# What must be refused: options, error, its words.

REFUSED = [
    ({"lr": -1e-2}, ValueError, "lr must be"),
    ({"lr": float("nan")}, ValueError, "lr must be"),
    ({"lr": "0.1"}, TypeError, "lr must be"),
    ({"weight_decay": -1}, ValueError, "weight_decay must be"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be"),
    ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm must be"),
    ({"maximize": "yes"}, ValueError, "maximize must be"),
    ({"backend": "cuda"}, ValueError, "backend must be"),
    ({"state_dtype": "fp8"}, ValueError, "state_dtype must be"),
    ({"master": "fp16"}, ValueError, "master must be"),
    ({"rounding": "up"}, ValueError, "rounding must be"),
    ({"seed": -1}, ValueError, "seed must be"),
    ({"rounding": "stochastic", "master": "split"}, ValueError, "exclude each other"),
    ({"foreach": True}, TypeError, "unexpected keyword.*foreach|foreach only as"),
    ({"fused": True}, TypeError, "unexpected keyword.*fused|fused only as"),
]
ADAM_REFUSED = [
    ({"betas": (1.0, 0.0)}, ValueError, r"betas\[0\] must be"),
    ({"betas": (0.0, 1.0)}, ValueError, r"betas\[1\] must be"),
    ({"betas": 0.9}, ValueError, "betas must be a pair"),
    ({"betas": (0.9, 0.99, 0.999)}, ValueError, "betas must be a pair"),
    ({"eps": -1e-8}, ValueError, "eps must be"),
]
MEASURED_REFUSED = [({"beta3": -1.0}, ValueError, "beta3 must be")]
FRICTION_REFUSED = [({"friction_input": "x"}, ValueError, "friction_input must be")]
RSGDM_REFUSED = [
    ({"momentum": -0.5}, ValueError, "momentum must be"),
    ({"momentum": 1.0}, ValueError, "momentum must be"),
]
SGD_REFUSED = [
    ({"momentum": -0.5}, ValueError, "momentum must be"),
    ({"nesterov": True}, ValueError, "nesterov=True needs a momentum"),
    ({"momentum": 0.9, "dampening": 0.5}, ValueError, "dampening must be 0"),
]


def refused_parameters():
    leaf = torch.zeros(2, requires_grad=True)
    return [
        ([], ValueError, "optimizer got an empty parameter list"),
        ([{"params": {leaf}}], TypeError, "ordered"),
        ([leaf * 2], ValueError, "can't optimize a non-leaf Tensor"),
        ([3.0], TypeError, "optimizer can only optimize Tensors"),
    ]


def refused_by_step():
    sparse = torch.zeros(2, 3, requires_grad=True)
    sparse.grad = torch.ones(2, 3).to_sparse()
    meta = torch.zeros(2, 3, device="meta", requires_grad=True)
    meta.grad = torch.ones(2, 3, device="meta")
    return [(sparse, "sparse gradient"), (meta, "meta device")]


def errors(more):
    def make(device, dtype):
        def refused(params, options, error, words, **when):
            given = OptimizerInput(params=params, kwargs=options, desc=words)
            return ErrorOptimizerInput(given, error_type=error, error_regex=words, **when)

        at_step = {"error_on": OptimizerErrorEnum.STEP_ERROR}
        return [
            *get_error_inputs_for_all_optims(device, dtype),
            *(refused(None, options, *error) for options, *error in REFUSED + more),
            *(refused(params, {}, *error) for params, *error in refused_parameters()),
            *(refused([p], {}, RuntimeError, words, **at_step) for p, words in refused_by_step()),
        ]

    return make


# Upstream's tests over these classes.


class Info(OptimizerInfo):
    """One class in two kinds: `tag` ends its tests' names."""

    def __init__(self, cls, tag, **options):
        super().__init__(cls, **options)
        self.tag = tag

    @property
    def name(self):
        return self.optim_cls.__name__ + self.tag


def tested_of(name, cls):
    """Its options by the functions that make them, and what it refuses."""
    if name == "SGD":
        return [sgd], SGD_REFUSED
    if name == "RSGDM":
        return [rsgdm], RSGDM_REFUSED
    has, options, refused = cls([torch.zeros(1)]).defaults, [adam], ADAM_REFUSED
    for option, more, more_refused in (
        ("beta3", measured, MEASURED_REFUSED),
        ("friction_input", friction, FRICTION_REFUSED),
        ("delta", adamp, []),
    ):
        if option in has:
            options, refused = [*options, more], refused + more_refused
    return options, refused


def infos():
    schedulers = {
        info.optim_cls.__name__: info.scheduler_inputs for info in common_optimizers.optim_db
    }
    for name, cls in OPTIMIZERS.items():
        options, refused = tested_of(name, cls)
        common = {
            "supported_impls": (),
            "not_og_supported_flags": OPTIONAL,
            "has_capturable_arg": True,
            "scheduler_inputs": schedulers["Adam" if adam in options else "SGD"],
        }
        yield Info(
            *(cls, ""),
            optim_inputs_func=inputs(every_class, *options),
            optim_error_inputs_func=errors(refused),
            **common,
        )
        yield Info(
            *(cls, "FewBits"),
            optim_inputs_func=inputs(few_bits),
            supports_complex=False,
            **common,
        )


def upstream_module(folder):
    """test_optim.py, over our classes and with the deviations."""
    path = Path(folder) / "test" / "test_optim.py"
    if not path.is_file():
        sys.exit(
            f"{path} is not there: give the source tree of PyTorch {TAG}, from a checkout of that "
            "tag or, on Debian 13, from `apt-get source pytorch`"
        )
    source = path.read_text()
    for theirs, ours in DEVIATIONS.items():
        if source.count(theirs) != 1:
            sys.exit(f"{path} is not of PyTorch {TAG}: it does not have {theirs!r} once")
        source = source.replace(theirs, ours)
    common_optimizers.optim_db[:] = list(infos())
    # Test classes that it imports only for others to find them there.
    for name, what in (
        ("test_lrscheduler", "TestLRScheduler"),
        ("test_optim", "TestDifferentiableOptimizer"),
        ("test_swa_utils", "TestSWAUtils"),
    ):
        sys.modules[f"optim.{name}"] = types.ModuleType(f"optim.{name}")
        setattr(sys.modules[f"optim.{name}"], what, None)
    sys.modules["optim"] = types.ModuleType("optim")
    module = sys.modules["test_optim"] = types.ModuleType("test_optim")
    module.__file__ = str(path)
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def main(folder, *parts):
    module = upstream_module(folder)
    tests = [
        test
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(module.TestOptimRenewedCPU)
        if not parts or any(part in test.id() for part in parts)
    ]
    result = unittest.TextTestRunner(stream=sys.stdout).run(unittest.TestSuite(tests))
    for reason, count in Counter(reason for _, reason in result.skipped).most_common():
        print(f"skipped {count}: {reason}")
    failed, skipped = len(result.failures) + len(result.errors), len(result.skipped)
    print(f"{result.testsRun - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return failed > 0 or result.testsRun == 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1]:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
