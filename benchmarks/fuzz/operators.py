"""Blocks around single operators that few networks have: functions, comparisons, reductions, indices, shapes that
the network computes for itself. Like those of `layers`: they take a tensor of any rank and give another.

Operands are brought to where a function is defined and flat enough that it does not amplify rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from benchmarks.fuzz.grown import Block, Grown, Pick

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "anywhere": ("Neg", "Sin", "Cos", "Atan", "Asinh", "Celu", "Selu", "Softsign", "Ceil", "Floor", "Round", "Sign",
                 "Exp", "Sinh", "Cosh", "Tan"),
    "within one": ("Asin", "Acos", "Atanh", "Exp", "Sinh", "Tan"),
    "from one": ("Acosh", "Log", "Sqrt", "Reciprocal"),
}  # fmt: skip
"""Functions of one operand by where they are defined; those that grow fast are under two heads."""

REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip


def _plus(net: Grown, x: str, value: float) -> str:
    return net.same("Add", x, net.number(value))


def _times(net: Grown, x: str, value: float) -> str:
    return net.same("Mul", x, net.number(value))


def _within_one(net: Grown, x: str) -> str:
    return _times(net, net.same("Tanh", x), 0.9)


def _from_one(net: Grown, x: str) -> str:
    return _plus(net, net.same("Abs", x), 1.25)


def _axis(net: Grown, pick: Pick, x: str) -> int:
    """Any axis but the first, from the front or from the end."""
    rank = len(net.shapes[x])
    axis = pick.whole(min(1, rank - 1), rank - 1)
    return axis - rank if pick.chance(0.3) else axis


# ---------------------------------------------------------------------- element by element
def function(net: Grown, pick: Pick, x: str) -> str:
    """One of the functions of a number."""
    where = pick.one(tuple(FUNCTIONS))
    name = pick.one(FUNCTIONS[where])
    if where != "anywhere":
        return net.same(name, (_within_one if where == "within one" else _from_one)(net, x))
    return net.same(name, net.same("Tanh", x) if name in ("Exp", "Sinh", "Cosh", "Tan") else x)


def bent(net: Grown, pick: Pick, x: str) -> str:
    """Functions with parameters: powers, remainders, thresholds."""
    kind = pick.one(("Pow", "Mod", "Shrink", "ThresholdedRelu", "Clip"))
    if kind == "Pow":
        exponent = pick.one((0.5, 2.0, 3.0, -1.0, 1.7))
        return str(net.add("Pow", _from_one(net, x), net.number(exponent)))
    if kind == "Mod":
        return str(net.add("Mod", x, net.number(pick.one((0.75, 2.0))), fmod=1))
    if kind == "Shrink":
        return str(net.add("Shrink", x, lambd=0.4, bias=pick.one((0.0, 0.1))))
    if kind == "ThresholdedRelu":
        return str(net.add("ThresholdedRelu", x, alpha=pick.one((0.25, 1.0))))
    low, high = ("", net.number(0.5)) if pick.chance(0.5) else (net.number(-0.5), "")
    return str(net.add("Clip", x, low, high))


def comparison(net: Grown, pick: Pick, x: str) -> str:
    """A choice between two values by comparisons and logic of them, or a mask that is multiplied by."""
    mask = _mask(net, pick, x)
    if pick.chance(0.5):
        mask = str(net.add(pick.one(("And", "Or", "Xor")), mask, _mask(net, pick, x)))
    if pick.chance(0.3):
        mask = str(net.add("Not", mask))
    if pick.chance(0.3):
        made = net.add("Cast", mask, to=TensorProto.FLOAT) if pick.chance(0.5) else net.add("CastLike", mask, x)
        return net.same("Mul", x, str(made))
    other = _times(net, x, 0.5) if pick.chance(0.6) else net.number(0.25)
    return str(net.add("Where", mask, *([x, other] if pick.chance(0.5) else [other, x])))


def _mask(net: Grown, pick: Pick, x: str) -> str:
    kind = pick.one(("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "IsNaN", "IsInf", "Cast"))
    if kind in ("IsNaN", "IsInf"):
        return str(net.add(kind, x))
    if kind == "Equal":
        return str(net.add("Equal", net.same("Floor", x), net.number(0)))
    if kind == "Cast":
        return str(net.add("Cast", net.same("Relu", x), to=TensorProto.BOOL))
    width = net.shapes[x][-1:] if pick.chance(0.5) else ()
    return str(net.add(kind, x, net.const(net.rng.uniform(-0.5, 0.5, width).astype(np.float32))))


def whole_numbers(net: Grown, pick: Pick, x: str) -> str:
    """A cast to whole numbers, arithmetic there, and back."""
    kind = pick.one((TensorProto.INT32, TensorProto.INT64))
    count = str(net.add("Cast", _times(net, net.same("Tanh", x), 7.9), to=kind))
    step = net.const(np.array(pick.one((2, 3)), np.int32 if kind == TensorProto.INT32 else np.int64))
    count = str(net.add(pick.one(("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")), count, step))
    return _times(net, str(net.add("Cast", count, to=TensorProto.FLOAT)), 0.25)


def several(net: Grown, pick: Pick, x: str) -> str:
    """Sum, mean, maximum or minimum of more than two operands."""
    operands = [x, net.same("Tanh", x), *([_plus(net, x, 0.5)] if pick.chance(0.5) else [])]
    return str(net.add(pick.one(("Sum", "Mean", "Max", "Min")), *operands))


# ---------------------------------------------------------------------- along axes
def reduction(net: Grown, pick: Pick, x: str) -> str:
    """What is left of some axes, added to or subtracted from everything."""
    rank = len(net.shapes[x])
    axes = pick.some(range(min(1, rank - 1), rank))
    kind = pick.one(REDUCTIONS)
    operand = _times(net, _from_one(net, x), 0.6) if kind in ("ReduceLogSum", "ReduceProd") else x
    if kind == "ReduceProd":
        axes = axes[-1:]
        if net.shapes[x][axes[0]] > 8:
            kind = "ReduceSum"
    count = float(np.prod([net.shapes[x][a] for a in axes]))
    if kind == "ReduceSum":
        made = str(net.add(kind, operand, net.whole(*axes), keepdims=1))
    else:
        made = str(net.add(kind, operand, axes=axes, keepdims=1))
    if kind in ("ReduceL1", "ReduceSum", "ReduceSumSquare"):
        made = _times(net, made, 1 / count)
    return str(net.add(pick.one(("Add", "Sub")), x, made))


def running(net: Grown, pick: Pick, x: str) -> str:
    """Sums along an axis so far."""
    axis = _axis(net, pick, x)
    options = {"exclusive": pick.whole(0, 1), "reverse": pick.whole(0, 1)}
    made = str(net.add("CumSum", x, net.const(np.array(axis, np.int64)), **options))
    return _times(net, made, 1 / net.shapes[x][axis])


def scores(net: Grown, pick: Pick, x: str) -> str:
    """Normalisation along an axis: softmax and its relatives, p-norms."""
    kind, axis = pick.one(("Softmax", "LogSoftmax", "LpNormalization")), _axis(net, pick, x)
    if kind == "LpNormalization":
        return str(net.add(kind, _plus(net, x, 0.5), axis=axis, p=pick.whole(1, 2)))
    return str(net.add(kind, x, axis=axis))


def ranked(net: Grown, pick: Pick, x: str) -> str:
    """The largest or smallest entries along an axis, in order."""
    axis = _axis(net, pick, x)
    keep = pick.whole(1, net.shapes[x][axis])
    values, _ = net.add("TopK", x, net.whole(keep), results=2, axis=axis, largest=pick.whole(0, 1))
    return str(values)


def contraction(net: Grown, pick: Pick, x: str) -> str:
    """A product with a matrix over one axis, as Einsum."""
    letters = "abcd"[: len(net.shapes[x])]
    axis = pick.whole(min(1, len(letters) - 1), len(letters) - 1)
    width = net.shapes[x][axis]
    weight = net.const(net.rng.normal(0, width**-0.5, (width, pick.one((1, 3, 8)))).astype(np.float32))
    equation = f"{letters},{letters[axis]}z->{letters.replace(letters[axis], 'z')}"
    return str(net.add("Einsum", x, weight, equation=equation))


# ---------------------------------------------------------------------- by index
def picked(net: Grown, pick: Pick, x: str) -> str:
    """Entries by constant indices: gathered, compressed, a triangle, or reversed up to some length."""
    shape, axis = net.shapes[x], _axis(net, pick, x) % len(net.shapes[x])
    kind = pick.one(("GatherElements", "GatherND", "Compress", "Trilu", "ReverseSequence"))
    if len(shape) < 2:
        kind = "GatherElements"
    if kind == "GatherElements":
        wanted = tuple(pick.whole(1, n) if i == axis else n for i, n in enumerate(shape))
        indices = net.rng.integers(-shape[axis], shape[axis], wanted)
        return str(net.add(kind, x, net.const(indices.astype(np.int64)), axis=axis))
    if kind == "GatherND":
        indices = net.rng.integers(0, shape[1], (shape[0], pick.whole(1, shape[1]), 1))
        return str(net.add(kind, x, net.const(indices.astype(np.int64)), batch_dims=1))
    if kind == "Compress":
        kept = net.rng.random(shape[axis]) < 0.6
        kept[pick.whole(0, shape[axis] - 1)] = True
        made = tuple(int(kept.sum()) if i == axis else n for i, n in enumerate(shape))
        return str(net.apply(kind, [x, net.const(kept)], made, axis=axis))
    if kind == "Trilu":
        return str(net.add(kind, x, net.const(np.array(pick.whole(-1, 1), np.int64)), upper=pick.whole(0, 1)))
    lengths = net.rng.integers(1, shape[0] + 1, shape[1]).astype(np.int64)
    return str(net.add(kind, x, net.const(lengths), time_axis=0, batch_axis=1))


def scattered(net: Grown, pick: Pick, x: str) -> str:
    """Entries replaced, added to or multiplied by at constant indices."""
    shape, axis = net.shapes[x], _axis(net, pick, x) % len(net.shapes[x])
    count = pick.whole(1, shape[axis])
    reduction = pick.one(("none", "add", "mul"))
    if pick.chance(0.5):
        some = tuple(count if i == axis else n for i, n in enumerate(shape))
        order = net.rng.permuted(np.broadcast_to(_along(shape, axis), shape), axis=axis)
        indices = np.take(order, range(count), axis)
        updates = net.rng.normal(0, 1, some).astype(np.float32)
        return str(
            net.add("ScatterElements", x, net.const(indices), net.const(updates), axis=axis, reduction=reduction)
        )
    rows = net.rng.permutation(shape[0])[: pick.whole(1, shape[0])]
    updates = net.rng.normal(0, 1, (len(rows), *shape[1:])).astype(np.float32)
    return str(
        net.add("ScatterND", x, net.const(rows[:, None].astype(np.int64)), net.const(updates), reduction=reduction)
    )


def _along(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """0, 1, 2 ... along an axis, one entry along the others."""
    return np.arange(shape[axis], dtype=np.int64).reshape([-1 if i == axis else 1 for i in range(len(shape))])


# ---------------------------------------------------------------------- shapes that the network computes
def computed_shape(net: Grown, pick: Pick, x: str) -> str:
    """Reshaped to what the network computes from its own shape and back, or met by a tensor made that way."""
    shape = net.shapes[x]
    sizes = str(net.add("Shape", x))
    kind = pick.one(("Reshape", "Expand", "ConstantOfShape", "Range", "Size", "Tile", "Unsqueeze"))
    if kind == "Reshape":
        first = str(net.add("Gather", sizes, net.whole(0), axis=0))
        wanted = str(net.apply("Concat", [first, net.whole(-1)], (2,), axis=0))
        net.kinds[wanted] = TensorProto.INT64
        flat = net.apply("Reshape", [x, wanted], (shape[0], int(np.prod(shape[1:]))))
        return str(net.apply("Reshape", [net.same("Tanh", str(flat)), sizes], shape))
    if kind == "Expand":
        row = net.const(net.rng.normal(0, 1, shape[-1:]).astype(np.float32))
        return net.same("Add", x, str(net.apply("Expand", [row, sizes], shape)))
    if kind == "ConstantOfShape":
        value = net.tensor(np.array([0.5], np.float32))
        return net.same("Sub", x, str(net.apply("ConstantOfShape", [sizes], shape, value=value)))
    if kind == "Range":
        return _positions(net, x, sizes)
    if kind == "Size":
        size = str(net.add("Cast", str(net.add("Size", x)), to=TensorProto.FLOAT))
        return net.same("Add", x, net.same("Reciprocal", size))
    if kind == "Tile":
        axis = _axis(net, pick, x) % len(shape)
        repeats = [2 if i == axis and shape[i] < 20 else 1 for i in range(len(shape))]
        return str(net.add("Tile", x, net.whole(*repeats)))
    axis = pick.whole(0, len(shape))
    wider = net.same("Tanh", str(net.add("Unsqueeze", x, net.whole(axis))))
    return str(net.add("Squeeze", wider, net.whole(axis)))


def _positions(net: Grown, x: str, sizes: str) -> str:
    """Plus its position along the last axis."""
    width = net.shapes[x][-1]
    last = str(net.add("Gather", sizes, net.const(np.array(-1, np.int64)), axis=0))
    limits = [net.const(np.array(0, np.int64)), last, net.const(np.array(1, np.int64))]
    steps = str(net.apply("Range", limits, (width,)))
    net.kinds[steps] = TensorProto.INT64
    made = str(net.add("Cast", steps, to=TensorProto.FLOAT))
    return net.same("Add", x, _times(net, made, 1 / width))


# ---------------------------------------------------------------------- images
def depth(net: Grown, pick: Pick, x: str) -> str:
    """Space to depth or back; left alone where no block of 2 x 2 fits."""
    _, c, h, w = net.shapes[x]
    if h % 2 == 0 and w % 2 == 0 and pick.chance(0.6):
        return str(net.add("SpaceToDepth", x, blocksize=2))
    if c % 4 == 0 and h * w * c < 4000:
        return str(net.add("DepthToSpace", x, blocksize=2, mode=pick.one(("DCR", "CRD"))))
    return x


def local(net: Grown, pick: Pick, x: str) -> str:
    """Normalisation by neighbours, over axes, or p-norms of windows and of whole channels."""
    _, c, h, w = net.shapes[x]
    kind = pick.one(("LRN", "LpPool", "GlobalLpPool", "MeanVarianceNormalization"))
    if kind == "LRN":
        return str(net.add(kind, x, size=pick.one((1, 3, 5)), alpha=0.1, bias=pick.one((1.0, 2.0))))
    if kind == "LpPool":
        k = pick.one([k for k in (1, 2, 3) if k <= min(h, w)])
        return str(net.add(kind, x, kernel_shape=[k, k], strides=[pick.one((1, 2))] * 2, p=pick.whole(1, 2)))
    if kind == "GlobalLpPool":
        made = str(net.add(kind, x, p=pick.whole(1, 2)))
        return net.same("Add", x, _times(net, made, 1 / (h * w)))
    if h * w < 4:
        return x
    axes = pick.one(([2, 3], [0, 2, 3], [1, 2, 3] if c > 1 else [2, 3]))
    return str(net.apply(kind, [x], net.shapes[x], axes=axes))  # ONNX infers no shape for it


def sampled(net: Grown, pick: Pick, x: str) -> str:
    """The image at places of a constant grid, some of them outside."""
    n = net.shapes[x][0]
    grid = net.rng.uniform(-1.3, 1.3, (n, pick.whole(1, 6), pick.whole(1, 6), 2)).astype(np.float32)
    options = {
        "mode": pick.one(("bilinear", "nearest", "bicubic")),
        "padding_mode": pick.one(("zeros", "border", "reflection")),
        "align_corners": pick.whole(0, 1),
    }
    return str(net.add("GridSample", x, net.const(grid), **options))


ANY_BLOCKS: Mapping[str, Block] = {
    "function": function,
    "bent": bent,
    "comparison": comparison,
    "whole numbers": whole_numbers,
    "several": several,
    "reduction": reduction,
    "running": running,
    "scores": scores,
    "ranked": ranked,
    "contraction": contraction,
    "picked": picked,
    "scattered": scattered,
    "computed shape": computed_shape,
}
GRID_BLOCKS: Mapping[str, Block] = {"depth": depth, "local": local, "sampled": sampled}


# ---------------------------------------------------------------------- ends of a network
def _index(net: Grown, pick: Pick, y: str) -> str:
    return str(net.add(pick.one(("ArgMax", "ArgMin")), y, axis=-1, keepdims=pick.whole(0, 1)))


def _indices(net: Grown, pick: Pick, y: str) -> str:
    return str(net.add("TopK", y, net.whole(pick.whole(1, net.shapes[y][-1])), results=2, axis=-1)[1])


def _one_hot(net: Grown, pick: Pick, y: str) -> str:
    index = str(net.add("ArgMax", y, axis=-1, keepdims=0))
    size = net.shapes[y][-1]
    made = (*net.shapes[index], size)
    return str(net.apply("OneHot", [index, net.whole(size), net.number(0.0, 1.0)], made, axis=-1))


def _winner(net: Grown, pick: Pick, y: str) -> str:
    return str(net.add("Hardmax", y, axis=-1))


DECISIONS: tuple[Callable[[Grown, Pick, str], str], ...] = (_index, _indices, _one_hot, _winner)
"""Scores to decisions: whole numbers or ones among zeros."""


def decision(net: Grown, pick: Pick, y: str) -> str:
    """A decision between scores along the last axis."""
    return pick.one(DECISIONS)(net, pick, y)
