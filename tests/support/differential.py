"""Two optimizers, native and reference, that are treated alike and must stay alike.

After every action all that they hold is compared, and the reference goes on from the native numbers: each
step starts from the same bits, so that what is tolerated is the rounding of one step.
"""

import copy
import itertools
import pickle

import torch
from optimizer_cases import noise
from test_native import lay_out
from tolerances import CHANGE_ULPS, STORED_ULPS, arithmetic

from friction_kernels import OPTIMIZERS, _native
from friction_kernels.optim.master_weights import join

EIGHT_BITS = torch.uint8
DECOY = 7.0  # what memory holds that nobody may write


class Pair:
    """Parameters and groups are told by any number: their place, counted round and round."""

    def __init__(self, name, groups, seed):
        """groups: for each the (shape, dtype, layout) of its tensors, and its options."""
        self._seed = seed
        given = [(self._new(tensors), valid(options, tensors)) for tensors, options in groups]
        self.opts = [
            OPTIMIZERS[name](
                [{"params": params[side], **options} for params, options in given], backend=backend
            )
            for side, backend in enumerate(("native", "reference"))
        ]
        self._snapshot = None
        self._decoys = []

    # What there is.

    def groups(self):
        """The groups of both, group by group."""
        return list(zip(*(opt.param_groups for opt in self.opts), strict=True))

    def params(self):
        """The parameters of both, one by one."""
        return list(zip(*map(params_of, self.opts), strict=True))

    def param(self, place):
        pairs = self.params()
        return pairs[place % len(pairs)]

    def states(self, index):
        """The states of a parameter of both; empty before its first step."""
        pairs = zip(self.opts, self.param(index), strict=True)
        return [opt.state.get(param, {}) for opt, param in pairs]

    def noise(self, shape, dtype):
        self._seed += 1
        return noise(shape, self._seed, torch.complex128 if dtype.is_complex else torch.float64).to(
            dtype
        )

    def _new(self, tensors):
        values = [(self.noise(shape, dtype), layout) for shape, dtype, layout in tensors]
        return [[torch.nn.Parameter(lay_out(v, layout)) for v, layout in values] for _ in "ab"]

    # Actions.

    def step(self, gradients):
        """gradients: in turn for the parameters a kind of GRADIENTS, None, or "old": what is there."""
        self._heal()
        for pair, kind in zip(self.params(), itertools.cycle(gradients)):
            if kind != "old":
                self._give_gradient(pair, kind)
        before = self._numbers()
        errors = [error_of(opt.step) for opt in self.opts]
        assert errors[0] == errors[1]
        if errors[0] is None:
            self.compare(before[1])
            return
        for was, now in zip(before, self._numbers(), strict=True):
            assert_exact(now, was)  # an error changes nothing
        for group in itertools.chain(*self.groups()):
            group["state_dtype"] = None  # a parameter was moved here that cannot have it

    def _give_gradient(self, pair, kind):
        value = self.noise(pair[0].shape, pair[0].dtype)
        for param in pair:
            param.grad = None
            if kind is not None:
                grad = GRADIENTS[kind](value.clone())
                param.grad_dtype = grad.dtype
                param.grad = grad

    @torch.no_grad()
    def _heal(self):
        """Start anew what is no longer finite, in which no difference would show."""
        for index, numbers in enumerate(self._numbers()[0]):
            if not all(number.isfinite().all() for number in numbers.values()):
                value = self.noise(numbers["value"].shape, numbers["value"].dtype)
                for param in self.param(index):
                    param.copy_(value)
                    param.grad = None
                self.forget(index)

    def nothing(self):
        pass

    def compute_otherwise(self, threads, instructions):
        sets = _native.instruction_sets()
        torch.set_num_threads(threads)
        _native.use_instruction_set(sets[instructions % len(sets)])

    def move_state(self, index, key, how):
        for state in self.states(index):
            keys = sorted(k for k, value in state.items() if isinstance(value, torch.Tensor))
            if keys:
                name = keys[key % len(keys)]
                state[name] = self._moved(state[name], how)
        self.compare()

    def move_param(self, index, how):
        for param in self.param(index):
            with torch.no_grad():
                self._moved(param, how)
        self.compare()

    def _moved(self, tensor, how):
        """The tensor, or what takes its place; where its memory was, there are decoys now."""
        moved = MOVES[how](tensor, self._make_decoys)
        self._make_decoys(tensor)
        return moved

    def _make_decoys(self, tensor):
        """Fill memory of this size, which may just have been given back."""
        if tensor.dtype.is_floating_point:
            self._decoys += [torch.full(tensor.shape, DECOY, dtype=tensor.dtype) for _ in range(3)]
            self._decoys = self._decoys[-60:]

    def write(self, index):
        """As one does who clamps weights or averages models."""
        for param in self.param(index):
            with torch.no_grad():
                param.mul_(0.5)
        self.compare()

    def save(self, copied):
        """Keep a state_dict of each and its parameters."""
        found = [opt.state_dict() for opt in self.opts]
        values = [[p.detach().clone() for p in pair] for pair in self.params()]
        self._snapshot = copy.deepcopy(found) if copied else found, values
        self.compare()

    def load(self):
        if self._snapshot is None:
            return
        state_dicts, values = self._snapshot
        for opt, state_dict in zip(self.opts, state_dicts, strict=True):
            opt.load_state_dict(state_dict)
        with torch.no_grad():
            for pair, kept in zip(self.params(), values, strict=True):
                for param, value in zip(pair, kept, strict=True):
                    param.copy_(value)
        self.compare()

    def exchange(self):
        """Each loads what the other saved."""
        for opt, saved in zip(self.opts, [o.state_dict() for o in self.opts][::-1], strict=True):
            opt.load_state_dict(copy.deepcopy(saved))
        self.compare()

    def copy(self, how):
        """Go on with copies of the optimizers and their parameters."""
        for opt in self.opts:
            opt.zero_grad()
        self.opts = [COPIES[how](opt) for opt in self.opts]
        self.compare()

    def forget(self, index):
        """Start a parameter's state anew."""
        for opt, param in zip(self.opts, self.param(index), strict=True):
            opt.state.pop(param, None)
        self.compare()

    def freeze(self, index, requires_grad):
        for param in self.param(index):
            param.requires_grad_(requires_grad)

    def set_options(self, group, options):
        groups = self.groups()
        for each in groups[group % len(groups)]:
            each.update(valid(options, [(None, p.dtype) for p in each["params"]]))
            if each["master"] is not None:
                each["rounding"] = "nearest"

    def add_group(self, tensors, options):
        for opt, params in zip(self.opts, self._new(tensors), strict=True):
            opt.add_param_group({"params": params, **options})
        self._snapshot = None
        self.compare()

    def move_to_group(self, index, group, place):
        """One that would leave an empty group behind stays."""
        for opt in self.opts:
            source, before = find(opt, index)
            if len(source) > 1:
                target = opt.param_groups[group % len(opt.param_groups)]["params"]
                param = source.pop(before)
                target.insert(place % (len(target) + 1), param)
        self._snapshot = None
        self.compare()

    def replace(self, index, tensor):
        """Put a new parameter in the place of another."""
        for opt, [param] in zip(self.opts, self._new([tensor]), strict=True):
            source, place = find(opt, index)
            opt.state.pop(source[place], None)  # state_dict() cannot tell of a stranger's
            source[place] = param
        self._snapshot = None
        self.compare()

    def step_reshaped(self, index, gradients):
        """A parameter of another shape under its state is refused; its shape comes back afterwards."""
        pair, before = self.param(index), self._numbers()
        shape = pair[0].shape
        for param in pair:
            param.grad = None
            param.data = param.data.reshape(-1)
        refused = len(shape) != 1 and self.states(index)[0] != {}
        if not refused:
            self.step(gradients)
        else:
            self._give_gradient(pair, "contiguous")
            errors = [error_of(opt.step) for opt in self.opts]
            assert errors[0] == errors[1] is not None
        for param in pair:
            param.grad = None
            param.data = param.data.reshape(shape)
        if refused:
            assert_exact(self._numbers()[0], before[0])
        self.forget(index)

    # What both hold.

    def _numbers(self):
        """Of each optimizer: of each parameter its wide value and its states, in numbers."""
        return [
            [numbers_of(*each) for each in zip(params_of(opt), states_of(opt), strict=True)]
            for opt in self.opts
        ]

    def compare(self, before=None):
        """before: numbers that a step went out from; nothing but a step may make a difference."""
        for index, pair in enumerate(self.params()):
            assert pair[0].shape == pair[1].shape and pair[0].dtype == pair[1].dtype
            native, reference = self.states(index)
            assert native.keys() == reference.keys(), f"states of parameter {index}"
            for key, value in native.items():
                if isinstance(value, torch.Tensor):
                    assert value.dtype == reference[key].dtype, f"{key} of parameter {index}"
                    assert value.shape == reference[key].shape, f"{key} of parameter {index}"
        ours, theirs = self._numbers()
        if before is None:
            assert_exact(ours, theirs)
        else:
            for index in range(len(ours)):
                for key in ours[index]:
                    self._compare(index, key, ours[index], theirs[index], before[index])
        norms = [opt.grad_norm for opt in self.opts]
        if norms[1] is None:
            assert norms[0] is None
        else:
            torch.testing.assert_close(*norms, rtol=1e-5, atol=0, equal_nan=True)
        assert all((decoy == DECOY).all() for decoy in self._decoys), "foreign memory was written"
        self._go_on_from_the_native_numbers()

    def _compare(self, index, key, ours, theirs, before):
        param, _ = self.param(index)
        state, _ = self.states(index)
        start = before.get(key)
        if start is None:
            start = torch.zeros_like(theirs[key])
        name = f"{key} of parameter {index}"
        if key == "step":
            assert torch.equal(ours[key], theirs[key]), name
        elif key in state and state[key].dtype == EIGHT_BITS:
            assert_close_codes(name, ours[key], theirs[key])
        else:
            eps = place_of(param, state, key)
            clips = any(opt.grad_norm is not None for opt in self.opts)  # by norms in float32
            compute = torch.float32 if clips else arithmetic(param.dtype)
            if (
                key != "value"
            ):  # a clipped gradient that comes again changes by its factor's rounding
                eps = max(eps, torch.finfo(compute).eps)
            assert_close(name, ours[key], theirs[key], start, eps, compute)

    @torch.no_grad()
    def _go_on_from_the_native_numbers(self):
        for index, (param, twin) in enumerate(self.params()):
            twin.copy_(param)
            state, twin_state = self.states(index)
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    twin_state[key].copy_(value)


