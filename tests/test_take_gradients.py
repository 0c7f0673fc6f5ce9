"""take_gradients: the gradient's memory becomes prev_grad, and the numbers are those of a copy."""

import copy

import pytest
import torch
from optimizer_cases import (
    SHAPES,
    assert_same_bits,
    assert_same_states,
    both_backends,
    copies,
    gradient_of,
    make_params,
    network,
)

from friction_kernels import (
    SGD,
    AdamW,
    FrictionAdamW,
    SigSignAdamW,
    TanhSignAdamW,
    TanhSignGrad,
    optim,
)
from friction_kernels.optim import taking

NAMES = ["SigSignGrad", "TanhSignAdamW", "SigSignAdamP", "DiffGradW"]
OPTIONS = {
    "plain": {},
    "clipped": {"max_grad_norm": 0.1},
    "not clipped": {"max_grad_norm": 1e6},
    "maximized": {"maximize": True},
    "moments in 8 bits": {"state_dtype": {"exp_avg": "8bit", "exp_avg_sq": "8bit"}},
    "guarded": {"skip_nonfinite": True},
}
HALF = {
    "split": {"master": "split"},
    "fp32 master": {"master": "fp32"},
    "stochastic": {"rounding": "stochastic"},
    "bf16 states": {"state_dtype": "bf16"},
}


def one_step(opt, params, step, layouts=None):
    for index, param in enumerate(params):
        param.grad = lay_out(gradient_of(param, index, step), layouts)  # which nothing else holds
    memory = [param.grad.data_ptr() for param in params]
    opt.step()
    return memory


def lay_out(tensor, layout):
    if layout == "another order" and tensor.dim() > 1:
        strides = tensor.mT.contiguous().mT.stride()
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
    return tensor


def assert_as_if_copied(name, params, options, backend, layouts=None):
    twins = copies(params)
    opt = optim.OPTIMIZERS[name](params, take_gradients=True, backend=backend, **options)
    twin = optim.OPTIMIZERS[name](twins, backend=backend, **options)
    for step in range(4):
        memory = one_step(opt, params, step, layouts)
        assert all(param.grad is None for param in params)
        assert [opt.state[param]["prev_grad"].data_ptr() for param in params] == memory
        one_step(twin, twins, step)
    assert_same_bits(params, twins)
    assert_same_states(opt, params, twin, twins)


@both_backends
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_memory_is_taken_and_the_numbers_are_those_of_a_copy(name, case, backend):
    assert_as_if_copied(name, make_params(), OPTIONS[case], backend)


@both_backends
@pytest.mark.parametrize("case", HALF)
def test_of_bfloat16_parameters_too(case, backend):
    params = make_params(dtype=torch.bfloat16)
    assert_as_if_copied("TanhSignAdamW", params, {**HALF[case], "max_grad_norm": 0.1}, backend)


@both_backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1}], ids=str)
def test_of_other_types_and_orders_too(dtype, options, backend):
    for layout in ("usual", "another order"):
        assert_as_if_copied("TanhSignAdamP", make_params(dtype=dtype), options, backend, layout)


@both_backends
def test_a_gradient_that_was_not_finite_leaves_what_was_kept(backend):
    params = make_params()
    twins = copies(params)
    opt, twin = (
        TanhSignAdamW(p, take_gradients=take, skip_nonfinite=True, backend=backend)
        for p, take in ((params, True), (twins, False))
    )
    one_step(opt, params, 0)
    one_step(twin, twins, 0)
    for param in (*params, *twins):
        param.grad = torch.full_like(param, torch.inf)
    opt.step()
    twin.step()
    assert_same_states(opt, params, twin, twins)
    # As after every step: added to what is not finite, no later gradient would be finite.
    assert all(param.grad is None for param in params)
    for each in twins:
        each.grad = None
    one_step(opt, params, 1)
    one_step(twin, twins, 1)
    assert_same_bits(params, twins)


def test_checkpoints_and_copies_are_those_of_the_usual_optimizer():
    params = make_params()
    twins = copies(params)
    opt, twin = TanhSignAdamW(params, take_gradients=True), TanhSignAdamW(twins)
    for step in range(2):
        one_step(opt, params, step)
        one_step(twin, twins, step)
    saved, usual = opt.state_dict(), twin.state_dict()
    for ours, theirs in zip(saved["state"].values(), usual["state"].values(), strict=True):
        assert_same_bits(ours.values(), theirs.values())
    opt.load_state_dict(copy.deepcopy(usual))  # which asks for no taking, and changes none
    assert opt.param_groups[0]["take_gradients"] is True
    assert twin.param_groups[0]["take_gradients"] is False
    twin.load_state_dict(copy.deepcopy(saved))
    assert twin.param_groups[0]["take_gradients"] is False
    one_step(opt, params, 2)
    one_step(twin, twins, 2)
    assert_same_bits(params, twins)


