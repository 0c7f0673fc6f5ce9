"""The study of beta3: that S is noted as the equations have it, and that the study runs."""

import json
import re
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_trainings import tiny_trainings

import friction_kernels as fk
from bench import friction_study
from bench.end_to_end_optimizers import with_friction
from bench.end_to_end_tasks import TASKS, task_of
from bench.end_to_end_training import train
from bench.friction_recording import (
    ALL,
    BINS,
    INPUT_QUANTILES,
    KINDS,
    QUANTILES,
    VECTORS,
    Recorder,
    kind_of,
)
from bench.friction_study import BETA3, RATE, Job, training
from bench.friction_tables import Study, greatest_distance
from bench.friction_text import as_markdown, overview
from friction_kernels.equations import NEUTRAL_FRICTION

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "which-beta3.md"
RESULTS = ROOT / "bench" / "results" / "cpu-amd-epyc-2-cores"


@pytest.fixture(scope="module", autouse=True)
def miniature():
    with tiny_trainings():
        yield


@pytest.mark.parametrize("form, beta3", [("product", 1e4), ("normalized", 2.0)])
@pytest.mark.parametrize("kind", [fk.SigSignAdamW, fk.TanhSignAdamW])
def test_s_is_that_of_the_optimizer(kind, form, beta3):
    """`friction_stats` has mean and deviation of the step itself, exact for tensors this small."""
    torch.manual_seed(0)
    task = task_of("ViT on digits")
    model, random = task.model(), torch.Generator().manual_seed(0)
    optimizer = kind(model.parameters(), lr=1e-2, friction_input=form, beta3=beta3)
    recorder = Recorder(steps=range(2, 6), kinds=[], inputs=False)
    neutral = NEUTRAL_FRICTION[kind.rule.friction]
    for step in range(1, 6):
        inputs, labels = task.batch(random)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        recorder(step, model, optimizer)
        optimizer.step()
        if step > 1:
            (found,), noted = fk.friction_stats(optimizer), recorder.looks[-1][ALL]
            assert noted["count"] == found.count
            assert neutral * noted["mean"] == pytest.approx(found.mean, rel=1e-3)
            assert neutral * noted["std"] == pytest.approx(found.std, rel=1e-3)
    assert [look["step"] for look in recorder.looks] == [2, 3, 4, 5]


@pytest.mark.parametrize("form, beta3", [("product", 3e3), ("normalized", 2.0)])
def test_statistics_are_those_of_the_equations_in_float64(form, beta3):
    torch.manual_seed(1)
    model = torch.nn.Sequential()
    model.register_parameter("head", torch.nn.Parameter(torch.randn(7, 30, dtype=torch.float64)))
    optimizer = fk.TanhSignAdamW(model.parameters(), friction_input=form, beta3=beta3)
    recorder = Recorder(steps=[4], kinds=[4], inputs=True)
    gradients = [torch.randn(7, 30, dtype=torch.float64) * 1e-2 for _ in range(4)]
    for step, gradient in enumerate(gradients, start=1):
        model.head.grad = gradient.clone()
        recorder(step, model, optimizer)
        optimizer.step()
    g = [gradient.numpy().ravel() for gradient in gradients]
    m = sum(0.1 * 0.9 ** (3 - i) * each for i, each in enumerate(g)) / (1 - 0.9**4)
    v = sum(0.001 * 0.999 ** (3 - i) * each**2 for i, each in enumerate(g)) / (1 - 0.999**4)
    inputs = {"product": g[2] * g[3], "normalized": g[2] * g[3] / (v + 1e-8)}
    s = np.tanh(beta3 * inputs[form]) + 1
    step_without = m / (np.sqrt(v) + 1e-8)
    (look,) = recorder.looks
    assert look["head"] == look[ALL]
    noted = look[ALL]
    close = partial(pytest.approx, rel=1e-3, abs=1e-9)
    assert noted["mean"] == close(s.mean()) and noted["std"] == close(s.std())
    assert noted["quantiles"] == close(np.quantile(s, QUANTILES).tolist())
    assert look["histogram"] == pytest.approx(
        (np.histogram(s, BINS, (0, 2))[0] / s.size).tolist(), rel=1e-2
    )
    norms = [np.linalg.norm(each) for each in (s * step_without, step_without)]
    assert noted["step_length"] == close(norms[0] / norms[1])
    for name, x in inputs.items():
        assert noted[name]["quantiles"] == close(np.quantile(abs(x), INPUT_QUANTILES).tolist())
        assert noted[name]["positive"] == close((x > 0).mean())