def valid(options, tensors):
    """The options, less what these tensors or the other options exclude."""
    found = dict(options)
    if any(dtype in (torch.float64, torch.complex64) for _, dtype, *_ in tensors):
        found.pop("state_dtype", None)
    if found.get("master") is not None:
        found["rounding"] = "nearest"
    return found


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def find(opt, index):
    """The list that holds a parameter, and its place there."""
    index %= len(params_of(opt))
    for group in opt.param_groups:
        if index < len(group["params"]):
            return group["params"], index
        index -= len(group["params"])
    raise IndexError(index)


def error_of(function):
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    return None


def states_of(opt):
    """As state_dict() tells them, in the order of the parameters."""
    saved = opt.state_dict()
    return [saved["state"].get(n, {}) for group in saved["param_groups"] for n in group["params"]]


def numbers_of(param, state):
    """Copies of the value that arithmetic sees, and of the states."""
    value = param.detach()
    if "master" in state:
        value = torch.where(state["master"].to(value.dtype) == value, state["master"], value)
    elif "residual" in state:
        value = join(value, state["residual"])
    lists = {
        key: number.clone()
        for key, number in state.items()
        if isinstance(number, torch.Tensor) and key not in ("master", "residual")
    }
    return {"value": value.clone(), **lists}


def place_of(param, state, key):
    """The relative size of a last place: of how a number is kept."""
    if key != "value":
        return torch.finfo(state[key].dtype).eps
    if "master" in state or ("residual" in state and state["residual"].dtype == torch.int16):
        return torch.finfo(torch.float32).eps if param.dtype == torch.bfloat16 else 2.0**-21
    if "residual" in state:
        return 2.0**-15
    return torch.finfo(param.dtype).eps


