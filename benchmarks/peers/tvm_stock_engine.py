"""TVM as it comes: its ONNX frontend, the default Relax pipeline for this processor, no tuning."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from benchmarks.peers.engine import Arrays, Engine


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The file `model`, compiled for `threads` threads. Raises what the frontend and the pipeline raise."""
    loaded = onnx.load(model)
    target = tvm.target.Target({"kind": "llvm", "mcpu": options["mcpu"], "num-cores": options["threads"]})
    module = from_onnx(loaded, keep_params_in_input=False)
    with target:
        built = tvm.compile(module, target, relax_pipeline=relax.get_default_pipeline(target))
    machine = relax.VirtualMachine(built, tvm.cpu())
    # Looked up without a wrapper: inputs in the order of the graph, results as a tensor or a tuple of them.
    machine.set_input("main", *[tvm.runtime.tensor(feeds[i.name]) for i in loaded.graph.input])
    names = [o.name for o in loaded.graph.output]

    def outputs() -> Arrays:
        found = machine.get_outputs("main")
        arrays = [found] if len(names) == 1 else list(found)
        return {n: np.array(a.numpy()) for n, a in zip(names, arrays, strict=True)}

    return Engine(tvm.__version__, partial(machine.invoke_stateful, "main"), outputs)
