"""onnxruntime with all graph optimisations, inputs and outputs bound to fixed buffers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.peers.engine import Arrays, Engine


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """A session on the file `model` with `threads` threads inside an operator and one across them."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads, settings.inter_op_num_threads = options["threads"], 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    names = [output.name for output in session.get_outputs()]
    for name, array in zip(names, session.run(names, feeds), strict=True):
        _bind_output(binding, name, array)

    def outputs() -> Arrays:
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return Engine(onnxruntime.__version__, partial(session.run_with_iobinding, binding), outputs)


def _bind_output(binding: Any, name: str, like: Any) -> None:
    """A fixed buffer for tensors of numbers; anything else is made anew by every call."""
    if isinstance(like, np.ndarray) and like.dtype.kind in "fiub":
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(like)))
    else:
        binding.bind_output(name)
