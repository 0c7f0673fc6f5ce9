"""The low-precision example from its command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_low_precision.py"


def train(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--quick", *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


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


def test_refusal_is_short(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = train("--output", file)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"cannot write to output folder {file}" in result.stderr.splitlines()[-1]
