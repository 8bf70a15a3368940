"""Generated families of tasks: trunks shared in whole, in part, in structure only or not at all, behind adapters.

The same seed gives the same family on every machine; nothing but numpy and onnx is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from benchmarks.fuzz.case import Case, Member
from benchmarks.fuzz.grown import Block, Grown, Pick
from benchmarks.fuzz.layers import CHANNELS, IMAGE_BLOCKS, SEQUENCE_BLOCKS, VECTOR_BLOCKS, WIDTHS, activation
from benchmarks.fuzz.operators import decision
from compiler.ir.types import DType, TensorType

Shape = tuple[int, ...]
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 11, 14, 16, 17, 19)
EXACT = ("fold-constants", "fold-batch-norm", "remove-dead-code", "deduplicate", "dead-channels")
WIDEST = 600
"""Features that a flattened image may have: pruning by data inverts a matrix of as many rows."""
COUNTS, DEPTHS = (1, 1, 2, 2, 2, 2, 3, 4), (1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
"""Networks of a family and blocks of a trunk. Most are small: in the time of a large family several small ones run,
with more different operators among them."""
SHARINGS = ("weights", "weights", "structure", "nothing")


@dataclass(frozen=True)
class Trunk:
    """Body of a family. Block i of a task has common weights below `common[task]`, else its own."""

    seed: int
    blocks: Mapping[str, Block]
    depth: int
    sharing: str
    common: Mapping[int, int]

    def grow(self, net: Grown, task: int, x: str) -> str:
        """Blocks of one task's network on top of `x`."""
        for i in range(self.depth):
            own = 0 if i < self.common[task] else task + 1
            pick = Pick(self.seed, 1, i, 0 if self.sharing == "structure" else own)
            net.rng = np.random.default_rng([self.seed, 2, i, own])
            x = self.blocks[pick.one(list(self.blocks))](net, pick, x)
        net.rng = np.random.default_rng([self.seed, 3, task])
        return x


def family(seed: int) -> Case:
    """The family of a seed: one to four networks, a pipeline of passes and a target."""
    pick = Pick(seed, 0)
    make = pick.one((_images, _images, _images, _sequences, _vectors))
    count = pick.one(COUNTS)
    depth = pick.one(DEPTHS)
    sharing = pick.one(SHARINGS)
    common = {t: pick.whole(1, depth) if sharing == "weights" else 0 for t in range(count)}
    inputs, members = make(pick, seed, depth, sharing, common)
    target = pick.one(("host", "host", "host", "x86-64-v3", "x86-64-v4"))
    if pick.chance(0.02):
        target = pick.one(("aarch64-cortex-a72", "armv7-neon"))
    return Case(f"family {seed}", seed, members, inputs, pipeline(pick), target)


def pipeline(pick: Pick) -> tuple[str, ...]:
    """Exact passes in some order, and often one that changes numbers on purpose."""
    exact = list(EXACT) if pick.chance(0.6) else [pick.one(EXACT) for _ in range(pick.whole(1, 6))]
    changing = (
        f"prune-channels{{flops={pick.one((0.3, 0.5, 0.8))}}}",
        f"prune-channels{{parameters={pick.one((0.4, 0.7))},multiple={pick.one((1, 2, 4))}}}",
        "prune-channels{flops=0.6,score=obs,recover=least-squares}",
        f"sparsify{{pattern=block{pick.one((16, 8, 4))}x1,sparsity={pick.one((0.5, 0.75))},min_inputs=1,dense=()}}",
        f"sparsify{{pattern=regular{pick.one((4, 8))},min_inputs=4,dense=()}}",
        "sparsify{pattern=darb,density=0.2,min_inputs=4,dense=()}",
        f"sparsify{{pattern=unstructured,sparsity={pick.one((0.5, 0.9))},min_inputs=1,dense=()}}",
    )
    if pick.chance(0.6):
        exact.insert(pick.whole(0, len(exact)), pick.one(changing))
    if pick.chance(0.15):
        exact.append(pick.one(changing))
    return tuple(exact)


# ---------------------------------------------------------------------- images
Made = tuple[dict[str, TensorType], dict[str, Member]]


def _images(pick: Pick, seed: int, depth: int, sharing: str, common: Mapping[int, int]) -> Made:
    shape = (pick.one((1, 1, 1, 2)), pick.one((1, 3, 3, 4)), pick.one(SIZES), pick.one(SIZES))
    bytes_in = pick.chance(0.2)
    trunk = Trunk(seed, IMAGE_BLOCKS, depth, sharing, common)
    alike = pick.chance(0.5)
    same = _adapter(pick, shape, bytes_in)
    members = {}
    for t in common:
        steps, own = same if alike else _adapter(pick, shape, bytes_in)
        members[f"task{t}"] = Member(_image_network(trunk, t, own, pick), "image", tuple(steps))
    kind = DType.UINT8 if bytes_in else DType.FLOAT32
    return {"image": TensorType(kind, shape)}, members


