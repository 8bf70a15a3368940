"""Code in the documentation runs as it stands."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config as load_site

from benchmarks import newcomer
from compiler import __all__ as public
from compiler.arguments import parser
from compiler.cli import main
from compiler.config import load_config, parse_config
from compiler.passes import REGISTRY
from tests.codegen.emulated import linkable
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
        if not target.startswith(("http:", "https:", "reference/")):  # the reference exists in the site only
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


# ---------------------------------------------------------------------- pages whose blocks run
@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that looks like the repository to a reader of the documentation; it is the current one."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(text):
    """Every line of a block of `taskgraft` commands, as the command line runs it."""
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "taskgraft", line
        assert main([*arguments, "--quiet"]) == 0, line


def test_the_tutorial_runs(repository, capsys):
    linkable("aarch64-cortex-a72")
    page = DOCS / "tutorial.md"
    run_commands(blocks(page, "sh")[0])
    toml, own = blocks(page, "toml")
    assert own.splitlines()[1::3] == list(newcomer.ANSWERS)
    assert own.splitlines()[2::3] == list(newcomer.ANSWERS.values())
    (repository / "release.toml").write_text(toml)
    for text in blocks(page, "sh")[1:]:
        run_commands(text)
    folder = repository / "dist" / "clothes" / "aarch64-cortex-a72"
    (code,) = blocks(page, "c")
    example = (folder / "clothes.h").read_text()
    for name in set(re.findall(r"\b(?:CLOTHES|clothes)_\w+", code)):
        assert name in example, name
    assert "garment footwear warm" in capsys.readouterr().out


def test_the_recipes_run(repository, capsys):
    page = DOCS / "recipes.md"
    for text in blocks(page, "sh"):
        run_commands(text)
    (code,) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), {})
    base = tomllib.loads((ROOT / "models" / "fashion" / "release.toml").read_text())
    for toml in blocks(page, "toml"):
        assert parse_config({**base, **tomllib.loads(toml)}, ROOT / "models" / "fashion").tasks
    assert load_config(ROOT / "models" / "fashion" / "release.toml").name in capsys.readouterr().out


def test_the_program_with_workers_runs(repository):
    (code,) = blocks(DOCS / "workers.md", "python")
    exec(compile(code, "workers.md", "exec"), {"__name__": "__main__"})
    assert (repository / "dist" / "season" / "host" / "libseason.so").exists()
    assert len(list((repository / "dist" / "cache").iterdir())) > 5


def test_commands_that_need_a_device_are_commands(capsys):
    """Blocks that cannot run here are at least accepted by the parser."""
    seen = 0
    for page in (DOCS / "recipes.md", DOCS / "tutorial.md", DOCS / "workers.md"):
        for text in blocks(page, "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("taskgraft "):
                    parser().parse_args(shlex.split(line.partition(" > ")[0], comments=True)[1:])
                    seen += 1
    assert seen > 3


# ---------------------------------------------------------------------- the site
def test_the_site_has_no_dead_link_and_a_reference_of_everything(tmp_path):
    config = load_site(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)  # raises on the first warning
    passes, python = (
        (tmp_path / "site" / "reference" / f"{name}.html").read_text() for name in ("passes", "python")
    )
    for name in REGISTRY:
        assert name in passes, name
    for name in public:
        assert f"<code>{name}</code></h2>" in python, name


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    generated = {f"reference/{page}.md" for page in reference().PAGES}
    written = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert written | generated == named


def reference():
    """The hooks of the site."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("target", "becomes"),
    [
        ("../README.md", "see `README.md`"),
        ("decisions/0001-bipartite-multigraph.md", "see [README](decisions/0001-bipartite-multigraph.md)"),
    ],
)
def test_links_out_of_the_site_become_names(target, becomes):
    class Page:
        class file:
            src_uri = "index.md"

    class Site:
        docs_dir = str(DOCS)

    text = reference().on_page_markdown(
        f"see [README]({target})".replace("README](../", "README.md](../"), Page, Site, None
    )
    assert text == becomes
    with pytest.raises(ValueError, match=r"there is no \.\./missing\.md"):
        reference().on_page_markdown("[x](../missing.md)", Page, Site, None)
