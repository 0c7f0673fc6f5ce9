"""``python -m bench``: what there is to measure, measuring it, and a page about the results."""

import argparse
import importlib
import math
import sys
from pathlib import Path

from bench.records import ROOT

# Suites that train: each is a module with add_arguments(parser) and run(arguments, out).
STUDIES = {
    "end-to-end": ("bench.end_to_end", "whole training steps, and what is reached over seeds"),
    "friction": ("bench.friction_study", "S over training: which beta3?"),
}
LISTS = {
    "models": "of optimizers' scenarios, as `list` names them",
    "optimizers": "classes of ours, or parts of their names",
    "dtypes": "of parameters (float32, bfloat16), or precisions of G-Loss (fp32, bf16, tf32)",
    "states": "ways to keep states, as `list` names them",
    "baselines": "parts of the names of what ours is compared with",
}


def run_parser() -> argparse.ArgumentParser:
    from bench.scenarios import SUITES

    default = [name for name, suite in SUITES.items() if suite.by_default]
    parser = argparse.ArgumentParser(
        prog="python -m bench run",
        description="Measures suites, by default "
        + f"{' '.join(default)}. Each scenario is kept as soon as it is measured, in build/bench/; a suite "
        "that was measured whole, without filters, in bench/results/<machine>/. "
        + f"{' and '.join(STUDIES)} train models and have options of their own: "
        "`python -m bench run friction --help`.",
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="suite", default=default, help=", ".join([*SUITES, *STUDIES]))
    for name, text in LISTS.items():
        add(f"--{name}", nargs="+", metavar="NAME", help=text)
    add("--nodes", type=int, nargs="+", metavar="N", help="of G-Loss's graphs, at least 2 each")
    add("--repeats", type=int, help="rounds at most, by default each scenario's own number")
    add("--threads", type=int, help="by default torch's number")
    add("--seconds", type=float, default=math.inf, help="after which nothing more is begun")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--quick", action="store_true", help="in miniature, to see that all works")
    add("--out", type=Path, help="folder of the results, whole or not")
    return parser


def run(arguments: list[str]) -> int:
    if arguments and arguments[0] in STUDIES:
        return run_study(arguments[0], arguments[1:])
    import torch

    from bench.runner import run as run_suites
    from bench.scenarios import SUITES

    parser = run_parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.suites if name not in SUITES]:
        parser.error(
            f"no suite is called {', '.join(unknown)}; there are {', '.join([*SUITES, *STUDIES])}, "
            "the last two one at a time"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")
    if options.nodes and min(options.nodes) < 2:
        parser.error("a graph has at least two nodes")
    return run_suites(options, parser.parse_args([]))


def run_study(name: str, arguments: list[str]) -> int:
    from bench.runner import results_folder

    module = importlib.import_module(STUDIES[name][0])
    parser = argparse.ArgumentParser(
        prog=f"python -m bench run {name}", description=STUDIES[name][1], conflict_handler="resolve"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    module.add_arguments(parser)
    options = parser.parse_args(arguments)
    whole = {**vars(options), "out": None} == vars(parser.parse_args([]))
    folder = results_folder("cpu") if whole else ROOT / "build" / "bench"
    return int(module.run(options, options.out or folder) or 0)


def show(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench list",
        description="Prints suites, scenarios, and who is compared; of what cannot be imported, why.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    from bench.listing import listing

    print(listing(parser.parse_args(arguments).device, STUDIES))
    return 0


def report(arguments: list[str]) -> int:
    from bench.report import write_report
    from bench.runner import results_folder

    parser = argparse.ArgumentParser(
        prog="python -m bench report",
        description="Writes report.md and pictures about the results in these folders.",
    )
    parser.add_argument("folders", nargs="*", type=Path, help="by default this machine's")
    parser.add_argument("--out", type=Path, help="where to write, by default the first folder")
    options = parser.parse_args(arguments)
    folders = options.folders or [results_folder("cpu")]
    print(write_report(folders, options.out or folders[0]))
    return 0


COMMANDS = {"list": show, "run": run, "report": report}
MEASURING = ("list", "run")


def why_nothing_to_measure(arguments: list[str]) -> str | None:
    """Why ours is not there to be measured: plain torch would be compared with itself."""
    if arguments[0] not in MEASURING or {"-h", "--help"} & set(arguments):
        return None
    from friction_kernels.backends import native_reason

    return native_reason()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog="each has --help of its own"
    )
    parser.add_argument(
        "command",
        choices=COMMANDS,
        help="list: suites, scenarios, baselines; run: measure; report: one page and pictures",
    )
    command = parser.parse_args(arguments[:1]).command
    if reason := why_nothing_to_measure(arguments):
        parser.exit(2, f"{parser.prog}: error: there are no native kernels to measure: {reason}\n")
    return COMMANDS[command](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
