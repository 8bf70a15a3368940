"""Code in the documentation runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from compiler.cli import parser
from compiler.config import parse_config
from tests.shared import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCS = ROOT / "docs"


def blocks(path, language):
    return [text for kind, text in BLOCK.findall(path.read_text()) if kind == language]


def test_the_worked_example_of_a_pass(tmp_path):
    first, *rest = blocks(DOCS / "passes.md", "python")
    (tmp_path / "my_passes.py").write_text(first)
    (tmp_path / "use.py").write_text("\n".join(rest))
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (toml,) = blocks(DOCS / "passes.md", "toml")
    assert tomllib.loads(toml)["passes"]["pipeline"][1].startswith("my_passes:")


def test_the_complete_release_file_reads():
    (toml,) = (t for t in blocks(DOCS / "cli.md", "toml") if "schema" in t)
    config = parse_config(tomllib.loads(toml), ROOT)
    assert len(config.tasks) == 3


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target


def commands(parent, before=""):
    """(words, parser) of every command, those of two words too."""
    for action in parent._actions:
        for name, command in (action.choices or {}).items() if hasattr(action, "add_parser") else ():
            words = f"{before} {name}".strip()
            yield words, command
            yield from commands(command, words)


def test_every_command_and_option_is_documented():
    text = (DOCS / "cli.md").read_text()
    for name, command in commands(parser()):
        assert f"`{name}" in text, name
        for action in command._actions:
            for option in action.option_strings:
                assert option == "-h" or option == "--help" or f"`{option}" in text, f"{name} {option}"
