"""The native step runs on torch's own threads and leaves them as they were."""

import os
import subprocess
import sys

import pytest
import torch

from friction_kernels import SigSignAdamW, _native

pytestmark = pytest.mark.deep


def test_regions_run_on_the_openmp_that_torch_uses():
    assert "USE_OPENMP=ON" in torch.__config__.show()
    assert _native.thread_source().startswith("torch's OpenMP")


def test_more_threads_than_work_give_the_same_bits():
    results = []
    for threads in (1, 5):
        torch.set_num_threads(threads)
        param = torch.linspace(-1, 1, 100_000).requires_grad_()
        param.grad = torch.linspace(1, -1, 100_000)
        SigSignAdamW([param], backend="native").step()
        results.append(param.detach())
    assert torch.equal(*results)


# libgomp ends the threads that a region with fewer of them leaves over; torch would start them anew.
KEEPS_THREADS = """
import os, torch
from friction_kernels import SigSignAdamW

torch.set_num_threads(4)
big = torch.ones(4_000_000)
big.add_(1)
before = set(os.listdir("/proc/self/task"))
for elements in (1_000, 80_000, 200_000, 2_000_000):
    param = torch.ones(elements, requires_grad=True)
    param.grad = torch.ones(elements)
    opt = SigSignAdamW([param], backend="native")
    for _ in range(3):
        opt.step()
        big.add_(1)
assert before <= set(os.listdir("/proc/self/task")), "threads of torch's pool were ended"
assert len(before) >= 4
"""


def test_a_step_ends_none_of_torchs_threads():
    assert os.path.isdir("/proc/self/task"), "this test reads Linux's list of a process's threads"
    subprocess.run([sys.executable, "-c", KEEPS_THREADS], check=True)
