"""``python -m bench``: what there is to measure, measuring it, and a page about the results."""

import argparse
import math
import sys
from pathlib import Path

LISTS = {
    "models": "of optimizers' scenarios, as `list` names them",
    "dtypes": "of parameters (float32, bfloat16), or precisions of G-Loss (fp32, bf16, tf32)",
    "contenders": "names or parts of names, as `list` prints them; some of this library must be among them",
}


def run_parser() -> argparse.ArgumentParser:
    from bench.scenarios import SUITES

    default = [name for name, suite in SUITES.items() if suite.by_default]
    parser = argparse.ArgumentParser(
        prog="python -m bench run",
        description=f"Measures suites, by default {' '.join(default)}. Each scenario is kept as soon as "
        "it is measured, in build/bench/; a suite that was measured whole, without filters, in "
        "bench/results/<machine>/.",
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="suite", default=default, help=", ".join(SUITES))
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
    import torch

    from bench.runner import run as run_suites
    from bench.scenarios import SUITES

    parser = run_parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.suites if name not in SUITES]:
        parser.error(f"no suite is called {', '.join(unknown)}; there are {', '.join(SUITES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")
    if options.nodes and min(options.nodes) < 2:
        parser.error("a graph has at least two nodes")
    return run_suites(options, parser.parse_args([]))


def show(arguments: list[str]) -> int:
    from bench.peers import import_failure
    from bench.report import table
    from bench.scenarios import SUITES, scenarios_of

    parser = argparse.ArgumentParser(
        prog="python -m bench list",
        description="Prints suites, scenarios, and who is compared; of what cannot be imported, why.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device, contenders = parser.parse_args(arguments).device, {}
    for name, suite in SUITES.items():
        rows = []
        for scenario in scenarios_of(name, device):
            contenders |= {contender.name: contender for contender in scenario.contenders}
            by_default = "yes" if scenario.default else ""
            rows.append([scenario.name, by_default, str(len(scenario.contenders) or "")])
        when = "" if suite.by_default else " (not run by default)"
        print(f"{name}: {suite.what}{when}\n")
        print(table(["scenario", "by default", "contenders"], rows) + "\n")
    rows = [[name, import_failure(c.needs) or "here"] for name, c in contenders.items()]
    print(table(["contender", "importable"], rows))
    return 0


def report(arguments: list[str]) -> int:
    from bench.records import results_folder
    from bench.report import write_report

    parser = argparse.ArgumentParser(
        prog="python -m bench report",
        description="Writes report.md and pictures about the results in this folder.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="by default this machine's")
    parser.add_argument("--out", type=Path, help="where to write, by default the same folder")
    options = parser.parse_args(arguments)
    folder = options.folder or results_folder("cpu")
    print(write_report(folder, options.out or folder))
    return 0


COMMANDS = {"list": show, "run": run, "report": report}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog="each has --help of its own"
    )
    parser.add_argument(
        "command",
        choices=COMMANDS,
        help="list: suites, scenarios, contenders; run: measure; report: one page and pictures",
    )
    command = parser.parse_args(arguments[:1]).command
    if command != "report" and not {"-h", "--help"} & set(arguments):
        from friction_kernels.backends import native_unavailable_reason

        if reason := native_unavailable_reason():  # plain torch would be compared with itself
            text = f"error: there are no native kernels to measure: {reason}"
            parser.exit(2, f"{parser.prog}: {text}\n")
    return COMMANDS[command](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
