"""Run by tests/test_cuda_plan.py in a process of its own, where the host stands for a GPU."""

import pytest
import torch
from optimizer_cases import every_optimizer
from torch import Tensor, nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamP, SigSignAdamW, count_launches
from friction_kernels.optim import planning

INLINE = 677  # tensors of five lists that a launch carries by value
ENTRY_BYTES, STORE_BYTES = 48, 32_736  # of a tensor of five lists; of a launch that sends a table


def make(count, seed=0, shape=(3,)):
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(shape, generator=generator)
    return params


@pytest.fixture
def numbers_on_gpu(monkeypatch):
    """Steps and settings that are tensors lie on the GPU, too."""
    monkeypatch.setenv("FRICTION_HOST_NUMBERS_ON_GPU", "1")
    monkeypatch.setattr(planning, "_is_cuda", lambda value: isinstance(value, Tensor))


@pytest.mark.parametrize("count", [1, INLINE, INLINE + 1, 10_000])
def test_one_launch_and_a_table_sent_only_when_it_changed(count):
    params = make(count)
    opt = SigSignAdamW(params, backend="native")
    tables = []
    for _ in range(3):
        with count_launches() as launches:
            opt.step()
        assert launches["friction_adam"] == 1
        tables.append(launches.get("store_table", 0))
    needed = -(-count * ENTRY_BYTES // STORE_BYTES) if count > INLINE else 0  # 15 for 10,000
    assert tables == [needed, 0, 0]
    kept = [param.grad for param in params]  # so that new gradients lie elsewhere
    for param in params:
        param.grad = param.grad.clone()
    with count_launches() as launches:
        opt.step()
    assert launches.get("store_table", 0) == needed
    assert len(kept) == count


@every_optimizer
def test_a_long_table_gives_the_bits_of_short_ones(name):
    one, many = make(INLINE * 2 + 5, shape=(2, 3)), make(INLINE * 2 + 5, shape=(2, 3))
    together = OPTIMIZERS[name](one, backend="native")
    apart = [OPTIMIZERS[name](many[i::5], backend="native") for i in range(5)]
    for _ in range(3):
        together.step()
        for opt in apart:
            opt.step()
    assert all(map(torch.equal, one, many))


@pytest.mark.parametrize("groups", [9, 40, 200, 300])
def test_groups_and_steps_travel_with_the_launch_as_far_as_they_fit(groups):
    params, apart = make(groups), make(groups)
    opt = SigSignAdamW([{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(params)])
    opts = [SigSignAdamW([p], lr=1e-3 * (i + 1)) for i, p in enumerate(apart)]
    for step in range(3):
        if step == 1:
            params[3].grad = apart[3].grad = None
        with count_launches() as launches:
            opt.step()
        assert launches["friction_adam"] == 1
        # 200: the entries, where they changed; 300: the groups' settings and steps, always, in two launches.
        stored = {200: int(step < 2), 300: 2}.get(groups, 0)
        assert launches.get("store_table", 0) == stored
        for one in opts:
            one.step()
    assert all(map(torch.equal, params, apart))


def test_three_launches_of_adamp_whatever_the_number_of_tensors():
    opt = SigSignAdamP(make(2000, shape=(2, 3)), backend="native")
    opt.step()
    with count_launches() as launches:
        opt.step()
    names = ("friction_adamp_apply", "friction_adamp_decide", "friction_adamp_reduce")
    assert dict(launches) == dict.fromkeys(names, 1)


def test_steps_and_settings_on_the_gpu_give_the_same_bits(numbers_on_gpu, monkeypatch):
    """Read from the device, through a schedule: as if they were numbers on the host."""
    live, plain = make(5), make(5)
    lr, decay = torch.tensor(0.0), torch.tensor(0.0, dtype=torch.float64)
    capturable = SigSignAdamW(live, lr=lr, weight_decay=decay, capturable=True, backend="native")
    rates = [1e-2, 3e-3, 1e-3, 5e-4]
    for rate in rates:
        lr.fill_(rate)
        decay.fill_(rate * 10)
        capturable.step()
    assert [state["step"].item() for state in capturable.state.values()] == [4.0] * 5
    monkeypatch.delenv("FRICTION_HOST_NUMBERS_ON_GPU")
    opt = SigSignAdamW(plain, backend="native")
    for rate in rates:
        opt.param_groups[0]["lr"] = torch.tensor(rate).item()
        opt.param_groups[0]["weight_decay"] = rate * 10
        opt.step()
    assert all(map(torch.equal, live, plain))


def test_an_empty_parameter_counts_its_steps_on_the_gpu(numbers_on_gpu):
    params = [*make(1), nn.Parameter(torch.empty(0, 3)), *make(1)]
    params[1].grad = torch.empty(0, 3)
    opt = SigSignAdamW(params, capturable=True, backend="native")
    for _ in range(3):
        opt.step()
    assert [opt.state[param]["step"].item() for param in params] == [3.0] * 3


def test_eager_steps_leave_the_memory_of_a_graph_alone(monkeypatch, numbers_on_gpu):
    """What a captured step reads at each replay is what it was captured with."""
    params = make(INLINE + 1)
    opt = SigSignAdamW(params, capturable=True, backend="native")
    opt.step()
    monkeypatch.setenv("FRICTION_HOST_CAPTURES", "1")
    opt.step()
    monkeypatch.delenv("FRICTION_HOST_CAPTURES")
    graph = [memory.clone() for memory in opt._graph_memory]
    for param in params[::2]:
        param.grad = None
    opt.step()
    opt.load_state_dict(opt.state_dict())
    opt.step()
    # All but the counter of blocks and the statistics, which every replay writes before it reads them.
    entries, extras = graph[:2]
    assert torch.equal(opt._graph_memory[0][: entries.numel()], entries)
    assert torch.equal(opt._graph_memory[1][: extras.numel()], extras)


def test_memory_that_a_graph_uses_outlives_the_plan(monkeypatch, numbers_on_gpu):
    params = make(INLINE + 1)
    opt = SigSignAdamW(params, capturable=True, backend="native")
    opt.step()
    monkeypatch.setenv("FRICTION_HOST_CAPTURES", "1")
    with count_launches() as launches:
        opt.step()
    # Known tables are used as they are; what is used is kept.
    assert "store_table" not in launches
    kept = list(opt._graph_memory)
    assert kept
    opt._plan = None
    opt.step()
    assert opt._graph_memory[: len(kept)] == kept


def test_settings_that_are_no_number_on_the_gpu_are_refused(numbers_on_gpu):
    [param] = make(1)
    opt = RSGDM([param], capturable=True, backend="native")
    opt.param_groups[0]["lr"] = torch.tensor([1, 2])
    with pytest.raises(
        ValueError, match="'lr' is neither a float nor one float32 or float64 number"
    ):
        opt.step()


def test_states_of_types_without_kernels_are_refused():
    params = make(2)
    opt = SigSignAdamW(params, backend="native")
    opt.step()
    state = opt.state[params[1]]
    state["exp_avg"] = state["exp_avg"].double()
    before = [param.clone() for param in params]
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .*load_state_dict"):
        opt.step()
    assert all(map(torch.equal, before, params))
