"""Our own contender: a compiled bundle, opened and bound as a user does it."""

from __future__ import annotations

from typing import Any

import compiler
from benchmarks.peers.engine import Arrays, Engine
from compiler import open_bundle


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

    return Engine(compiler.__version__, bound, outputs, keep=(network, pool))
