"""Every page of the documents says what is so: its programs run and print what they are said to print, its
commands, flags, files and links exist."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from markdown_pages import (
    PAGES,
    ROOT,
    anchors_of,
    blocks_of,
    links_of,
    name_of,
    prose_of,
    tables_of,
)

LANGUAGES = {"python", "sh", "text", "cpp", "toml", "bibtex", "csv"}
# What differs between machines and versions: fractions, powers of ten and shares; whole numbers do not.
MAY_DIFFER = re.compile(r"-?\d[\d,]*(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+|(?=%))")
PYPROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

COLUMN = int(re.search(r"line-length = (\d+)", (ROOT / "docs/ruff.toml").read_text())[1])

page_by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
readme_first = pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=() if p.name == "README.md" else pytest.mark.deep) for p in PAGES],
    ids=name_of,
)


def assert_printed(block, printed: str, page) -> None:
    if block.prints is None:
        return
    assert masked(block.prints) == masked(printed), (
        f"{name_of(page)}:{block.line} prints otherwise than the page says:\n{printed}"
    )


def masked(output: str) -> list[str]:
    """Its words, without the numbers that may differ."""
    return MAY_DIFFER.sub("#", output).split()


def absent(block) -> list[str]:
    return [package for package in block.needs if find_spec(package) is None]


@page_by_page
def test_languages_are_known(page):
    assert {block.language for block in blocks_of(page)} <= LANGUAGES


@page_by_page
def test_blocks_are_not_cut(page):
    width = 92 if page.name == "README.md" else COLUMN
    for block in blocks_of(page):
        if block.language == "bibtex" or block.file:
            continue
        lines = [*block.text.splitlines(), *(block.prints or "").splitlines()]
        assert [line for line in lines if len(line) > width] == [], f"{name_of(page)}:{block.line}"


@readme_first
def test_programs_run_and_print_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # some write files
    programs = [block for block in blocks_of(page) if block.is_program]
    names, skipped = {"__name__": "__main__"}, {}
    for program in programs:  # one after another, as a reader would
        if missing := absent(program):
            skipped[program.line] = missing
            continue
        if program.text.startswith("# torchrun "):
            run_by_torchrun(page, program, tmp_path)
            continue
        lines = "\n" * (program.line - 1)  # so that a traceback names the page's line
        exec(compile(lines + program.text, str(page), "exec"), names)
        assert_printed(program, capsys.readouterr().out, page)
    if skipped:
        pytest.skip(f"{name_of(page)}: not installed, by line: {skipped}")


def run_by_torchrun(page, program, folder) -> None:
    _, *words = shlex.split(program.text.splitlines()[0].removeprefix("# "))
    (folder / words[-1]).write_text(program.text)
    # Without GPUs: there may be fewer of them than processes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert_printed(program, run.stdout, page)


# Commands.


@readme_first
def test_commands_exist_with_their_flags(page):
    for block in blocks_of(page):
        if block.language != "sh":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for words in commands_in(line):
                problem = problem_with(words, page)
                assert problem is None, f"{name_of(page)}:{block.line}: {line.strip()}: {problem}"


def commands_in(line: str) -> list[list[str]]:
    """The commands of a line, each in words."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    commands = [[]]
    for word in words:
        if word in ("&&", ";"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


@page_by_page
def test_commands_in_sentences_exist_with_their_flags(page):
    for command in re.findall(
        r"`((?:make|python|pip|pytest|torchrun|bash) [^`]+)`", prose_of(page)
    ):
        problem = problem_with(shlex.split(command), page)
        assert problem is None, f"{name_of(page)}: {command}: {problem}"


def problem_with(words: list[str], page) -> str | None:
    """What is wrong with a command, or None."""
    while re.fullmatch(r"\w+=.*", words[0]):
        setting, *words = words
        if setting.startswith("FRICTION_") and setting.split("=")[0] not in settings():
            return f"nothing reads {setting}"
    program, *rest = words
    if program in ("python", "python3"):
        return problem_with_python(rest)
    checks = {
        "make": problem_with_make,
        "pip": problem_with_pip,
        "bash": problem_with_file,
        "pytest": problem_with_file,
        "torchrun": lambda rest: problem_with_torchrun(rest, page),
        "mkdocs": lambda rest: None if rest[0] in ("build", "serve") else "no such command",
    }
    if program in checks:
        return checks[program](rest)
    return None if program in ("cd", "git", "source", "cuobjdump") else "not a known program"


def problem_with_python(rest: list[str]) -> str | None:
    if rest[0] == "-m" and rest[1] in ("venv", "pip"):
        return None
    program = rest[:2] if rest[0] == "-m" else rest[:1]
    arguments = rest[len(program) :]
    if rest[0] == "-m" and find_spec(rest[1]) is None:
        return f"there is no module {rest[1]}"
    if rest[0] != "-m" and not (ROOT / rest[0]).is_file():
        return f"there is no file {rest[0]}"
    flags = [word for word in arguments if word.startswith("--") and word != "--help"]
    if not flags:
        return None
    first = next(i for i, word in enumerate(arguments) if word.startswith("--"))
    known = help_of(*program, *arguments[:first])
    unknown = [flag for flag in flags if not re.search(rf"{flag.split('=')[0]}\b", known)]
    return f"no flag {', '.join(unknown)}" if unknown else None


@functools.cache
def help_of(*program: str) -> str:
    paths = f"{ROOT}:{ROOT / 'triton_kernels'}"
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, *program, "--help"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@functools.cache
def settings() -> frozenset[str]:
    """Environment variables that something here reads."""
    readers = ("setup.py", "CMakeLists.txt", ".ci/run", "tests/test_triton_compiled.py")
    sources = "".join((ROOT / name).read_text() for name in readers)
    return frozenset(re.findall(r"FRICTION_\w+", sources))


def problem_with_make(rest: list[str]) -> str | None:
    targets = [word for word in rest if "=" not in word]
    missing = [t for t in targets if not re.search(rf"^{t}:", MAKEFILE, re.MULTILINE)]
    return f"no target {', '.join(missing)}" if missing else None


def problem_with_pip(rest: list[str]) -> str | None:
    if rest[0] != "install":
        return "not an installation"
    for extras in re.findall(r"(?:friction-kernels|\.)\[([\w,-]+)\]", " ".join(rest)):
        for extra in extras.split(","):
            if not re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE):
                return f"no extra {extra}"
    return None


