"""Fast evaluation of ONNX models by onnxruntime: the outside judge of every comparison.

This is the only module that imports onnxruntime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Graph
from compiler.ir.onnx_out import to_onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: nothing of a user's networks is reported
import onnxruntime as ort

_QUIET = 3
ort.set_default_logger_severity(_QUIET)


class Engine:
    """A model ready to run, on one thread so that results do not depend on the machine. Between runs it holds its
    weights only: onnxruntime's arena would keep what a run needed, and hundreds of engines live beside each other.

    `optimise=False` switches onnxruntime's graph rewrites off. UnsupportedModelError where it cannot open or run
    the model.
    """

    def __init__(self, model: onnx.ModelProto | bytes | str | os.PathLike[str], *, optimise: bool = True) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise UnsupportedModelError(f"onnxruntime cannot open the model: {error}") from error
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        """Metadata entries of the model."""

    @classmethod
    def of(cls, graph: Graph) -> Engine:
        """A graph, through its ONNX form."""
        return cls(to_onnx(graph))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name."""
        try:
            results = self._session.run(None, {k: v for k, v in feeds.items() if k in self.inputs})
        except Exception as error:
            raise UnsupportedModelError(f"onnxruntime cannot run the model: {error}") from error
        return {n: np.asarray(r) for n, r in zip(self.outputs, results, strict=True)}
