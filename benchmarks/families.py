"""Families of tasks that become one library: those of models/, a synthetic trunk with heads, a merged network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from benchmarks.labelled import labelled
from benchmarks.networks import Net
from benchmarks.ours import PASSES, through
from benchmarks.peers.client import ROOT
from compiler import Graph, load, load_config, union
from compiler.release import load_release, transform

MODELS = ROOT / "models"
TRUNK = (32, 64, 128)
"""Channels of the stages of the synthetic trunk: two convolutions each, halved in size by the first."""
HEADS = {"first": 1, "second": 2, "third": 3}
"""Task -> seed of its head."""


def trunk_and_head(task: str, seed: int) -> onnx.ModelProto:
    """A network of the synthetic family: all share the trunk's weights, each seed has a head of its own."""
    net = Net(task, (1, 3, 112, 112), seed=0)
    x = "x"
    for out in TRUNK:
        x = net.relu(net.conv(net.relu(net.conv(x, out, 3, 2)), out))
    net.rng = np.random.default_rng(seed)
    x = net.relu(net.conv(net.relu(net.conv(x, 96)), 96))
    return net.model(net.head(x))


def synthetic() -> Graph:
    """Three networks joined, their common trunk found by deduplication."""
    return through(
        union({t: load(trunk_and_head(t, seed), task=t) for t, seed in HEADS.items()}, input="image", name="trunk"),
        PASSES,
    )


def merged() -> Graph:
    """Three networks that share channels by sets of tasks in every layer."""
    return through(union({t: load(labelled(t), task=t) for t in "abc"}, input="image", name="labels"), PASSES)


def _released(name: str) -> Callable[[], Graph]:
    def graph() -> Graph:
        return transform(load_release(load_config(MODELS / name / "release.toml")))[0]

    return graph


def families() -> dict[str, Callable[[], Graph]]:
    """Name -> the joined graph after its passes."""
    found = sorted(path.parent.name for path in MODELS.glob("*/release.toml"))
    return {"trunk-and-heads": synthetic, "labels": merged} | {name: _released(name) for name in found}


def subsets(graph: Graph) -> Iterator[tuple[str, ...]]:
    """Every non-empty set of tasks, small ones first."""
    for size in range(1, len(graph.tasks) + 1):
        yield from itertools.combinations(graph.tasks, size)
