"""Builds the library for a card before it is lent: ``make gpu-prepare``.

The card's machine has a Python of its own, of which only interpreter and headers are needed here. The
library is named after that Python and lies beside the one that is used here; git ignores both.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_report import BUDGET, build_commands  # noqa: E402

SUFFIX = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default="python3.12", help="as the card's machine has it")
    parser.add_argument("--capability", default="90", help="of the card: 80, 90, 100")
    options = parser.parse_args()
    asked = subprocess.run([options.python, "-c", SUFFIX], capture_output=True, text=True)
    if asked.returncode != 0:
        raise SystemExit(
            f"{options.python} does not run: {asked.stderr.strip()}; name one by --python"
        )
    folder = ROOT / "build" / f"gpu-{Path(options.python).name}-sm_{options.capability}"
    for command in build_commands(options.capability, folder, options.python):
        subprocess.run(list(map(str, command)), check=True)
    library = ROOT / "friction_kernels" / f"_native{asked.stdout.strip()}"
    print(f"\nBuilt, and to travel with the sources: {library.relative_to(ROOT)}, ", end="")
    print(f"{library.stat().st_size / 2**20:.1f} MiB. On the card's machine:")
    for stage, seconds in BUDGET.items():
        print(f"  python3 bench/gpu_report.py --stage {stage}   # at most {seconds} s")


if __name__ == "__main__":
    main()
