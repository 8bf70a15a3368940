"""The manifest: every deterministic fact about a bundle, as canonical JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from compiler.codegen.interface import ABI, Entry, Interface, Parameter
from compiler.codegen.link import LinkFacts
from compiler.codegen.program import Library
from compiler.codegen.target import Target
from compiler.errors import BundleError, listed
from compiler.ir.types import DType

SCHEMA = 1
VARIANT = "variant"
"""Kind of the levels of a portfolio."""

ANY = "*"
"""Key of a form that stands for every key."""
NUMBER = (int, float)
"""Form of any number."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DTYPES = frozenset(dtype.value for dtype in DType)
_PORT = {"name": str, "label": str, "dtype": str, "shape": [int]}
_FORM: dict[str, object] = {
    "name": str,
    "abi": int,
    "build_id": str,
    "linked": bool,
    "target": {"name": str, "preset": str, "arch": str, "lanes": int, "features": [str]},
    "tasks": [{"name": str, "bit": int, "outputs": [int]}],
    "io": {"inputs": [_PORT], "outputs": [{**_PORT, "task": str}]},
    "levels": [{"density": NUMBER}],
    "switch_points": [list],
    "subsets": [{"tasks": [str], "level": int}],
    "files": {ANY: {"sha256": str}},
}
"""What readers of a manifest rely on."""

_DISTRIBUTIONS = ("taskgraft", "apache-tvm", "apache-tvm-ffi", "onnx", "numpy")


