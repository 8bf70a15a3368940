"""Sparse layers and networks: what `sparsify` makes of seeded random weights, as one file for every contender."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from benchmarks.cases import Case, recipe_digest
from benchmarks.networks import Net
from benchmarks.ours import PASSES, through
from benchmarks.sources import sources_digest
from benchmarks.speed_networks import SPEED_NETWORKS, conv_layer
from compiler import load, to_onnx

LEVELS = ("0.75", "0.90", "0.95")
RUNS = (4, 8, 16)
OPSET, IR_VERSION = 17, 8
"""What every engine reads: the newest that deepsparse 1.8 does."""
METADATA = "taskgraft.encodings"
"""Key of the metadata that says how weights are stored; without it the same file is dense."""


def fully_connected(width: int = 4096) -> onnx.ModelProto:
    """One square matrix at batch 1: 64 MB of weights at the usual width."""
    net = Net(f"fc{width}", (1, width))
    return net.model(net.gemm("x", width))


LAYERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "layer3x3": partial(conv_layer, "layer3x3", 3, 1, 128, 128, 28),
    "layer1x1": partial(conv_layer, "layer1x1", 1, 1, 256, 1024, 14),
    "fc4096": fully_connected,
}
"""Single layers: all their weights are made sparse."""
NETWORKS = {name: SPEED_NETWORKS[name] for name in ("resnet18", "vgg16-32")}
"""Whole networks: the first and the last layer stay dense, as `sparsify` has it by default."""
RECURRENT = {"lstm-tagger": SPEED_NETWORKS["lstm-tagger"]}
"""Networks of one recurrent layer and a classifier: all their weights are made sparse."""
RECURRENT_PATTERNS = {
    "block16x1-0.90": "pattern=block16x1,sparsity=0.9",
    "regular16": "pattern=regular16",
    "darb-0.90": "pattern=darb,sparsity=0.9",
    "darb-0.95": "pattern=darb,sparsity=0.95",
}


@dataclass(frozen=True)
class SparseCase:
    """A network with a pattern. `base` names the network; `cold`: what counts are calls with flushed caches."""

    case: Case
    base: str
    pattern: str
    cold: bool = False

    @property
    def layer(self) -> bool:
        """Whether it is a single layer."""
        return self.base in LAYERS

    @property
    def whole(self) -> bool:
        """Whether all weights are made sparse, those of the first and last layer too."""
        return self.base not in NETWORKS


def patterns() -> dict[str, str]:
    """Name of a pattern -> options of `sparsify`."""
    found = {
        f"{kind}-{level}": f"pattern={kind},sparsity={float(level):g}"
        for kind in ("block16x1", "block8x1", "unstructured")
        for level in LEVELS
    }
    return found | {f"regular{run}": f"pattern=regular{run}" for run in RUNS}


def cases() -> dict[str, SparseCase]:
    """All cases by name: NETWORK-PATTERN, LAYER-PATTERN; the fully connected layer also with `-cold`."""
    found = {}
    for base, make in (LAYERS | NETWORKS | RECURRENT).items():
        for pattern, options in (RECURRENT_PATTERNS if base in RECURRENT else patterns()).items():
            name = f"{base}-{pattern}"
            spec = f"sparsify{{{options}{'' if base in NETWORKS else ',dense=()'}}}"
            case = Case(name, partial(sparse_model, make, spec), _recipe(spec))
            found[name] = SparseCase(case, base, pattern)
            if base.startswith("fc"):
                found[f"{name}-cold"] = SparseCase(case, base, pattern, cold=True)
    return found


def _recipe(spec: str) -> str:
    parts = (recipe_digest(), Path(__file__).read_text(), sources_digest(), spec)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sparse_model(make: Callable[[], onnx.ModelProto], spec: str) -> onnx.ModelProto:
    """The network after our exact passes and `spec`, its weights scaled to the energy they had.

    Without that, activations of deep networks sink to where every engine meets denormals.
    """
    dense = through(load(make(), task="network"), PASSES)
    return portable(rescaled(to_onnx(through(dense, [spec])), to_onnx(dense)))


def portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at OPSET, metadata kept. Raises what ONNX's converter raises."""
    made = version_converter.convert_version(model, OPSET)
    made.ir_version = IR_VERSION
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made


def rescaled(sparse: onnx.ModelProto, dense: onnx.ModelProto) -> onnx.ModelProto:
    """`sparse` with each weight multiplied so that its norm is that of the weight of the same name in `dense`."""
    before = {t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}
    for tensor in sparse.graph.initializer:
        array, old = numpy_helper.to_array(tensor), before.get(tensor.name)
        if old is None or old.shape != array.shape or array.dtype.kind != "f" or np.array_equal(old, array):
            continue
        factor = np.linalg.norm(old) / np.linalg.norm(array)
        tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
    return sparse


def dense_twin(file: Path) -> Path:
    """The same network without the metadata of its encodings, beside `file`: our compiler takes it for dense."""
    twin = file.with_name(f"{file.stem}-dense.onnx")
    if not twin.exists():
        model = onnx.load(file)
        kept = [p for p in model.metadata_props if p.key != METADATA]
        copies = [onnx.StringStringEntryProto(key=p.key, value=p.value) for p in kept]
        del model.metadata_props[:]
        model.metadata_props.extend(copies)
        part = twin.with_suffix(".part")
        onnx.save(model, part)
        part.rename(twin)
    return twin
