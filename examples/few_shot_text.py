"""Classify texts of new classes from a few examples each: FOMAML and Reptile against plain fine-tuning.

    python examples/few_shot_text.py
    python examples/few_shot_text.py --data news.csv --ways 4 --shots 1

Texts are the functions of Python's standard library, by module, or those of a CSV file with the columns
`text` and `label`. A small network reads them as hashed bags of words. Half of the classes are for
meta-training. The others make the episodes of the test: some classes, a few texts of each to learn from,
and others to classify. Every start learns an episode by the same steps of gradient descent, at the rate that
does best for it in episodes of the first half:

    fine_tuning   random weights
    pretrained    a classifier of the first half, with a new last layer
    fomaml        where some inner steps (lists.adapt) lead to a low loss on other texts
    reptile       a moving average (lists.interpolate) of where inner steps lead

Prints the accuracy, mean and standard deviation over the episodes, which are the same for all, and how far it
is above that of fine-tuning, mean and standard error.
"""

import argparse
import ast
import itertools
import statistics
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import ctrl_c  # noqa: F401 - before what takes seconds to load
import torch
from command_line import InputError, at_least
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import HashingVectorizer
from text_data import read_columns
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from friction_kernels import AdamW, lists

WORDS, HIDDEN = 1024, 32
FEWEST = 12  # texts of a class
INNER_STEPS, INNER_RATE, TASKS_A_STEP = 5, 1.0, 4  # in meta-training
RATE, REPTILE_RATE = 1e-3, 0.2
TEST_STEPS, TEST_RATES = 10, (0.3, 1.0, 3.0, 10.0)
Batch = tuple[Tensor, Tensor]
Classes = list[Tensor]  # the texts (N, WORDS) of each


def episodes(
    classes: Classes, args: argparse.Namespace, seed: int
) -> Iterator[tuple[Batch, Batch]]:
    """Texts to learn from and others to classify, of classes whose numbers hold for one episode."""
    random = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randperm(len(classes), generator=random)[: args.ways].tolist()
        drawn = [classes[i][torch.randperm(len(classes[i]), generator=random)] for i in chosen]
        yield (
            labelled([texts[: args.shots] for texts in drawn]),
            labelled([texts[args.shots : FEWEST] for texts in drawn]),
        )


def labelled(classes: Classes) -> Batch:
    labels = [torch.full((len(texts),), label) for label, texts in enumerate(classes)]
    return torch.cat(classes), torch.cat(labels)


def network(ways: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WORDS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, ways))


def descend(model: nn.Module, batch: Batch, rate: float, steps: int) -> dict[str, Tensor]:
    """The parameters after some steps of gradient descent; autograd goes through, to first order."""
    fast = dict(model.named_parameters())
    for _ in range(steps):
        loss = cross_entropy(functional_call(model, fast, (batch[0],)), batch[1])
        fast = lists.adapt(fast, torch.autograd.grad(loss, list(fast.values())), rate)
    return fast


def fine_tuning(classes: Classes, args: argparse.Namespace) -> nn.Module:
    return network(args.ways)


def pretrained(classes: Classes, args: argparse.Namespace) -> nn.Module:
    model, (x, y) = network(len(classes)), labelled(classes)
    opt = AdamW(model.parameters(), lr=RATE)
    for _ in range(args.steps):
        batch = torch.randint(len(x), (64,))
        opt.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        opt.step()
    model[-1] = nn.Linear(HIDDEN, args.ways)
    return model


def fomaml(classes: Classes, args: argparse.Namespace) -> nn.Module:
    model, tasks = network(args.ways), episodes(classes, args, seed=1)
    opt = AdamW(model.parameters(), lr=RATE)
    for _ in range(args.steps):
        opt.zero_grad()
        for learned, (x, y) in itertools.islice(tasks, TASKS_A_STEP):
            fast = descend(model, learned, INNER_RATE, INNER_STEPS)
            (cross_entropy(functional_call(model, fast, (x,)), y) / TASKS_A_STEP).backward()
        opt.step()
    return model


def reptile(classes: Classes, args: argparse.Namespace) -> nn.Module:
    model, tasks = network(args.ways), episodes(classes, args, seed=1)
    parameters = list(model.parameters())
    for (x, y), (other_x, other_y) in itertools.islice(tasks, args.steps * TASKS_A_STEP):
        batch = torch.cat([x, other_x]), torch.cat([y, other_y])
        fast = descend(model, batch, INNER_RATE, INNER_STEPS)
        with torch.no_grad():
            lists.interpolate(parameters, fast.values(), REPTILE_RATE, out=parameters)
    return model


def accuracies(model: nn.Module, tasks: Iterator, count: int, rate: float) -> list[float]:
    found = []
    for learned, (x, y) in itertools.islice(tasks, count):
        fast = descend(model, learned, rate, TEST_STEPS)
        right = functional_call(model, fast, (x,)).argmax(dim=1) == y
        found.append(100 * right.double().mean().item())
    return found


def functions_of_python() -> tuple[list[str], list[str]]:
    """The text and the module of each function in the standard library, without the shortest."""
    texts, names = [], []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = file.read_bytes().decode()
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 4:
                texts.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
                names.append(file.stem)
    return texts, names


def classes_of(file: Path | None) -> Classes:
    """The hashed texts of each class that has enough, in an order drawn at random."""
    texts, names = read_columns(file) if file else functions_of_python()
    hashed = HashingVectorizer(n_features=WORDS, alternate_sign=False).transform(texts).toarray()
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    found = [torch.from_numpy(hashed[own]).float() for own in rows.values() if len(own) >= FEWEST]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[index] for index in order.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="CSV file; default Python's standard library")
    add("--ways", type=at_least(2), default=5, help="classes of an episode; default 5")
    add("--shots", type=at_least(1), default=5, help="texts to learn from, of each; default 5")
    add("--steps", type=at_least(1), default=200, help="of meta-training; default 200")
    add("--episodes", type=at_least(2), default=100, help="of the test; default 100")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads would wait for each other longer than they work
    torch.manual_seed(0)
    try:
        classes = classes_of(args.data)
        half = len(classes) // 2
        if args.ways > half or args.shots >= FEWEST:
            raise InputError(
                f"{len(classes)} classes have {FEWEST} texts or more, half of them are for the test: give "
                f"--ways up to {half}, and --shots below {FEWEST}"
            )
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{len(classes)} classes, {half} of them for meta-training", flush=True)
    known, new = classes[:half], classes[half:]
    table = Table("start", "accuracy", "above fine_tuning", "rate", box=box.SIMPLE)
    plain = None
    for start in (fine_tuning, pretrained, fomaml, reptile):
        model = start(known, args)
        tried = [
            sum(accuracies(model, episodes(known, args, seed=2), 20, rate)) for rate in TEST_RATES
        ]
        rate = TEST_RATES[tried.index(max(tried))]
        found = accuracies(model, episodes(new, args, seed=3), args.episodes, rate)
        plain = plain or found
        above = [mine - its for mine, its in zip(found, plain, strict=True)]
        error = statistics.stdev(above) / len(above) ** 0.5
        table.add_row(
            start.__name__,
            f"{statistics.mean(found):.1f} ± {statistics.stdev(found):.1f} %",
            f"{statistics.mean(above):+.1f} ± {error:.1f}" if found is not plain else "",
            f"{rate:g}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
