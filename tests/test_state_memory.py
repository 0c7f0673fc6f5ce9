"""States whose memory moves, goes or is of another parameter: the next step sees it, or names it."""

from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from optimizer_cases import both_backends, every_optimizer, noise
from torch import nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW
from friction_kernels.optim import states

OPTIONS = {
    "plain": (torch.float32, {}),
    "8 bits": (torch.float32, {"state_dtype": "8bit"}),
    "split": (torch.bfloat16, {"master": "split", "state_dtype": "bf16"}),
    "master": (torch.bfloat16, {"master": "fp32"}),
}

every_option = pytest.mark.parametrize("kind", OPTIONS)


def step(opt, params, seed):
    for index, param in enumerate(params):
        param.grad = noise(param.shape, 100 * seed + index, param.dtype)
    opt.step()


def twins(name, kind, backend, shapes=((300,), (16, 20), (7,))):
    """Two optimizers after the same steps: (parameters, optimizer) twice."""
    dtype, options = OPTIONS[kind]
    made = []
    for _ in range(2):
        params = [nn.Parameter(noise(shape, i, dtype)) for i, shape in enumerate(shapes)]
        opt = OPTIMIZERS[name](params, lr=0.01, backend=backend, **options)
        for seed in range(2):
            step(opt, params, seed)
        made.append((params, opt))
    return made


def tensors_of(opt):
    return [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


def assert_same(opt, params, other, other_params):
    ours, theirs = [*params, *tensors_of(opt)], [*other_params, *tensors_of(other)]
    assert len(ours) == len(theirs)
    assert all(map(torch.equal, ours, theirs))


# Memory that moves inside its storage.


def sent(tensor):
    """What a queue, a pipe or an argument of a process does."""
    ForkingPickler.dumps(tensor)


def offloaded(tensor):
    values, storage = tensor.clone(), tensor.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    tensor.kept = torch.full_like(values, 7)  # takes the place that became free
    storage.resize_(size)
    tensor.copy_(values)


def grown(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() + 100_000)


def given_other_data(tensor):
    tensor.data = tensor.data.clone()


def swapped(tensor):
    torch.utils.swap_tensors(tensor, tensor.clone())


MOVES = [sent, torch.Tensor.share_memory_, offloaded, grown, given_other_data, swapped]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
@every_option
@pytest.mark.parametrize("name", ["SigSignAdamW", "SigSignAdamP", "AdamW", "RSGDM"])
def test_a_state_moved_in_its_storage_is_updated_where_it_is(name, kind, move):
    (params, opt), (others, other) = twins(name, kind, "native")
    before = [value.data_ptr() for value in tensors_of(opt)]
    for value in tensors_of(opt):
        move(value)
    assert before != [value.data_ptr() for value in tensors_of(opt)]
    fresh = [torch.full_like(v, 7) for v in tensors_of(opt) for _ in range(4)]  # in the old places
    for seed in range(2, 4):
        step(opt, params, seed)
        step(other, others, seed)
    assert_same(opt, params, other, others)
    assert all((tensor == 7).all() for tensor in fresh)


@every_optimizer
def test_one_state_moved_among_many_is_seen_at_the_next_step(name):
    (params, opt), (others, other) = twins(name, "plain", "native", shapes=[(64, 64)] * 9)
    sent(opt.state[params[6]])
    step(opt, params, 2)
    step(other, others, 2)
    assert_same(opt, params, other, others)


@both_backends
@pytest.mark.parametrize("what", ["gradient", "state"])
def test_a_zero_tensor_without_memory_is_refused_by_name(what, backend):
    (params, opt), _ = twins("SigSignAdamW", "plain", backend)
    if what == "gradient":
        params[1].grad = torch._efficientzerotensor(params[1].shape)
    else:
        opt.state[params[1]]["exp_avg"] = torch._efficientzerotensor(params[1].shape)
    before = [param.detach().clone() for param in params]
    with pytest.raises(
        RuntimeError, match=r"parameter 1 of group 0 .*has no memory for .*clone\(\)"
    ):
        opt.step()
    assert all(map(torch.equal, params, before))


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - 1)
    return tensor


def zero(tensor):
    return torch._efficientzerotensor(tensor.shape)


@both_backends
@pytest.mark.parametrize("make", [freed, shrunk, zero])
@every_option
def test_every_state_without_memory_is_refused_by_name(kind, make, backend):
    (params, opt), _ = twins("SigSignAdamW", kind, backend)
    state = opt.state[params[1]]
    for key in [key for key, value in state.items() if isinstance(value, torch.Tensor)]:
        if make is zero and state[key].dtype not in (torch.float32, torch.bfloat16):
            continue
        kept = state[key]
        state[key] = make(kept.clone())
        before = [param.detach().clone() for param in params]
        for _ in range(3):
            with pytest.raises(RuntimeError, match=f"parameter 1 .* state '{key}' has no memory"):
                opt.step()
        assert all(map(torch.equal, params, before))
        with pytest.raises(
            RuntimeError, match=rf"state_dict\(\): .* 1 .* '{key}' that has no memory"
        ):
            opt.state_dict()
        state[key] = kept
    step(opt, params, 3)


