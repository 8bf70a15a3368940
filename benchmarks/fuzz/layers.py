"""Building blocks of generated networks: each takes a tensor and gives another, of whatever shape comes out.

`pick` decides the structure, `net.rng` the weights, so that two networks can have equal structure with equal or
with other weights. A block that does not fit a tensor leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.fuzz.grown import Block, Grown, Pick
from benchmarks.fuzz.operators import ANY_BLOCKS, GRID_BLOCKS

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 31, 32, 33, 40)
WIDTHS = (1, 2, 3, 5, 8, 9, 16, 17, 24, 33)


# ---------------------------------------------------------------------- pieces of any rank
def activation(net: Grown, pick: Pick, x: str) -> str:
    """One of the usual functions, some of them written out in several nodes."""
    kind = pick.one(("Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "SiLU", "PRelu", "Elu",
                     "Softplus", "HardSigmoid", "Gelu", "Abs"))  # fmt: skip
    if kind == "SiLU":
        return net.same("Mul", x, net.same("Sigmoid", x))
    if kind == "Clip":
        return str(net.add("Clip", x, net.number(pick.one((0.0, -1.0))), net.number(pick.one((1.0, 6.0)))))
    if kind == "PRelu":
        slope = (net.shapes[x][1], *[1] * (len(net.shapes[x]) - 2)) if len(net.shapes[x]) > 1 else (1,)
        return str(net.add("PRelu", x, net.weight(*slope, gain=0.3)))
    if kind == "Gelu":
        half = net.same("Mul", x, net.number(0.5))
        return net.same(
            "Mul", half, net.same("Add", net.same("Erf", net.same("Mul", x, net.number(0.7071))), net.number(1))
        )
    if kind == "LeakyRelu":
        return str(net.add("LeakyRelu", x, alpha=pick.one((0.01, 0.2))))
    return net.same(kind, x)


def arithmetic(net: Grown, pick: Pick, x: str) -> str:
    """A constant of some broadcast shape added, subtracted, multiplied or divided by."""
    shape = tuple(n if pick.chance(0.5) else 1 for n in net.shapes[x][pick.whole(0, len(net.shapes[x]) - 1) :])
    values = net.rng.uniform(0.5, 1.5, shape).astype(np.float32)
    operands = [x, net.const(values)]
    op = pick.one(("Add", "Sub", "Mul", "Div", "Max", "Min"))
    return str(net.add(op, *(reversed(operands) if pick.chance(0.2) and op != "Div" else operands)))


def nothing(net: Grown, pick: Pick, x: str) -> str:
    """A node that leaves every value as it is."""
    if pick.chance(0.5):
        return str(net.add("Identity", x))
    return str(net.add("Dropout", x))


# ---------------------------------------------------------------------- images [N, C, H, W]
def convolution(net: Grown, pick: Pick, x: str, out: int | None = None, stride: int | None = None) -> str:
    """Any convolution: taps, strides, dilation, groups, uneven padding."""
    _, c, h, w = net.shapes[x]
    out = out or pick.one(CHANNELS)
    group = pick.one([g for g in (1, 1, 1, 2, 3, 4, c) if c % g == 0 and out % g == 0])
    taps = [min(pick.one((1, 1, 3, 3, 5, 2)), s + 2) for s in (h, w)]
    taps = taps if pick.chance(0.3) else [taps[0]] * 2
    dilations = [2 if pick.chance(0.1) and (t - 1) * 2 + 1 <= s else 1 for t, s in zip(taps, (h, w), strict=True)]
    same = stride is not None or pick.chance(0.8)
    spans = [(t - 1) * d for t, d in zip(taps, dilations, strict=True)]
    pads = [s // 2 for s in spans] + [s - s // 2 for s in spans] if same else [pick.whole(0, 1) for _ in range(4)]
    if any(size + pads[i] + pads[i + 2] <= spans[i] for i, size in enumerate((h, w))):
        pads = [s // 2 for s in spans] + [s - s // 2 for s in spans]
    inputs = [x, net.weight(out, c // group, *taps)] + ([net.weight(out, gain=0.1)] if pick.chance(0.6) else [])
    strides = [stride or pick.one((1, 1, 1, 2, 3))] * 2
    y = net.add("Conv", *inputs, kernel_shape=taps, pads=pads, strides=strides, group=group, dilations=dilations)
    return str(y)


def unit(net: Grown, pick: Pick, x: str) -> str:
    """Convolution, often a norm, often an activation."""
    y = convolution(net, pick, x)
    y = net.norm(y) if pick.chance(0.5) else y
    return activation(net, pick, y) if pick.chance(0.8) else y


def residual(net: Grown, pick: Pick, x: str) -> str:
    """x + f(x), with or without a projection."""
    c = net.shapes[x][1]
    y = activation(net, pick, net.norm(convolution(net, pick, x, stride=1)))
    y = convolution(net, pick, y, out=c, stride=1)
    y = net.norm(y) if pick.chance(0.5) else y
    short = x if pick.chance(0.7) else net.conv(x, c, 1)
    total = net.same("Add", *([y, short] if pick.chance(0.5) else [short, y]))
    return activation(net, pick, total) if pick.chance(0.7) else total


def inverted(net: Grown, pick: Pick, x: str) -> str:
    """Expansion, depthwise convolution, linear projection."""
    wide = net.shapes[x][1] * pick.one((1, 2, 3))
    y = activation(net, pick, net.conv(x, wide, 1))
    y = net.conv(y, wide, pick.one((3, 5)), pick.one((1, 1, 2)), group=wide)
    return net.conv(activation(net, pick, net.norm(y)), pick.one(CHANNELS), 1)


def branches(net: Grown, pick: Pick, x: str) -> str:
    """Concatenation of two to four branches, the input itself among them at times."""
    parts = [activation(net, pick, convolution(net, pick, x, stride=1)) for _ in range(pick.whole(1, 3))]
    return net.concat(*parts, x if pick.chance(0.5) else convolution(net, pick, x, stride=1))


def gate(net: Grown, pick: Pick, x: str) -> str:
    """Squeeze and excitation."""
    c = net.shapes[x][1]
    s = activation(net, pick, net.conv(str(net.add("GlobalAveragePool", x)), max(1, c // 2), 1))
    return net.same("Mul", x, net.same("Sigmoid", net.conv(s, c, 1)))


def pooling(net: Grown, pick: Pick, x: str) -> str:
    """Maximum or mean over windows."""
    _, _, h, w = net.shapes[x]
    k = pick.one([k for k in (1, 2, 3) if k <= min(h, w)])
    pad, options = pick.whole(0, k // 2), {}
    kind = pick.one(("MaxPool", "AveragePool"))
    if kind == "AveragePool":
        options["count_include_pad"] = pick.whole(0, 1)
    ceil, stride = pick.chance(0.2), pick.one((1, 2))
    if ceil and all(-(-(size + 2 * pad - k) // stride) * stride < size + pad for size in (h, w)):
        options["ceil_mode"] = 1  # ONNX's inference counts windows that begin behind the input, which nobody makes
    return str(net.add(kind, x, kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4, **options))


def upward(net: Grown, pick: Pick, x: str) -> str:
    """A larger image by transposed convolution or by resizing; left alone where it is large already."""
    _, c, h, w = net.shapes[x]
    if h * w * c > 4000:
        return x
    if pick.chance(0.5):
        k, stride, out = pick.one((1, 2, 3, 4)), pick.one((1, 2)), pick.one(CHANNELS)
        pad = pick.whole(0, (k - 1) // 2)
        weight = net.weight(c, out, k, k, gain=0.5)
        return str(net.add("ConvTranspose", x, weight, kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4))
    mode = pick.one(("nearest", "linear"))
    where = pick.one(("half_pixel", "asymmetric", "align_corners"))
    options = {"nearest_mode": "floor"} if mode == "nearest" else {}
    scales = net.number(1, 1, pick.one((1.0, 2.0)), pick.one((2.0, 3.0)))
    return str(net.add("Resize", x, "", scales, mode=mode, coordinate_transformation_mode=where, **options))


def shuffle(net: Grown, pick: Pick, x: str) -> str:
    """Channel shuffle by reshape and transpose."""
    n, c, h, w = net.shapes[x]
    groups = pick.one([g for g in (1, 2, 3, 4) if c % g == 0])
    return net.reshape(net.transpose(net.reshape(x, (n, groups, c // groups, h, w)), 0, 2, 1, 3, 4), (n, c, h, w))


def halves(net: Grown, pick: Pick, x: str) -> str:
    """Split, work on one part, and put both together again."""
    c = net.shapes[x][1]
    if c < 2:
        return x
    first = pick.whole(1, c - 1)
    left, right = net.add("Split", x, net.whole(first, c - first), results=2, axis=1)
    right = convolution(net, pick, right, stride=1)
    if net.shapes[left][2:] != net.shapes[right][2:]:
        return str(right)
    return net.concat(*([left, right] if pick.chance(0.5) else [right, left]))


def cut(net: Grown, pick: Pick, x: str) -> str:
    """A slice of channels or rows, steps and reversals included."""
    axis = pick.one((1, 2, 3))
    size = net.shapes[x][axis]
    if pick.chance(0.3):
        return str(net.add("Slice", x, net.whole(-1), net.whole(-(2**31)), net.whole(axis), net.whole(-1)))
    start = pick.whole(0, size - 1)
    step = net.whole(pick.one((1, 1, 2)))
    return str(net.add("Slice", x, net.whole(start), net.whole(size), net.whole(axis), step))


def border(net: Grown, pick: Pick, x: str) -> str:
    """Padding by a constant, by reflection or by the edge."""
    h, w = net.shapes[x][2:]
    mode = pick.one(("constant", "edge", "reflect"))
    most = min(2, h - 1, w - 1) if mode == "reflect" else 2
    sides = [pick.whole(0, most) for _ in range(4)]
    value = [net.number(pick.one((0.0, 0.5)))] if mode == "constant" else []
    return str(net.add("Pad", x, net.whole(0, 0, *sides[:2], 0, 0, *sides[2:]), *value, mode=mode))


def spatial_norm(net: Grown, pick: Pick, x: str) -> str:
    """Normalisation over each channel's image, or batch normalisation on its own."""
    _, c, h, w = net.shapes[x]
    if pick.chance(0.5) or h * w < 4:
        return net.norm(x)
    scale = net.const(net.rng.uniform(0.5, 1.5, c).astype(np.float32))
    return str(net.add("InstanceNormalization", x, scale, net.weight(c, gain=0.1)))


