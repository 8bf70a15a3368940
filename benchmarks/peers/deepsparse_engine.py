"""deepsparse: one core, the latency scheduler, inputs unchecked; its outputs are new arrays in every call."""

from __future__ import annotations

from functools import partial
from typing import Any

import deepsparse

from benchmarks.peers.engine import Arrays, Engine


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The file `model` on `threads` cores; raises what the engine says where it refuses model or processor."""
    engine = deepsparse.Engine(model, batch_size=1, num_cores=options["threads"], num_streams=1)
    arrays = [feeds[name] for name in engine.input_names]
    results: Arrays = {}

    def outputs() -> Arrays:
        results.update(zip(engine.output_names, engine.run(arrays, val_inp=False), strict=True))
        return results

    return Engine(deepsparse.__version__, partial(engine.run, arrays, val_inp=False), outputs)
