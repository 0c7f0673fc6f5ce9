"""The benchmarks' trainings with networks that train within milliseconds.

Whoever imports this has put bench on the path.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from bench import end_to_end_tasks, machine
from bench.end_to_end_tasks import GPT, TASKS, ResNet, ViT, digits_task, task_of, text_task


def tiny_text_task():
    return replace(text_task(), model=partial(GPT, width=8, depth=1, heads=2))


TINY = {
    "ViT on digits": partial(digits_task, partial(ViT, width=8, depth=1, heads=2)),
    "ResNet on digits": partial(digits_task, partial(ResNet, widths=(4, 8), blocks_per_stage=1)),
    "GPT on Python's sources": tiny_text_task,
}


@contextmanager
def tiny_trainings():
    """Until it ends, what is trained is tiny, and the machine is measured in no time."""
    assert TINY.keys() == TASKS.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end_tasks, "TASKS", TINY)
        patch.setitem(machine.COPY_BYTES, "cpu", 2**20)
        patch.setitem(machine.MATRIX_SIDE, "cpu", 64)
        task_of.cache_clear()
        yield
    task_of.cache_clear()
