"""The PTX of the built CUDA kernels, executed without a GPU.

usage: python tests/ptx/run.py

Builds the library twice into build/ptx: with its CUDA kernels as PTX for the architectures below, which an
interpreter behind the CUDA runtime's entry points executes (tests/ptx/*.cpp), and with the host's walk of
the same launches (tests/native), whose bits are expected. Needs g++ and nvcc.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from built_package import ROOT, build, run_pytest, run_python

FOLDER = ROOT / "build" / "ptx"
# The lowest that kernels are compiled for, and the one whose PTX the library carries.
TARGETS = ("sm_80", "sm_100")
HERE = Path(__file__).parent


def checked(run: tuple[int, str]) -> str:
    status, output = run
    if status != 0:
        sys.exit(output)
    return output


def built(name: str, **options: str) -> Path:
    return build(FOLDER / name / "packages", FOLDER / name / "cmake", **options)


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.monotonic()
    walk = built("walk", FRICTION_CUDA="host")
    architectures = ";".join(f"{target.removeprefix('sm_')}-virtual" for target in TARGETS)
    ptx = built("ptx", FRICTION_CUDA="ptx", FRICTION_CUDA_ARCHITECTURES=architectures)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)

    started = time.monotonic()
    expected = FOLDER / "expected.json"
    checked(run_python(walk, HERE / "cases.py", expected))

    def run(target: str) -> tuple[int, str]:
        return run_pytest(
            ptx,
            *("-p", "host_gpu_plugin"),
            HERE / "kernel_checks.py",
            FRICTION_PTX=target,
            FRICTION_PTX_EXPECTED=str(expected),
            FRICTION_PTX_UNCOVERED=str(FOLDER / f"uncovered-{target}.txt"),
        )

    with ThreadPoolExecutor() as pool:
        for target, result in zip(TARGETS, pool.map(run, TARGETS), strict=True):
            print(target, checked(result).splitlines()[-1], flush=True)
    print(f"tested in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
