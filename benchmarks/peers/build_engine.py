"""Our whole way from an ONNX file to a bound bundle, in a fresh process: for the time of compilation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ours import built
from benchmarks.peers import bundle_engine
from benchmarks.peers.engine import Arrays, Engine
from compiler import load as load_graph


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """Compile the ONNX file `model` for `target` and open it; candidates are measured for `tune` seconds (0: none).

    The note holds the sizes of library and weights as JSON. Raises what the compiler raises.
    """
    work = tempfile.TemporaryDirectory(prefix="taskgraft-build-")
    graph = load_graph(model, task="network")
    made = built(graph, Path(work.name), target=options["target"], feeds=feeds, tune=options["tune"])
    engine = bundle_engine.load(str(made.folder), feeds, {"threads": 1})
    sizes = {"library_bytes": made.library_bytes, "pool_bytes": made.pool_bytes}
    return engine._replace(note=json.dumps(sizes), keep=(engine.keep, work))
