"""What is freed when nobody needs it any more, and what a forked child can go on with."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from optimizer_cases import both_backends, every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, SigSignAdamW, release_gradients

pytestmark = pytest.mark.deep


def by_hook(param, opt):
    param.register_hook(lambda grad, opt=opt: grad)


def by_attribute(param, opt):
    param.optimizer = opt


def by_group(param, opt):
    opt.param_groups[0]["of"] = param.of = [opt]


def by_state(param, opt):
    opt.state[param]["of"] = param.of = [opt]


WAYS = [by_hook, by_attribute, by_group, by_state]


@both_backends
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@every_optimizer
def test_a_cycle_through_the_optimizer_is_freed(name, way, backend):
    model = nn.Linear(4, 4)
    opt = OPTIMIZERS[name](model.parameters(), backend=backend, max_grad_norm=1.0)
    model(torch.ones(2, 4)).sum().backward()
    opt.step()
    way(model.weight, opt)
    opt.step()
    gone = [weakref.ref(model.weight), weakref.ref(opt)]
    del model, opt
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_cycle_through_a_release_is_freed():
    model = nn.Linear(4, 4)
    opt = SigSignAdamW(model.parameters(), backend="native")
    model.release = release_gradients(model, opt)
    model.weight.optimizer = opt
    model(torch.ones(2, 4)).sum().backward()
    gone = [weakref.ref(model.weight), weakref.ref(opt)]
    del model, opt
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_collection_during_a_step_leaves_the_plan_alone():
    model = nn.Linear(4, 4)
    opt = SigSignAdamW(model.parameters(), backend="native")

    def collect(*_):
        gc.collect()

    opt.register_step_pre_hook(collect)
    opt.register_step_post_hook(collect)
    for step in range(3):
        opt.step(lambda: collect(model(torch.ones(2, 4)).sum().backward()))
        assert opt.state[model.weight]["step"] == step + 1


FORKED = """
import os
import threading

import torch
from friction_kernels import SigSignAdamW

torch.set_num_threads(1)
params = [torch.nn.Parameter(torch.ones(1_000_000)) for _ in range(4)]
opt = SigSignAdamW(params, backend="native", max_grad_norm=1.0)
for param in params:
    param.grad = torch.ones(1_000_000)
opt.step()
done = threading.Event()


def train():
    while not done.is_set():
        opt.step()


thread = threading.Thread(target=train)
thread.start()
statuses = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        before = params[0][0].item()
        opt.step()
        opt.step()
        os._exit(0 if params[0][0].item() < before else 1)
    statuses.append(os.waitpid(child, 0)[1])
done.set()
thread.join()
opt.step()
print(statuses)
"""


def test_a_child_forked_while_a_thread_steps_can_step():
    found = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == str([0] * 20), found.stderr
