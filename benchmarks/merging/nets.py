"""Untrained networks of the families, with seeded weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from benchmarks.networks import Net

BRANCH = 0.2
"""Size of the last weights of a residual branch, of what keeps the size of activations: networks without
normalisation train when every block starts near the identity (Zhang et al. 2019, arXiv 1901.09321).
"""


def lenet(task: str, classes: int, seed: int, widths: tuple[int, int, int]) -> onnx.ModelProto:
    """Two 5x5 convolutions, each with a 2x2 pooling, and two matrix products on 28x28 images."""
    net = Net(task, (1, 1, 28, 28), seed=seed)
    return net.model(_products(net, _pooled(net, widths[:2], 5, pad=0), widths[2], classes))


def small_vgg(
    task: str, classes: int, seed: int, shape: tuple[int, int, int], widths: tuple[int, ...]
) -> onnx.ModelProto:
    """3x3 convolutions with 2x2 poolings on channels of maps, `shape`, and two matrix products."""
    net = Net(task, (1, *shape), seed=seed)
    return net.model(_products(net, _pooled(net, widths), widths[-1], classes))


def wide_vgg(
    task: str, classes: int, seed: int, shape: tuple[int, int, int], widths: tuple[int, ...]
) -> onnx.ModelProto:
    """3x3 convolutions with 2x2 poolings on channels of maps, `shape`, a global average and one matrix product."""
    net = Net(task, (1, *shape), seed=seed)
    return net.model(net.head(_pooled(net, widths), classes))


def _pooled(net: Net, widths: Sequence[int], k: int = 3, pad: int | None = None) -> str:
    """A k x k convolution with a 2x2 pooling for every width."""
    x = "x"
    for width in widths:
        x = net.pool(net.relu(net.conv(x, width, k, pad=pad)))
    return x


def _products(net: Net, x: str, units: int, classes: int) -> str:
    """Two matrix products."""
    return net.gemm(net.relu(net.gemm(net.flat(x), units)), classes)


def resnet(
    task: str, classes: int, seed: int, shape: tuple[int, int, int], blocks: int, first: int = 1
) -> onnx.ModelProto:
    """Residual stages of 16, 32 and 64 channels with `blocks` blocks of two 3x3 convolutions each, behind one of
    stride `first`; ResNet-20 has 3 blocks. Normalisations are left out, as if they were folded.
    """
    net = Net(task, (1, *shape), seed=seed)
    x = net.relu(net.conv("x", 16, stride=first))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(net.relu(net.conv(x, width, stride=stride)), width, gain=BRANCH)
            short = x if stride == 1 else net.conv(x, width, 1, stride)
            x = net.relu(net.same("Add", y, short))
    return net.model(net.head(x, classes))


class Words(Net):
    """A network that reads numbers of words."""

    def kind(self, name: str) -> int:
        """Whole numbers go in, scores come out."""
        return onnx.TensorProto.INT64 if name == "x" else super().kind(name)

    def small(self, *shape: int, terms: int) -> str:
        """A weight of results that add up `terms` products."""
        return self.const(self.rng.uniform(-1, 1, shape).astype(np.float32) / terms**0.5)

    def embedded(self, count: int, width: int, numbers: str) -> str:
        """Rows of a table of `count` by `width`."""
        table = self.const(self.rng.normal(0, 1, (count, width)).astype(np.float32))
        return str(self.apply("Gather", [table, numbers], (*self.shapes[numbers], width)))

    def bidirectional(self, x: str, units: int) -> str:
        """An LSTM in both directions, [steps, 1, width] to [steps, 1, 2 units]."""
        steps, _, width = self.shapes[x]
        weights = [self.small(2, 4 * units, n, terms=units) for n in (width, units)]
        bias = self.const(np.zeros((2, 8 * units), np.float32))
        (y,) = self.apply(
            "LSTM", [x, *weights, bias], [(steps, 2, 1, units)], hidden_size=units, direction="bidirectional"
        )
        y = self.apply("Transpose", [y], (steps, 1, 2, units), perm=[0, 2, 1, 3])
        return str(self.apply("Reshape", [y, self.const(np.array([0, 0, -1]))], (steps, 1, 2 * units)))


def tagger(
    task: str, classes: int, seed: int, length: int, tables: Sequence[tuple[int, int]], units: int
) -> onnx.ModelProto:
    """Scores [length, 1, classes] for the words of a window, which comes as numbers [1, tables, length]: a table,
    (rows, columns), for each kind of number, an LSTM in both directions, a matrix product.
    """
    net = Words(task, (1, len(tables), length), seed=seed)
    read = [net.apply("Gather", ["x", net.const(np.array(k))], (1, length), axis=1) for k in range(len(tables))]
    found = [net.embedded(*size, numbers) for size, numbers in zip(tables, read, strict=True)]
    width = sum(columns for _, columns in tables)
    x = net.apply("Concat", found, (1, length, width), axis=2)
    x = net.bidirectional(net.apply("Transpose", [x], (length, 1, width), perm=[1, 0, 2]), units)
    y = net.apply("MatMul", [x, net.small(2 * units, classes, terms=2 * units)], (length, 1, classes))
    return net.model(net.apply("Add", [y, net.const(np.zeros(classes, np.float32))], (length, 1, classes)))
