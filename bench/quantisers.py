"""Which 8-bit maps suit the optimizers' states: errors on the states of real trainings.

``python -m bench run quantisers``, or ``python -m bench.quantisers [--quick]`` which prints each table as
it is there, trains a vision transformer on scikit-learn's digits and a byte-level GPT on the standard
library's sources. The tables are, per model,

1. the relative RMS error of one round trip of each state, and for exp_avg_sq the ratio of its root
   to the exact one: below 1 lengthens a step, above 1 shortens it;
2. the error of SigSignAdamW's update direction after one round trip of all states ("once"), and
   with 8-bit states all along the float32 trajectory ("stored"): RMS, growth of the largest
   element ("blow-up"), largest error in units of the direction's RMS ("worst");
3. losses of trainings with 8-bit states, less float32's of the same seed: mean ± deviation;

and last, how an exp_avg_sq stored for thousands of steps follows the exact one, before and after
the gradients' sizes move to other elements.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench import markdown
from bench.quantiser_maps import BEST, CONTROL, SIGNED, UNSIGNED, Scheme
from bench.quantiser_models import TASKS, Training
from bench.scenarios import DECAY, StudyScenario
from friction_kernels import RSGDM, SigSignAdamW
from friction_kernels.equations import friction_direction
from friction_kernels.optim.packed import BLOCK

FULL, QUICK = (100, 3, 2000), (8, 1, 100)  # steps, seeds, steps of the last table
LARGEST_BLOCK = 2048
ADAM_STATES = ("exp_avg", "exp_avg_sq", "prev_grad")
NEAREST = replace(BEST, rounding="nearest")
COMPARED = [
    *(replace(BEST, signed=name) for name in SIGNED),
    *(replace(NEAREST, unsigned=name) for name in UNSIGNED),
    *(replace(BEST, unsigned=name) for name in ("power 4", "companding M3", "dynamic")),
    Scheme("power 2", "power 4", "by step"),
    Scheme("dynamic", "dynamic", "by step"),
    replace(BEST, rounding="randomly"),
    *(replace(BEST, block=block) for block in (64, 128, 512, LARGEST_BLOCK)),
]
TRAINED = {
    SigSignAdamW: [
        Scheme(CONTROL, CONTROL),
        BEST,
        NEAREST,
        Scheme("power 2", "power 4", "by step"),
        Scheme("dynamic", "dynamic"),
        Scheme("linear", "linear"),
    ],
    RSGDM: [
        Scheme(CONTROL),
        Scheme("companding M4", rounding="by step"),
        Scheme("companding M4"),
        Scheme("power 2", rounding="by step"),
        Scheme("linear"),
    ],
}
FOLLOWED = [
    replace(BEST, unsigned=unsigned, rounding=rounding)
    for rounding in ("nearest", "randomly", "by step")
    for unsigned in ("power 2", "power 4", "companding M3", "companding M4", "dynamic")
]


def table(header: list[str], rows: list[list[str]]) -> dict[str, list]:
    return {"header": header, "rows": rows}


def relative_rms(approximate: Tensor, exact: Tensor) -> float:
    return ((approximate - exact).norm() / exact.norm()).item()


def root_ratios(approximate: Tensor, exact: Tensor, *at: float) -> list[str]:
    """Quantiles of the ratio of the roots, over the elements that are not zero."""
    ratios = (approximate / exact)[exact > 0].sqrt()
    return [f"{ratio:.3g}" for ratio in ratios.quantile(torch.tensor(at)).tolist()]


def kind(name: str, parameter: Tensor) -> str:
    if parameter.dim() == 1:
        return "vectors"
    return "embeddings" if name.startswith(("characters", "positions")) else "matrices"


def state_errors(training: Training) -> Iterator[dict[str, list]]:
    seen = defaultdict(list)  # by state
    for _, look in training.run():
        for name, parameter in training.model.named_parameters() if look else ():
            for key, state in training.optimizer.state[parameter].items():
                seen[key].append((kind(name, parameter), state.clone()))
    kinds = ("matrices", "embeddings", "vectors")
    for key in sorted(seen.keys() - {"step"}):
        extra = ["root lowest", "0.1%", "99.9%"] if key == "exp_avg_sq" else []
        rows = []
        for label in SIGNED:
            copies = [Scheme(label, label).round_trip(key, state) for _, state in seen[key]]
            errors = defaultdict(list)
            for copy, (its_kind, state) in zip(copies, seen[key], strict=True):
                errors[its_kind].append(relative_rms(copy, state))
            rows.append([label, *(f"{fmean(errors[each]):.2%}" for each in kinds)])
            if extra:
                states = torch.cat([state.flatten() for _, state in seen[key]])
                together = torch.cat([copy.flatten() for copy in copies])
                rows[-1] += root_ratios(together, states, 0, 0.001, 0.999)
        yield table([key, *kinds, *extra], rows)


def direction_errors(training: Training) -> dict[str, list]:
    group = training.optimizer.param_groups[0]
    options = {name: group[name] for name in ("betas", "eps", "friction_input", "beta3")}
    options |= {"coupled_decay": 0.0, "maximize": False, "friction": "sigmoid"}
    large = [p for p in training.model.parameters() if p.numel() >= BLOCK]
    sizes = [p.numel() + -p.numel() % LARGEST_BLOCK for p in large]

    @torch.no_grad()
    def advance(states: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
        """The direction and the new states, of all tensors padded so that they share no block."""
        grads = [pad(p.grad.flatten(), (0, -p.numel() % LARGEST_BLOCK)) for p in large]
        grad, states = torch.cat(grads), [state.clone() for state in states]
        return friction_direction(grad, grad, *states, step, **options)[0], states

    def stored(scheme: Scheme, states: list[Tensor], step: int) -> list[Tensor]:
        named = zip(ADAM_STATES, states, strict=True)
        return [scheme.round_trip(name, state, step) for name, state in named]

    errors, ratios = defaultdict(list), {}

    def note(scheme: Scheme, when: str, approximate: Tensor, exact: Tensor) -> None:
        for ours, u in zip(approximate.split(sizes), exact.split(sizes), strict=True):
            blow_up = (ours.abs().max() / u.abs().max()).item()
            worst = ((ours - u).abs().max() / u.norm() * u.count_nonzero().sqrt()).item()
            errors[scheme, when].append((relative_rms(ours, u), blow_up, worst))

    exact = [torch.zeros(sum(sizes)) for _ in ADAM_STATES]
    states = dict.fromkeys(COMPARED, exact)
    for step, look in training.run():
        before = exact
        u, exact = advance(before, step)
        for scheme in COMPARED:
            ours, new = advance(states[scheme], step)
            states[scheme] = stored(scheme, new, step)
            if look:
                note(scheme, "once", advance(stored(scheme, before, step), step)[0], u)
                note(scheme, "stored", ours, u)
                ratios[scheme] = root_ratios(new[1], exact[1], 0.001, 0.5, 0.999)
    rows = []
    for scheme in COMPARED:
        rows.append([str(scheme)])
        for when in ("once", "stored"):
            rms, blow_up, worst = zip(*errors[scheme, when], strict=True)
            rows[-1] += [f"{fmean(rms):.2%}", f"{max(blow_up):.2f}", f"{max(worst):.2g}"]
        rows[-1] += ratios[scheme]
    each = ("RMS", "blow-up", "worst")
    header = [f"{when} {measure}" for when in ("once", "stored") for measure in each]
    return table(["direction", *header, "root 0.1%", "50%", "99.9%"], rows)


def trainings(name: str, optimizer: type, steps: int, seeds: int) -> dict[str, list]:
    rows = []
    for scheme in (None, *TRAINED[optimizer]):
        runs = [Training(name, optimizer, steps, seed) for seed in range(seeds)]
        losses = torch.stack([training.final_losses(scheme) for training in runs])
        if scheme is None:
            exact, label, sign = losses, "float32", ""
        else:
            losses, label, sign = losses - exact, str(scheme), "+"
        cells = [f"{fmean(each):{sign}.4f} ± {pstdev(each):.4f}" for each in losses.T.tolist()]
        rows.append([label, *cells])
    return table([optimizer.__name__, "training loss", "other data"], rows)


def following(steps: int, elements: int = 32 * BLOCK, beta2: float = 0.999) -> dict[str, list]:
    torch.manual_seed(0)
    sizes, exact = torch.randn(elements).exp(), torch.zeros(elements)
    copies, ratios = dict.fromkeys(FOLLOWED, exact), defaultdict(list)
    for step in range(1, 2 * steps + 1):
        new = (1 - beta2) * (sizes * torch.randn(elements)).square()
        exact = beta2 * exact + new
        for scheme in FOLLOWED:
            copies[scheme] = scheme.round_trip("exp_avg_sq", beta2 * copies[scheme] + new, step)
            if step in (steps, 2 * steps):
                ratios[scheme] += root_ratios(copies[scheme], exact, 0.01, 0.5, 0.99)
        if step == steps:
            sizes = sizes[torch.randperm(elements)]
    rows = [[f"{scheme.unsigned} {scheme.rounding}", *ratios[scheme]] for scheme in FOLLOWED]
    return table(["root of exp_avg_sq", "1%", "50%", "99%", "moved 1%", "50%", "99%"], rows)


def tables_of(model: str, quick: bool) -> Iterator[dict[str, list]]:
    steps, seeds, followed = QUICK if quick else FULL
    if model == DECAY:
        yield following(followed)
        return
    for optimizer in TRAINED:
        yield from state_errors(Training(model, optimizer, steps))
    yield direction_errors(Training(model, SigSignAdamW, steps))
    for optimizer in TRAINED:
        yield trainings(model, optimizer, steps, seeds)


def measure_quantisers(
    scenario: StudyScenario,
    device: str,
    rounds: int | None,
    deadline: float,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """A scenario's part of the results: tables of text. On one thread of the processor."""
    assert scenario.model in (*TASKS, DECAY), scenario.model
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tables = []
        for found in tables_of(scenario.model, scenario.quick):
            tables.append(found)
            advance(len(tables) / (len(tables) + 3))
    finally:
        torch.set_num_threads(threads)
    return {"tables": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and one seed")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    for model in (*TASKS, DECAY):
        print(f"## {model}\n")
        for found in tables_of(model, quick):
            print(markdown.table(found["header"], found["rows"]), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
