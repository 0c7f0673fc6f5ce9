"""Trainings on all cores, one on each."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from examples.zoo.optimizers import Setting
from examples.zoo.training import Run, train
from examples.zoo.workload import Workload, load


class Job(NamedTuple):
    """A training, and where its data are."""

    model: str
    setting: Setting
    seed: int
    lr: float | None
    steps: int
    backend: str
    folder: Path


def runs_of(jobs: Sequence[Job]) -> Iterator[Run]:
    """The runs in the order of their jobs, each as soon as it and those before it are finished."""
    cores = min(len(jobs), len(os.sched_getaffinity(0)))
    executor = ProcessPoolExecutor(
        cores, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield from executor.map(_train, jobs)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _train(job: Job) -> Run:
    workload = _loaded(job.model, job.folder)
    return train(workload, job.setting, job.seed, lr=job.lr, steps=job.steps, backend=job.backend)


@lru_cache(maxsize=1)  # jobs of one model follow each other
def _loaded(model: str, folder: Path) -> Workload:
    return load(model, folder)
