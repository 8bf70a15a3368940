"""Small transformer encoders as exporters write them: attention with several heads, feed-forward, norms, a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.graphs import Builder


@dataclass(frozen=True)
class Form:
    """How an encoder is written: norms in front of the layers or behind the sums, one operator or its parts; Q, K
    and V by one product or by three; the head as Gemm or as MatMul and Add.
    """

    first: bool = True
    parts: bool = False
    fused: bool = False
    gemm: bool = False


class Encoder:
    """One network: `blocks` blocks over `steps` tokens of `width` channels, its outputs from their mean.

    `shuffle`: seed of an order of the channels of the stream, of every feed-forward layer's and of every head's
    values, which does not change the function.
    """

    def __init__(self, seed: int, form: Form, width: int, heads: int, steps: int, shuffle: int | None) -> None:
        self.b, self.form = Builder("encoder", seed), form
        self.width, self.heads, self.hidden, self.steps = width, heads, 2 * width, steps
        self._orders = None if shuffle is None else np.random.default_rng(shuffle)
        self.stream = self.order(width)

    def order(self, count: int) -> np.ndarray:
        """The order of some channels."""
        return np.arange(count) if self._orders is None else self._orders.permutation(count)

    def norm(self, x: ValueRef) -> ValueRef:
        """Layer normalisation over channels."""
        b = self.b
        scale = b.const(b.rng.uniform(0.7, 1.3, self.width).astype(np.float32)[self.stream])
        bias = b.const(b.rng.normal(0, 0.1, self.width).astype(np.float32)[self.stream])
        if not self.form.parts:
            return b.apply("LayerNormalization", x, scale, bias, axis=-1)  # type: ignore[no-any-return]
        centred = b.apply("Sub", x, b.apply("ReduceMean", x, b.const(np.array([-1]))))
        power = b.apply("Pow", centred, b.const(np.float32(2)))
        variance = b.apply("ReduceMean", power, b.const(np.array([-1])))
        spread = b.apply("Sqrt", b.apply("Add", variance, b.const(np.float32(1e-5))))
        return b.apply("Add", b.apply("Mul", b.apply("Div", centred, spread), scale), bias)  # type: ignore[no-any-return]

    def linear(self, x: ValueRef, read: np.ndarray, made: np.ndarray) -> ValueRef:
        """MatMul and Add, inputs and outputs in the given orders."""
        b = self.b
        weight = b.rng.normal(0, len(read) ** -0.5, (len(read), len(made))).astype(np.float32)
        bias = b.rng.normal(0, 0.1, len(made)).astype(np.float32)
        product = b.apply("MatMul", x, b.const(weight[read][:, made], "w"))
        return b.apply("Add", product, b.const(bias[made]))  # type: ignore[no-any-return]

    def split(self, x: ValueRef) -> ValueRef:
        """[1, steps, width] as [1, heads, steps, width / heads]."""
        shape = self.b.const(np.array([1, self.steps, self.heads, self.width // self.heads]))
        return self.b.apply("Transpose", self.b.apply("Reshape", x, shape), perm=(0, 2, 1, 3))  # type: ignore[no-any-return]

    def attention(self, x: ValueRef) -> ValueRef:
        """Softmax(Q K^T / sqrt(d)) V and the output projection."""
        b, size = self.b, self.width // self.heads
        same = np.arange(self.width)
        values = np.concatenate([head * size + self.order(size) for head in range(self.heads)])
        if self.form.fused:
            joined = np.concatenate([same, self.width + same, 2 * self.width + values])
            parts = b.apply("Split", self.linear(x, self.stream, joined), results=3, axis=2, num_outputs=3)
        else:
            parts = tuple(self.linear(x, self.stream, made) for made in (same, same, values))
        q, k, v = (self.split(p) for p in parts)
        scores = b.apply("MatMul", q, b.apply("Transpose", k, perm=(0, 1, 3, 2)))
        weights = b.apply("Softmax", b.apply("Mul", scores, b.const(np.float32(size**-0.5))), axis=-1)
        context = b.apply("Transpose", b.apply("MatMul", weights, v), perm=(0, 2, 1, 3))
        context = b.apply("Reshape", context, b.const(np.array([1, self.steps, self.width])))
        return self.linear(context, values, self.stream)

    def feed_forward(self, x: ValueRef) -> ValueRef:
        """Two layers with GELU in between."""
        b, hidden = self.b, self.order(self.hidden)
        inner = self.linear(x, self.stream, hidden)
        error = b.apply("Erf", b.apply("Div", inner, b.const(np.float32(2**0.5))))
        gate = b.apply("Mul", inner, b.apply("Add", error, b.const(np.float32(1))))
        return self.linear(b.apply("Mul", gate, b.const(np.float32(0.5))), hidden, self.stream)

    def block(self, x: ValueRef) -> ValueRef:
        """Attention and feed-forward, each with its residual sum and its norm."""
        for layer in (self.attention, self.feed_forward):
            if self.form.first:
                x = self.b.apply("Add", x, layer(self.norm(x)))
            else:
                x = self.norm(self.b.apply("Add", x, layer(x)))
        return x

    def head(self, x: ValueRef, outputs: int) -> ValueRef:
        """The outputs from [1, width]."""
        if not self.form.gemm:
            return self.linear(x, self.stream, np.arange(outputs))
        weight = self.b.rng.normal(0, self.width**-0.5, (outputs, self.width)).astype(np.float32)
        operands = self.b.const(weight[:, self.stream], "w"), self.b.weight(outputs, scale=0.1)
        return self.b.apply("Gemm", x, *operands, transB=1)  # type: ignore[no-any-return]

    def embedded(self) -> ValueRef:
        """The stream in front of the first block: a float input [1, steps, 6] and positions."""
        x = self.linear(self.b.input("x", 1, self.steps, 6), np.arange(6), self.stream)
        places = self.b.rng.normal(0, 0.3, (self.steps, self.width)).astype(np.float32)
        return self.b.apply("Add", x, self.b.const(places[:, self.stream]))  # type: ignore[no-any-return]


def encoder(
    task: str,
    seed: int,
    form: Form | None = None,
    *,
    blocks: int = 2,
    width: int = 16,
    heads: int = 2,
    steps: int = 8,
    outputs: int = 3,
    shuffle: int | None = None,
    again: int | None = None,
) -> Graph:
    """An encoder of a float input. `again`: seed of everything behind the first block, which is another one's."""
    net = Encoder(seed, form or Form(), width, heads, steps, shuffle)
    x = net.embedded()
    for number in range(blocks):
        if number and again is not None:
            net.b.rng = np.random.default_rng([again, number])
        x = net.block(x)
    x = net.norm(x) if net.form.first else x
    mean = net.b.apply("ReduceMean", x, net.b.const(np.array([1])), keepdims=0)
    net.b.task(task, net.head(mean, outputs))
    return net.b.done()


def tuned(graph: Graph, task: str, seed: int, amount: float = 0.02, head: bool = True) -> Graph:
    """A network that was trained on from `graph`: every weight moved by a share of its spread, the last layer, if
    `head`, drawn anew.
    """
    rng = np.random.default_rng(seed)
    twin = graph.copy()
    last = [
        v.ref
        for n in graph.nodes()[-2:]
        if n.op.name != "ReduceMean"
        for _, v in graph.operands(n).present()
        if v.data is not None
    ]
    for value in graph.parameters():
        if value.dtype.is_float and value.rank:
            spread = float(value.constant.std()) or 1.0
            share = 1.0 if head and value.ref in last else amount
            moved = value.constant + share * spread * rng.standard_normal(value.shape)
            twin.update(value.ref, data=moved.astype(np.float32))
    (name,) = graph.tasks
    twin.set_task(task, graph.tasks[name].outputs, graph.tasks[name].labels)
    if name != task:
        twin.drop_task(name)
    return twin.freeze()
