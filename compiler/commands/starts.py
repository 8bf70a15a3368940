"""init: a first release file for a set of ONNX files."""

from __future__ import annotations

import tomllib
from argparse import Namespace
from pathlib import Path

from compiler.codegen.interface import check_macros, check_names
from compiler.commands import Grid, Result
from compiler.commands.common import output_file, shapes_of
from compiler.config import parse_config
from compiler.errors import ConfigError, plural
from compiler.ir.names import RULE, c_name, is_c_name
from compiler.proposal import Proposal, propose, release_text
from compiler.release import Say, load_release
from compiler.staging import write_whole


def init(args: Namespace, say: Say) -> Result:
    """A commented release file that compiles as it stands: it is read back and its networks are joined first."""
    path = output_file(args)
    files = [Path(f) for f in args.paths]
    say(f"read {plural(len(files), 'model')}")
    if args.name and not is_c_name(args.name):
        near = c_name(args.name, "release")
        raise ConfigError(f"--name {args.name}: becomes part of C names: {RULE}; --name {near} would do")
    name, shapes = args.name or c_name(path.stem, "release"), shapes_of(args.input)
    proposal = propose(files, name, shapes=shapes, allow_external_data=args.allow_external_data)
    text = release_text(proposal, path.parent)
    config = parse_config(tomllib.loads(text), path.parent, str(path))
    check_names(config.name, tuple(config.tasks))
    check_macros(tuple(config.tasks))
    load_release(config, allow_external_data=args.allow_external_data, say=say)
    write_whole(path, text.encode())
    lines = [f"wrote {path}"]
    if not args.name:
        lines.append(f"named '{name}' after the file: C names begin with it; --name gives another")
    if proposal.adapted():
        lines.append(f"check the adapters of {', '.join(proposal.adapted())}: they follow from shapes only")
    lines.append(f"next: taskgraft compile {path}")
    return Result(_record(proposal, path), (_grid(proposal),), tuple(lines))


def _record(proposal: Proposal, path: Path) -> dict[str, object]:
    return {
        "output": str(path),
        "name": proposal.name,
        "inputs": {n: str(t) for n, t in proposal.shared.items()},
        "tasks": {
            n.task: {
                "model": str(n.path),
                "inputs": {own: shared for own, (shared, _) in proposal.bindings[n.task].items()},
                "adapter": [dict(s) for _, steps in proposal.bindings[n.task].values() for s in steps],
            }
            for n in proposal.networks
        },
    }


def _grid(proposal: Proposal) -> Grid:
    rows = [
        (
            n.task,
            n.path.name,
            ", ".join(f"{own} {n.inputs[own]}" for own in n.inputs),
            ", ".join(shared for shared, _ in proposal.bindings[n.task].values()),
            " ".join(str(dict(s)) for _, steps in proposal.bindings[n.task].values() for s in steps) or None,
        )
        for n in proposal.networks
    ]
    inputs = ", ".join(f"{n} {t}" for n, t in proposal.shared.items())
    return Grid(f"{proposal.name}: reads {inputs}", ("task", "model", "wants", "reads", "through"), rows)
