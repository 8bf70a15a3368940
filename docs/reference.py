"""mkdocs hooks: reference pages from the code, and links that leave the documentation.

Pages below `reference/` exist only in the site. What they say comes from the parser, the registries and the
docstrings, so that they cannot fall behind.
"""

from __future__ import annotations

import argparse
import inspect
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import compiler
from compiler.arguments import parser
from compiler.commands import Result, lists

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the list of decisions."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files of the repository outside docs/ become their names; an error where there is no such file."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(Path(config.docs_dir)):
            return match[0]
        if not target.exists():
            raise ValueError(f"{page.file.src_uri}: there is no {match[2]}")
        name = target.relative_to(ROOT)
        return f"`{name}`" if match[1].strip("`") in (str(name), target.name) else f"{match[1]} (`{name}`)"

    return _OUTSIDE.sub(named, markdown)


# ---------------------------------------------------------------------- pages
def commands() -> str:
    """Every command with its help and options."""
    parts = ["# Commands\n\nFrom the parser; [what they mean](../cli.md) and the exit statuses."]
    for words, command in every_command(parser()):
        usage = re.sub(r"\s+", " ", command.format_usage()).replace("usage: ", "")
        parts.append(f"## taskgraft {words}\n\n{command.description or ''}\n\n```text\n{usage}\n```")
        rows = [
            (", ".join(f"`{o}`" for o in a.option_strings) or f"`{a.metavar or a.dest}`", a.help or "")
            for a in command._actions
            if a.help != argparse.SUPPRESS and "-h" not in a.option_strings
        ]
        parts.append(table(("argument", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def every_command(
    parent: argparse.ArgumentParser, before: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words, parser) of every command, those of two words too."""
    for action in parent._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                words = f"{before} {name}".strip()
                yield words, command
                yield from every_command(command, words)


def listed(title: str, about: str, command: Callable[[Namespace, Any], Result]) -> str:
    """The tables of a command that lists a registry."""
    parts = [f"# {title}\n\n{about}"]
    for grid in command(Namespace(), lambda text: None).grids:
        parts.append(table(grid.columns, grid.rows))
    return "\n\n".join(parts) + "\n"


CONSTANTS = {
    "__version__": "The version",
    "CHEAPEST": "The `level` of a call that asks a portfolio for the network with the fewest FLOPs for its tasks",
}


def python() -> str:
    """Every public name with its signature and docstring."""
    parts = ["# Python\n\nThe names of `import compiler`; each is loaded on first use."]
    for name in compiler.__all__:
        thing = getattr(compiler, name)
        if isinstance(thing, str | int):
            parts.append(f"## `{name}`\n\n{CONSTANTS[name]}, `{thing}`.")
            continue
        shown = "" if isinstance(thing, type) and issubclass(thing, Exception) else str(inspect.signature(thing))
        parts.append(f"## `{name}`\n\n```python\n{name}{shown}\n```\n\n{inspect.getdoc(thing) or ''}")
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "passes": lambda: listed("Passes", "From the registry, with the default of every option.", lists.passes),
    "operators": lambda: listed("Operators", "What can be imported and compiled.", lists.ops),
    "targets": lambda: listed("Targets", "What bundles are built for.", lists.targets),
    "python": python,
}
"""Name below `reference/` -> what makes the page."""
