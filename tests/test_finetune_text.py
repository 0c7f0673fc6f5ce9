"""The text example from its command line: what it prints, what it draws, what it refuses."""

import importlib.util
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.deep

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_text.py"


@pytest.fixture
def finetune_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs the example in this process, because torch and matplotlib take seconds to load."""

    def run(*options: object) -> None:
        torch.set_num_threads(1)  # on a busy machine, threads that wait for each other can stall
        monkeypatch.syspath_prepend(EXAMPLE.parent)
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # it sets its own
        arguments = [EXAMPLE.name, "--output", tmp_path / "plots", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return run


@pytest.fixture
def refusal(
    finetune_text: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the example says on leaving with exit code 2."""

    def run(*options: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            finetune_text(*options)
        assert exit_info.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return run


def npz(file: Path, documents: int = 90, dim: int = 12, num_classes: int = 3, **more) -> Path:
    noise = np.random.default_rng(0)
    labels = np.arange(documents) % num_classes
    centres = np.random.default_rng(1).normal(size=(num_classes, dim))
    embeddings = (centres[labels] + 0.3 * noise.normal(size=(documents, dim))).astype(np.float16)
    np.savez(file, **{"embeddings": embeddings, "labels": labels, **more})
    return file


def table_rows(text: str) -> dict[str, list[float]]:
    """Macro-F1, accuracy, silhouette and milliseconds by the words before them."""
    number = r"(-?\d+\.\d+)(?: ± \d+\.\d+)?"
    row = rf"^ *(\S.*?) +{number} +{number} +{number} +{number} ms *$"
    return {
        re.sub(r" +", " ", match[1]): [float(value) for value in match.groups()[1:]]
        for match in re.finditer(row, text, re.MULTILINE)
    }


def test_head_learns_with_every_loss(tmp_path, finetune_text, capsys) -> None:
    losses = ["ce", "gloss", "ce+gloss"]
    if importlib.util.find_spec("pytorch_metric_learning"):
        losses.append("supcon")
    given = ["--embeddings", npz(tmp_path / "e.npz"), "--steps", 30, "--batch-size", 32]
    given += ["--loss", *losses, "--form", "official", "log", "--seeds", 2, "--evaluations", 3]
    finetune_text(*given, "--lr", "1e-2")
    printed = capsys.readouterr().out
    assert "66 documents to train on and 24 to test on, 3 classes" in printed or (
        "67 documents to train on and 23 to test on, 3 classes" in printed
    )
    rows = table_rows(printed)
    assert list(rows) == [
        f"{name} SigSignAdamW"
        for loss in losses
        for name in ([f"{loss} official", f"{loss} log"] if "gloss" in loss else [loss])
    ]
    for macro_f1, accuracy, silhouette, milliseconds in rows.values():
        assert macro_f1 > 90 and accuracy > 90 and 0 < silhouette <= 1 and milliseconds > 0
    for name in ("curves.png", "projection.png"):
        with Image.open(tmp_path / "plots" / name) as plot:
            assert plot.format == "PNG" and min(plot.size) > 300
        assert str(tmp_path / "plots" / name) in printed


def test_classes_that_are_not_recognised_are_named(tmp_path, finetune_text, capsys) -> None:
    many = npz(tmp_path / "e.npz", num_classes=9)  # a head that learns nothing misses some
    short = ["--embeddings", many, "--steps", 1, "--batch-size", 32]
    finetune_text(*short, "--loss", "ce", "--lr", "1e-9", "--evaluations", 1)
    assert re.search(
        r"ce, SigSignAdamW: no test document of \S.* was recognised\. Rare classes are learned late",
        capsys.readouterr().out,
    )


def test_options_of_gloss_and_optimizers_of_torch(tmp_path, finetune_text, capsys) -> None:
    other = npz(tmp_path / "test.npz", documents=30)
    given = [
        "--embeddings",
        npz(tmp_path / "e.npz", num_classes=2),
        "--steps",
        4,
        "--loss",
        "ce+gloss",
    ]
    options = ["--sigma", "learnable", "--memory", 50, "--optimizer", "rsgdm", "SGD", "nadam"]
    finetune_text(*given, *options)
    assert [name.split()[-1] for name in table_rows(capsys.readouterr().out)] == [
        "RSGDM",
        "SGD",
        "NAdam",
    ]
    arrays = np.load(other)
    own = npz(
        tmp_path / "own.npz",
        test_embeddings=arrays["embeddings"],
        test_labels=arrays["labels"],
        classes=np.array(["earn", "acq", "crude"]),
    )
    finetune_text("--embeddings", own, "--steps", 2, "--sigma", "root")
    assert "90 documents to train on and 30 to test on" in capsys.readouterr().out
    finetune_text(
        "--embeddings", own, "--test", other, "--steps", 2, "--loss", "ce", "--test-documents", 9
    )
    assert "Tested on 9 of them" in capsys.readouterr().out


def test_same_seed_same_figures(tmp_path, finetune_text, capsys) -> None:
    given = ["--embeddings", npz(tmp_path / "e.npz"), "--steps", 6, "--loss", "ce+gloss"]
    figures = []
    for _ in range(2):
        finetune_text(*given)
        figures.append([row[:3] for row in table_rows(capsys.readouterr().out).values()])
    assert figures[0] == figures[1]


def hide(monkeypatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == package else find(name, *rest),
    )


def test_supcon_without_its_library(tmp_path, refusal, monkeypatch) -> None:
    hide(monkeypatch, "pytorch_metric_learning")
    said = refusal("--embeddings", npz(tmp_path / "e.npz"), "--loss", "supcon")
    assert "pip install pytorch-metric-learning" in said


def test_encoder_without_its_package(tmp_path, refusal, monkeypatch) -> None:
    hide(monkeypatch, "transformers")
    file = tmp_path / "ok.csv"
    file.write_text("text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(12)))
    assert "pip install 'friction-kernels[text]'" in refusal("--data", file)


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """The folder of a BERT with random weights that reads 32 tokens."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "grain", "wheat", "oil", "crude", "said", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "encoder"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=len(words), intermediate_size=32, max_position_embeddings=32, **sizes
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_an_encoder_is_trained_or_embeds(
    tmp_path, tiny_encoder, finetune_text, refusal, capsys
) -> None:
    file = tmp_path / "news.csv"
    news = ["the grain said wheat " * 3 + ",cereals", "oil crude the " * 20 + ",energy"]
    file.write_text("text,label\n" + "\n".join(news * 20))
    given = ["--data", file, "--model", tiny_encoder, "--max-tokens", 16]
    finetune_text(*given, "--steps", 30, "--batch-size", 8, "--lr", "1e-2")
    rows = table_rows(capsys.readouterr().out)
    assert list(rows) == ["ce SigSignAdamW", "ce+gloss log SigSignAdamW"]
    assert all(row[:2] == [100, 100] for row in rows.values())
    for name in ("curves.png", "projection.png"):
        assert (tmp_path / "plots" / name).stat().st_size > 1000
    kept = tmp_path / "news.npz"
    finetune_text(*given, "--steps", 2, "--save-embeddings", kept)
    finetune_text("--embeddings", kept, "--steps", 2)
    assert "30 documents to train on and 10 to test on" in capsys.readouterr().out
    said = refusal("--data", file, "--model", tiny_encoder)  # by default 128
    assert "reads at most 32 tokens of a document, and --max-tokens is 128" in said


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has the columns none: it needs a header line with the columns text and label"),
        ("words,label\na,b\n", "has the columns 'words', 'label': it needs"),
        ("text,label\n", "has no documents"),
        ("text,label\ngood,a\n  ,b\n", "line 3: text is empty"),
        ("text,label\ngood\n", "line 2: label is empty"),
        ("text,label\ngood,a\nbad,a\n", "has one class only, 'a'"),
        ("text,label\na,x\nb,x\nc,x\nd,x\ne,y\n", "class 'y' has 1 documents"),
        ('text,label\n"open,a\n', "is not a CSV file in UTF-8"),
        ("text,label\n\udcff,a\n", "is not a CSV file in UTF-8"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, refusal, content, complaint) -> None:
    file = tmp_path / "data.csv"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    said = refusal("--data", file)
    assert str(file) in said and complaint in said


def test_all_rare_classes_are_listed_and_can_be_left_out(
    tmp_path, refusal, finetune_text, capsys
) -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [2, 30, 1, 3, 30])
    noise = np.random.default_rng(0).normal(size=(len(labels), 6)) + labels[:, None] - 2
    file = tmp_path / "rare.npz"
    np.savez(file, embeddings=noise, labels=labels, classes=np.array(list("ABCDE")))
    said = refusal("--embeddings", file)
    for rare in ("class 'A' has 2", "class 'C' has 1", "class 'D' has 3"):
        assert rare in said
    assert "class 'B'" not in said and "--drop-rare" in said
    finetune_text("--embeddings", file, "--drop-rare", "--loss", "ce", "--steps", 30)
    printed = capsys.readouterr().out
    assert "Left out 3 classes with 6 documents" in printed
    assert "45 documents to train on and 15 to test on, 2 classes" in printed
    assert table_rows(printed)["ce SigSignAdamW"][1] > 90


def test_what_is_left_without_rare_classes_may_be_too_little(tmp_path, refusal) -> None:
    file = tmp_path / "data.csv"
    file.write_text("text,label\n" + "one,a\n" * 5 + "two,b\n" * 3)
    assert "has 1 classes of 4 documents: 2 are needed" in refusal("--data", file, "--drop-rare")


def test_label_that_is_tested_and_never_learnt(tmp_path, refusal) -> None:
    (tmp_path / "train.csv").write_text(",text,label\n7,one,a\n8,two,b\n")
    (tmp_path / "test.csv").write_text(",text,label\n7,one,c\n")
    assert "has the label 'c', which no training document has" in refusal("--data", tmp_path)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"labels": np.zeros(3, int)}, "has embeddings (90, 12) and labels (3,)"),
        ({"labels": np.linspace(0, 1, 90)}, "labels must be whole numbers"),
        ({"embeddings": np.zeros((90, 4))}, "embedding 0 is zero or not finite"),
        ({"classes": np.array(["one"])}, "has 1 classes and labels up to 2"),
    ],
)
def test_embeddings_that_cannot_be_used(tmp_path, refusal, arrays, complaint) -> None:
    assert complaint in refusal("--embeddings", npz(tmp_path / "e.npz", **arrays))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--loss", "ce", "--form", "log"], "--form"),
        (["--loss", "ce", "--sigma", "0.5"], "--sigma"),
        (["--loss", "ce", "--gamma", "0.5"], "--gamma"),
        (["--loss", "ce", "--memory", "8"], "--memory"),
        (["--loss", "gloss", "--weight", "0.8"], "--weight"),
        (["--temperature", "0.1"], "--temperature"),
        (["--optimizer", "rsgdm", "Adam", "--friction-input", "product"], "--friction-input"),
        (["--model", "somewhere"], "--model"),
        (["--max-tokens", "64"], "--max-tokens"),
    ],
)
def test_options_without_effect_are_refused_by_name(tmp_path, refusal, options, complaint) -> None:
    said = refusal("--embeddings", npz(tmp_path / "e.npz"), *options)
    assert f"{complaint} would have no effect" in said


def test_dropping_is_refused_where_nothing_is_split(tmp_path, refusal) -> None:
    file, other = npz(tmp_path / "e.npz"), npz(tmp_path / "test.npz")
    said = refusal("--embeddings", file, "--test", other, "--drop-rare")
    assert "--drop-rare would have no effect" in said and str(other) in said


def test_more_evaluations_than_steps_are_refused(tmp_path, refusal) -> None:
    given = ["--embeddings", npz(tmp_path / "e.npz"), "--steps", 2]
    assert "--evaluations 3 are more than 2 steps" in refusal(*given, "--evaluations", 3)


@pytest.mark.parametrize("name", ["LBFGS", "Muon"])
def test_an_optimizer_that_does_not_fit_is_found_before_the_first_training(
    tmp_path, refusal, name
) -> None:
    # Before the documents are read, even.
    said = refusal("--embeddings", tmp_path / "none.npz", "--optimizer", "SGD", name)
    assert f"{name} cannot train these models" in said or f"{name} refuses" in said


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_the_trainings_that_are_finished(
    tmp_path, finetune_text, interrupt_after, capsys
) -> None:
    interrupt_after(25)  # in the third training: the second seed's first
    given = ["--embeddings", npz(tmp_path / "e.npz"), "--steps", 10, "--seeds", 2]
    with pytest.raises(SystemExit) as exit_info:
        finetune_text(*given, "--loss", "ce", "gloss")
    assert exit_info.value.code == 130
    said = capsys.readouterr()
    assert "stopped" in said.err and "Traceback" not in said.err
    assert list(table_rows(said.out)) == ["ce SigSignAdamW", "gloss log SigSignAdamW"]
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 1000


def test_other_refusals(tmp_path, refusal) -> None:
    file = npz(tmp_path / "e.npz")
    assert "give documents, with --data" in refusal()
    assert "give documents, with --data" in refusal("--data", file, "--embeddings", file)
    assert f"cannot read {tmp_path / 'none.npz'}" in refusal("--embeddings", tmp_path / "none.npz")
    assert f"cannot read {tmp_path / 'none.csv'}" in refusal("--data", tmp_path / "none.csv")
    assert f"{EXAMPLE} is not an NPZ file" in refusal("--embeddings", EXAMPLE)
    said = refusal("--embeddings", file, "--optimizer", "Foo")
    assert "unknown optimizer 'Foo'" in said and "SigSignAdamW" in said and "RMSprop" in said
    assert "cannot write to output folder" in refusal("--embeddings", file, "--output", file)
    assert "SigSignAdamW refuses" in refusal("--embeddings", file, "--lr", "-1")
    assert "0 is not positive" in refusal("--embeddings", file, "--sigma", "0")
    assert "invalid width value: 'wide'" in refusal("--embeddings", file, "--sigma", "wide")
    assert "0 is not positive" in refusal("--embeddings", file, "--temperature", "0")
    assert "unknown optimizer 'SparseAdam'" in refusal(
        "--embeddings", file, "--optimizer", "SparseAdam"
    )
    assert "argument --device:" in refusal("--embeddings", file, "--device", "abacus")
