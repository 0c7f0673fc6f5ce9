"""What the README shows is run as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(blocks[0], str(README), "exec"), {})
    assert "FrictionStats(mean=" in capsys.readouterr().out


def test_the_readmes_commands_are_in_the_makefile():
    commands = re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE)
    makefile = README.with_name("Makefile").read_text()
    assert commands == ["example", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
