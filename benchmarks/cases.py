"""What is timed: a network with its inputs, as the one file that every contender gets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks import networks, speed_networks
from benchmarks.peers.client import ROOT
from benchmarks.speed_networks import DIRECT_SHAPES, SPEED_NETWORKS, conv_layer
from compiler import load
from compiler.check import drawn_feeds
from compiler.ir.graph import Graph

MODELS = "TASKGRAFT_MODELS"
"""Environment variable with the folder of real networks and their manifest.json."""
SEED = 7
IR_VERSION = 4
"""The first that allows initializers which are no inputs."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """A named network. `recipe` decides the model's bytes; `shapes` binds free axes, `ranges` draws an input
    uniformly instead of from the standard normal distribution."""

    name: str
    model: Callable[[], onnx.ModelProto]
    recipe: str
    shapes: Shapes = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Digest of everything that decides the file and its inputs."""
        shapes = {n: list(s) for n, s in self.shapes.items()}
        return hashlib.sha256(json.dumps([self.name, self.recipe, shapes]).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Prepared:
    """A case on disk: the file, its inputs, and its graph as imported."""

    case: Case
    file: Path
    feeds: Mapping[str, np.ndarray]
    graph: Graph


def prepare(case: Case, kept: Path) -> Prepared:
    """Write the model into the folder `kept` unless it is there, and draw its inputs.

    Raises what the import raises.
    """
    file = kept / f"model-{case.identity}.onnx"
    if not file.exists():
        part = file.with_suffix(".part")
        onnx.save(static(case.model(), case.shapes), part)
        part.rename(file)
    graph = load(file, task="network")
    return Prepared(case, file, drawn_feeds(graph, case.ranges, SEED), graph)


def static(model: onnx.ModelProto, shapes: Shapes) -> onnx.ModelProto:
    """The model with bound input shapes and without initializers among its inputs.

    Every engine can then plan with fixed shapes and fold constants; old exporters list weights as inputs, which
    forbids it.
    """
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    for value in inputs:
        if value.name in shapes:
            dims = value.type.tensor_type.shape
            dims.ClearField("dim")
            for size in shapes[value.name]:
                dims.dim.add().dim_value = size
    kept = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in inputs]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, IR_VERSION)
    return model


# ---------------------------------------------------------------------- lists
def recipe_digest() -> str:
    """Digest of the code that writes the generated networks."""
    digest = hashlib.sha256(np.__version__.encode())
    for module in (networks, speed_networks):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def generated() -> dict[str, Case]:
    """The usual architectures with seeded weights."""
    recipe = recipe_digest()
    return {name: Case(name, make, recipe) for name, make in SPEED_NETWORKS.items()}


def layers() -> dict[str, Case]:
    """Single convolutions."""
    recipe = recipe_digest()
    return {name: Case(name, partial(conv_layer, name, *shape), recipe) for name, shape in DIRECT_SHAPES.items()}


def models_folder() -> Path:
    """Where the real networks are looked for."""
    return Path(os.environ.get(MODELS, ROOT.parent / "shared" / "models"))


def real(folder: Path) -> dict[str, Case]:
    """`real:NAME` for each network that the manifest of `folder` names; empty where there is no manifest."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return {}
    rows = json.loads(manifest.read_text())
    return {f"real:{row['name']}": _real(folder, row) for row in rows}


def _real(folder: Path, row: Mapping[str, object]) -> Case:
    path = folder / str(row["file"])
    shapes, ranges = row.get("input_shapes", {}), row.get("input_ranges", {})
    assert isinstance(shapes, dict) and isinstance(ranges, dict)
    return Case(
        f"real:{row['name']}",
        partial(onnx.load, path),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        {n: tuple(s) for n, s in shapes.items()},
        {n: (low, high) for n, (low, high) in ranges.items()},
    )
