"""Train a small ViT and a small ResNet with several optimizers and compare them.

By default the networks learn scikit-learn's bundled handwritten digits, with the native and the
reference form of SigSignAdamW, with RSGDM, and with torch's own AdamW and SGD:

    python examples/train_images.py

Your own images, in a folder with one sub-folder per class, and optimizers of your choice, of
friction_kernels (each in its native and its reference form) or of torch.optim:

    python examples/train_images.py --data photos --image-size 32 --optimizer TanhSignAdamP Adam

Prints a table of test accuracies and of times per optimizer step, and draws the curves of loss
and accuracy in OUTPUT/curves.png. At each seed, every optimizer starts from the same weights and
sees the same batches in the same order. Ctrl-C shows what is trained by then.
"""

import argparse
import inspect
import itertools
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ctrl_c
import torch
from command_line import (
    TORCH_OPTIMIZERS,
    InputError,
    at_least,
    known_optimizer,
    refuse_without_effect,
    takes,
    writable_folder,
)
from image_data import ImageSet, digits, image_folder
from image_models import MODELS
from image_report import Run, draw_curves, print_differences, print_table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from friction_kernels import OPTIMIZERS

# An RSGDM is an SGD with Nesterov momentum whose learning rate is (1 - momentum) times its own.
MOMENTUM = 0.9
RSGDM_RATE = 0.3
SGD_RATE = RSGDM_RATE * (1 - MOMENTUM)
ADAM_RATE = 3e-3
LEARNING_RATES = {
    "RSGDM": RSGDM_RATE,
    "SGD": SGD_RATE,
    **dict.fromkeys(("SigSignAdamW", "TanhSignAdamW", "SigSignAdamP", "TanhSignAdamP"), ADAM_RATE),
    **dict.fromkeys(("Adam", "AdamW", "AdamP"), ADAM_RATE),
}
DEFAULT_CONTENDERS = [
    ("SigSignAdamW", "native"),
    ("SigSignAdamW", "reference"),
    ("RSGDM", "native"),
    ("AdamW", "torch"),
    ("SGD", "torch"),
]
QUICK_STEPS_PER_EPOCH = 4


@dataclass(frozen=True)
class Contender:
    """An optimizer with the options that it takes part with."""

    name: str
    backend: str
    kind: type[Optimizer]
    options: dict

    @property
    def label(self) -> str:
        return f"{self.name} {self.backend}"

    @property
    def mathematics(self) -> tuple:
        if self.name == "RSGDM":
            return ("nesterov", self.options["lr"] * (1 - self.options["momentum"]))
        if self.name == "SGD":
            return ("nesterov", self.options["lr"])
        return (self.name,)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return self.kind(parameters, **self.options)

    def try_out(self) -> None:
        """Take one step, so that an optimizer that needs more than gradients fails early."""
        parameters = [nn.Parameter(torch.ones(shape)) for shape in ((4,), (4, 4), (4, 4, 3, 3))]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        try:
            self.build(parameters).step()
        except Exception as error:
            raise InputError(
                f"{self.label} cannot train these models ({error}): "
                "choose other options or another --optimizer"
            ) from error


def make_contender(name: str, backend: str, args: argparse.Namespace) -> Contender:
    is_ours = backend != "torch"
    kind = OPTIMIZERS[name] if is_ours else TORCH_OPTIMIZERS[name]
    options = {"lr": LEARNING_RATES.get(name) if args.lr is None else args.lr}
    if name in ("RSGDM", "SGD"):
        options["momentum"] = MOMENTUM
    elif is_ours:
        asked = {"friction_input": args.friction_input, "beta3": args.beta3}
        options |= {option: value for option, value in asked.items() if takes(name, option)}
    if name == "SGD":
        options["nesterov"] = True
    if is_ours:
        options["backend"] = backend
    elif "fused" in inspect.signature(kind).parameters:
        options["fused"] = True
        backend = f"{backend} fused"
    given = {option: value for option, value in options.items() if value is not None}
    return Contender(name, backend, kind, given)


def chosen_contenders(args: argparse.Namespace) -> list[Contender]:
    if args.optimizer:
        names = dict.fromkeys(known_optimizer(name, TORCH_OPTIMIZERS) for name in args.optimizer)
        chosen = [(name, backend) for name in names for backend in backends(name)]
    else:
        chosen = DEFAULT_CONTENDERS
    contenders = [make_contender(name, backend, args) for name, backend in chosen]
    for each in contenders:
        each.try_out()
    return contenders


def backends(name: str) -> tuple[str, ...]:
    ours = ("native", "reference") if name in OPTIMIZERS else ()
    return (*ours, "torch") if name in TORCH_OPTIMIZERS else ours