def problem_with_file(rest: list[str]) -> str | None:
    file = next(word for word in rest if not word.startswith("-"))
    return None if (ROOT / file.split("::")[0]).exists() else f"there is no file {file}"


def problem_with_torchrun(rest: list[str], page) -> str | None:
    script = rest[-1]
    shown = any(b.text.startswith("# torchrun") and script in b.text for b in blocks_of(page))
    return None if shown or (ROOT / script).is_file() else f"there is no file {script}"


def test_what_the_command_prints_is_what_the_pages_show():
    shown = [
        (page, block)
        for page in PAGES
        for block in blocks_of(page)
        if block.prints is not None and "python -m friction_kernels" in block.text
    ]
    assert shown
    run = [sys.executable, "-m", "friction_kernels"]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    def names(output: str) -> list[str]:  # what is behind them is the machine's
        return [re.split(r"\s{2,}", line)[0] for line in output.splitlines()]

    for page, block in shown:
        assert names(block.prints) == names(printed), name_of(page)


# Files, links and names.


@page_by_page
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{name_of(page)}: no heading for {link}"


@page_by_page
def test_files_that_are_named_exist(page):
    folders = "csrc|friction_kernels|triton_kernels|tests|bench|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", prose_of(page)):
        assert (ROOT / name).exists(), f"{name_of(page)} names {name}"
    for name in re.findall(r"`(test_\w+\.py)`", prose_of(page)):
        assert (ROOT / "tests" / name).exists(), f"{name_of(page)} names {name}"


def test_the_house_is_as_it_is_drawn():
    page = ROOT / "docs/design.md"
    drawing = next(b.text for b in blocks_of(page) if b.text.startswith("csrc/ "))
    folders = {}
    for line in drawing.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = {depth: name for depth, name in folders.items() if depth < indent}
        names = line.strip().split("  ")[0].split(" ")  # several may share a line
        folders[indent] = names[0]
        for name in names:
            above = "".join(folders[depth] for depth in sorted(folders) if depth < indent)
            assert (ROOT / (above + name)).exists(), f"{name_of(page)} draws {above}{name}"


def test_pages_are_all_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts}
    assert {page for page in pages if f" {page}\n" not in navigation} == set()


# Sources.


def test_papers_that_are_named_are_among_the_citations():
    cited = (ROOT / "docs/citations.md").read_text()
    files = [*PAGES, *(ROOT / "friction_kernels").rglob("*.py"), *(ROOT / "csrc").rglob("*.h")]
    named = {n for file in files for n in re.findall(r"arXiv:? ?(\d{4}\.\d{5})", file.read_text())}
    assert len(named) > 5
    assert {number for number in named if number not in cited} == set()


# Error messages.


def messages_in_python() -> list[str]:
    """Every text in the package, NUL standing for what is filled in."""
    texts = []
    for file in sorted((ROOT / "friction_kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def messages_in_cpp() -> list[str]:
    files = [ROOT / "CMakeLists.txt", *sorted((ROOT / "csrc").rglob("*.cpp"))]
    files += [*sorted((ROOT / "csrc").rglob("*.h")), *sorted((ROOT / "csrc").rglob("*.cu"))]
    return [
        re.sub(r'"\s*"', "", file.read_text()) for file in files
    ]  # literals side by side are one


def test_messages_that_are_explained_are_those_of_the_library():
    page = ROOT / "docs/troubleshooting.md"
    sources = messages_in_python() + messages_in_cpp()
    quoted = 0
    for table in tables_of(page):
        column = next(iter(table[0]))
        for row in table:
            for message in re.findall(r"`([^`]+)`", row[column]):
                for part in message.split("..."):
                    assert any(part.strip() in source for source in sources), message
                quoted += 1
    assert quoted > 40


def test_installation_names_every_extra():
    section = PYPROJECT.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    rows = [row for table in tables_of(ROOT / "docs/install.md") for row in table]
    assert {row["extra"].strip("`") for row in rows if "extra" in row} == extras