IMAGE_BLOCKS: Mapping[str, Block] = {
    "unit": unit,
    "unit again": unit,
    "unit once more": unit,
    "residual": residual,
    "inverted": inverted,
    "branches": branches,
    "gate": gate,
    "pooling": pooling,
    "upward": upward,
    "shuffle": shuffle,
    "halves": halves,
    "cut": cut,
    "border": border,
    "norm": spatial_norm,
    "arithmetic": arithmetic,
    "activation": activation,
    "nothing": nothing,
    **ANY_BLOCKS,
    **GRID_BLOCKS,
}


# ---------------------------------------------------------------------- sequences [steps, batch, features]
def recurrent(net: Grown, pick: Pick, x: str) -> str:
    """An LSTM, GRU or RNN layer, one or both directions."""
    steps, batch, width = net.shapes[x]
    kind, gates = pick.one((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    hidden, direction = pick.one(WIDTHS), pick.one(("forward", "reverse", "bidirectional"))
    both = 2 if direction == "bidirectional" else 1
    scale = (width + hidden) ** -0.5
    sizes = [(both, gates * hidden, width), (both, gates * hidden, hidden), (both, 2 * gates * hidden)]
    weights = [net.const(net.rng.normal(0, scale, s).astype(np.float32)) for s in sizes]
    options = {"linear_before_reset": pick.whole(0, 1)} if kind == "GRU" else {}
    y = net.add(kind, x, *weights[: pick.whole(2, 3)], hidden_size=hidden, direction=direction, **options)
    if both == 1 and pick.chance(0.5):
        return str(net.add("Squeeze", y, net.whole(1)))
    return net.reshape(net.transpose(str(y), 0, 2, 1, 3), (steps, batch, both * hidden))


def projection(net: Grown, pick: Pick, x: str) -> str:
    """A dense layer over the last axis."""
    y = net.dense(x, pick.one(WIDTHS))
    return activation(net, pick, y) if pick.chance(0.6) else y


def layer_norm(net: Grown, pick: Pick, x: str) -> str:
    """LayerNormalization over the last axis; left alone where that has one or two entries."""
    width = net.shapes[x][-1]
    if width < 3:
        return x
    scale = net.const(net.rng.uniform(0.5, 1.5, width).astype(np.float32))
    return str(net.add("LayerNormalization", x, scale, net.weight(width, gain=0.1), axis=-1))


def attention(net: Grown, pick: Pick, x: str) -> str:
    """Self-attention over the first axis with one or more heads, and a residual."""
    steps, batch, width = net.shapes[x]
    heads, size = pick.one((1, 2, 3)), pick.one((2, 4, 5, 8))

    def part(*perm: int) -> str:
        return net.transpose(net.reshape(net.dense(x, heads * size), (steps, batch, heads, size)), *perm)

    scores = str(net.add("MatMul", part(1, 2, 0, 3), part(1, 2, 3, 0)))
    weights = str(net.add("Softmax", net.same("Mul", scores, net.number(size**-0.5)), axis=-1))
    mixed = net.transpose(str(net.add("MatMul", weights, part(1, 2, 0, 3))), 2, 0, 1, 3)
    return net.same("Add", x, net.dense(net.reshape(mixed, (steps, batch, heads * size)), width))


def gathered(net: Grown, pick: Pick, x: str) -> str:
    """Some of the steps, picked by constant indices."""
    steps = net.shapes[x][0]
    kept = [pick.whole(0, steps - 1) for _ in range(pick.whole(1, steps))]
    return str(net.add("Gather", x, net.whole(*kept), axis=0))


SEQUENCE_BLOCKS: Mapping[str, Block] = {
    "recurrent": recurrent,
    "recurrent again": recurrent,
    "projection": projection,
    "layer norm": layer_norm,
    "attention": attention,
    "gathered": gathered,
    "arithmetic": arithmetic,
    "nothing": nothing,
    **ANY_BLOCKS,
}


# ---------------------------------------------------------------------- vectors [N, features]
def fully(net: Grown, pick: Pick, x: str) -> str:
    """A fully connected layer as Gemm in one of its forms, or as MatMul."""
    width, out = net.shapes[x][1], pick.one((*WIDTHS, 64))
    if pick.chance(0.3):
        return projection(net, pick, x)
    turned = pick.whole(0, 1)
    weight = net.const(net.rng.normal(0, width**-0.5, (out, width) if turned else (width, out)).astype(np.float32))
    bias = [net.weight(*((out,) if pick.chance(0.7) else (1, out)), gain=0.1)] if pick.chance(0.8) else []
    scale = {"alpha": 0.5} if pick.chance(0.15) else {}
    y = str(net.add("Gemm", x, weight, *bias, transB=turned, **scale))
    return activation(net, pick, y) if pick.chance(0.8) else y


def vector_norm(net: Grown, pick: Pick, x: str) -> str:
    """Batch normalisation of features."""
    return net.norm(x)


VECTOR_BLOCKS: Mapping[str, Block] = {
    "fully": fully,
    "fully again": fully,
    "norm": vector_norm,
    "layer norm": layer_norm,
    "arithmetic": arithmetic,
    "nothing": nothing,
    **ANY_BLOCKS,
}