def canonical(value: object) -> bytes:
    """ASCII JSON with sorted keys, one-space indent and a final newline. ValueError on NaN or infinity."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def toolchain_record(linker: str) -> dict[str, str]:
    """Versions of everything that shapes the bytes; `linker` is `none` for an unlinked bundle."""
    record = {name: _version(name) for name in _DISTRIBUTIONS}
    return {**record, "linker": linker}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def target_record(target: Target) -> dict[str, object]:
    """The target as the manifest states it."""
    return {
        "name": target.name,
        "preset": target.preset,
        "arch": target.arch,
        "triple": target.mtriple,
        "mcpu": target.mcpu,
        "mattr": list(target.mattr),
        "lanes": target.lanes,
        "features": [feature.name for feature in target.features],
    }


def manifest_record(
    library: Library,
    face: Interface,
    *,
    identity: Mapping[str, object],
    facts: LinkFacts | None,
    passes: Sequence[Mapping[str, object]],
    costs: Sequence[Mapping[str, Any]],
    golden: Mapping[str, object],
    files: Mapping[str, Mapping[str, object]],
) -> dict[str, object]:
    """The whole manifest. `identity` is `inputs`, `toolchain`, `target`, `build_id`; `facts` None = not linked."""
    return {
        "schema": SCHEMA,
        "name": face.name,
        "abi": ABI,
        **identity,
        "linked": facts is not None,
        "library": None if facts is None else asdict(facts),
        "tasks": [_task_record(face, i) for i in range(len(face.tasks))],
        "io": {
            "inputs": [_port_record(p) for p in face.inputs],
            "outputs": [_port_record(p) for p in face.outputs],
        },
        "threads": {"pool": face.threads, "scratch_bytes": face.scratch_bytes},
        "levels": [_level_record(library, level) for level in range(face.levels)],
        "switch_points": [list(nodes) for nodes in face.switch_points],
        "subsets": _subset_records(face, costs),
        "passes": [dict(record) for record in passes],
        "golden": dict(golden),
        "pool": {
            "bytes": len(library.pool),
            "sha256": sha256(library.pool),
            "tensors": [asdict(entry) for entry in library.pool_table],
        },
        "files": dict(files),
    }


def _level_record(library: Library, level: int) -> dict[str, object]:
    """All levels are in the one pool; `weight_bytes` of it are read at this level."""
    if len(library.levels) == 1:
        return {"level": 0, "kind": "dense", "density": 1, "weight_bytes": len(library.pool)}
    facts, kind = library.levels[level], VARIANT if library.variants else "nested"
    return {"level": level, "kind": kind, "density": facts.density, "weight_bytes": facts.weight_bytes}


def build_id(inputs: Mapping[str, str], toolchain: Mapping[str, str], target: Mapping[str, object]) -> str:
    """Digest of everything a build depends on."""
    return sha256(canonical({"inputs": inputs, "toolchain": toolchain, "target": target}))


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The manifest in `data`. BundleError if it is not JSON of this schema; `where` names the file.

    Everything that readers rely on is there afterwards, of the right type; other entries are not looked at.
    """
    record = parse_object(data, where)
    if record.get("schema") != SCHEMA:
        raise BundleError(f"{where} has schema {record.get('schema')!r}, this version of taskgraft reads {SCHEMA}")
    missing = sorted(set(_FORM) - set(record))
    if missing:
        raise BundleError(f"{where} lacks {', '.join(missing)}")
    problems = list(misfits(record, _FORM))
    problems = problems or list(_contradictions(record))
    if problems:
        raise BundleError(f"{where} is not a manifest; compile the bundle again:{listed(problems)}")
    return record


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`; BundleError if it is none."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON: {error}") from error
    return record if isinstance(record, dict) else {}


def misfits(value: object, form: object, at: str = "") -> Iterator[str]:
    """Where JSON data differs from a form.

    A form is a type, or several; a list of one form, for every entry; a dict of forms, for keys that have to be
    there; or a dict whose only key is ANY, for all values.
    """
    if isinstance(form, type | tuple):
        # bool is an int in Python and not in JSON
        if not isinstance(value, form) or (isinstance(value, bool) and form is not bool):
            names = " or ".join(kind.__name__ for kind in (form if isinstance(form, tuple) else (form,)))
            yield f"{at} is {json.dumps(value)[:40]}, not of type {names}"
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield f"{at} is not a list"
            return
        for i, entry in enumerate(value):
            yield from misfits(entry, form[0], f"{at}[{i}]")
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            yield f"{at} is not a table"
            return
        for key in value if ANY in form else form:
            inner = f"{at}.{key}".lstrip(".")
            if key in value:
                yield from misfits(value[key], form.get(key, form.get(ANY)), inner)
            else:
                yield f"{inner} is missing"


def _contradictions(record: Mapping[str, Any]) -> Iterator[str]:
    """What in a manifest of the right form cannot be."""
    if not _NAME.fullmatch(record["name"]):
        yield f"name {record['name']!r} is no C name"
    count = len(record["io"]["outputs"])
    for i, task in enumerate(record["tasks"]):
        if task["bit"] != i or not all(0 <= n < count for n in task["outputs"]):
            yield f"tasks[{i}] has bit {task['bit']} and outputs {task['outputs']}; there are {count} outputs"
    names = {task["name"] for task in record["tasks"]}
    for i, subset in enumerate(record["subsets"]):
        if unknown := sorted(set(subset["tasks"]) - names):
            yield f"subsets[{i}] names {', '.join(unknown)}, which is no task"
    for side, ports in record["io"].items():
        for i, port in enumerate(ports if isinstance(ports, list) else ()):
            if port["dtype"] not in _DTYPES or not all(n >= 0 for n in port["shape"]):
                yield f"io.{side}[{i}] is {port['dtype']} {port['shape']}"
    if record["linked"] and f"lib{record['name']}.so" not in record["files"]:
        yield f"files has no lib{record['name']}.so"


def _task_record(face: Interface, bit: int) -> dict[str, object]:
    outputs = [i for i, p in enumerate(face.outputs) if p.mask == 1 << bit]
    return {"name": face.tasks[bit], "bit": bit, "outputs": outputs}


def _port_record(parameter: Parameter) -> dict[str, object]:
    kind = parameter.port.type
    record: dict[str, object] = {
        "name": parameter.port.name,
        "label": parameter.port.label,
        "parameter": parameter.identifier,
        "dtype": kind.dtype.value,
        "shape": list(kind.shape),
    }
    return {**record, "task": parameter.task} if parameter.task else {**record, "tasks_mask": parameter.mask}


def _subset_records(face: Interface, costs: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per listed subset and level, with the cost row of the same tasks and level merged in."""
    by_tasks = {(frozenset(row["tasks"]), row.get("level", 0)): row for row in costs}
    return [
        {**by_tasks.get((frozenset(e.tasks), level), {}), **_entry_record(face, e, level)}
        for e in face.entries
        for level in range(face.levels)
    ]


def _entry_record(face: Interface, entry: Entry, level: int) -> dict[str, object]:
    calls = entry.programs[level if len(entry.programs) > 1 else 0].calls
    return {
        "tasks": list(entry.tasks),
        "mask": entry.mask,
        "level": level,
        **({"cheapest": face.cheapest[entry.mask] == level} if face.portfolio else {}),
        "symbol": entry.symbol,
        "entry": "specialised" if entry.specialised else "table",
        "workspace_bytes": entry.workspace_bytes,
        "kernels": len(calls),
        "shared_kernels": sum(call.shared for call in calls),
    }
