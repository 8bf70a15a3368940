"""onnxruntime with all graph optimisations, inputs and outputs bound to fixed buffers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.peers.engine import Arrays, Engine


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """A session on the file `model` with `threads` threads inside an operator and one across them."""
    onnxruntime.disable_telemetry_events()
    settings = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    settings.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if options.get("optimise", True) else levels.ORT_DISABLE_ALL
    )
    settings.intra_op_num_threads, settings.inter_op_num_threads = options["threads"], 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    results = {n: _fixed(array) for n, array in zip(names, session.run(names, feeds), strict=True)}
    for name, result in results.items():
        if result is None:
            binding.bind_output(name)
        else:
            binding.bind_ortvalue_output(name, result)

    def outputs() -> Arrays:
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    call = partial(session.run_with_iobinding, binding)
    return Engine(onnxruntime.__version__, call, outputs, keep=(feeds, values, results))


def _fixed(like: Any) -> Any:
    """A buffer for a tensor of numbers; None for anything else, which every call makes anew."""
    numbers = isinstance(like, np.ndarray) and like.dtype.kind in "fiub"
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(like)) if numbers else None
