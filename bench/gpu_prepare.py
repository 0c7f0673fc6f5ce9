"""Builds for a card before it is lent: ``make gpu-prepare``.

The card's machine has a Python of its own, of which only interpreter and headers are needed here. The
library is named after that Python and lies beside the one that is used here. With --triton, an environment of
that Python with torch and the card's version of Triton, the Triton kernels are compiled too; they serve the
card if its Triton is the same build. git ignores all of it.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_report import BUDGET, TRITON_CACHE, build_commands  # noqa: E402

SUFFIX = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default="python3.12", help="as the card's machine has it")
    parser.add_argument("--capability", default="90", help="of the card: 80, 90, 100")
    parser.add_argument(
        "--triton", metavar="PYTHON", help="of an environment with the card's Triton"
    )
    options = parser.parse_args()
    asked = subprocess.run([options.python, "-c", SUFFIX], capture_output=True, text=True)
    if asked.returncode != 0:
        raise SystemExit(
            f"{options.python} does not run: {asked.stderr.strip()}; name one by --python"
        )
    folder = ROOT / "build" / f"gpu-{Path(options.python).name}-sm_{options.capability}"
    for command in build_commands(options.capability, folder, options.python):
        subprocess.run(list(map(str, command)), check=True)
    made = [ROOT / "friction_kernels" / f"_native{asked.stdout.strip()}"]
    if options.triton:
        folders = os.pathsep.join(map(str, (ROOT, ROOT / "triton_kernels")))
        command = [options.triton, "-m", "bench.gpu_triton", TRITON_CACHE]
        command += ["--capability", options.capability]
        environment = {**os.environ, "PYTHONPATH": folders}
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env=environment)
        made.append(TRITON_CACHE)
    print("\nBuilt, and to travel with the sources:")
    for path in made:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files) / 2**20
        print(f"  {path.relative_to(ROOT)}  # {size:.1f} MiB")
    print("On the card's machine:")
    for stage, seconds in BUDGET.items():
        print(f"  python3 bench/gpu_report.py --stage {stage}   # at most {seconds} s")


if __name__ == "__main__":
    main()