@both_backends
def test_a_setting_without_memory_is_refused_by_name(backend):
    (params, opt), _ = twins("SigSignAdamW", "plain", backend)
    opt.param_groups[0]["lr"] = freed(torch.tensor(0.1))
    with pytest.raises(ValueError, match="lr is a tensor that has no memory"):
        step(opt, params, 2)


@both_backends
@every_option
@every_optimizer
def test_a_count_that_float32_cannot_go_on_with_becomes_float64(name, kind, backend):
    (params, opt), _ = twins(name, kind, backend)
    for state in opt.state.values():
        state["step"].fill_(2**24 - 1)
    for seed in range(3):
        step(opt, params, seed)
    for state in opt.state.values():
        assert state["step"] == 2**24 + 2 and state["step"].dtype == torch.float64
    other = OPTIMIZERS[name](params, backend=backend, **OPTIONS[kind][1])
    other.load_state_dict(opt.state_dict())
    step(other, params, 3)
    assert all(state["step"] == 2**24 + 3 for state in other.state.values())


@both_backends
@pytest.mark.parametrize("count", [2**24 + 1, 2.0**24 + 1, torch.tensor(2**24 + 1)], ids=type)
def test_a_large_count_of_any_type_is_loaded_as_it_is(count, backend):
    (_, opt), (_, other) = twins("RSGDM", "plain", backend)
    saved = opt.state_dict()
    for state in saved["state"].values():
        state["step"] = count
    other.load_state_dict(saved)
    assert all(state["step"].item() == 2**24 + 1 for state in other.state.values())


@both_backends
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_a_state_of_integers_is_refused_by_name(dtype, backend):
    (params, opt), _ = twins("SigSignAdamW", "plain", backend)
    opt.state[params[1]]["exp_avg"] = torch.ones(params[1].shape, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .*'exp_avg' torch\.(int|bool)"):
        opt.step()


@both_backends
def test_a_negated_state_is_refused_by_name(backend):
    (params, opt), _ = twins("SigSignAdamW", "plain", backend)
    state = opt.state[params[1]]
    state["exp_avg"] = torch._neg_view(torch.ones(*params[1].shape, 2))[..., 0]
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .*'exp_avg' .*negated"):
        opt.step()


# States are complete or absent.


@both_backends
@every_option
@pytest.mark.parametrize("after", range(1, 9))
def test_an_interrupted_first_step_leaves_no_half_made_state(after, kind, backend, monkeypatch):
    dtype, options = OPTIONS[kind]
    params, others = ([nn.Parameter(noise((300,), i, dtype)) for i in range(4)] for _ in range(2))
    opt, other = (SigSignAdamW(p, backend=backend, **options) for p in (params, others))
    made = states.StateFormat._zeros
    calls = iter(range(after))

    def interrupted(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return made(*args)

    monkeypatch.setattr(states.StateFormat, "_zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(opt, params, 0)
    monkeypatch.undo()
    assert len(opt.state) == after // 3  # of three states each
    opt.state_dict()
    for seed in range(2):
        step(opt, params, seed)
        step(other, others, seed)
    assert_same(opt, params, other, others)


# A state in 8 bits has no shape of its own.


@both_backends
@pytest.mark.parametrize("name", ["SigSignAdamW", "SigSignAdamP", "AdamW", "RSGDM"])
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.reshape(-1),
        lambda p: p.reshape(20, 16),
        lambda p: p.t(),
        lambda p: p.t().contiguous(),
        lambda p: p.reshape(4, 4, 20),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "8 bits"])
def test_a_parameter_reshaped_under_its_state_is_refused_by_name(kind, change, name, backend):
    (params, opt), _ = twins(name, kind, backend)
    params[1].data = change(params[1].data)
    before = [param.detach().clone() for param in [*params, *tensors_of(opt)]]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .*delete its state"):
            step(opt, params, 2)
    assert all(map(torch.equal, before, [*params, *tensors_of(opt)]))
    if kind == "8 bits":
        with pytest.raises(
            RuntimeError, match=r"state_dict\(\): parameter 1 of group 0 .*\(16, 20\)"
        ):
            opt.state_dict()
    del opt.state[params[1]]
    step(opt, params, 3)
    assert opt.state[params[1]]["step"] == 1
    opt.state_dict()


@both_backends
@pytest.mark.parametrize("kind", ["plain", "8 bits"])
def test_a_square_parameter_transposed_in_memory_keeps_its_state_element_by_element(kind, backend):
    (params, opt), (others, other) = twins("SigSignAdamW", kind, backend, shapes=[(20, 20)])
    params[0].data = params[0].data.t().contiguous().t()
    for seed in range(2, 4):
        step(opt, params, seed)
        step(other, others, seed)
    # Blocks of 256 are others: what is kept in 8 bits differs by their scales.
    torch.testing.assert_close(params[0], others[0], rtol=0, atol=1e-3 if kind == "8 bits" else 0)


# Options that change while a parameter has no gradient.

CHANGES = [
    ({"master": "split8", "state_dtype": "8bit"}, {"master": "split", "state_dtype": "fp32"}),
    ({"master": "split"}, {"master": None}),
    ({"master": None}, {"master": "fp32"}),
    ({"state_dtype": "fp32"}, {"state_dtype": {"exp_avg": "8bit", "prev_grad": "bf16"}}),
    ({"state_dtype": "8bit"}, {"state_dtype": None}),
]


@both_backends
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_options_changed_without_a_gradient_take_hold_when_there_is_one(before, after, backend):
    found = []
    for idle in (True, False):
        params = [nn.Parameter(noise((512,), i, torch.bfloat16)) for i in range(2)]
        opt = SigSignAdamW(params, backend=backend, **before)
        step(opt, params, 0)
        params[0].grad = None
        if idle:
            opt.param_groups[0].update(after)
            opt.step()
            opt.step()
        else:
            opt.step()
            opt.step()
            opt.param_groups[0].update(after)
        step(opt, params, 1)
        found.append((params[0].detach(), opt.state[params[0]]))
    (ours, state), (right, right_state) = found
    assert torch.equal(ours, right)
    assert state.keys() == right_state.keys()
    assert [getattr(v, "dtype", v) for v in state.values()] == [
        getattr(v, "dtype", v) for v in right_state.values()
    ]


def test_parameters_that_take_turns_are_planned_for_once(monkeypatch):
    params = [nn.Parameter(noise((30,), i)) for i in range(4)]
    opt = SigSignAdamW(params, backend="native")
    plans = []
    monkeypatch.setattr(
        opt, "_make_plan", lambda *a, m=opt._make_plan: plans.append(m(*a)) or plans[-1]
    )
    for seed in range(12):
        for index, param in enumerate(params):
            param.grad = noise(param.shape, seed) if index == seed % 4 else None
        opt.step()
    assert len(plans) == 4  # each one's first gradient
    assert all(opt.state[param]["step"] == 3 for param in params)


# Groups.


@both_backends
def test_a_parameter_moved_to_another_group_has_its_settings(backend):
    params = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.0}]
    opt = SigSignAdamW(groups, lr=0.1, weight_decay=0.0, backend=backend)
    step(opt, params, 0)
    opt.param_groups[1]["params"].insert(0, opt.param_groups[0]["params"].pop())
    before = [param.detach().clone() for param in params]
    step(opt, params, 1)
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [False, True, True]
    opt.param_groups[0]["params"].append(opt.param_groups[1]["params"].pop())
    step(opt, params, 2)
    assert [torch.equal(*pair) for pair in zip(params, before, strict=True)] == [False, True, False]