@pytest.mark.parametrize("form, beta3", [("product", 1e4), ("normalized", 1.0)])
def test_sigmoid_friction_at_twice_beta3_and_rate_takes_the_same_steps(form, beta3):
    jobs = [Job("ViT on digits", kind, form, beta3, RATE, 0, 12) for kind in ("tanh", "sigmoid")]
    tanh, sigmoid = map(training, jobs)
    assert sigmoid["training_loss"] == pytest.approx(tanh["training_loss"], rel=1e-4)
    (midway,) = sigmoid["looks"]
    (same,) = (look for look in tanh["looks"] if look["step"] == midway["step"])
    for kind in (ALL, "attention", "head"):
        assert midway[kind]["std"] == pytest.approx(same[kind]["std"], rel=1e-2)
        assert midway[kind]["mean"] == pytest.approx(same[kind]["mean"], rel=1e-2)


def test_looking_does_not_change_the_training():
    build = partial(with_friction(fk.TanhSignAdamW, friction_input="normalized").build, rate=RATE)
    recorder = Recorder(steps=range(2, 7), kinds=range(2, 7), inputs=True)
    looked = train("ResNet on digits", build, 0, 6, recorder)
    assert looked == train("ResNet on digits", build, 0, 6) and len(recorder.looks) == 5


def test_every_parameter_of_the_models_has_a_kind():
    found = {
        kind_of(name, parameter)
        for make in TASKS.values()
        for name, parameter in make().model().named_parameters()
    }
    assert found == {*KINDS, VECTORS}


def run_quick(folder):
    parser = ArgumentParser()
    friction_study.add_arguments(parser)
    friction_study.run(parser.parse_args(["--quick", "--workers", "1"]), folder)
    return json.loads((folder / "friction.json").read_text())


def test_the_study_in_miniature(tmp_path):
    report = run_quick(tmp_path)
    assert report["kind"] == "quick run" and report["machine"]["copy_gb_s"] > 0
    pictures = {what: f"which-beta3-{what}.png" for what in ("input", *BETA3, "loss")}
    assert all((tmp_path / picture).exists() for picture in pictures.values())
    page = (tmp_path / "friction.md").read_text()
    assert page == as_markdown(report, pictures) and "nan" not in page
    for task in TASKS:
        assert f"## {task}" in page
        study = Study(report, task)
        for form, values in BETA3.items():
            assert study.values(form) == sorted(values)
            deviations = [study.looks(form, beta3)[-1][ALL]["std"] for beta3 in values]
            assert deviations[0] < deviations[-1]
        assert all(look[ALL]["std"] == 0 for look in study.looks("product", 0.0))


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch):
    done = []

    def interrupted(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(training(job))
        return done[-1]

    monkeypatch.setattr(friction_study, "training", interrupted)
    report = run_quick(tmp_path)
    assert report["kind"] == "partial run" and len(report["trainings"]) == 2
    assert (tmp_path / "friction.md").exists()


def test_the_documents_pictures_are_there():
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", PAGE.read_text())
    assert {f"images/which-beta3-{what}.png" for what in ("input", *BETA3, "loss")} == set(links)
    assert all((PAGE.parent / link).stat().st_size < 150_000 for link in links)


def test_what_the_document_shows_is_in_the_results():
    results = RESULTS / "friction.json"
    report = json.loads(results.read_text())
    for table in overview(report):
        assert table in PAGE.read_text()
    assert "end at the same losses, to six digits" in PAGE.read_text()
    for task in TASKS:
        trainings, apart = greatest_distance(report, task)
        assert trainings >= 2 and apart == 0
    for picture in (PAGE.parent / "images").glob("which-beta3-*.png"):
        assert picture.read_bytes() == results.with_name(picture.name).read_bytes()
