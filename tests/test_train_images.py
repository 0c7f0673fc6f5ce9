"""The training example from its command line: what it prints, what it draws, what it refuses."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.deep

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_images.py"


def train_images(*options: object) -> subprocess.CompletedProcess[str]:
    # One thread: on a busy machine, threads that wait for each other can stall for minutes.
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--quick", *map(str, options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture
def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the example says on leaving with exit code 2; run in this process, to be quick."""

    def run(*options: object) -> str:
        monkeypatch.syspath_prepend(EXAMPLE.parent)
        monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, options)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        assert exit_info.value.code == 2
        return capsys.readouterr().err

    return run


def image_folder(folder: Path, **images_of_class: int) -> Path:
    noise = np.random.default_rng(0)
    for name, count in images_of_class.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = noise.integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def assert_trained(result: subprocess.CompletedProcess[str], output: Path) -> None:
    assert result.returncode == 0, result.stderr
    assert "Test accuracy" in result.stdout
    with Image.open(output / "curves.png") as curves:
        assert curves.format == "PNG" and min(curves.size) > 300
    assert str(output / "curves.png") in result.stdout


def test_digits_with_default_optimizers(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    result = train_images("--output", output)
    assert_trained(result, output)
    for word in ("1797 images", "ViT", "ResNet", "SigSignAdamW", "RSGDM", "AdamW", "SGD"):
        assert word in result.stdout
    for word in ("native", "reference", "torch fused", "same mathematics"):
        assert word in result.stdout
    assert len(re.findall(r"\d+\.\d % ", result.stdout)) == 10


def test_folder_with_chosen_optimizers(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", cats=8, dogs=6)
    options = ("--data", data, "--image-size", 16, "--model", "resnet", "--output", tmp_path)
    result = train_images(*options, "--optimizer", "sigsigngrad", "NAdam")
    assert_trained(result, tmp_path)
    for word in ("14 images of 16 x 16 x 3", "2 classes", "SigSignGrad", "NAdam", "ResNet"):
        assert word in result.stdout
    assert re.search(r"NAdam .* \d+\.\d % .* ms", result.stdout)
    assert "ViT" not in result.stdout


def test_refusal_is_short(tmp_path: Path) -> None:
    result = train_images("--data", tmp_path / "none")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"{tmp_path / 'none'} is not an existing folder" in result.stderr.splitlines()[-1]


def test_folder_without_classes(tmp_path: Path, refusal: Callable[..., str]) -> None:
    assert f"{tmp_path} has no sub-folders" in refusal("--data", tmp_path, "--output", tmp_path)


def test_single_class(tmp_path: Path, refusal: Callable[..., str]) -> None:
    data = image_folder(tmp_path / "data", cats=4)
    assert "has one class only, 'cats'" in refusal("--data", data, "--output", tmp_path)


@pytest.mark.parametrize(("count", "complaint"), [(0, "holds no images"), (3, "is too small")])
def test_class_of_few_images(
    tmp_path: Path, refusal: Callable[..., str], count: int, complaint: str
) -> None:
    data = image_folder(tmp_path / "data", cats=4, dogs=count)
    said = refusal("--data", data, "--output", tmp_path)
    assert f"class folder {data / 'dogs'} {complaint}" in said


def test_unreadable_image(tmp_path: Path, refusal: Callable[..., str]) -> None:
    data = image_folder(tmp_path / "data", cats=4, dogs=4)
    broken = data / "dogs" / "broken.png"
    broken.write_bytes(b"not an image")
    assert f"cannot read image {broken}" in refusal("--data", data, "--output", tmp_path)


@pytest.mark.parametrize(
    ("suffix", "dtype", "white"),
    [
        ("png", np.uint16, 65535),
        ("tiff", np.uint16, 65535),
        ("tiff", np.int32, 65535),
        ("tiff", np.float32, 1),
        ("png", np.uint8, 255),
    ],
)
def test_grey_of_any_depth_keeps_its_shades(tmp_path, monkeypatch, suffix, dtype, white) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    read_image = importlib.import_module("image_data").read_image
    shades = np.linspace(0, 255, 64).round().reshape(8, 8)
    file = tmp_path / f"shades.{suffix}"
    Image.fromarray((shades * (white / 255)).astype(dtype)).save(file)
    pixels = read_image(file, 8)
    assert pixels.shape == (3, 8, 8)
    for channel in pixels:
        np.testing.assert_allclose(channel, shades, atol=1)


@pytest.mark.parametrize(
    ("dtype", "value", "complaint"),
    [
        (np.int32, 70000, "from 70000 to 70000, outside of 0 to 65535"),
        (np.float32, 255, "from 255 to 255, outside of 0 to 1"),
        (np.float32, np.nan, "outside of 0 to 1"),
    ],
)
def test_image_whose_white_is_not_known(tmp_path, refusal, dtype, value, complaint) -> None:
    data = image_folder(tmp_path / "data", cats=4, dogs=4)
    odd = data / "dogs" / "odd.tiff"
    Image.fromarray(np.full((12, 10), value, dtype)).save(odd)
    said = refusal("--data", data, "--output", tmp_path)
    assert f"cannot read image {odd}" in said and complaint in said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--image-size", 32], "--image-size"),
        (["--quick", "--seeds", 2], "--seeds"),
        (["--quick", "--epochs", 3], "--epochs"),
        (["--optimizer", "rsgdm", "SGD", "--beta3", 0.5], "--beta3"),
        (["--optimizer", "AdamW", "--friction-input", "product"], "--friction-input"),
    ],
)
def test_options_without_effect_are_refused_by_name(refusal, options, complaint) -> None:
    assert f"{complaint} would have no effect" in refusal(*options)


@pytest.mark.usefixtures("interruptible", "one_thread")
def test_ctrl_c_keeps_the_trainings_that_are_finished(
    tmp_path, monkeypatch, interrupt_after, capsys
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    options = ["--data", image_folder(tmp_path / "data", cats=8, dogs=8), "--batch-size", 6]
    options += ["--model", "vit", "--optimizer", "SigSignAdamW", "--epochs", 1]
    options += ["--image-size", 8, "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, options)])
    interrupt_after(8)  # two steps a training: in the fourth, the second seed's second
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_info.value.code == 130
    said = capsys.readouterr()
    assert "stopped" in said.err and "Traceback" not in said.err
    assert re.search(r"SigSignAdamW +native +\d+\.\d ± ", said.out)
    assert re.search(r"SigSignAdamW +reference +\d+\.\d % ", said.out)
    assert "are the same mathematics" in said.out
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.format == "PNG"


def test_unknown_optimizer(refusal: Callable[..., str]) -> None:
    said = refusal("--optimizer", "Foo")
    assert "unknown optimizer 'Foo'" in said
    assert "SigSignAdamW" in said and "RMSprop" in said


def test_optimizer_that_needs_a_closure(refusal: Callable[..., str]) -> None:
    said = refusal("--optimizer", "LBFGS")
    assert "LBFGS" in said and "closure" in said


def test_option_that_the_optimizer_refuses(refusal: Callable[..., str]) -> None:
    assert "SigSignAdamW native cannot train" in refusal("--lr", "-1")


def test_unwritable_output(tmp_path: Path, refusal: Callable[..., str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"cannot write to output folder {file}" in refusal("--output", file)


def test_divergence_is_told(tmp_path: Path) -> None:
    options = ("--model", "vit", "--optimizer", "SGD", "--lr", "1e30", "--output", tmp_path)
    result = train_images(*options)
    assert_trained(result, tmp_path)
    assert "diverged" in result.stdout