def assert_exact(ours, theirs):
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for key in mine.keys() | other.keys():
            torch.testing.assert_close(
                *(mine[key], other[key]),
                rtol=0,
                atol=0,
                equal_nan=True,
                msg=lambda text, name=f"{key} of parameter {index}": f"{name}: {text}",
            )


def real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def both_lost(ours, theirs):
    """Where neither is finite: what is infinite may be NaN in another order of the arithmetic."""
    return ~(ours.isfinite() | theirs.isfinite())


def assert_close(name, ours, theirs, start, eps, compute):
    ours, theirs, start = (real(t).double() for t in (ours, theirs, start))
    change = (theirs - start).abs()
    largest = change[change.isfinite()].max() if change.isfinite().any() else 0.0
    bound = STORED_ULPS * eps * (theirs.abs() + start.abs())
    bound = bound + torch.finfo(compute).eps * CHANGE_ULPS[compute] * largest + 1e-37
    wrong = ~(both_lost(ours, theirs) | (ours == theirs) | ((ours - theirs).abs() <= bound))
    assert not wrong.any(), f"{name}: native {ours[wrong][:5]}, reference {theirs[wrong][:5]}"


def assert_close_codes(name, ours, theirs):
    """A number at the border of two codes may get either; not many are."""
    ours, theirs = real(ours), real(theirs)
    known = ~both_lost(ours, theirs)
    ours, theirs = ours[known], theirs[known]
    finite = theirs[theirs.isfinite()]
    atol = 0.02 * float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        ours, theirs, rtol=0.07, atol=atol, msg=lambda text: f"{name}: {text}"
    )
    others = ~torch.isclose(ours, theirs, rtol=1e-5, atol=1e-37)
    assert others.sum() <= 2 + 0.02 * others.numel(), f"{name}: {others.sum()} other codes"


