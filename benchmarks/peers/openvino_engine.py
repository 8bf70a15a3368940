"""OpenVINO on the CPU: one stream, latency hint, float32 throughout, inputs shared with the request."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import openvino

from benchmarks.peers.engine import Arrays, Engine


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The file `model`, compiled for `threads` threads."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(options["threads"]),
        # Processors with bfloat16 instructions would otherwise compute in bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in feeds.items()}
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
    ports = request.model_outputs

    def outputs() -> Arrays:
        return {name: np.array(request.get_tensor(port).data) for port in ports for name in port.get_names()}

    call = partial(request.infer, {}, share_outputs=True)
    return Engine(openvino.__version__.split("-")[0], call, outputs, keep=(feeds, tensors))
