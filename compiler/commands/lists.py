"""targets, passes, ops: what exists, from the registries."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import Any, get_type_hints

import compiler.ir.ops  # noqa: F401  fills the registry
from compiler.codegen.target import find_target, target_names
from compiler.commands import Grid, Result
from compiler.errors import TargetError
from compiler.ir.op import OPSET, Op
from compiler.passes import REGISTRY, find
from compiler.passes.spec import written
from compiler.release import Say


def targets(args: Namespace, say: Say) -> Result:
    """Every target, its instruction set, and the tools looked for."""
    records = [_target(name) for name in target_names()]
    rows = [
        (r["target"], r["preset"], r["lanes"], " ".join(r["features"]), " ".join(r["compilers"])) for r in records
    ]
    return Result(records, (Grid("targets", ("target", "preset", "f32 lanes", "features", "compilers"), rows),))


def _target(name: str) -> dict[str, Any]:
    try:
        found = find_target(name)
    except TargetError as error:
        return {"target": name, "preset": "", "lanes": None, "features": [], "compilers": [], "reason": str(error)}
    return {
        "target": name,
        "preset": found.preset,
        "triple": found.mtriple,
        "cpu": found.mcpu,
        "lanes": found.lanes,
        "features": [f.name for f in found.features],
        "compilers": list(found.compilers),
    }


def passes(args: Namespace, say: Say) -> Result:
    """Every registered pass with its options."""
    records = [_pass(name) for name in REGISTRY]
    rows = []
    for record in records:
        options = ", ".join(f"{o['name']}={o['default']}" for o in record["options"])
        rows.append((record["pass"], "exact" if record["exact"] else "approximate", options, record["summary"]))
    return Result(records, (Grid("passes", ("pass", "outputs", "options", "what it does"), rows),))


def _pass(name: str) -> dict[str, Any]:
    cls = find(name)
    hints = get_type_hints(cls)
    options = []
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else "required"
        kind = hints[field.name]
        options.append(
            {"name": field.name, "type": getattr(kind, "__name__", str(kind)), "default": written(default)}
        )
    summary = (cls.__doc__ or "").strip().splitlines()[0]
    return {"pass": name, "exact": cls.exact, "summary": summary, "options": options}


def ops(args: Namespace, say: Say) -> Result:
    """Every operator, by ONNX name at the pinned opset."""
    records = [
        {"operator": name, "summary": (type(op).__doc__ or "").strip().splitlines()[0]}
        for name, op in sorted(Op.registry.items())
    ]
    rows = [(r["operator"], r["summary"]) for r in records]
    return Result(
        {"opset": OPSET, "operators": records},
        (Grid(f"{len(rows)} operators, opset {OPSET}", ("operator", "what it computes"), rows),),
    )
