"""Our own contender: a compiled bundle, opened and bound as a user does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compiler
from benchmarks.peers.engine import Arrays, Engine
from compiler import open_bundle

LEAST_KIB = 8192
"""Libraries below have little to gain."""


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The bundle in folder `model`; `tasks` in `options` names the subset (default: all), `threads` makes a pool.

    Outputs are called as in the source model; `task/label` with the option `qualified`, for joined networks.
    """
    network = open_bundle(model)
    tasks = list(options.get("tasks") or network.tasks)
    pool = network.pool(options["threads"]) if options["threads"] > 1 else None
    bound = network.bind(tasks, pool=pool, **feeds)
    ports = network.bundle.manifest["io"]["outputs"]
    members = {t["name"]: [ports[i]["label"] for i in t["outputs"]] for t in network.bundle.manifest["tasks"]}

    def outputs() -> Arrays:
        found: Arrays = {}
        for task in tasks:
            value = bound.outputs[task]
            for label in members[task]:
                name = f"{task}/{label}" if options.get("qualified") else label
                found[name] = value[label] if isinstance(value, dict) else value
        return found

    bound()
    return Engine(compiler.__version__, bound, outputs, large_pages(network.bundle.library), keep=(network, pool))


def large_pages(library: Path, maps: Path = Path("/proc/self/smaps")) -> str:
    """Which share of a mapped library that is not small lies in pages of 2 MiB and more; "" where the system does
    not say. Weights arrive faster from these, and whether they are is chance of how the file was written."""
    if not maps.exists():
        return ""
    own, size, large = False, 0, 0
    for line in maps.read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            own = rest[-1:] == [str(library.resolve())]
        elif own and name in ("Size:", "FilePmdMapped:"):
            size, large = (size + int(rest[0]), large) if name == "Size:" else (size, large + int(rest[0]))
    return f"{large / size:.0%} in large pages" if size >= LEAST_KIB else ""
