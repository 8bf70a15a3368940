"""The networks of the speed studies: usual architectures with seeded random weights, batch 1.

Speed depends on shapes, not on values, as long as no denormals occur: weights follow He's rule, and what a residual
stream adds is scaled down, so that activations stay near one. BatchNormalization is in the file where the usual
network has it; folding it is the business of whoever runs the file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from benchmarks.networks import Net

SIDE = 224
CLASSES = 1000
RESIDUAL = 0.25
"""Scale of what a block adds to its residual stream."""


class Normed(Net):
    """Adds convolutions without bias that are followed by a BatchNormalization."""

    def unit(self, x: str, out: int, k: int = 3, stride: int = 1, group: int = 1, gain: float = 1.0) -> str:
        """Conv, BatchNormalization."""
        return self.norm(self.conv(x, out, k, stride, group, bias=False), gain)


def resnet18() -> onnx.ModelProto:
    """Four stages of two basic blocks, 11.7 M parameters."""
    net = Normed("resnet18", (1, 3, SIDE, SIDE))
    x = net.pool(net.relu(net.unit("x", 64, 7, 2)), 3, pad=1)
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.unit(net.relu(net.unit(x, out, 3, stride)), out, gain=RESIDUAL)
            x = net.relu(net.same("Add", y, _shortcut(net, x, out, stride)))
    return net.model(net.head(x, CLASSES))


def resnet50() -> onnx.ModelProto:
    """Bottlenecks 3, 4, 6, 3 with the stride in the 3x3, 25.6 M parameters."""
    net = Normed("resnet50", (1, 3, SIDE, SIDE))
    x = net.pool(net.relu(net.unit("x", 64, 7, 2)), 3, pad=1)
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            y = net.relu(net.unit(net.relu(net.unit(x, width, 1)), width, 3, stride))
            y = net.unit(y, 4 * width, 1, gain=RESIDUAL)
            x = net.relu(net.same("Add", y, _shortcut(net, x, 4 * width, stride)))
    return net.model(net.head(x, CLASSES))


def _shortcut(net: Normed, x: str, out: int, stride: int) -> str:
    """x itself, or its projection where width or size change."""
    return x if stride == 1 and net.shapes[x][1] == out else net.unit(x, out, 1, stride)


VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) of each stage; a pool ends it."""


def vgg16_224() -> onnx.ModelProto:
    """Plain convolutions with biases and three fully connected layers, 138 M parameters."""
    net = Net("vgg16-224", (1, 3, SIDE, SIDE))
    x = "x"
    for out, depth in VGG16:
        for _ in range(depth):
            x = net.relu(net.conv(x, out))
        x = net.pool(x)
    x = net.relu(net.gemm(net.relu(net.gemm(net.flat(x), 4096)), 4096))
    return net.model(net.gemm(x, CLASSES))