Adapter = tuple[list[dict[str, Any]], tuple[Shape, str]]


def _adapter(pick: Pick, shape: Shape, bytes_in: bool) -> Adapter:
    """Steps, and the shape and layout that they leave."""
    n, c, h, w = shape
    steps: list[dict[str, Any]] = [{"cast": "float32"}, {"scale": 1 / 64, "offset": -2.0}] if bytes_in else []
    if pick.chance(0.25):
        h, w = pick.one(SIZES), pick.one(SIZES)
        steps.append({"resize": [h, w], "mode": pick.one(("linear", "nearest"))})
    if c == 3 and pick.chance(0.2):
        steps.append({"bgr": True})
    if c == 3 and pick.chance(0.2):
        c, step = 1, {"gray": pick.one((True, [0.2, 0.3, 0.5]))}
        steps.append(step)
    if pick.chance(0.3):
        scale = pick.one((2.0, [0.5 + 0.25 * i for i in range(c)]))
        steps.append({"scale": scale, "offset": pick.one((0.0, -0.5))})
    layout = "NHWC" if pick.chance(0.2) else "NCHW"
    if layout == "NHWC":
        steps.append({"layout": "NHWC"})
    return steps, ((n, c, h, w), layout)


def _image_network(trunk: Trunk, task: int, own: tuple[Shape, str], pick: Pick) -> onnx.ModelProto:
    (n, c, h, w), layout = own
    net = Grown(f"task{task}", (n, h, w, c) if layout == "NHWC" else (n, c, h, w))
    x = trunk.grow(net, task, net.transpose("x", 0, 3, 1, 2) if layout == "NHWC" else "x")
    heads = [_image_head(net, pick, x) for _ in range(pick.one((1, 1, 1, 2)))]
    return net.model(*heads)


def _image_head(net: Grown, pick: Pick, x: str) -> str:
    kind = pick.one(("pool", "pool", "flat", "map", "mean"))
    classes = pick.one((1, 2, 5, 10))
    if kind == "map":
        return activation(net, pick, net.conv(x, classes, 1))
    if kind == "mean":
        return str(net.add("ReduceMean", x, axes=[2, 3], keepdims=pick.whole(0, 1)))
    wide = int(np.prod(net.shapes[x][1:])) > WIDEST
    if kind == "pool" or (kind == "flat" and wide):
        x = str(net.add(pick.one(("GlobalAveragePool", "GlobalMaxPool")), x))
    return _decided(net, pick, _gemm(net, str(net.add("Flatten", x)), classes))


def _decided(net: Grown, pick: Pick, y: str) -> str:
    """Scores as they are, as probabilities, or decided between."""
    if pick.chance(0.1):
        return decision(net, pick, y)
    return str(net.add("Softmax", y, axis=-1)) if pick.chance(0.3) else y


def _gemm(net: Grown, x: str, out: int) -> str:
    return str(net.add("Gemm", x, net.weight(out, net.shapes[x][1]), net.weight(out, gain=0.1), transB=1))


# ---------------------------------------------------------------------- sequences and vectors
def _sequences(pick: Pick, seed: int, depth: int, sharing: str, common: Mapping[int, int]) -> Made:
    shape = (pick.one((1, 2, 5, 9, 16)), pick.one((1, 1, 2)), pick.one(WIDTHS))
    return _plain(Trunk(seed, SEQUENCE_BLOCKS, depth, sharing, common), shape, pick, _sequence_head)


def _vectors(pick: Pick, seed: int, depth: int, sharing: str, common: Mapping[int, int]) -> Made:
    shape = (pick.one((1, 1, 3)), pick.one((*CHANNELS, 64)))
    return _plain(Trunk(seed, VECTOR_BLOCKS, depth, sharing, common), shape, pick, _vector_head)


def _plain(trunk: Trunk, shape: Shape, pick: Pick, head: Callable[[Grown, Pick, str], str]) -> Made:
    members = {}
    for t in trunk.common:
        steps = [{"scale": 0.5}] if pick.chance(0.2) else []
        net = Grown(f"task{t}", shape)
        members[f"task{t}"] = Member(net.model(head(net, pick, trunk.grow(net, t, "x"))), "signal", tuple(steps))
    return {"signal": TensorType(DType.FLOAT32, shape)}, members


def _sequence_head(net: Grown, pick: Pick, x: str) -> str:
    y = net.dense(x, pick.one((1, 3, 8)))
    if pick.chance(0.1):
        return decision(net, pick, y)
    kind = pick.one(("all", "last", "mean"))
    if kind == "last":
        return str(net.add("Gather", y, net.whole(-1), axis=0))
    return str(net.add("ReduceMean", y, axes=[0], keepdims=0)) if kind == "mean" else y


def _vector_head(net: Grown, pick: Pick, x: str) -> str:
    return _decided(net, pick, _gemm(net, x, pick.one((1, 2, 7))))
