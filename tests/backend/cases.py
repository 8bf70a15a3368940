"""ONNX's own backend tests as plain data: model, inputs, expected outputs, tolerances."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")

DataSet = tuple[list[Any], list[Any]]


@dataclass(frozen=True)
class BackendCase:
    """One case: `data` holds (inputs, expected outputs), in the order the model declares them."""

    name: str
    model: onnx.ModelProto
    data: list[DataSet]
    rtol: float
    atol: float


@cache
def _loaded(kind: str) -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators of the cases overflow and divide by zero on purpose
        return {c.name: c for c in load_model_tests(kind=kind)}


def cases(kind: str, part: int = 0, parts: int = 1) -> Iterator[BackendCase]:
    """The cases of a kind, every `parts`-th from number `part` on, by name."""
    found = _loaded(kind)
    for name in sorted(found)[part::parts]:
        case = found[name]
        model, data = _light(case) if kind == "real" else _stored(case)
        yield BackendCase(name, model, data, case.rtol, max(case.atol, 1e-6))


def _light(case: Any) -> tuple[onnx.ModelProto, list[DataSet]]:
    """A network whose weights are one repeated number; its output on ones lies beside it."""
    path = Path(onnx.__file__).parents[1] / case.url
    model = onnx.load(path)
    constant = {t.name for t in model.graph.initializer}
    shapes = [
        [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input if i.name not in constant
    ]
    expected = _tensor(path.with_name(path.stem + "_output_0.pb").read_bytes(), "tensor_type")
    return model, [([np.ones(s, np.float32) for s in shapes], [expected])]


def _stored(case: Any) -> tuple[onnx.ModelProto, list[DataSet]]:
    if case.data_sets is not None:
        return case.model, [([_array(v) for v in a], [_array(v) for v in b]) for a, b in case.data_sets]
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    constant = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constant]
    sets = sorted(folder.glob("test_data_set_*"))
    return model, [(_read(d, "input", inputs), _read(d, "output", model.graph.output)) for d in sets]


def _read(folder: Path, prefix: str, infos: Any) -> list[Any]:
    files = [folder / f"{prefix}_{i}.pb" for i in range(len(infos))]
    kinds = [i.type.WhichOneof("value") for i in infos]
    return [_tensor(f.read_bytes(), k) for f, k in zip(files, kinds, strict=True) if f.exists()]


def _tensor(data: bytes, kind: str) -> Any:
    proto = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(kind, onnx.TensorProto)()
    proto.ParseFromString(data)
    return _array(proto)


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def frozen(model: onnx.ModelProto, inputs: list[Any], widely: bool) -> tuple[onnx.ModelProto, list[Any]]:
    """The case as a compiler of static shapes is given it: inputs that say shapes, axes or pads are constants.

    These are int64 inputs of at most one axis after the first input; `widely` takes every small tensor after it,
    and the first where it is a scalar or the only one.
    """
    if len(inputs) < len(model.graph.input):
        return model, inputs
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, 4)  # from here on an initializer need not be an input
    del copy.graph.input[:]
    kept = []
    for position, (info, value) in enumerate(zip(model.graph.input, inputs, strict=True)):
        small = isinstance(value, np.ndarray) and value.ndim <= 1
        first = position == 0 and not (widely and small and (value.ndim == 0 or len(inputs) == 1))
        if small and not first and (value.dtype == np.int64 or (widely and value.size <= 16)):
            copy.graph.initializer.append(numpy_helper.from_array(value, info.name))
        else:
            copy.graph.input.append(info)
            kept.append(value)
    return copy, kept