def vgg16_32() -> onnx.ModelProto:
    """The form for 32x32 images: BatchNormalization after each convolution, one fully connected layer."""
    net = Normed("vgg16-32", (1, 3, 32, 32))
    x = "x"
    for out, depth in VGG16:
        for _ in range(depth):
            x = net.relu(net.unit(x, out))
        x = net.pool(x)
    return net.model(net.gemm(net.flat(x), 10))


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, blocks, stride of the first)."""


def mobilenetv2() -> onnx.ModelProto:
    """Inverted residuals, width 1.0, 3.5 M parameters."""
    net = Normed("mobilenetv2", (1, 3, SIDE, SIDE))
    x = net.clipped(net.unit("x", 32, 3, 2))
    for expansion, out, depth, first in MOBILENET_V2:
        for block in range(depth):
            wide, stride = net.shapes[x][1] * expansion, 1 if block else first
            y = x if expansion == 1 else net.clipped(net.unit(x, wide, 1))
            y = net.unit(net.clipped(net.unit(y, wide, 3, stride, group=wide)), out, 1)
            x = net.same("Add", x, y) if net.shapes[x] == net.shapes[y] else y
    return net.model(net.head(net.clipped(net.unit(x, 1280, 1)), CLASSES))


def lenet() -> onnx.ModelProto:
    """Two 5x5 convolutions with pools, three fully connected layers, on 28x28 grey images."""
    net = Net("lenet", (1, 1, 28, 28))
    x = net.pool(net.relu(net.conv("x", 6, 5)))
    x = net.pool(net.relu(net.conv(x, 16, 5, pad=0)))
    x = net.relu(net.gemm(net.relu(net.gemm(net.flat(x), 120)), 84))
    return net.model(net.gemm(x, 10))


def mlp() -> onnx.ModelProto:
    """784-512-10."""
    net = Net("mlp", (1, 784))
    return net.model(net.gemm(net.relu(net.gemm("x", 512)), 10))


TAGGER_STEPS, TAGGER_WIDTH, TAGGER_HIDDEN, TAGGER_TAGS = 32, 128, 256, 32


def lstm_tagger() -> onnx.ModelProto:
    """Word vectors in (no embedding), one LSTM layer in both directions, a score per tag and step."""
    net = Net("lstm-tagger", (TAGGER_STEPS, 1, TAGGER_WIDTH))
    hidden, directions = TAGGER_HIDDEN, 2
    bound = hidden**-0.5

    def uniform(*shape: int) -> str:
        return net.const(net.rng.uniform(-bound, bound, (directions, *shape)).astype(np.float32))

    weights = [uniform(4 * hidden, TAGGER_WIDTH), uniform(4 * hidden, hidden), uniform(8 * hidden)]
    shape = (TAGGER_STEPS, directions, 1, hidden)
    y = net.apply("LSTM", ["x", *weights], shape, hidden_size=hidden, direction="bidirectional")
    y = net.reshape(net.transpose(y, 0, 2, 1, 3), (TAGGER_STEPS, 1, directions * hidden))
    return net.model(net.dense(y, TAGGER_TAGS))


def attention() -> onnx.ModelProto:
    """One self-attention layer over the 197 tokens of a usual vision transformer, with three heads of 64."""
    net = Net("attention", (1, 197, 192))
    return net.model(net.attention("x", heads=3))


def encoder() -> onnx.ModelProto:
    """Two layers of a transformer over 128 tokens, with four heads of 64."""
    net = Net("encoder", (1, 128, 256))
    x = "x"
    for _ in range(2):
        x = net.encoder_layer(x, heads=4)
    return net.model(net.layer_norm(x))


SPEED_NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16-224": vgg16_224,
    "vgg16-32": vgg16_32,
    "mobilenetv2": mobilenetv2,
    "lenet": lenet,
    "mlp": mlp,
    "lstm-tagger": lstm_tagger,
    "attention": attention,
    "encoder": encoder,
}
"""Case -> network."""

DIRECT_SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    f"conv{k}x{k}{f'/{s}' if s > 1 else ''}-{ci}-{co}@{side}": (k, s, ci, co, side)
    for k, s, ci, co, side in (
        (7, 2, 3, 64, 224),
        (3, 1, 64, 64, 224),
        (3, 1, 64, 64, 56),
        (3, 1, 128, 128, 28),
        (3, 1, 256, 256, 14),
        (3, 1, 512, 512, 7),
        (3, 1, 64, 64, 32),
        (3, 1, 512, 512, 4),
        (3, 1, 512, 512, 2),
        (3, 2, 64, 128, 56),
        (1, 2, 64, 128, 56),
        (1, 1, 256, 64, 56),
        (1, 1, 128, 512, 28),
        (1, 1, 1024, 256, 14),
        (1, 1, 512, 2048, 7),
    )
}
"""Layer case -> kernel, stride, input channels, output channels, input side."""


def conv_layer(name: str, k: int, stride: int, ci: int, co: int, side: int) -> onnx.ModelProto:
    """One convolution with bias and Relu."""
    net = Net(name, (1, ci, side, side))
    return net.model(net.relu(net.conv("x", co, k, stride)))