# Gradients.


def negated(value):
    """A view whose elements are negated when they are read."""
    if value.is_complex():
        return torch.conj(value.conj().resolve_conj())
    return torch._neg_view(-value)


def with_one(number):
    def kind(value):
        if value.numel():
            value.view(-1)[-1] = number
        return value

    return kind


def in_type(dtype):
    return lambda value: value if value.is_complex() else value.to(dtype)


GRADIENTS = {
    **{
        layout: lambda value, layout=layout: lay_out(value, layout)
        for layout in ("contiguous", "reversed", "offset", "gaps", "channels_last")
    },
    "expanded": lambda value: value.flatten()[:1].sum().expand(value.shape),
    "negated": negated,
    "negated with gaps": lambda value: (
        negated(value) if value.is_complex() else torch._neg_view(lay_out(-value, "gaps"))
    ),
    "bf16": in_type(torch.bfloat16),
    "fp32": in_type(torch.float32),
    "zeros": torch.zeros_like,
    "large": lambda value: value * 30,
    "small": lambda value: value * 1e-4,
    "nan": with_one(float("nan")),
    "inf": with_one(float("inf")),
}


# Moves of memory: a function of the tensor and of what fills memory that is given back.


def set_data(layout):
    def move(tensor, fill):
        tensor.data = lay_out(tensor.data, layout)
        return tensor

    return move


def resize_storage(tensor, fill):
    """As offloading does: the storage gives its memory back and gets other memory."""
    kept, storage = tensor.detach().clone(), tensor.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    fill(kept)
    storage.resize_(size)
    tensor.detach().copy_(kept)
    return tensor


MOVES = {
    "data": set_data("contiguous"),
    "data in other strides": set_data("reversed"),
    "data with gaps": set_data("gaps"),
    "storage": resize_storage,
    "shared": lambda tensor, fill: tensor.share_memory_(),
    "another tensor": lambda tensor, fill: (
        tensor if isinstance(tensor, torch.nn.Parameter) else tensor.clone()
    ),
}

# Copies of an optimizer.

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}