def train(
    model_name: str,
    contender: Contender,
    seed: int,
    images: ImageSet,
    args: argparse.Namespace,
    progress: tqdm,
) -> Run:
    torch.manual_seed(seed)
    model = MODELS[model_name](*images.shape, images.classes)
    optimizer = contender.build(model.parameters())
    schedule = CosineAnnealingLR(optimizer, args.epochs * steps_per_epoch(images, args))
    order = torch.Generator().manual_seed(seed)
    run = Run(model_name, contender.name, contender.backend, contender.mathematics)
    for _ in range(args.epochs):
        losses = []
        model.train()
        for batch in batches(images, args, order):
            inputs = images.standardize(images.train_images[batch])
            loss = cross_entropy(model(inputs), images.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            started = time.perf_counter()
            optimizer.step()
            run.step_seconds.append(time.perf_counter() - started)
            schedule.step()
            losses.append(loss.item())
            progress.update()
        run.losses.append(statistics.fmean(losses))
        run.accuracies.append(accuracy(model, images, args.batch_size))
    return run


def batches(
    images: ImageSet, args: argparse.Namespace, order: torch.Generator
) -> tuple[Tensor, ...]:
    shuffled = torch.randperm(len(images.train_labels), generator=order)
    return shuffled.split(args.batch_size)[: steps_per_epoch(images, args)]


def steps_per_epoch(images: ImageSet, args: argparse.Namespace) -> int:
    steps = math.ceil(len(images.train_labels) / args.batch_size)
    return min(steps, QUICK_STEPS_PER_EPOCH) if args.quick else steps


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet, batch_size: int) -> float:
    model.eval()
    correct = 0
    for rows in torch.arange(len(images.test_labels)).split(batch_size):
        scores = model(images.standardize(images.test_images[rows]))
        correct += (scores.argmax(dim=1) == images.test_labels[rows]).sum().item()
    return correct / len(images.test_labels)


def train_all(
    contenders: list[Contender], images: ImageSet, args: argparse.Namespace, runs: list[Run]
) -> None:
    """Append each run as soon as it is finished."""
    models = list(MODELS) if args.model == "both" else [args.model]
    # Seeds are outermost, so that the noise of the machine meets every optimizer alike.
    trainings = list(itertools.product(range(args.seeds), models, contenders))
    total = len(trainings) * args.epochs * steps_per_epoch(images, args)
    with tqdm(total=total, unit="step", smoothing=0, dynamic_ncols=True) as progress:
        for seed, model_name, each in trainings:
            progress.set_description(f"seed {seed}, {model_name}, {each.label}")
            runs.append(train(model_name, each, seed, images, args, progress))


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the description's lines and shows each option's default, unless its help says it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None:
            return action.help
        return super()._get_help_string(action)


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        help="folder with one sub-folder of images per class (default: handwritten digits)",
    )
    add("--image-size", type=at_least(8), default=32, help="side of the --data images, in pixels")
    add(
        "--optimizer",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="what to compare, ours or torch's (default: "
        + ", ".join(sorted({name for name, _ in DEFAULT_CONTENDERS}))
        + ")",
    )
    add("--model", choices=[*MODELS, "both"], default="both", help="what to train")
    add("--epochs", type=at_least(1), default=3, help="passes over the training set")
    add("--batch-size", type=at_least(1), default=32, help="images per step")
    add("--lr", type=float, help="learning rate of all optimizers (default: by optimizer)")
    add("--seeds", type=at_least(1), default=2, help="how many seeds to train with")
    add(
        "--friction-input",
        choices=["product", "normalized"],
        default="normalized",
        help="what the friction is made from: the published product, or this library's own form",
    )
    add("--beta3", type=float, help="the optimizer's beta3, where it has one (default: its own)")
    add("--output", type=Path, default=Path("runs/train_images"), help="folder of the PNG")
    add("--quick", action="store_true", help="a smoke run: 1 seed, 2 epochs of few steps")
    return parser


def check_options(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    names = args.optimizer or [name for name, _ in DEFAULT_CONTENDERS]
    names = {known_optimizer(name, TORCH_OPTIMIZERS) for name in names}
    refuse_without_effect(
        command,
        {
            "image_size": (args.data is not None, "for images of --data"),
            "epochs": (not args.quick, "not for --quick, which has its own"),
            "seeds": (not args.quick, "not for --quick, which has its own"),
            **{
                option: (any(takes(name, option) for name in names), "for optimizers with friction")
                for option in ("friction_input", "beta3")
            },
        },
    )


def main() -> None:
    command = command_line()
    args = command.parse_args()
    try:
        check_options(command, args)
        if args.quick:
            args.seeds, args.epochs = 1, 2
        contenders = chosen_contenders(args)
        png = writable_folder(args.output) / "curves.png"
        images = image_folder(args.data, args.image_size) if args.data else digits()
    except InputError as error:
        # Not command.error: the usage that it prints first would bury the message.
        command.exit(2, f"{command.prog}: error: {error}\n")
    print(images)
    runs: list[Run] = []
    with ctrl_c.Interruption() as interruption:
        train_all(contenders, images, args, runs)
    if runs:
        print_table(runs)
        print_differences(runs)
        draw_curves(runs, png)
        print(f"Curves: {png}")
    interruption.end()


if __name__ == "__main__":
    main()