@both_backends
@pytest.mark.parametrize("options", [{}, {"state_dtype": {"exp_avg": "8bit"}}], ids=str)
def test_all_of_a_state_dict_is_of_one_moment_or_all_is_live(options, backend):
    params = make_params([(512,)])
    opt = TanhSignAdamW(params, take_gradients=True, backend=backend, **options)
    one_step(opt, params, 0)
    saved = opt.state_dict()
    before = copy.deepcopy(saved["state"][0])
    one_step(opt, params, 1)
    changed = {not torch.equal(before[key], value) for key, value in saved["state"][0].items()}
    assert changed == {not options}


def test_no_more_gradients_exist_than_parameters_at_any_time():
    params = [torch.nn.Parameter(torch.randn(1000)) for _ in range(3)]
    opt = SigSignAdamW(params, take_gradients=True)
    for _ in range(3):
        sum(param.square().sum() for param in params).backward()
        memory = {param.grad.data_ptr() for param in params}
        before = {opt.state[param]["prev_grad"].data_ptr() for param in params if opt.state}
        assert len(memory | before) == len(memory) + len(before)
        opt.step()
        assert {opt.state[param]["prev_grad"].data_ptr() for param in params} == memory


@both_backends
def test_gradients_of_several_backwards_add_up(backend):
    model, twin = network(), network()
    opt = TanhSignAdamW(model.parameters(), take_gradients=True, backend=backend)
    usual = TanhSignAdamW(twin.parameters(), backend=backend)
    for _ in range(3):
        batch = torch.randn(2, 5, 6)
        for part in batch:
            model(part).square().sum().backward()
            twin(part).square().sum().backward()
        opt.step()
        usual.step()
        usual.zero_grad()
    assert_same_bits(model.parameters(), twin.parameters())


def test_a_loss_scale_is_taken_out_of_what_is_kept():
    model, twin = network(), network()
    opts = [
        TanhSignAdamW(each.parameters(), take_gradients=take)
        for each, take in ((model, True), (twin, False))
    ]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in opts]
    for _ in range(3):
        batch = torch.randn(5, 6)
        for each, opt, scaler in zip((model, twin), opts, scalers, strict=True):
            scaler.scale(each(batch).square().sum()).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    assert_same_bits(model.parameters(), twin.parameters())
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits([opts[0].state[left]["prev_grad"]], [opts[1].state[right]["prev_grad"]])


def test_release_takes_each_gradient_as_it_arrives():
    model, twin = network(), network()
    opt = TanhSignAdamW(model.parameters(), take_gradients=True)
    usual = TanhSignAdamW(twin.parameters())
    handle = optim.release_gradients(model, opt)
    for _ in range(3):
        batch = torch.randn(5, 6)
        model(batch).square().sum().backward()
        twin(batch).square().sum().backward()
        usual.step()
        usual.zero_grad()
    handle.remove()
    assert_same_bits(model.parameters(), twin.parameters())


@both_backends
def test_a_group_may_begin_and_cease_to_take(backend):
    params = make_params()
    twins = copies(params)
    opt, twin = (TanhSignAdamW(p, backend=backend) for p in (params, twins))
    for step, takes in enumerate((False, True, True, False)):
        opt.param_groups[0]["take_gradients"] = takes
        one_step(opt, params, step)
        assert all((param.grad is None) == takes for param in params)
        one_step(twin, twins, step)
    assert_same_bits(params, twins)
    assert_same_states(opt, params, twin, twins)


# What cannot be taken.


def held(param):
    return param.grad


def shared(param):
    return param.grad.detach()


def saved_by_a_graph(param):
    weight = torch.zeros_like(param, requires_grad=True)
    return (param.grad * weight).sum()  # whose backward reads the gradient


def of_another_parameter(param):
    other = torch.nn.Parameter(torch.zeros_like(param))
    other.grad = param.grad
    return other


