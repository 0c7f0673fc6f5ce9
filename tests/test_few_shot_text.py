"""The few-shot example from its command line."""

import csv
import random
import re
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]

EXAMPLE = Path(__file__).parents[1] / "examples" / "few_shot_text.py"


@pytest.fixture
def few_shot_text(monkeypatch):
    def run(*options: object) -> None:
        monkeypatch.syspath_prepend(EXAMPLE.parent)
        monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, options)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return run


def news(file: Path, classes: int) -> Path:
    """Texts that are told apart by words of their class among words that all use."""
    chance = random.Random(0)
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["text", "label"])
        for label in range(classes):
            for _ in range(15):
                own = [f"word{label}{chance.randrange(5)}" for _ in range(8)]
                rows.writerow([" ".join([*own, "and", "the", "of"]), label])
    return file


def test_every_start_learns_and_is_shown(tmp_path, few_shot_text, capsys):
    given = ["--data", news(tmp_path / "news.csv", 8), "--ways", 3, "--shots", 3]
    few_shot_text(*given, "--steps", 5, "--episodes", 10)
    printed = capsys.readouterr().out
    assert "8 classes, 4 of them for meta-training" in printed
    rows = re.findall(r"^ *(\w+) +(\d+\.\d) ± \d+\.\d %(.*) \d", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["fine_tuning", "pretrained", "fomaml", "reptile"]
    assert all(float(accuracy) > 60 for _, accuracy, _ in rows)  # a third by chance
    assert all(re.search(r"[+-]\d+\.\d ± \d", above) for *_, above in rows[1:])


def test_pythons_own_sources_have_classes_enough(few_shot_text, capsys):
    few_shot_text("--steps", 1, "--episodes", 2, "--shots", 1)
    classes = int(re.search(r"^(\d+) classes", capsys.readouterr().out).group(1))
    assert classes > 20


def test_too_few_classes_are_named(tmp_path, few_shot_text, capsys):
    with pytest.raises(SystemExit) as exit_info:
        few_shot_text("--data", news(tmp_path / "news.csv", 8))
    assert exit_info.value.code == 2
    assert "8 classes have 12 texts or more" in capsys.readouterr().err
