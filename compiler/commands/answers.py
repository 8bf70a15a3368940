"""explain layer: what a bundle recorded about one layer: its owners, its kernel, and what passes said of it.
explain code: what a return code of a library and an exit status of the command line mean.
"""

from __future__ import annotations

import difflib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler import errors
from compiler.bundle_report import read_report
from compiler.codegen.interface import MESSAGES
from compiler.commands import Cell, Grid, Result
from compiler.commands.bundles import chosen
from compiler.errors import ConfigError
from compiler.release import Say
from compiler.views import layer_name


def explain_layer(args: Namespace, say: Say) -> Result:
    """A node, or all nodes that a layer became: which tasks own it, why its kernel runs, why channels were kept."""
    record = read_report(chosen(Path(args.path), args.target))
    nodes = _named(record, args.layer)
    told = _told(record, {n["node"] for n in nodes} | {args.layer})
    rows = [_row(record, n) for n in nodes]
    columns = ("node", "op", "tasks", "makes", "MACs", "with zeros", "kernel", "chosen by", "why", "zeros")
    grids = [Grid(f"{args.layer} in {record['name']} for {record['target']}", columns, rows)]
    if told:
        cells = [(t["pass"], t["what"], t["where"], t["reason"]) for t in told]
        grids.append(Grid("what passes said of it", ("pass", "", "where", "what and why"), cells))
    lines = () if told else ("no pass recorded anything about it",)
    found = [{**n, "kernel": _step(record, n)} for n in nodes]
    return Result({"layer": args.layer, "nodes": found, "told": told}, tuple(grids), lines)


def explain_code(args: Namespace, say: Say) -> Result:
    """What a number means, as the return code of a C function of a library and as an exit status of taskgraft."""
    statuses: dict[int, list[str]] = {
        0: ["done, all gates passed"],
        1: ["What was compared differs: by verify, run --all-combinations or diff."],
        70: ["an error that nothing of taskgraft expected, a defect of it; --debug prints where"],
        130: ["interrupted; nothing half-written remains"],
    }
    for kind in errors.CompilerError.__subclasses__():
        statuses.setdefault(kind.exit_code, []).append((kind.__doc__ or "").strip().splitlines()[0])
    rows = [("return code of a library", MESSAGES[args.code])] if 0 <= args.code < len(MESSAGES) else []
    rows += [("exit status of taskgraft", text) for text in statuses.get(args.code, [])]
    if not rows:
        raise ConfigError(
            f"{args.code} is neither a return code of a library (0 to {len(MESSAGES) - 1}) nor an exit status of "
            f"taskgraft ({', '.join(map(str, sorted(statuses)))})"
        )
    record = {"code": args.code, "meanings": [{"of": of, "means": means} for of, means in rows]}
    return Result(record, (Grid(f"code {args.code}", ("as", "means"), rows),))


def _named(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The node of this name, or the nodes of the layer; ConfigError with the nearest names where there is none."""
    nodes = [n for n in record["graph"]["nodes"] if n["op"] not in ("input", "output")]
    layers = {n["node"]: layer_name(n["node"], n["mask"], record["tasks"]) for n in nodes}
    found = [n for n in nodes if n["node"] == name] or [n for n in nodes if layers[n["node"]] == name]
    if not found:
        near = difflib.get_close_matches(name, [*layers, *layers.values()], n=3, cutoff=0.4)
        advice = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise ConfigError(f"{record['name']} has no layer '{name}'{advice}")
    return found


def _step(record: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any] | None:
    step = None if node["step"] is None else record["steps"][node["step"]]
    return None if step is None else dict(step)


def _row(record: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[Cell, ...]:
    step = _step(record, node) or {}
    tasks = " ".join(t for i, t in enumerate(record["tasks"]) if node["mask"] >> i & 1)
    kernel = (step.get("choice"), step.get("chosen_by"), step.get("why"), step.get("zeros") or None)
    return (node["node"], node["op"], tasks, node["results"], node["macs"], node["macs_dense"], *kernel)


def _told(record: Mapping[str, Any], names: set[str]) -> list[dict[str, str]]:
    """Notes and refusals that name one of these nodes, as it is called now or was called in its network."""
    wanted = {f"'{n}'" for n in names} | {f"/{n}'" for n in names}
    found: list[dict[str, str]] = []
    for pass_ in record["passes"]:
        parts: Sequence[tuple[str, str]] = (("did", "notes"), ("left alone", "refusals"))
        for what, key in parts:
            for one in pass_[key]:
                if any(w in one["where"] for w in wanted):
                    found.append({"pass": pass_["spec"], "what": what, **one})
    return found