def bucket(param):
    whole = torch.zeros(param.numel() + 1)
    param.grad = whole[1:].view_as(param)
    return None


def expanded(param):
    param.grad = torch.zeros(()).expand_as(param)
    return None


def with_graph(param):
    param.grad = None
    (param * param).sum().backward(create_graph=True)
    return None


def made_in_inference_mode(param):
    with torch.inference_mode():
        param.grad = torch.zeros_like(param)
    return None


@both_backends
@pytest.mark.parametrize(
    ("how", "says"),
    [
        (held, "something else holds its gradient"),
        (saved_by_a_graph, "something else holds its gradient"),
        (of_another_parameter, "something else holds its gradient"),
        (shared, "something else shares its gradient's memory"),
        (bucket, "a view of other memory"),
        (expanded, "a view of other memory"),
        (with_graph, "a graph of its own"),
        (made_in_inference_mode, "made in inference mode"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_gradient_that_others_use_is_refused_and_nothing_changes(how, says, backend):
    params = make_params(SHAPES[:2])
    opt = TanhSignAdamW(params, take_gradients=True, backend=backend)
    one_step(opt, params, 0)
    before = [param.detach().clone() for param in params]
    params[0].grad, params[1].grad = (gradient_of(params[i], i, 1) for i in (0, 1))
    holder = how(params[1])
    with pytest.raises(
        RuntimeError, match=rf"^parameter 1 of group 0.* take_gradients=True.*{says}"
    ):
        opt.step()
    assert_same_bits(params, before)
    del holder
    if how in (held, saved_by_a_graph, of_another_parameter, shared):
        opt.step()  # once nothing else holds it


@both_backends
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_gradient_cannot_be_taken_twice(backend):
    [param] = make_params(SHAPES[:1])
    before = param.detach().clone()
    opt = TanhSignAdamW([param, param], take_gradients=True, backend=backend)
    param.grad = gradient_of(param, 0, 0)
    with pytest.raises(
        RuntimeError, match=r"^parameter 1 of group 0.* is given twice.*give it once"
    ):
        opt.step()
    assert torch.equal(param, before)


def test_a_sparse_gradient_is_refused_as_ever():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    opt = TanhSignAdamW(embedding.parameters(), take_gradients=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"has a sparse gradient.*make it dense"):
        opt.step()


def test_what_holds_a_gradient_is_known_without_autograd():
    taking._usual_holders.cache_clear()
    with torch.inference_mode():
        here = taking._usual_holders()
    taking._usual_holders.cache_clear()
    assert taking._usual_holders() == here


def test_a_state_of_another_type_cannot_be_replaced():
    params = make_params()
    opt = TanhSignAdamW(params, take_gradients=True, state_dtype={"prev_grad": "bf16"})
    with pytest.raises(RuntimeError, match=r"torch\.float32, and its state 'prev_grad' is kept as"):
        one_step(opt, params, 0)


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (TanhSignAdamW, {"capturable": True}, "capturable=True exclude each other"),
        (TanhSignGrad, {"weight_decay": 0.1}, "coupled weight_decay exclude each other"),
        (TanhSignAdamW, {"take_gradients": 1.5}, "take_gradients must be one of False, True"),
    ],
)
def test_options_that_exclude_it(cls, options, says):
    with pytest.raises(ValueError, match=says):
        cls(make_params(), **{"take_gradients": True, **options})


@pytest.mark.parametrize("change", [{"weight_decay": 0.1}, {"capturable": True}], ids=str)
def test_options_that_exclude_it_later(change):
    params = make_params()
    opt = TanhSignGrad(params, take_gradients=True)
    one_step(opt, params, 0)
    opt.param_groups[0].update(change)
    with pytest.raises(ValueError, match="exclude each other"):
        one_step(opt, params, 1)


def test_without_friction_there_is_nothing_to_take():
    params = make_params()
    opt = FrictionAdamW(params, friction=None, take_gradients=True)
    memory = one_step(opt, params, 0)
    assert [param.grad.data_ptr() for param in params] == memory


@both_backends
@pytest.mark.parametrize("cls", [AdamW, SGD])
def test_a_group_of_a_class_without_such_a_state_ignores_it(cls, backend):
    params = make_params()
    opt = cls([{"params": params, "take_gradients": True}], state_dtype="bf16", backend=backend)
    for step in range(2):
        memory = one_step(opt, params, step)
        assert [param.grad.data_ptr() for param in params] == memory
