"""The PTX of the CUDA kernels, executed without a GPU.

usage: python tests/ptx/run.py

Builds the library twice into build/ptx. In one, an interpreter behind the CUDA runtime's entry points
(tests/ptx/*.cpp) executes the kernels' PTX; in the other, the host walks the launches (tests/native), whose
bits are expected. Then runs, for each architecture, the cases of this folder and of tests/host_gpu. What was
never executed is listed in build/ptx/uncovered-*.txt. Needs g++ and nvcc.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from built_package import ROOT, TESTS, build, host_for_gpu, run_pytest, run_python

HERE, FOLDER = Path(__file__).parent, ROOT / "build" / "ptx"
# The lowest architecture that kernels are compiled for, and the one whose PTX the library carries.
TARGETS = ("sm_80", "sm_100")
# What cases.py has more quickly, and what only repeats the launches of others.
LEFT_OUT = "not every_form and not 10000 and not Tanh"


def built(name: str, **options: str) -> Path:
    return build(FOLDER / name / "packages", FOLDER / name / "cmake", **options)


def main() -> None:
    started = time.monotonic()
    host = host_for_gpu()
    architectures = ";".join(f"{target.removeprefix('sm_')}-virtual" for target in TARGETS)
    ptx = built("ptx", FRICTION_CUDA="ptx", FRICTION_CUDA_ARCHITECTURES=architectures)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)

    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    expected = FOLDER / "expected.json"
    status, output = run_python(host, HERE / "cases.py", expected)
    if status != 0:
        sys.exit(output)

    def run(target: str) -> tuple[int, str]:
        environment = {
            "FRICTION_PTX": target,
            "FRICTION_PTX_EXPECTED": str(expected),
            "FRICTION_PTX_UNCOVERED": str(FOLDER / f"uncovered-{target}.txt"),
        }
        files = [HERE / "kernel_checks.py", HERE / "interpreter_checks.py"]
        files += [TESTS / "host_gpu" / f"{name}.py" for name in ("plan_checks", "scale_checks")]
        return run_pytest(ptx, "-p", "host_gpu_plugin", "-k", LEFT_OUT, *files, **environment)

    failed = False
    with ThreadPoolExecutor() as pool:
        for target, (status, output) in zip(TARGETS, pool.map(run, TARGETS), strict=True):
            lines = output.splitlines()
            executed = (FOLDER / f"uncovered-{target}.txt").read_text().splitlines()[-1]
            print(
                f"{target}: {executed}", *lines[-1 if status == 0 else -200 :], sep="\n", flush=True
            )
            failed |= status != 0
    print(f"tested in {time.monotonic() - started:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
