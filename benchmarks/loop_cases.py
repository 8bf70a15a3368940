"""One layer per kernel template, in shapes that usual networks have, for the study of innermost loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from benchmarks.networks import Net
from benchmarks.ours import PASSES, through
from benchmarks.speed_networks import SPEED_NETWORKS
from compiler import load
from compiler.ir.graph import Graph


@dataclass(frozen=True)
class LoopCase:
    """A network of one layer, and the template whose loop is looked at.

    `algorithm` runs the layer, at the tile that the rule takes. `sparsify`: options of that pass, empty for dense
    weights. `transforms`: look at the loops before and behind the one with most multiply-adds as well.
    """

    model: Callable[[], onnx.ModelProto]
    algorithm: str
    sparsify: str = ""
    transforms: bool = False

    def graph(self) -> Graph:
        """The network after the usual passes. Raises what the import and the passes raise."""
        passes = (*PASSES, f"sparsify{{{self.sparsify},dense=()}}") if self.sparsify else PASSES
        return through(load(self.model(), task="network"), passes)


def convolution(ci: int, co: int, side: int, k: int = 3, stride: int = 1, group: int = 1) -> onnx.ModelProto:
    """A convolution and Relu."""
    net = Net("convolution", (1, ci, side, side))
    return net.model(net.relu(net.conv("x", co, k, stride, group)))


def transposed(inputs: int, outputs: int, side: int) -> onnx.ModelProto:
    """A 2x2 transposed convolution of stride 2."""
    net = Net("transposed", (1, inputs, side, side))
    operands = ["x", net.weight(inputs, outputs, 2, 2), net.weight(outputs, gain=0.1)]
    shape = (1, outputs, 2 * side, 2 * side)
    return net.model(net.apply("ConvTranspose", operands, shape, kernel_shape=[2, 2], strides=[2, 2]))


def product(rows: int, inner: int, columns: int) -> onnx.ModelProto:
    """Rows times a constant matrix."""
    net = Net("product", (rows, inner))
    weight = net.const(net.rng.normal(0, inner**-0.5, (inner, columns)).astype(np.float32))
    return net.model(net.apply("MatMul", ["x", weight], (rows, columns)))


def gru(steps: int, width: int, hidden: int) -> onnx.ModelProto:
    """A GRU layer over one sequence."""
    net = Net("gru", (steps, 1, width))
    weights = [net.weight(1, 3 * hidden, width), net.weight(1, 3 * hidden, hidden), net.weight(1, 6 * hidden)]
    return net.model(net.apply("GRU", ["x", *weights], (steps, 1, 1, hidden), hidden_size=hidden))


def attention(heads: int, tokens: int, width: int, *, mixing: bool) -> onnx.ModelProto:
    """Products of two computed operands, head by head: of all pairs of tokens, or of weights for tokens by them."""
    net = Net("attention", (heads, tokens, tokens if mixing else width))
    other = net.apply("Relu", ["x"], net.shapes["x"]) if mixing else net.transpose("x", 0, 2, 1)
    return net.model(net.apply("MatMul", ["x", other], (heads, tokens, tokens)))


def pooling(channels: int, side: int, average: bool = False) -> onnx.ModelProto:
    """A 3x3 maximum of stride 2, or an average of everything, behind a convolution, so that it reads blocks."""
    net = Net("pooling", (1, channels, side, side))
    x = net.conv("x", channels, 1)
    if average:
        return net.model(net.apply("GlobalAveragePool", [x], (1, channels, 1, 1)))
    return net.model(net.pool(x, 3, pad=1))


_IMAGE = (128, 128, 28)
_SPARSE = "sparsity=0.9"
CASES: dict[str, LoopCase] = {
    "conv-3x3": LoopCase(partial(convolution, *_IMAGE), "conv"),
    "conv-3x3/2": LoopCase(partial(convolution, 64, 128, 56, 3, 2), "conv"),
    "conv-3x3-first": LoopCase(partial(convolution, 3, 32, 224, 3, 2), "conv"),
    "conv-3x3-planar": LoopCase(partial(convolution, 3, 3, 128), "planar"),
    "conv-3x3-last": LoopCase(partial(convolution, 32, 3, 128), "lane-sums"),
    "conv-1x1": LoopCase(partial(convolution, 256, 128, 28, 1), "conv"),
    "strassen-1x1": LoopCase(partial(convolution, 256, 256, 28, 1), "strassen"),
    "winograd-2x2": LoopCase(partial(convolution, *_IMAGE), "winograd2x2", transforms=True),
    "winograd-2x2/2": LoopCase(partial(convolution, 64, 128, 56, 3, 2), "winograd2x2"),
    "winograd-4x2": LoopCase(partial(convolution, *_IMAGE), "winograd4x2", transforms=True),
    "winograd-4x4": LoopCase(partial(convolution, *_IMAGE), "winograd4x4", transforms=True),
    "winograd-5x5": LoopCase(partial(convolution, *_IMAGE), "winograd5x5", transforms=True),
    "winograd-6x6": LoopCase(partial(convolution, *_IMAGE), "winograd6x6", transforms=True),
    "depthwise-3x3": LoopCase(partial(convolution, 96, 96, 56, 3, 1, 96), "depthwise"),
    "depthwise-3x3/2": LoopCase(partial(convolution, 96, 96, 112, 3, 2, 96), "depthwise"),
    "depthwise-5x5": LoopCase(partial(convolution, 96, 96, 28, 5, 1, 96), "depthwise"),
    "grouped-3x3": LoopCase(partial(convolution, *_IMAGE, 3, 1, 8), "grouped"),
    "transposed-2x2": LoopCase(partial(transposed, 64, 32, 28), "transposed"),
    "matrix-32-rows": LoopCase(partial(product, 32, 256, 256), "gemm"),
    "matrix-one-row": LoopCase(partial(product, 1, 512, 512), "gemm"),
    "block16x1-3x3": LoopCase(partial(convolution, *_IMAGE), "block-sparse", f"pattern=block16x1,{_SPARSE}"),
    "block8x1-3x3": LoopCase(partial(convolution, *_IMAGE), "block-sparse", f"pattern=block8x1,{_SPARSE}"),
    "block4x1-3x3": LoopCase(partial(convolution, *_IMAGE), "block-sparse", f"pattern=block4x1,{_SPARSE}"),
    "block16x1-32-rows": LoopCase(partial(product, 32, 512, 512), "block-sparse", f"pattern=block16x1,{_SPARSE}"),
    "block8x1-one-row": LoopCase(partial(product, 1, 512, 512), "block-sparse", f"pattern=block8x1,{_SPARSE}"),
    "block4x1-one-row": LoopCase(partial(product, 1, 512, 512), "block-sparse", f"pattern=block4x1,{_SPARSE}"),
    "block16x1-one-row": LoopCase(partial(product, 1, 512, 512), "block-sparse", f"pattern=block16x1,{_SPARSE}"),
    "regular4-3x3": LoopCase(partial(convolution, *_IMAGE), "regular-block", "pattern=regular4"),
    "regular16-3x3": LoopCase(partial(convolution, *_IMAGE), "regular-block", "pattern=regular16"),
    "regular16-one-row": LoopCase(partial(product, 1, 512, 512), "regular-block", "pattern=regular16"),
    "darb-one-row": LoopCase(partial(product, 1, 512, 512), "regular-block", f"pattern=darb,{_SPARSE}"),
    "lstm": LoopCase(SPEED_NETWORKS["lstm-tagger"], "recurrent"),
    "gru": LoopCase(partial(gru, 32, 256, 256), "recurrent"),
    "lstm-block16x1": LoopCase(SPEED_NETWORKS["lstm-tagger"], "recurrent-sparse", f"pattern=block16x1,{_SPARSE}"),
    "attention-scores": LoopCase(partial(attention, 8, 64, 64, mixing=False), "contraction"),
    "attention-mix": LoopCase(partial(attention, 8, 64, 64, mixing=True), "contraction"),
    "pool-max": LoopCase(partial(pooling, 64, 56), "generic"),
    "pool-average": LoopCase(partial(pooling, 64, 14, average=True), "generic"),
}
"""Case -> layer."""
