"""Native tests and random sequences under AddressSanitizer and UndefinedBehaviorSanitizer.

usage: python tests/sanitize.py [--examples N]

Builds the library into build/sanitize, with the processor's kernels and the GPU's launches on the host.
Tests run on both in a Python that has the sanitizers' runtime; the first fault ends a run and is printed with
what led to it. N: of each hypothesis test, and random sequences (default 10, the same at each run; a long
search takes thousands, and from 100 on more files are run). Needs g++.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))

from built_package import ROOT, TESTS, build, run_pytest
from test_cuda_plan import OTHERWISE_ON_A_GPU

FOLDER = ROOT / "build" / "sanitize"
FILES = ["test_differential", "test_lists", "test_raw_addresses", "test_scale_native"]
LONG = 100  # examples from which more files are run
MORE_FILES = ["test_native", "test_state", "test_low_precision", "test_state_formats"]
# Of each run: what else is in its environment, and what pytest is told. The library is built with the host
# for a GPU, which runs the processor's kernels, too.
RUNS = {
    "processor": (
        {"FRICTION_HOST_IS_HOST": "1"},
        [*(TESTS / f"{name}.py" for name in FILES), "-k", "not reference"],
    ),
    "host for a GPU": (
        {},
        [
            *("-p", "host_gpu_plugin"),
            *(
                TESTS / f"{name}.py"
                for name in ("test_differential", "test_lists", "test_raw_addresses")
            ),
            *(TESTS / "host_gpu" / f"{name}.py" for name in ("plan_checks", "scale_checks")),
            *("-k", f"not reference and {OTHERWISE_ON_A_GPU}"),
        ],
    ),
}


def runtimes():
    """What must be in the process before anything else: Python itself is not built with sanitizers."""
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(map(os.path.isabs, found)):
        sys.exit(f"{compiler} has no sanitizers' runtime: install g++'s")
    return " ".join(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=10)
    examples = str(parser.parse_args().examples)
    again = ("--hypothesis-seed=0",) if int(examples) < LONG else ()
    environment = {
        "LD_PRELOAD": runtimes(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that Python's objects are watched, too
        "EXAMPLES": examples,
        "FUZZ_EXAMPLES": examples,
    }
    started = time.monotonic()
    options = {"FRICTION_CUDA": "host", "FRICTION_SANITIZE": "ON"}
    packages = build(FOLDER / "packages", FOLDER / "cmake", **options)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)

    def run(name: str) -> bool:
        started = time.monotonic()
        more, arguments = RUNS[name]
        # Uncaptured and verbose: a fault ends the process, and its last words are all there is.
        quiet = ("-s", "-p", "no:faulthandler", "--hypothesis-verbosity=verbose")
        names = MORE_FILES if int(examples) >= LONG and name == "processor" else []
        files = [TESTS / f"{file}.py" for file in names]
        status, output = run_pytest(
            packages, *quiet, *again, *arguments, *files, **environment, **more
        )
        lines = output.splitlines()[-1 if status == 0 else -200 :]
        took = f"{name}: tested in {time.monotonic() - started:.0f} s"
        print(*lines, took, sep="\n", flush=True)
        return status == 0

    with ThreadPoolExecutor() as pool:
        return not all(list(pool.map(run, RUNS)))


if __name__ == "__main__":
    sys.exit(main())
