"""Reading bundles without running them: what their manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.codegen.bundle import Bundle, read_bundle, read_index
from compiler.commands import CHEAPEST_TITLE, Grid, Result, Tree
from compiler.errors import ConfigError


def targets_in(path: Path) -> tuple[str, ...]:
    """The targets of a bundle folder; empty for a single target's own folder."""
    return tuple(sorted(read_index(path)["targets"])) if (path / "index.json").exists() else ()


def one_target(targets: Sequence[str]) -> str | None:
    """The target that --target names, if any; ConfigError where it names several and one is shown at a time."""
    if len(targets) > 1:
        raise ConfigError(f"--target names {', '.join(targets)}; this command shows one target")
    return targets[0] if targets else None


def chosen(path: Path, targets: Sequence[str]) -> Bundle:
    """The bundle of the named target, or of the first there is; ConfigError for several names."""
    known = targets_in(path)
    return read_bundle(path, one_target(targets) or (known[0] if known else None))


def bundle_costs(path: Path, targets: list[str]) -> Result:
    """The rows of a bundle's manifest: every listed subset with its planned workspace."""
    bundle = chosen(path, targets)
    columns = ("tasks", "level", "macs", "flops", "parameters", "weight_bytes", "workspace_bytes", "symbol")
    rows = _ordered(bundle)
    starred = [{**r, "level": f"{r['level']}*"} if r.get("cheapest") else r for r in rows]
    title = f"{bundle.name} for {bundle.target}{CHEAPEST_TITLE * (starred != rows)}"
    grid = Grid(title, columns, [_cells(r, columns) for r in starred])
    return Result({"combinations": rows, "separate": []}, (grid,))


def inspect_bundle(bundle: Bundle, outline: Sequence[dict[str, object]], pictures: Sequence[Grid | Tree]) -> Result:
    """Ports, pictures of its graph, subsets and files of a bundle."""
    manifest = bundle.manifest
    ports = [("input", p["label"], f"{p['dtype']}{p['shape']}", "") for p in manifest["io"]["inputs"]]
    ports += [("output", p["label"], f"{p['dtype']}{p['shape']}", p["task"]) for p in manifest["io"]["outputs"]]
    files = [(name, entry.get("bytes"), entry["sha256"][:16]) for name, entry in sorted(manifest["files"].items())]
    columns = ("tasks", "level", "symbol", "entry", "kernels", "workspace_bytes")
    title = f"{bundle.name} for {bundle.target}, build {str(manifest['build_id'])[:16]}"
    grids = (
        Grid(title, ("port", "name", "type", "task"), ports),
        *pictures,
        Grid("subsets", columns, [_cells(r, columns) for r in _ordered(bundle)]),
        Grid("files", ("file", "bytes", "sha256"), files),
    )
    return Result({**manifest, "outline": list(outline)}, grids)


def _ordered(bundle: Bundle) -> list[dict[str, Any]]:
    """The subsets of a manifest, level by level, fewer tasks first and then in their order, as costs are shown."""
    place = {task["name"]: n for n, task in enumerate(bundle.manifest["tasks"])}
    return sorted(
        bundle.manifest["subsets"],
        key=lambda row: (row["level"], len(row["tasks"]), [place[t] for t in row["tasks"]]),
    )


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(" ".join(v) if isinstance(v := row.get(c), list) else v for c in columns)
