"""What `python -m bench list` prints: scenarios, who is compared, and what cannot be imported."""

from bench.markdown import table
from bench.peers import why_not_importable
from bench.scenarios import SUITES, scenarios_of


def listing(device: str, studies: dict[str, tuple[str, str]]) -> str:
    parts, baselines, ours = [], {}, {}
    for name, suite in SUITES.items():
        rows = []
        for scenario in scenarios_of(name, device):
            contenders = getattr(scenario, "contenders", ())
            rows.append(
                [scenario.name, "yes" if scenario.default else "", str(len(contenders) or "")]
            )
            for contender in contenders:
                (ours if contender.ours else baselines).setdefault(contender.name, contender)
        when = "" if suite.by_default else " (not run by default)"
        parts.append(
            f"{name}: {suite.what}{when}\n\n"
            + table(["scenario", "by default", "contenders"], rows)
        )
    for name, (module, what) in studies.items():
        reason = why_not_importable(module)
        parts.append(f"{name}: {what}; " + (reason or f"`python -m bench run {name} --help`"))
    states = sorted({c.state for c in ours.values()})
    classes = sorted({c.optimizer for c in ours.values() if c.optimizer})
    parts.append(f"optimizers: {', '.join(classes)}\n\nstates: {', '.join(states)}")
    rows = [[name, why_not_importable(c.needs) or "here"] for name, c in baselines.items()]
    parts.append(table(["baseline", "importable"], rows))
    return "\n\n".join(parts)
