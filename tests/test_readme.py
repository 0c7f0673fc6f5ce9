"""What the README shows is run as it stands there."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_examples_run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # one writes a checkpoint
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    programs = [block for block in blocks if "import" in block]  # the others are equations
    assert len(programs) == 6
    names = {}
    for program in programs:  # one after another, as a reader would
        exec(compile(program, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "FrictionStats(mean=" in printed
    assert "GLossStats(" in printed
    assert "bytes a parameter" in printed
    assert (tmp_path / "checkpoint.pt").exists()


def test_the_readmes_commands_are_in_the_makefile():
    commands = re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE)
    makefile = README.with_name("Makefile").read_text()
    assert commands == ["example", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
