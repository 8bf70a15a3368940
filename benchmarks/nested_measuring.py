"""What trained levels are worth as compiled: accuracy, bytes, and bits beside libraries of each level alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar import INTERFACE, TASK, accuracy
from benchmarks.merging.families import Data, Part
from benchmarks.nested_training import Aim, Kept
from benchmarks.settings import say
from compiler import Graph, build, open_bundle
from compiler.calibration.engine import Engine
from compiler.codegen.runtime import Network
from compiler.ir.levels import at_level, level_count

COMPARED = 200
"""Images on which a level is compared with its library of its own, bit for bit."""
PUBLISHED = {
    "source": "Qin et al., ICTAI 2022, arXiv 2112.10930; means over ResNet-50, PointNet++, GNMT, graph attention",
    "weights_fraction": [0.1338, 0.0538],
    "flops_fraction": [0.1497, 0.0447],
    "relative_loss": [0.0, 0.0325],
}


def through_engine(graph: Graph, part: Part) -> float:
    """Accuracy of a graph in onnxruntime."""
    engine = Engine.of(graph)
    (output,) = engine.outputs
    return accuracy(np.stack([engine.run({INTERFACE.input: x[None]})[output] for x in part.inputs]), part)


def compiled(net: Network, part: Part, level: int) -> float:
    """Accuracy of a compiled network at a level."""
    return accuracy(np.stack([net.run(x[None], level=level)[TASK] for x in part.inputs]), part)


def measured(found: Kept, data: Data, folder: Path) -> dict[str, Any]:
    """The record of a training, with what its levels are as compiled."""
    net = open_bundle(build(found.levels, "host", folder / "levels", name="net").path)
    count = level_count(found.levels)
    parts = {"selection": data.selection, "report": data.report}
    densest = build(
        at_level(found.levels, 0, alone=True), "host", folder / "densest", name="net", plan=net.bundle.path
    )
    pools = {n: b.manifest["pool"]["bytes"] for n, b in (("levels", net.bundle), ("densest", densest))}
    say("nesting: accuracy as compiled")
    held, aims = found.record, [Aim(**aim) for aim in found.record["recipe"]["aims"]]
    levels = [{n: compiled(net, p, k) for n, p in parts.items()} for k in range(count)]
    dense, sizes = held["accuracy"]["dense"], zip(held["weights_fraction"], held["flops_fraction"], strict=True)
    reached = zip(aims, sizes, levels, strict=True)
    return {
        **held,
        "accuracy": {**held["accuracy"], "levels": levels},
        "relative_loss": [1 - level["report"] / dense["report"] for level in levels],
        "pool_bytes": pools | {"over_densest": pools["levels"] / pools["densest"]},
        "wrong_bits": wrong_bits(net, found.levels, data.report.first(COMPARED), folder),
        "met": [aim.met(size, level["report"], dense["report"]) for aim, size, level in reached],
        "published": PUBLISHED,
    }


def wrong_bits(net: Network, graph: Graph, part: Part, folder: Path) -> list[int]:
    """Per level, on how many images its outputs are not those of a library of that level by the same plan."""
    found = []
    for level in range(level_count(graph)):
        own = build(at_level(graph, level), "host", folder / f"level{level}", name="net", plan=net.bundle.path)
        alone = open_bundle(own.path)
        pairs = ((net.run(x[None], level=level)[TASK], alone.run(x[None])[TASK]) for x in part.inputs)
        found.append(sum(a.tobytes() != b.tobytes() for a, b in pairs))
    return found
