"""The project's documents, read as their readers do: code blocks, links, headings, tables.

What a page may say of its blocks, held by test_pages.py:
- ```python blocks of a page run one after another, in one namespace;
- a ```text block right after a ```python or ```sh block is what that printed when it was written;
- `<!-- needs: transformers, datasets -->` on the line before a block: without these packages it is skipped;
- `<!-- file: path -->` before a block says where it belongs, `<!-- equations: Name -->` what it equals: other
  tests run these;
- a ```python block that begins with `# torchrun ... name.py` is run by that command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int  # of the page, where the text begins, from 1
    needs: tuple[str, ...] = ()
    file: str | None = None
    equations: str | None = None
    prints: str | None = None  # what the page says the block prints

    @property
    def is_program(self) -> bool:
        return self.language == "python" and self.file is None and self.equations is None


_FENCE = re.compile(r"^```(?P<language>[\w-]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (needs|file|equations): (.*?) -->\n\Z")


def blocks_of(page: Path) -> list[Block]:
    source, blocks, end = page.read_text(), [], 0
    for match in _FENCE.finditer(source):
        between, end = source[end : match.start()], match.end()
        after_a_program = blocks and blocks[-1].language in ("python", "sh")
        if match["language"] == "text" and after_a_program and not between.strip():
            blocks[-1] = replace(blocks[-1], prints=match["text"])
            continue
        marker = _MARKER.search(between)
        kind, value = marker.groups() if marker else (None, "")
        blocks.append(
            Block(
                language=match["language"],
                text=match["text"],
                line=source.count("\n", 0, match.start("text")) + 1,
                needs=tuple(re.split(r"[,\s]+", value)) if kind == "needs" else (),
                file=value if kind == "file" else None,
                equations=value if kind == "equations" else None,
            )
        )
    return blocks


def prose_of(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def links_of(page: Path) -> list[str]:
    """Targets of the page's links and pictures, as they stand there."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(page)))


def anchors_of(page: Path) -> set[str]:
    """What a link may name after #, on a forge and in the built pages alike."""
    headings = re.findall(r"^#+ +(.*?) *$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings]
    on_a_forge = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}
    built = {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.encode("ascii", "ignore").decode()))
        for heading in plain
    }
    return on_a_forge & built


def tables_of(page: Path) -> list[list[dict[str, str]]]:
    """Each table's rows, by the names of its columns."""
    tables = []
    for match in re.finditer(r"(?:^\|.*\|\n)+", prose_of(page), re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in match[0].splitlines()
        ]
        head, _, *body = rows
        tables.append([dict(zip(head, row, strict=True)) for row in body])
    return tables
