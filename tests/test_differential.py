"""Random sequences of what a user may do between steps, native against reference.

FUZZ_EXAMPLES: how many new sequences (default: the same ones at each run, an eighth of hypothesis' examples).
"""

import math
import os

import torch
from differential import COPIES, GRADIENTS, MOVES, Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import options_of

from friction_kernels import OPTIMIZERS, _native

SEARCHES = "FUZZ_EXAMPLES" in os.environ
COUNT = int(os.environ.get("FUZZ_EXAMPLES", settings.default.max_examples // 8))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]
SHAPES = [(), (0,), (3, 0), (5,), (256,), (300,), (20, 30), (4, 3, 5, 6), (2, 2053)]
LAYOUTS = ["contiguous", "reversed", "gaps"]
# Where the host stands for a GPU, torch would have to make sums on it.
MEASURES = _native.cuda_architectures != ("host",)

places = st.integers(0, 9)  # of a parameter or group, counted on from the last to the first
tensors = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
kinds = st.one_of(
    st.just("contiguous"), st.sampled_from([None, "old"]), st.sampled_from(sorted(GRADIENTS))
)
gradients = st.lists(kinds, min_size=1, max_size=4)  # in turn, of all parameters

KEPT = {
    "master": st.sampled_from([None, "split", "split8", "fp32"]),
    "rounding": st.sampled_from(["nearest", "stochastic"]),
    "seed": st.integers(0, 3),
    "max_grad_norm": st.sampled_from([None, 0.5, math.inf] if MEASURES else [None]),
    "skip_nonfinite": st.booleans() if MEASURES else st.just(False),
    "state_dtype": st.sampled_from([None, "fp32", "bf16", "8bit"]),
}
CHANGED = {
    **KEPT,
    "lr": st.sampled_from([1e-3, 0.1, 0.0]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "maximize": st.booleans(),
}
changes = st.one_of(*(st.fixed_dictionaries({name: values}) for name, values in CHANGED.items()))


def action(name, *arguments):
    return st.tuples(st.just(name), *arguments)


actions = st.one_of(
    action("nothing"),
    action("move_state", places, places, st.sampled_from(sorted(MOVES))),
    action("move_param", places, st.sampled_from(sorted(MOVES))),
    action("write", places),
    action("save", st.booleans()),
    action("load"),
    action("exchange"),
    action("copy", st.sampled_from(sorted(COPIES))),
    action("forget", places),
    action("freeze", places, st.booleans()),
    action("set_options", places, changes),
    action("set_options", places, changes),
    action("add_group", st.lists(tensors, min_size=1, max_size=2), st.fixed_dictionaries({})),
    action("move_to_group", places, places, places),
    action("replace", places, tensors),
    action("step_reshaped", places, gradients),
    action("compute_otherwise", st.integers(1, 3), places),
)


@st.composite
def starts(draw):
    """An optimizer of two groups."""
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    options = st.builds(dict.__or__, options_of(name), st.fixed_dictionaries(KEPT))
    groups = st.tuples(st.lists(tensors, min_size=1, max_size=3), options)
    return name, draw(groups), draw(groups), draw(st.integers(0, 999))


@settings(max_examples=COUNT, derandomize=not SEARCHES)
@given(starts(), gradients, st.lists(st.tuples(actions, gradients), min_size=1, max_size=15))
def test_both_backends_are_alike_after_any_sequence(start, first, sequence):
    name, *groups, seed = start
    pair = Pair(name, groups, 1000 * seed)
    pair.step(["contiguous"])
    pair.step(first)
    for (what, *arguments), kinds_of_gradients in sequence:
        getattr(pair, what)(*arguments)
        pair.step(kinds_of_gradients)
