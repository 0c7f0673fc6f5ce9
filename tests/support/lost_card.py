"""Loaded by pytest on a GPU: a test that loses the card ends its process, and pytest-xdist starts another.

After an error on the card every call of CUDA in that process fails, and would be blamed on other tests.
"""

import os
import sys

import pytest
import torch

EXIT_STATUS = 70


def is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and is_lost():
        print(f"{item.nodeid} lost the card:\n{report.longreprtext}", file=sys.stderr, flush=True)
        os._exit(EXIT_STATUS)
    return report
