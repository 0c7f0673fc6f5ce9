"""The README is short, and its two commands exist. (Its programs and links are run by test_pages.py.)"""

import re

from markdown_pages import ROOT, blocks_of


def test_the_readmes_two_commands_are_in_the_makefile():
    commands = [
        command
        for block in blocks_of(ROOT / "README.md")
        for command in re.findall(r"^make (\w+)", block.text, re.MULTILINE)
    ]
    makefile = (ROOT / "Makefile").read_text()
    assert commands == ["example", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


def test_the_readme_is_read_in_two_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
