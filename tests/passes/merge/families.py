"""Small networks of one family, trained apart as far as anybody can tell: equal structure, weights of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from compiler.ir.union import union
from tests.graphs import Builder


def conv(b: Builder, x: ValueRef, channels: int, kernel: int = 3, **attrs: object) -> ValueRef:
    """A convolution that keeps the map's size (at stride 1), with Relu."""
    pads = (kernel // 2,) * 4
    return b.apply("Relu", b.conv(x, channels, kernel, pads=pads, **attrs))  # type: ignore[no-any-return]


def head(b: Builder, x: ValueRef, outputs: int) -> ValueRef:
    """Global mean, Flatten, Gemm."""
    flat = b.apply("Flatten", b.apply("GlobalAveragePool", x))
    weight = b.weight(outputs, b.graph.value(flat).shape[1])
    return b.apply("Gemm", flat, weight, b.weight(outputs, scale=0.1), transB=1)  # type: ignore[no-any-return]


def plain(task: str, seed: int, widths: Sequence[int] = (8, 12), outputs: int = 3) -> Graph:
    """Convolutions one after the other, the last ones at half resolution."""
    b = Builder(task, seed)
    x = b.input("x", 1, 3, 8, 8)
    for i, width in enumerate(widths):
        x = conv(b, x, width, strides=(2, 2) if i == 1 else (1, 1))
    b.task(task, head(b, x, outputs))
    return b.done()


def residual(task: str, seed: int, width: int = 8, outputs: int = 3, blocks: int = 2) -> Graph:
    """A stem and residual blocks on one stream, then a strided block."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    for _ in range(blocks):
        inner = conv(b, x, width)
        x = b.apply("Relu", b.apply("Add", x, b.conv(inner, width, 3, pads=(1, 1, 1, 1))))
    b.task(task, head(b, conv(b, x, 2 * width, strides=(2, 2)), outputs))
    return b.done()


def depthwise(task: str, seed: int, width: int = 8, outputs: int = 3) -> Graph:
    """A stem and two depthwise-separable layers."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    for _ in range(2):
        x = conv(b, conv(b, x, b.graph.value(x).shape[1], group=b.graph.value(x).shape[1]), 2 * width, 1)
    b.task(task, head(b, x, outputs))
    return b.done()


def inverted(task: str, seed: int, width: int = 8, outputs: int = 3, blocks: int = 2) -> Graph:
    """Inverted residual blocks on one stream, linear where they meet it, then a strided one, as in MobileNetV2."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    for block in range(blocks + 1):
        last = block == blocks
        inner = conv(b, conv(b, x, 2 * width, 1), 2 * width, group=2 * width, strides=(2, 2) if last else (1, 1))
        made = b.conv(inner, width + 4 * last, 1)
        x = made if last else b.apply("Add", x, made)
    b.task(task, head(b, x, outputs))
    return b.done()


def concat(task: str, seed: int, width: int = 6, outputs: int = 3) -> Graph:
    """Two branches of different kernels joined by Concat, behind it an activation and a layer."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    parts = b.conv(x, width, 1), b.conv(x, width + 2, 3, pads=(1, 1, 1, 1))
    joined = b.apply("Relu", b.apply("Concat", *parts, axis=1))
    b.task(task, head(b, conv(b, joined, 2 * width), outputs))
    return b.done()


def divided(task: str, seed: int, width: int = 8, outputs: int = 3) -> Graph:
    """A layer whose channels go two ways: a few of them past a layer on all others."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    few, most = b.apply("Split", x, b.const([2, width - 2]), axis=1, results=2)
    joined = b.apply("Concat", conv(b, few, 4), conv(b, most, width), axis=1)
    b.task(task, head(b, conv(b, joined, 2 * width), outputs))
    return b.done()


def flat(task: str, seed: int, width: int = 6, outputs: int = 3) -> Graph:
    """Convolution, pooling, Flatten of a whole map, two linear layers."""
    b = Builder(task, seed)
    x = b.apply("MaxPool", conv(b, b.input("x", 1, 3, 8, 8), width), kernel_shape=(2, 2), strides=(2, 2))
    x = b.apply("Flatten", x)
    x = b.apply("Relu", b.apply("Gemm", x, b.weight(10, 16 * width), b.weight(10, scale=0.1), transB=1))
    b.task(task, b.apply("Gemm", x, b.weight(outputs, 10), b.weight(outputs, scale=0.1), transB=1))
    return b.done()


def mlp(task: str, seed: int, widths: Sequence[int] = (16, 12), outputs: int = 3) -> Graph:
    """MatMul and Add, as some exporters write linear layers."""
    b = Builder(task, seed)
    x = b.input("x", 4, 10)
    for width in widths:
        n = b.graph.value(x).shape[1]
        product = b.apply("MatMul", x, b.weight(n, width, scale=n**-0.5))
        x = b.apply("Relu", b.apply("Add", product, b.weight(width, scale=0.3)))
    n = b.graph.value(x).shape[1]
    b.task(task, b.apply("Add", b.apply("MatMul", x, b.weight(n, outputs, scale=n**-0.5)), b.weight(outputs)))
    return b.done()


def normalised(task: str, seed: int, width: int = 8, outputs: int = 3) -> Graph:
    """Batch normalisation that no layer can absorb (behind an activation), and a slope per channel."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    parts = (b.const(b.rng.uniform(0.5, 1.5, width).astype(np.float32)) for _ in range(4))
    x = b.apply("BatchNormalization", x, *parts)
    x = b.conv(x, width, 3, pads=(1, 1, 1, 1))
    x = b.apply("PRelu", x, b.const(b.rng.uniform(0.1, 0.4, (width, 1, 1)).astype(np.float32)))
    b.task(task, head(b, x, outputs))
    return b.done()


def recurrent(
    task: str,
    seed: int,
    direction: str = "forward",
    hidden: Sequence[int] = (6,),
    outputs: int = 3,
    cell: str = "LSTM",
    states: bool = True,
    steps: int = 5,
    last: bool = False,
    **attrs: object,
) -> Graph:
    """A tagger: recurrent layers over 2 sequences, and scores of every step or of the `last` state."""
    b = Builder(task, seed)
    samples, ways, gates = 2, 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    x = b.input("x", steps, samples, 4)
    for width in hidden:
        inputs = b.graph.value(x).shape[2]
        operands = [x, b.weight(ways, gates * width, inputs, scale=inputs**-0.5)]
        operands += [b.weight(ways, gates * width, width, scale=width**-0.5), b.weight(ways, 2 * gates * width)]
        results = 3 if cell == "LSTM" else 2
        if states:
            operands += [None, *(b.weight(ways, samples, width, scale=1) for _ in range(results - 1))]
        y, h, *_ = b.apply(cell, *operands, results=results, hidden_size=width, direction=direction, **attrs)
        x = b.apply("Reshape", b.apply("Transpose", y, perm=(0, 2, 1, 3)), b.const([0, 0, -1]))
    if last:
        x = b.apply("Reshape", b.apply("Transpose", h, perm=(1, 0, 2)), b.const([0, -1]))
    n = b.graph.value(x).shape[-1]
    b.task(task, b.apply("Add", b.apply("MatMul", x, b.weight(n, outputs, scale=n**-0.5)), b.weight(outputs)))
    return b.done()


def stacked(task: str, seed: int) -> Graph:
    """Two recurrent layers in both directions."""
    return recurrent(task, seed, "bidirectional", (5, 4))


def decoder(task: str, seed: int, width: int = 6, outputs: int = 2) -> Graph:
    """Down and up again with a skip, as in a U-Net; the last transposed convolution overlaps, cut unevenly."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    down = conv(b, x, width + 2, strides=(2, 2))
    up = b.apply("Relu", b.apply("ConvTranspose", down, *up_weights(b, width + 2, width, 2), strides=(2, 2)))
    x = conv(b, b.apply("Concat", x, up, axis=1), width + 4)
    uneven = {"strides": (2, 1), "pads": (1, 0, 0, 2), "output_padding": (1, 0)}
    b.task(task, b.apply("ConvTranspose", x, *up_weights(b, width + 4, outputs, 3), **uneven))
    return b.done()


def up_weights(b: Builder, channels: int, wanted: int, kernel: int) -> tuple[ValueRef, ValueRef]:
    """Weight and bias of a transposed convolution."""
    return b.weight(channels, wanted, kernel, kernel, scale=channels**-0.5), b.weight(wanted, scale=0.1)


FAMILIES = {
    "plain": plain,
    "residual": residual,
    "depthwise": depthwise,
    "concat": concat,
    "flat": flat,
    "mlp": mlp,
    "normalised": normalised,
    "decoder": decoder,
}


def renamed(graph: Graph, seed: int) -> Graph:
    """The same network under other names, hence with its nodes in another order; tasks keep their names."""
    rng = np.random.default_rng(seed)
    values, nodes = graph.values(), graph.nodes()
    names = dict(zip((v.ref for v in values), (f"v{n}" for n in rng.permutation(len(values))), strict=True))
    numbers = rng.permutation(len(nodes))
    twin = Graph(graph.name)
    for value in graph.inputs:
        twin.add_input(names[value.ref], value.type)
    for value in values:
        if ValueRef(names[value.ref]) not in twin:
            twin.add_value(names[value.ref], value.type, value.data)
    for node, number in zip(nodes, numbers, strict=True):
        site = graph.site(node)
        operands = [site.operands.optional(i) for i in range(len(site.operands))]
        reads = [None if v is None else ValueRef(names[v.ref]) for v in operands]
        twin.add_node(f"n{number}", node.op, node.attrs, reads, [ValueRef(names[v.ref]) for v in site.results])
    for task in graph.tasks.values():
        twin.set_task(task.name, [ValueRef(names[r]) for r in task.outputs], task.labels)
    return twin.freeze()


def joined(*graphs: Graph) -> Graph:
    """All networks over one input."""
    return union({next(iter(g.tasks)): g for g in graphs}, input="x")
