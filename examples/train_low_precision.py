"""Train with less memory: the same optimizer with float32, bfloat16 and 8-bit state, and bfloat16 parameters.

    python examples/train_low_precision.py

A vision transformer learns scikit-learn's handwritten digits, and a small GPT the sources of Python's
standard library, byte by byte. Prints the memory and the final losses, mean and standard deviation over
the seeds, and draws the training losses in OUTPUT/curves.png. At each seed, every way to keep the numbers
starts from the same weights and sees the same batches in the same order. Ctrl-C shows what is trained by
then.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import ctrl_c
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from character_gpt import GPT, Sources
from command_line import InputError, at_least, refuse_without_effect, writable_folder
from image_data import digits
from image_models import ViT
from image_report import COLORS, draw_over_seeds
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from friction_kernels import SigSignAdamW

RATE = 3e-3
WAYS = {
    "float32": (torch.float32, {}),
    "bf16 state": (torch.float32, {"state_dtype": "bf16"}),
    "8-bit state": (torch.float32, {"state_dtype": "8bit"}),
    "bf16 + split, 8-bit state": (
        torch.bfloat16,
        {"master": "split", "state_dtype": "8bit"},
    ),
}
QUICK_STEPS = 6
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """Something to learn: a batch has inputs and the right classes."""

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    test: Batch


@dataclass
class Run:
    bytes_per_parameter: float
    losses: list[float] = field(default_factory=list)  # of each step
    test_loss: float = float("nan")
    accuracy: float = float("nan")


def digits_task() -> Task:
    images = digits()
    inputs, labels = images.standardize(images.train_images), images.train_labels

    def batch(random: torch.Generator) -> Batch:
        rows = torch.randint(len(labels), (48,), generator=random)
        return inputs[rows], labels[rows]

    def model() -> nn.Module:
        return ViT(*images.shape, images.classes, width=64, depth=4)

    return Task(model, batch, (images.standardize(images.test_images), images.test_labels))


def text_task() -> Task:
    sources = Sources()
    return Task(GPT, lambda random: sources.batch(16, random), sources.held_out())


TASKS = {"ViT on digits": digits_task, "GPT on Python's sources": text_task}


def logits_and_targets(model: nn.Module, batch: Batch) -> Batch:
    """Logits in float32, in which a loss of bfloat16 parameters is computed, too."""
    inputs, targets = batch
    if inputs.is_floating_point():
        inputs = inputs.to(next(model.parameters()).dtype)
    return model(inputs).float().flatten(0, -2), targets.flatten()


def train(task: Task, way: str, seed: int, steps: int, progress: tqdm) -> Run:
    dtype, options = WAYS[way]
    torch.manual_seed(seed)
    model = task.model().to(dtype)
    optimizer = SigSignAdamW(
        model.parameters(), lr=RATE, friction_input="normalized", max_grad_norm=1.0, **options
    )
    schedule = OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    random = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(*logits_and_targets(model, task.batch(random)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.update()
    with torch.no_grad():
        logits, targets = logits_and_targets(model, task.test)
    return Run(
        bytes_per_parameter=optimizer.memory_report().bytes_per_parameter,
        losses=losses,
        test_loss=cross_entropy(logits, targets).item(),
        accuracy=(logits.argmax(dim=1) == targets).double().mean().item(),
    )


def train_all(
    tasks: dict[str, Task], args: argparse.Namespace, runs: dict[tuple[str, str], list[Run]]
) -> None:
    """Add each run as soon as it is finished."""
    # Seeds are outermost, so that the noise of the machine meets every way alike.
    trainings = list(itertools.product(range(args.seeds), tasks, WAYS))
    with tqdm(total=len(trainings) * args.steps, unit="step", smoothing=0) as progress:
        for seed, task, way in trainings:
            progress.set_description(f"seed {seed}, {task}, {way}")
            run = train(tasks[task], way, seed, args.steps, progress)
            runs.setdefault((task, way), []).append(run)


def mean_and_deviation(values: Iterable[float], form: str = ".3f") -> str:
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {deviation:{form}}"


def print_table(runs: dict[tuple[str, str], list[Run]], last: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Kept as", no_wrap=True)
    for heading in ("Bytes", "Training loss", "Test loss", "Test accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, group in itertools.groupby(runs.items(), key=lambda item: item[0][0]):
        table.add_row(f"[bold]{task}")
        for (_, way), of_seeds in group:
            table.add_row(
                way,
                f"{of_seeds[0].bytes_per_parameter:.2f}",
                mean_and_deviation(statistics.fmean(run.losses[-last:]) for run in of_seeds),
                mean_and_deviation(run.test_loss for run in of_seeds),
                mean_and_deviation((100 * run.accuracy for run in of_seeds), ".1f") + " %",
            )
        table.add_section()
    Console().print(table)
    print("Bytes: of parameters and state, for each parameter; gradients are not counted.")
    print(f"Training loss: of the last {last} steps. Mean ± standard deviation over the seeds.")


def draw_curves(runs: dict[tuple[str, str], list[Run]], window: int, png: Path) -> None:
    tasks = list(dict.fromkeys(task for task, _ in runs))
    figure, grid = plt.subplots(
        1, len(tasks), figsize=(11, 4.8), squeeze=False, layout="constrained"
    )
    for task, axes in zip(tasks, grid[0], strict=True):
        # Curves that lie on each other can all be seen where each is thinner than the one before.
        for color, width, way in zip(COLORS, (8, 5.5, 3, 1), WAYS, strict=False):
            curves = [
                torch.tensor(run.losses).unfold(0, window, window).mean(1).tolist()
                for run in runs.get((task, way), [])
            ]
            if curves:
                draw_over_seeds(axes, curves, {"color": color, "label": way, "linewidth": width})
        axes.set(title=task, xlabel=f"{window} steps each", ylabel="training loss", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def main() -> None:
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--steps", type=at_least(2), default=250, help="of each training (default 250)")
    add("--seeds", type=at_least(1), default=3, help="how many to train with (default 3)")
    add("--output", type=Path, default=Path("runs/train_low_precision"), help="folder of the PNG")
    add("--quick", action="store_true", help="a smoke run: few steps, two seeds")
    args = command.parse_args()
    own = (not args.quick, "not for --quick, which has its own")
    try:
        refuse_without_effect(command, {"steps": own, "seeds": own})
        if args.quick:
            args.steps, args.seeds = QUICK_STEPS, 2
        png = writable_folder(args.output) / "curves.png"
        tasks = {name: make() for name, make in TASKS.items()}
    except InputError as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    torch.set_num_threads(1)  # threads would wait for each other longer than such models take
    runs: dict[tuple[str, str], list[Run]] = {}
    with ctrl_c.Interruption() as interruption:
        train_all(tasks, args, runs)
    if runs:
        window = max(1, args.steps // 20)
        print_table(runs, last=window)
        draw_curves(runs, window, png)
        print(f"Curves: {png}")
    interruption.end()


if __name__ == "__main__":
    main()
