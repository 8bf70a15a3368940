"""Networks with seeded random weights, one per way in which channels can depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]


class Net:
    """Writes an ONNX model node by node; remembers the shape of every tensor it makes."""

    def __init__(self, name: str, shape: Shape, seed: int = 0) -> None:
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, Shape] = {"x": shape}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        """An initializer."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Normal values that keep the size of activations."""
        scale = gain * (2.0 / max(1, int(np.prod(shape[1:])))) ** 0.5
        return self.const(self.rng.normal(0, scale, shape).astype(np.float32))

    def apply(self, op: str, inputs: Sequence[str], shape: Shape | Sequence[Shape], **attrs: Any) -> Any:
        """A node; `shape` is that of its output, or a list for several outputs."""
        shapes = shape if isinstance(shape, list) else [shape]
        names = [f"t{len(self.shapes) + i}" for i in range(len(shapes))]
        self.shapes |= dict(zip(names, shapes, strict=True))
        label = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), names, name=label, **attrs))
        return names if isinstance(shape, list) else names[0]

    # ------------------------------------------------------------------ layers
    def conv(
        self,
        x: str,
        out: int,
        k: int = 3,
        stride: int = 1,
        group: int = 1,
        bias: bool = True,
        pad: int | None = None,
        gain: float = 1.0,
    ) -> str:
        """A convolution with padding `pad`, by default k // 2; `gain` is that of `weight`."""
        n, c, h, w = self.shapes[x]
        inputs = [x, self.weight(out, c // group, k, k, gain=gain)] + ([self.weight(out, gain=0.1)] if bias else [])
        p = k // 2 if pad is None else pad
        shape = (n, out, (h + 2 * p - k) // stride + 1, (w + 2 * p - k) // stride + 1)
        pads = [p] * 4
        return str(
            self.apply("Conv", inputs, shape, kernel_shape=[k, k], strides=[stride] * 2, pads=pads, group=group)
        )

    def norm(self, x: str, gain: float = 1.0) -> str:
        """BatchNormalization with random statistics; its scales are `gain` on average."""
        c = self.shapes[x][1]
        scale, var = (self.const((g * self.rng.uniform(0.5, 1.5, c)).astype(np.float32)) for g in (gain, 1))
        shift, mean = (self.const(self.rng.normal(0, 0.2, c).astype(np.float32)) for _ in range(2))
        return str(self.apply("BatchNormalization", [x, scale, shift, mean, var], self.shapes[x]))

    def same(self, op: str, *inputs: str) -> str:
        """An element-wise node."""
        return str(self.apply(op, inputs, self.shapes[inputs[0]]))

    def relu(self, x: str) -> str:
        """max(x, 0)."""
        return self.same("Relu", x)

    def concat(self, *inputs: str) -> str:
        """Concatenation of channels."""
        n, _, h, w = self.shapes[inputs[0]]
        return str(self.apply("Concat", inputs, (n, sum(self.shapes[i][1] for i in inputs), h, w), axis=1))

    def pool(self, x: str, k: int = 2, pad: int = 0) -> str:
        """k x k maximum with stride 2."""
        n, c, h, w = self.shapes[x]
        shape = (n, c, (h + 2 * pad - k) // 2 + 1, (w + 2 * pad - k) // 2 + 1)
        return str(self.apply("MaxPool", [x], shape, kernel_shape=[k, k], strides=[2, 2], pads=[pad] * 4))

    def clipped(self, x: str) -> str:
        """min(max(x, 0), 6)."""
        low, high = (self.const(np.array(v, np.float32)) for v in (0, 6))
        return str(self.apply("Clip", [x, low, high], self.shapes[x]))

    def reshape(self, x: str, shape: Shape) -> str:
        """A reshape to a constant shape."""
        return str(self.apply("Reshape", [x, self.const(np.array(shape, np.int64))], shape))

    def transpose(self, x: str, *perm: int) -> str:
        """A permutation of axes."""
        old = self.shapes[x]
        return str(self.apply("Transpose", [x], tuple(old[p] for p in perm), perm=list(perm)))

    def flat(self, x: str) -> str:
        """Flatten everything but the batch."""
        return str(self.apply("Flatten", [x], (1, int(np.prod(self.shapes[x][1:]))), axis=1))

    def gemm(self, x: str, out: int) -> str:
        """A fully connected layer."""
        inputs = [x, self.weight(out, self.shapes[x][1]), self.weight(out, gain=0.1)]
        return str(self.apply("Gemm", inputs, (1, out), transB=1))

    def dense(self, x: str, out: int) -> str:
        """MatMul and Add over the last axis."""
        *lead, width = self.shapes[x]
        w = self.const(self.rng.normal(0, width**-0.5, (width, out)).astype(np.float32))
        y = self.apply("MatMul", [x, w], (*lead, out))
        return self.same("Add", y, self.weight(out, gain=0.1))

    def layer_norm(self, x: str) -> str:
        """LayerNormalization of the last axis."""
        width = self.shapes[x][-1]
        scale = self.const(self.rng.uniform(0.5, 1.5, width).astype(np.float32))
        return str(self.apply("LayerNormalization", [x, scale, self.weight(width, gain=0.1)], self.shapes[x]))

    def attention(self, x: str, heads: int) -> str:
        """Self-attention of [1, tokens, width], as exporters write it."""
        _, tokens, width = self.shapes[x]

        def split_heads(*perm: int) -> str:
            rows = self.reshape(self.dense(x, width), (1, tokens, heads, width // heads))
            return self.transpose(rows, *perm)

        q, k, v = split_heads(0, 2, 1, 3), split_heads(0, 2, 3, 1), split_heads(0, 2, 1, 3)
        scores = self.apply("MatMul", [q, k], (1, heads, tokens, tokens))
        scaled = self.same("Mul", scores, self.const(np.array((width // heads) ** -0.5, np.float32)))
        weights = self.apply("Softmax", [scaled], self.shapes[scaled], axis=-1)
        mixed = self.apply("MatMul", [weights, v], self.shapes[q])
        return self.dense(self.reshape(self.transpose(mixed, 0, 2, 1, 3), (1, tokens, width)), width)

    def gelu(self, x: str) -> str:
        """x / 2 (1 + erf(x / sqrt 2)), node by node."""
        half, one, root = (self.const(np.array(v, np.float32)) for v in (0.5, 1.0, 2**0.5))
        erf = self.same("Add", self.same("Erf", self.same("Div", x, root)), one)
        return self.same("Mul", self.same("Mul", x, erf), half)

    def encoder_layer(self, x: str, heads: int) -> str:
        """A pre-norm layer: attention, then two dense layers of four times the width in between."""
        width = self.shapes[x][-1]
        x = self.same("Add", x, self.attention(self.layer_norm(x), heads))
        return self.same("Add", x, self.dense(self.gelu(self.dense(self.layer_norm(x), 4 * width)), width))

    def head(self, x: str, classes: int = 10) -> str:
        """Global average and a classifier."""
        n, c, _, _ = self.shapes[x]
        return self.gemm(self.flat(str(self.apply("GlobalAveragePool", [x], (n, c, 1, 1)))), classes)

    def kind(self, name: str) -> int:
        """The type of a tensor, as ONNX counts them: every one that is not a constant is float32."""
        return TensorProto.FLOAT

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The finished model."""
        info = [helper.make_tensor_value_info(n, self.kind(n), self.shapes[n]) for n in ("x", *outputs)]
        body = helper.make_graph(self._nodes, self.name, info[:1], info[1:], self._weights)
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(body, opset_imports=opset, ir_version=8, producer_name="taskgraft-benchmarks")
        onnx.checker.check_model(model, full_check=True)
        return model


# ---------------------------------------------------------------------- the networks
IMAGE = (1, 3, 32, 32)


def resnet(batch_norm: bool) -> onnx.ModelProto:
    """Residual stages with projections; BatchNormalization present, or folded into biases."""
    net = Net("resnet-bn" if batch_norm else "resnet-folded", IMAGE)

    def unit(x: str, out: int, k: int = 3, stride: int = 1) -> str:
        y = net.conv(x, out, k, stride, bias=not batch_norm)
        return net.norm(y) if batch_norm else y

    x = net.relu(unit("x", 32))
    for out, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        y = unit(net.relu(unit(x, out, stride=stride)), out)
        short = x if net.shapes[x] == net.shapes[y] else unit(x, out, 1, stride)
        x = net.relu(net.same("Add", y, short))
    return net.model(net.head(x))


def mobilenet_v2() -> onnx.ModelProto:
    """Inverted residuals: expansion, depthwise, linear projection."""
    net = Net("mobilenet-v2", IMAGE)
    x = net.clipped(net.conv("x", 32, stride=2))
    for out, stride in ((24, 1), (24, 1), (48, 2), (48, 1), (96, 2), (96, 1)):
        wide = net.shapes[x][1] * 4
        y = net.clipped(net.conv(x, wide, 1))
        y = net.conv(net.clipped(net.conv(y, wide, 3, stride, group=wide)), out, 1)
        x = net.same("Add", x, y) if net.shapes[x] == net.shapes[y] else y
    return net.model(net.head(net.clipped(net.conv(x, 192, 1))))


def densenet() -> onnx.ModelProto:
    """Dense blocks: pre-activation over growing concatenations, with transitions."""
    net = Net("densenet", IMAGE)
    x = net.conv("x", 32, bias=False)
    for block in range(3):
        for _ in range(4):
            y = net.conv(net.relu(net.norm(x)), 64, 1, bias=False)
            x = net.concat(x, net.conv(net.relu(net.norm(y)), 16, bias=False))
        if block < 2:
            x = net.pool(net.conv(net.relu(net.norm(x)), net.shapes[x][1] // 2, 1, bias=False))
    return net.model(net.head(net.relu(net.norm(x))))


def unet() -> onnx.ModelProto:
    """Encoder and decoder with ConvTranspose and skip concatenations."""
    net = Net("u-net", IMAGE)

    def double(x: str, out: int) -> str:
        return net.relu(net.conv(net.relu(net.conv(x, out)), out))

    x, skips = "x", []
    for out in (24, 48):
        x = double(x, out)
        skips.append(x)
        x = net.pool(x)
    x = double(x, 96)
    for skip in reversed(skips):
        n, out, h, w = net.shapes[skip]
        inputs = [x, net.weight(net.shapes[x][1], out, 2, 2), net.weight(out, gain=0.1)]
        up = net.apply("ConvTranspose", inputs, (n, out, h, w), kernel_shape=[2, 2], strides=[2, 2])
        x = double(net.concat(up, skip), out)
    return net.model(net.conv(x, 4, 1))


def vgg() -> onnx.ModelProto:
    """Plain convolutions, then Flatten into fully connected layers."""
    net = Net("vgg-flatten", IMAGE)
    x = "x"
    for out in (32, 64, 128):
        x = net.pool(net.relu(net.conv(net.relu(net.conv(x, out)), out)))
    x = net.relu(net.gemm(net.flat(x), 128))
    return net.model(net.gemm(x, 10))


def c2f() -> onnx.ModelProto:
    """Split, a chain of residual bottlenecks, and the concatenation of all intermediate results."""
    net = Net("c2f", IMAGE)

    def unit(x: str, out: int, k: int, stride: int = 1) -> str:
        y = net.conv(x, out, k, stride)
        return net.same("Mul", y, net.same("Sigmoid", y))

    x = unit("x", 32, 3, 2)
    for width, depth in ((32, 1), (64, 2)):
        x = unit(x, 2 * width, 3, 2)
        n, c, h, w = net.shapes[x]
        sizes = net.const(np.array([width, width], np.int64))
        parts = net.apply("Split", [unit(x, c, 1), sizes], [(n, width, h, w)] * 2, axis=1)
        for _ in range(depth):
            y = unit(unit(parts[-1], width, 3), width, 3)
            parts.append(net.same("Add", parts[-1], y))
        x = unit(net.concat(*parts), 2 * width, 1)
    return net.model(net.head(x))


def shufflenet() -> onnx.ModelProto:
    """Channel split, one branch untouched, concatenation, channel shuffle by transposition."""
    net = Net("shufflenet", IMAGE)

    def branch(x: str, out: int, stride: int) -> str:
        y = net.relu(net.conv(x, out, 1))
        return net.relu(net.conv(net.conv(y, out, 3, stride, group=out), out, 1))

    def shuffle(x: str) -> str:
        n, c, h, w = net.shapes[x]
        y = net.transpose(net.reshape(x, (n, 2, c // 2, h, w)), 0, 2, 1, 3, 4)
        return net.reshape(y, (n, c, h, w))

    x = net.relu(net.conv("x", 32, stride=2))
    for width, units in ((64, 3), (128, 3)):
        y = net.conv(x, net.shapes[x][1], 3, 2, group=net.shapes[x][1])
        left = net.relu(net.conv(y, width // 2, 1))
        x = shuffle(net.concat(left, branch(x, width // 2, 2)))
        for _ in range(units):
            n, c, h, w = net.shapes[x]
            sizes = net.const(np.array([c // 2, c // 2], np.int64))
            keep, work = net.apply("Split", [x, sizes], [(n, c // 2, h, w)] * 2, axis=1)
            x = shuffle(net.concat(keep, branch(work, c // 2, 1)))
    return net.model(net.head(net.relu(net.conv(x, 256, 1))))


def lstm() -> onnx.ModelProto:
    """Two recurrent layers, the first one in both directions, and a classifier per step."""
    net = Net("lstm", (20, 1, 24))
    steps = net.shapes["x"][0]

    def layer(x: str, hidden: int, directions: int) -> str:
        width = net.shapes[x][2]
        w = net.weight(directions, 4 * hidden, width, gain=0.5 * (4 * hidden) ** 0.5)
        r = net.weight(directions, 4 * hidden, hidden, gain=0.5 * (4 * hidden) ** 0.5)
        b = net.weight(directions, 8 * hidden, gain=(2 * hidden) ** 0.5)
        direction = "bidirectional" if directions == 2 else "forward"
        shape = (steps, directions, 1, hidden)
        y = net.apply("LSTM", [x, w, r, b], shape, hidden_size=hidden, direction=direction)
        return net.reshape(net.transpose(y, 0, 2, 1, 3), (steps, 1, directions * hidden))

    x = layer(layer("x", 64, 2), 48, 1)
    return net.model(net.dense(x, 8))


def transformer() -> onnx.ModelProto:
    """Two pre-norm encoder layers with four heads."""
    net = Net("transformer", (1, 16, 24))
    x = net.dense("x", 64)
    for _ in range(2):
        x = net.encoder_layer(x, heads=4)
    return net.model(net.dense(net.layer_norm(x), 8))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet-folded": lambda: resnet(False),
    "resnet-bn": lambda: resnet(True),
    "mobilenet-v2": mobilenet_v2,
    "densenet": densenet,
    "u-net": unet,
    "vgg-flatten": vgg,
    "c2f": c2f,
    "shufflenet": shufflenet,
    "lstm": lstm,
    "transformer": transformer,
}