@both_backends
def test_a_tuple_of_parameters_is_a_group(backend):
    (params, opt), (others, other) = twins("SigSignAdamW", "plain", backend)
    opt.param_groups[0]["params"] = tuple(params)
    step(opt, params, 2)
    step(other, others, 2)
    assert_same(opt, params, other, others)


@pytest.mark.deep
def test_as_many_groups_as_there_are_parameters():
    params = [nn.Parameter(torch.ones(1)) for _ in range(65_537)]
    opt = RSGDM(params[:1], lr=1.0, momentum=0.0, backend="native")
    opt.param_groups = [
        {**opt.param_groups[0], "params": [param], "lr": 1.0 + index % 2}
        for index, param in enumerate(params)
    ]
    grad = torch.ones(1)
    for param in params:
        param.grad = grad
    opt.step()
    assert torch.cat(params).tolist() == [0.0 - index % 2 for index in range(len(params))]


def stepped_twins(backend):
    params = [nn.Parameter(torch.arange(1.0, 5.0)) for _ in range(2)]
    opts = [SigSignAdamW([param], lr=0.1, backend=backend) for param in params]
    for param, opt in zip(params, opts, strict=True):
        for _ in range(2):
            param.grad = torch.ones(4)
            opt.step()
    return params, opts


@both_backends
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "prev_grad"])
def test_a_state_that_is_a_negated_view_is_refused_and_not_read_as_its_opposite(key, backend):
    (param, _), (opt, _) = stepped_twins(backend)
    opt.state[param][key] = torch._neg_view(-opt.state[param][key])
    for _ in range(3):
        with pytest.raises(RuntimeError, match=f"state '{key}' that is a negated"):
            opt.step()


@pytest.mark.filterwarnings("ignore:.*cannot be served by native kernels")
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_parameter_that_becomes_a_negated_view_is_stepped_as_what_it_is(backend):
    (param, twin), opts = stepped_twins(backend)
    param.data = torch._neg_view(-param.data)
    for opt in opts:
        opt.step()
    torch.testing.assert_close(param.detach().resolve_neg(), twin.detach())
