"""A step inside torch.compile: one graph, the bits of an eager step, schedules without compiling again."""

import copy

import pytest
import torch
from optimizer_cases import every_optimizer
from torch._dynamo.utils import counters

from friction_kernels import OPTIMIZERS, SigSignAdamW

pytestmark = pytest.mark.deep

INPUT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3))


def trainer(name, **options):
    net = model()
    opt = OPTIMIZERS[name](net.parameters(), **options)

    def train(x):
        loss = net(x).square().mean()
        loss.backward()
        opt.step()
        for param in net.parameters():
            param.grad = None
        return loss.detach()

    return net, opt, train


def assert_same_bits(net, other):
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@every_optimizer
def test_forward_backward_and_step_are_one_graph(name):
    net, _, train = trainer(name, lr=1e-2)
    eager_net, _, eager_train = trainer(name, lr=1e-2)
    # Eager code for what surrounds the step, so that bits are compared and not compilers.
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
        for _ in range(3):
            assert torch.equal(compiled(INPUT), eager_train(INPUT))
    assert_same_bits(net, eager_net)
    assert counters["stats"]["unique_graphs"] == 1


def test_inductor_compiles_it_too():
    net, _, train = trainer("SigSignAdamW", lr=1e-2)
    eager_net, _, eager_train = trainer("SigSignAdamW", lr=1e-2)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(train, fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(compiled(INPUT), eager_train(INPUT))
    for ours, theirs in zip(net.parameters(), eager_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_schedules_are_followed_without_compiling_again(as_tensor):
    def lr(value):
        return torch.tensor(value) if as_tensor else value

    net, opt, _ = trainer("SigSignAdamW", lr=lr(1e-2))
    eager_net, eager, _ = trainer("SigSignAdamW", lr=lr(1e-2))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (opt, eager)]
    compiled = torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")
    for _ in range(4):
        for network, step in ((net, compiled), (eager_net, eager.step)):
            network.zero_grad()
            network(INPUT).square().mean().backward()
            step()
        for schedule in schedules:
            schedule.step()
    assert_same_bits(net, eager_net)
    assert counters["stats"]["unique_graphs"] == 1


def test_states_loaded_between_steps_are_gone_on_from_without_compiling_again():
    net, opt, train = trainer("SigSignAdamW", lr=1e-2)
    twin, twin_opt, twin_train = trainer("SigSignAdamW", lr=1e-2)
    with torch._dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
        for _ in range(torch._dynamo.config.recompile_limit + 2):
            compiled(INPUT)
            twin_train(INPUT)
            for each in (opt, twin_opt):
                each.load_state_dict(copy.deepcopy(each.state_dict()))
    assert_same_bits(net, twin)
    assert counters["stats"]["unique_graphs"] == 1


def test_options_that_keep_numbers_otherwise():
    kept = {"master": "split", "state_dtype": "8bit", "max_grad_norm": 0.1}
    net, opt, _ = trainer("SigSignAdamW", **kept)
    eager_net, eager, _ = trainer("SigSignAdamW", **kept)
    net.bfloat16(), eager_net.bfloat16()
    compiled = torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        for network, step in ((net, compiled), (eager_net, eager.step)):
            network.zero_grad()
            network(INPUT.bfloat16()).square().mean().backward()
            step()
    assert_same_bits(net, eager_net)
    assert torch.equal(opt.grad_norm, eager.grad_norm)


def test_a_parameter_without_gradient_is_left_alone():
    net, opt, _ = trainer("SigSignAdamW")
    before = copy.deepcopy(net)
    net(INPUT).square().mean().backward()
    net[0].weight.grad = None
    torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")()
    assert torch.equal(net[0].weight, before[0].weight) and net[0].weight not in opt.state
    assert not torch.equal(net[2].weight, before[2].weight)


def test_the_operator_is_what_it_says():
    net, opt, _ = trainer("SigSignAdamW")
    params = list(net.parameters())
    grads = [torch.randn_like(param) for param in params]
    arguments = (params, grads, list(range(len(params))), opt._number)
    torch.library.opcheck(torch.ops.friction_kernels.step.default, arguments)


def test_copies_come_back_changed():
    """A compiler that keeps functions pure steps copies of the parameters."""
    net, opt, _ = trainer("SigSignAdamW")
    eager_net, eager, _ = trainer("SigSignAdamW")
    grads = [torch.randn_like(param) for param in net.parameters()]
    copies = [param.detach().clone() for param in net.parameters()]
    torch.ops.friction_kernels.step(copies, grads, list(range(len(copies))), opt._number)
    for param, grad in zip(eager_net.parameters(), grads, strict=True):
        param.grad = grad
    eager.step()
    for ours, theirs in zip(copies, eager_net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(param.grad is None for param in net.parameters())


def test_gradients_are_given_back():
    net, opt, _ = trainer("SigSignAdamW")
    net(INPUT).square().mean().backward()
    before = [param.grad for param in net.parameters()]
    torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")()
    assert all(param.grad is grad for param, grad in zip(net.parameters(), before, strict=True))


# Parameters that are put into and taken out of a group by hand.


def _swap(params, new):
    params[0], params[1] = params[1], params[0]


def _take_out(params, new):
    del params[0]


def _exchange(params, new):
    del params[0]
    params.append(new)


def _replace(params, new):
    params[0] = new


@pytest.mark.parametrize("edit", [_swap, _take_out, _exchange, _replace])
def test_changes_within_a_groups_list_are_followed(edit):
    runs = []
    for compiles in (True, False):
        every = [torch.nn.Parameter(torch.full((4,), float(i))) for i in range(4)]
        opt = SigSignAdamW(every[:3], lr=0.1)
        step = opt.step
        if compiles:
            step = torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")  # noqa: B023
        for index in range(4):
            if index == 2:
                edit(opt.param_groups[0]["params"], every[3])
            for place, param in enumerate(opt.param_groups[0]["params"]):
                param.grad = torch.full((4,), place + 1.0)
            step()
        runs.append((every, [opt.state[param] for param in every]))
    for ours, theirs in zip(*(params for params, _ in runs), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(states for _, states in runs), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def _another_list(groups, new):
    groups[0]["params"] = [new, *groups[0]["params"][1:]]


def _without_a_group(groups, new):
    del groups[0]


@pytest.mark.parametrize("edit", [_another_list, _without_a_group])
def test_groups_that_were_exchanged_are_refused_once_and_then_followed(edit):
    params = [torch.nn.Parameter(torch.full((4,), float(i))) for i in range(4)]
    opt = SigSignAdamW([{"params": params[:1]}, {"params": params[1:3]}], lr=0.1)
    step = torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")

    def give_gradients():
        for param in params:
            param.grad = torch.ones(4)

    give_gradients()
    step()
    edit(opt.param_groups, params[3])
    before = copy.deepcopy(params)
    with pytest.raises(RuntimeError, match="param_groups were changed after step"):
        step()
    assert all(map(torch.equal, params, before))
    assert all(torch.equal(p.grad, torch.ones(4)) for p in params)
    step()
    live = [param for group in opt.param_groups for param in group["params"]]
    for param, value in zip(params, before, strict=True):
        assert torch.equal(param, value) != any(param is one for one in live)


# What is not traced.


@pytest.mark.parametrize("steps_before", [0, 1])
def test_grad_norm_read_after_a_compiled_step_is_of_that_step(steps_before):
    net, opt, _ = trainer("SigSignAdamW", max_grad_norm=0.1)
    eager_net, eager, _ = trainer("SigSignAdamW", max_grad_norm=0.1)

    def norm_of(opt):
        opt.step()
        return opt.grad_norm * 2

    compiled = torch.compile(norm_of, backend="aot_eager")
    for index in range(3):
        for network in (net, eager_net):
            network.zero_grad()
            (network(INPUT) * (index + 1)).square().mean().backward()
        ours = norm_of(opt) if index < steps_before else compiled(opt)
        assert torch.equal(ours, norm_of(eager))


def test_grad_norm_in_one_graph_with_the_step_is_refused():
    net, opt, _ = trainer("SigSignAdamW", max_grad_norm=0.1)
    net(INPUT).square().mean().backward()
    opt.step()
    with pytest.raises(RuntimeError, match="read grad_norm outside"):
        torch.compile(lambda: opt.grad_norm * 2, fullgraph=True, backend="aot_eager")()


def test_an_optimizer_is_not_kept_alive():
    import gc
    import weakref

    opt = SigSignAdamW(model().parameters())
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
