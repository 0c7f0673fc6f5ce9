"""Questions over the graph of WordNet's nouns, with the triples that answer them."""

import random
import re
from collections import Counter
from typing import NamedTuple

RELATIONS = {
    "@": "<kind of>",
    "@i": "<instance of>",
    "#p": "<part of>",
    "%p": "<has part>",
    "#m": "<member of>",
    "%m": "<has member>",
}
LONGEST, GLOSS = 4, 8  # words of a name and of a gloss
OTHERS = 2  # questions whose triples stand beside a question's own
Name = tuple[str, ...]
Triple = tuple[Name, str, Name]


class Question(NamedTuple):
    """Where two relations lead to from a subject, one after the other."""

    subject: Name
    gloss: Name
    relations: tuple[str, str]
    answer: Name
    triples: list[Triple]  # those of the path, and perhaps of others


class WordNet:
    """The synsets of a data file of WordNet, by their numbers; a line is read when it is asked for."""

    def __init__(self, text: str) -> None:
        self.lines = {line[:8]: line for line in text.splitlines() if not line.startswith(" ")}

    def name(self, synset: str) -> Name:
        return tuple(self.lines[synset].split(" ", 5)[4].lower().split("_"))

    def gloss(self, synset: str) -> Name:
        gloss = self.lines[synset].partition(" | ")[2]
        return tuple(re.findall(r"\w+", gloss.lower())[:GLOSS])

    def only(self, synset: str) -> dict[str, str]:
        """The neighbours by relation, of relations that have a single one."""
        fields = self.lines[synset].partition(" | ")[0].split()
        pointers = fields[
            5 + 2 * int(fields[3], 16) :
        ]  # after the words: symbol, synset, part of speech, ...
        found: dict[str, list[str]] = {}
        for symbol, other, part in zip(*(pointers[i::4] for i in range(3)), strict=True):
            if symbol in RELATIONS and part == "n":
                found.setdefault(RELATIONS[symbol], []).append(other)
        return {relation: others[0] for relation, others in found.items() if len(others) == 1}


def questions_of(net: WordNet, number: int) -> list[Question]:
    """At most so many, of different subjects, and a sixth of them of the same two relations."""
    chance = random.Random(0)
    synsets = list(net.lines)
    chance.shuffle(synsets)
    counts: Counter[tuple[str, str]] = Counter()
    found: list[Question] = []
    for synset in synsets:
        question = question_of(net, synset, chance)
        if question and counts[question.relations] < number // 6:
            counts[question.relations] += 1
            found.append(question)
        if len(found) == number:
            break
    return found


def question_of(net: WordNet, synset: str, chance: random.Random) -> Question | None:
    walks = [
        (first, middle, second, end)
        for first, middle in net.only(synset).items()
        for second, end in net.only(middle).items()
        if end != synset
    ]
    if not walks:
        return None
    first, middle, second, end = chance.choice(walks)
    names = subject, between, answer = tuple(map(net.name, (synset, middle, end)))
    if max(map(len, names)) > LONGEST:
        return None
    path = [(subject, first, between), (between, second, answer)]
    return Question(subject, net.gloss(synset), (first, second), answer, path)


def among_others(questions: list[Question]) -> list[Question]:
    """Each with the triples of OTHERS that ask for the same relations, too, in any order."""
    chance = random.Random(0)
    alike: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        alike.setdefault(question.relations, []).append(question)
    found = []
    for question in questions:
        others = chance.choices(alike[question.relations], k=OTHERS)
        triples = [triple for each in (question, *others) for triple in each.triples]
        chance.shuffle(triples)
        found.append(question._replace(triples=triples))
    return found
