"""First lines of docstrings, the texts that follow them, and how alike two texts are."""

import re
from pathlib import Path

DOCSTRING = re.compile(r':\n\s+r?"""(.*?)"""', re.DOTALL)
Pair = tuple[list[str], list[str]]  # the words that follow, and those of the first line


def docstrings(
    root: Path, pattern: str, longest: int, test_file: int = 10
) -> tuple[list[Pair], list[Pair]]:
    """Of all files but every tenth, and of every tenth, where there is something to summarise."""
    train, test = {}, {}
    for number, file in enumerate(sorted(root.glob(pattern))):
        if "tests" in file.parts:
            continue
        for text in DOCSTRING.findall(file.read_text(errors="replace")):
            head, _, body = text.strip().partition("\n\n")
            pair = words(body), words(head)
            if 4 <= len(pair[1]) <= longest and len(pair[0]) >= 20:
                (train if number % test_file else test)[head] = pair
    return list(train.values()), [pair for head, pair in test.items() if head not in train]


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def rouge_l(found: list[str], wanted: list[str]) -> float:
    """F1 of the longest common subsequence."""
    row = [0] * (len(wanted) + 1)
    for word in found:
        last = row
        row = [0]
        for i, other in enumerate(wanted):
            row.append(last[i] + 1 if word == other else max(row[i], last[i + 1]))
    return 2 * row[-1] / (len(found) + len(wanted)) if found else 0.0


def lead(body: list[str], longest: int) -> list[str]:
    """The first sentence, or as much of it as a summary may have."""
    end = body.index(".") + 1 if "." in body else longest
    return body[: min(end, longest)]
