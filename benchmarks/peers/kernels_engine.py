"""Our kernels alone: a network through passes and planner, where only the calls the planner decided on count.

Copies between the caller's layout and the blocked one are left out, because inside a network they do not occur. The
clock is read around each kernel call, on the inside of the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import compiler
from benchmarks.ours import PASSES, forced, through
from benchmarks.peers.engine import Arrays, Engine
from compiler import find_target
from compiler import load as load_graph
from compiler.codegen.generate import generate
from compiler.codegen.profile import TimedLibrary, choice_text


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The ONNX file `model` for `target`; `algorithm`, if given, is used wherever it applies.

    Raises what passes and code generation raise.
    """
    target = find_target(options["target"])
    graph = through(load_graph(model, task="network"), PASSES)
    sources = forced(graph, options["target"], options.get("algorithm", ""))
    timed = TimedLibrary(generate(graph, target, name="net", sources=sources), target, feeds)
    decided = [i for i, step in enumerate(timed.steps) if "algorithm" in step]
    if not decided:
        raise RuntimeError("no kernel call was decided by the planner")
    times = [timed.run()]

    def call() -> None:
        times[0] = timed.run()

    def seconds() -> float:
        return float(times[0][decided].sum()) * 1e-9

    def outputs() -> Arrays:
        return {name: np.array(array) for name, array in timed.outputs.items()}

    note = ", ".join(dict.fromkeys(choice_text(timed.steps[i]) for i in decided))
    return Engine(compiler.__version__, call, outputs, note, seconds=seconds)
