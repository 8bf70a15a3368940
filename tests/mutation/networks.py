"""Graphs in which a particular tie rule matters: sizes that fit even when the meaning is wrong."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.graphs import Builder


def conv_chain() -> Graph:
    b = Builder(seed=1)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Tanh", b.conv(h, 8, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(h, 4, 1))
    return b.done()


def batch_norm() -> Graph:
    b = Builder(seed=2)
    parts = [b.const(b.rng.uniform(0.5, 1.5, 8).astype(np.float32)) for _ in range(4)]
    h = b.apply("BatchNormalization", b.conv(b.input("x", 1, 3, 6, 6), 8, 3), *parts)
    b.task("t", b.conv(b.apply("Relu", h), 4, 1))
    return b.done()


def residual() -> Graph:
    b = Builder(seed=3)
    x = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, 1))
    y = b.apply("Add", x, b.conv(b.apply("Relu", b.conv(x, 8, 1)), 8, 1))
    b.task("t", b.conv(b.apply("Mul", y, b.weight(8, 1, 1, scale=1.0)), 4, 1))
    return b.done()


def flatten() -> Graph:
    b = Builder(seed=4)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, 3))
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(128, 5), b.weight(5)))
    return b.done()


def concat() -> Graph:
    b = Builder(seed=5)
    x = b.input("x", 1, 3, 6, 6)
    both = b.apply("Concat", b.conv(x, 6, 1), b.apply("Relu", b.conv(x, 6, 1)), axis=1)
    b.task("t", b.conv(both, 4, 1))
    return b.done()


def split() -> Graph:
    b = Builder(seed=6)
    h = b.conv(b.input("x", 1, 3, 6, 6), 12, 1)
    parts = b.apply("Split", h, b.const(np.array([6, 6])), results=2, axis=1)
    b.task("t", b.conv(b.apply("Sigmoid", parts[0]), 4, 1), b.conv(parts[1], 4, 1))
    return b.done()


def sliced() -> Graph:
    b = Builder(seed=7)
    h = b.conv(b.input("x", 1, 3, 6, 6), 12, 1)
    bounds = [b.const(np.array([n])) for n in (3, 9, 1)]
    part = b.apply("Slice", h, *bounds)
    b.task("t", b.conv(part, 4, 1), b.conv(h, 4, 1))
    return b.done()


def grouped() -> Graph:
    b = Builder(seed=8)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 12, 1))
    h = b.apply("Relu", b.conv(h, 12, 3, group=3, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(h, 4, 1))
    return b.done()


def depthwise() -> Graph:
    b = Builder(seed=9)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 6, 1))
    h = b.apply("Relu", b.conv(h, 12, 3, group=6, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(h, 4, 1))
    return b.done()


def transposed_conv() -> Graph:
    b = Builder(seed=10)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, 1))
    h = b.apply("ConvTranspose", h, b.weight(8, 8, 2, 2), b.weight(8), strides=(2, 2))
    b.task("t", b.conv(b.apply("Relu", h), 4, 1))
    return b.done()


def shuffle() -> Graph:
    b = Builder(seed=11)
    h = b.conv(b.input("x", 1, 3, 6, 6), 16, 1)
    y = b.apply("Reshape", h, b.const(np.array([1, 4, 4, 6, 6])))
    y = b.apply("Reshape", b.apply("Transpose", y, perm=(0, 2, 1, 3, 4)), b.const(np.array([1, 16, 6, 6])))
    b.task("t", b.conv(b.apply("Relu", y), 4, 1))
    return b.done()


def to_space() -> Graph:
    b = Builder(seed=12)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 16, 1))
    b.task("t", b.conv(b.apply("DepthToSpace", h, blocksize=2, mode="DCR"), 4, 1))
    return b.done()


def attention() -> Graph:
    b = Builder(seed=13)
    x = b.input("x", 1, 4, 12)

    def heads(*perm: int) -> ValueRef:
        flat = b.apply("Add", b.apply("MatMul", x, b.weight(12, 16, scale=0.5)), b.weight(16))
        return b.apply("Transpose", b.apply("Reshape", flat, b.const(np.array([1, 4, 4, 4]))), perm=perm)

    scores = b.apply("MatMul", heads(0, 2, 1, 3), heads(0, 2, 3, 1))
    mixed = b.apply("MatMul", b.apply("Softmax", scores, axis=-1), heads(0, 2, 1, 3))
    flat = b.apply("Reshape", b.apply("Transpose", mixed, perm=(0, 2, 1, 3)), b.const(np.array([1, 4, 16])))
    b.task("t", b.apply("MatMul", flat, b.weight(16, 3)))
    return b.done()


def recurrent(op: str, gates: int) -> Graph:
    b = Builder(seed=14)
    x, hidden = b.input("x", 5, 1, 7), 8
    weights = [b.weight(2, gates * hidden, n, scale=0.4) for n in (7, hidden)]
    operands = [x, *weights, b.weight(2, 2 * gates * hidden, scale=0.4)]
    y = b.apply(op, *operands, hidden_size=hidden, direction="bidirectional")
    flat = b.apply("Reshape", b.apply("Transpose", y, perm=(0, 2, 1, 3)), b.const(np.array([5, 2 * hidden])))
    b.task("t", b.apply("Gemm", flat, b.weight(2 * hidden, 4), b.weight(4)))
    return b.done()
