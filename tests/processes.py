"""Gloo processes that run functions of test modules: several processes against one.

They are forked from a server that has imported torch once, and live as long as the tests.
"""

import datetime
import importlib
import multiprocessing
import traceback

import pytest
import torch
import torch.distributed as dist

PRELOAD = [
    "torch._dynamo",  # which sharding imports at its first step
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "friction_kernels",
]
SECONDS = 60  # after which a process that waits for the others is lost


class Processes:
    """`run` has all of them call the same function, which finds its rank in torch.distributed."""

    def __init__(self, count, folder):
        self.count = count
        self._folder = folder
        self._starts = 0
        self._workers = []
        self._pipes = []

    def run(self, function, *args, **options):
        """Call a function of a module at the same time in every process; return what each returned."""
        if not self._workers:
            self._start()
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__name__, args, options))
        answers = [
            pipe.recv() if pipe.poll(SECONDS + 10) else (None, "it does not answer")
            for pipe in self._pipes
        ]
        problems = [f"process {rank}: {e}" for rank, (_, e) in enumerate(answers) if e]
        if problems:
            self.stop()  # they may wait for one another
            pytest.fail("\n".join(problems), pytrace=False)
        return [answer for answer, _ in answers]

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._starts += 1
        store = str(self._folder / f"store{self.count}-{self._starts}")
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_serve, args=(rank, self.count, store, theirs), daemon=True
            )
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._pipes.append(ours)

    def stop(self):
        for worker in self._workers:
            worker.kill()
            worker.join()
        self._workers, self._pipes = [], []


def _serve(rank, count, store, pipe):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=SECONDS),
    )
    while True:
        try:
            module, name, args, options = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(importlib.import_module(module), name)(*args, **options), None
        except Exception:
            answer = None, traceback.format_exc()
        pipe.send(answer)
