"""Gloo processes that run functions of test modules: several processes against one.

They are forked from a server that has imported torch once, and live as long as the tests. One that dies
or hangs costs the test that it worked for, whose message says how and where; the next test gets new ones.
"""

import datetime
import faulthandler
import fcntl
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import wait

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
SECONDS = 60  # after which a collective that waits for another process fails
PATIENCE = SECONDS + 10  # seconds for an answer
GRACE = 5  # seconds for the others to answer once one has failed: they may wait for it


class Processes:
    """`run` has all of them call the same function, which finds its rank in torch.distributed."""

    def __init__(self, count, folder):
        self.count = count
        self._folder = folder
        self._starts = 0
        self._workers = []

    def run(self, function, *args, **options):
        """Call a function of a module at the same time in every process; return what each returned."""
        if not self._workers:
            self._start()
        try:
            for worker in self._workers:
                worker.send((function.__module__, function.__name__, args, options))
            self._collect()
            problems = [f"process {w.rank}: {w.problem}" for w in self._workers if w.problem]
            answers = [worker.answer for worker in self._workers]
        except BaseException:
            self.stop()
            raise
        if problems:
            self.stop()  # they may wait for one another
            pytest.fail("\n".join(problems), pytrace=False)
        return answers

    def _collect(self):
        """Have every worker's answer or its problem."""
        deadline = time.monotonic() + PATIENCE
        while waiting := [worker for worker in self._workers if worker.is_working]:
            ready = wait([worker.pipe for worker in waiting], max(0, deadline - time.monotonic()))
            for worker in waiting:
                if worker.pipe in ready:
                    worker.receive()
                elif not ready:
                    worker.give_up()
            if any(worker.problem for worker in self._workers):
                deadline = min(deadline, time.monotonic() + GRACE)

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._starts += 1
        name = f"{self.count}-{self._starts}"
        store = self._folder / f"store{name}"
        for rank in range(self.count):
            log = self._folder / f"faults{name}-{rank}"
            self._workers.append(Worker(context, rank, self.count, store, log))

    def stop(self):
        for worker in self._workers:
            worker.stop()
        self._workers = []


class Worker:
    """One process as the tests see it: at work, or with an answer or a problem."""

    def __init__(self, context, rank, count, store, log):
        self.rank = rank
        self.is_working, self.answer, self.problem = False, None, None
        self._log = log
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(rank, count, str(store), str(log), theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, work):
        self.is_working, self.answer, self.problem = True, None, None
        try:
            self.pipe.send(work)
        except OSError:
            self._has_died()

    def receive(self):
        try:
            self.answer, self.problem = self.pipe.recv()
            self.is_working = False
        except (EOFError, OSError):
            self._has_died()

    def give_up(self):
        """It is late: ask it where it is."""
        self.is_working = False
        length = len(self._faults())
        os.kill(self._process.pid, signal.SIGUSR1)
        until = time.monotonic() + 1
        while len(self._faults()) == length and time.monotonic() < until:
            time.sleep(0.01)
        self.problem = f"it does not answer\n{self._faults()}"

    def _has_died(self):
        self.is_working = False
        self._process.join(GRACE)
        code = self._process.exitcode
        if code is None:
            how = "it closed its pipe and lives"
        elif code < 0:
            how = f"it was killed by {signal.Signals(-code).name}"
        else:
            how = f"it exited with status {code}"
        self.problem = f"{how}\n{self._faults()}"

    def _faults(self):
        """Where faulthandler found its threads."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return "\n".join(line for line in lines if not line.startswith("Extension modules:"))

    def stop(self):
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(rank, count, store, log, pipe):
    _die_with(multiprocessing.parent_process())
    faults = open(log, "w")  # noqa: SIM115  # open as long as the process lives
    faulthandler.enable(faults)
    faulthandler.register(signal.SIGUSR1, faults)
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
            work = pipe.recv()
        except EOFError:
            return
        pipe.send(_call(*work))


def _call(module, name, args, options):
    try:
        return getattr(importlib.import_module(module), name)(*args, **options), None
    except Exception:
        return None, traceback.format_exc()


def _die_with(parent):
    """By SIGIO when the tests are killed, whatever this process does: its own parent is the fork server."""
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
