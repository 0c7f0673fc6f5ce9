"""What the README says first: two commands. (Its programs and links are run by test_pages.py.)"""

import re

from markdown_pages import ROOT, blocks_of


def test_the_readmes_two_commands_are_in_the_makefile():
    first = next(block for block in blocks_of(ROOT / "README.md") if block.language == "sh")
    commands = re.findall(r"^make (\w+)", first.text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert commands == ["example", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
