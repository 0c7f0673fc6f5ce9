"""The low-precision example from its command line."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.deep

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_low_precision.py"


def train(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--quick", *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def exit_status(monkeypatch, *options: object) -> int:
    """In this process, to be quick."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, options)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return exit_info.value.code


def test_every_way_to_keep_the_numbers_is_trained_and_shown(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    result = train("--output", output)
    assert result.returncode == 0, result.stderr
    # Parameters and three states: in 4 bytes each, with the states in 2, and with the states in 1.
    for name, size in (
        ("float32", "16.00"),
        ("bf16 state", "10.00"),
        ("8-bit state", r"7\.[12]\d"),
        (r"bf16 \+ split, 8-bit state", r"7\.[12]\d"),
    ):
        rows = re.findall(
            rf"^ *{name} +{size} +(\d\.\d+) ± \d\.\d+ .* %", result.stdout, re.MULTILINE
        )
        assert len(rows) == 2, (name, result.stdout)
        assert all(1 < float(loss) < 5.5 for loss in rows)
    assert "ViT on digits" in result.stdout and "GPT on Python's sources" in result.stdout
    with Image.open(output / "curves.png") as curves:
        assert curves.format == "PNG" and min(curves.size) > 300


@pytest.mark.usefixtures("interruptible", "one_thread")
def test_ctrl_c_keeps_the_trainings_that_are_finished(
    tmp_path, monkeypatch, interrupt_after, capsys
) -> None:
    interrupt_after(5 * 6 + 1)  # of six steps each: four trainings of one task, one of the other
    assert exit_status(monkeypatch, "--quick", "--output", tmp_path) == 130
    said = capsys.readouterr()
    assert "stopped" in said.err and "Traceback" not in said.err
    assert len(re.findall(r" % *$", said.out, re.MULTILINE)) == 5
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.format == "PNG"


@pytest.mark.parametrize("option", ["--steps", "--seeds"])
def test_options_without_effect_are_refused_by_name(option, monkeypatch, capsys) -> None:
    assert exit_status(monkeypatch, "--quick", option, 4) == 2
    assert f"{option} would have no effect" in capsys.readouterr().err


def test_refusal_is_short(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = train("--output", file)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"cannot write to output folder {file}" in result.stderr.splitlines()[-1]
