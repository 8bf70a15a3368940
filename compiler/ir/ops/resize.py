"""Resize: separable interpolation along axes, with tables of source positions and weights per axis.

Every axis is a table `index[output position, tap]`, `weight[output position, tap]`, computed here once; evaluation
and compiled code only apply them. Coordinates follow the ONNX operator specification (Resize-19).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Attrs, Node, Operands, Site
from compiler.ir.op import Emitter, Expr, Kept, Rebuilt, Tensor, Tie, identity
from compiler.ir.ops.elementwise import Static, check, check_choice, positive, required
from compiler.ir.types import DType, TensorType

FRAMES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
"""Coordinate transformation modes of ONNX."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisTable:
    """How one axis is resampled: [out, taps] positions and weights; `inside` [out] is false where the source lies
    outside the tensor and the extrapolation value stands (all true but for tf_crop_and_resize)."""

    index: np.ndarray
    weight: np.ndarray
    inside: np.ndarray

    @property
    def taps(self) -> int:
        return int(self.index.shape[1])

    def copies(self, size: int) -> bool:
        """Whether every result entry is the entry of the same position on an axis of `size` entries."""
        if len(self.index) != size or not self.inside.all():
            return False
        own = self.index == np.arange(size)[:, None]
        return bool((np.where(own, self.weight, 0).sum(axis=1) == 1).all() and not self.weight[~own].any())


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """What the operands ask of one axis: sizes before and after, scale factor, crop in normalised coordinates."""

    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def source_coordinates(mode: str, axis: AxisSpec) -> np.ndarray:
    """Where every result position lies on the operand's axis.

    In float32 and in this order of operations, as onnxruntime does it: `nearest` hangs on the last bit. It adds up
    half_pixel_symmetric in float64.
    """
    one = np.float32
    at, scale, half = np.arange(axis.out, dtype=np.float32), one(axis.scale), one(0.5)
    if mode == "asymmetric":
        return at / scale
    if mode == "align_corners":
        return at * one(axis.size - 1) / one(axis.out - 1) if axis.out > 1 else np.zeros(1, np.float32)
    if mode == "tf_crop_and_resize":
        start, end, last = one(axis.start), one(axis.end), one(axis.size - 1)
        if axis.out == 1:
            return np.array([half * (start + end) * last])
        return start * last + at * (end - start) * last / one(axis.out - 1)
    if mode == "pytorch_half_pixel" and axis.out == 1:
        return np.zeros(1, np.float32)
    if mode == "half_pixel_symmetric":
        adjustment = one(axis.out) / (scale * one(axis.size))
        offset = one(axis.size) / one(2) * (one(1) - adjustment)
        return (np.float64(offset) + (at + half).astype(np.float64) / scale - half).astype(np.float32)
    return (at + half) / scale - half


def exact_coordinates(mode: str, axis: AxisSpec) -> np.ndarray | None:
    """The same in float64 where the scale is the ratio of the sizes, so that halves are halves; None elsewhere.

    onnxruntime's rounding of positions agrees with these; its floor and ceiling with the float32 ones.
    """
    if mode not in ("asymmetric", "half_pixel", "half_pixel_symmetric") or axis.scale != axis.out / axis.size:
        return None
    half = 0.0 if mode == "asymmetric" else 0.5
    return np.asarray((np.arange(axis.out) + half) * axis.size / axis.out - half)


def nearest_positions(where: np.ndarray, rounding: str) -> np.ndarray:
    """Integer positions by the ONNX `nearest_mode`."""
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return np.asarray(functions[rounding](where))


def kernel_weights(mode: str, distance: np.ndarray, cubic: float) -> np.ndarray:
    """Interpolation kernel at a distance in samples: triangle, or the cubic convolution with parameter A
    (Keys, "Cubic convolution interpolation for digital image processing", 1981)."""
    d = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1 - d, 0))
    near = ((cubic + 2) * d - (cubic + 3)) * d * d + 1
    far = ((cubic * d - 5 * cubic) * d + 8 * cubic) * d - 4 * cubic
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def axis_table(attrs: Attrs, axis: AxisSpec) -> AxisTable:
    """The table of one axis."""
    mode, frame = attrs["mode"], attrs["coordinate_transformation_mode"]
    where = source_coordinates(frame, axis)
    inside = np.ones(axis.out, bool)
    if frame == "tf_crop_and_resize":
        inside = (where >= 0) & (where <= axis.size - 1)
    if mode == "nearest":
        rounding = attrs["nearest_mode"]
        exact = exact_coordinates(frame, axis) if rounding.startswith("round") else None
        index = np.clip(nearest_positions(where if exact is None else exact, rounding), 0, axis.size - 1)
        return AxisTable(index.astype(np.int32)[:, None], np.ones((axis.out, 1)), inside)
    stretch = min(axis.scale, 1.0) if attrs["antialias"] else 1.0
    reach = (1 if mode == "linear" else 2) / stretch
    first, count = np.floor(where - reach).astype(np.int64) + 1, 2 * int(np.ceil(reach))
    taps = first[:, None] + np.arange(count)
    weight = kernel_weights(mode, (taps - where[:, None]) * stretch, attrs["cubic_coeff_a"])
    if attrs["exclude_outside"]:
        weight = np.where((taps < 0) | (taps >= axis.size), 0.0, weight)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return AxisTable(np.clip(taps, 0, axis.size - 1).astype(np.int32), weight, inside)


class Resize(Static):
    """x resampled along axes. Operands: x, roi, scales, sizes; the last three constant or absent.

    Result axes have floor(size * scale) entries, or the given sizes.
    """

    name = "Resize"
    static = ((1, "roi"), (2, "scales"), (3, "sizes"))

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        rank = operands[0].rank
        axes = attrs.get("axes") or range(rank)
        return {**attrs, "axes": tuple(positive(a, rank) for a in axes)}

    def infer(self, node: Node, operands: Operands, count: int) -> tuple[TensorType, ...]:
        self.check_static(node, operands)
        check_choice(node, "mode", "nearest", "linear", "cubic")
        check_choice(node, "coordinate_transformation_mode", *FRAMES)
        check_choice(node, "nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        check_choice(node, "keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
        cropped = node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
        check(node, not cropped or _given(operands, 1) is not None, "tf_crop_and_resize needs a region of interest")
        wanted = [w for w in (_given(operands, 2), _given(operands, 3)) if w is not None]
        check(node, all((w > 0).all() for w in wanted), "scales and sizes must be positive")
        if not operands[0].size:
            raise UnsupportedModelError(f"Resize '{node.ref}': an empty tensor has nothing to take values from")
        return super().infer(node, operands, count)

    def flops(self, site: Site) -> int:
        total, shape = 0, list(site.operands[0].shape)
        for dim, table in self._active(site):
            shape[dim] = len(table.index)
            total += 2 * table.taps * int(np.prod(shape)) if site.str("mode") != "nearest" else 0
        return total

    def ties(self, site: Site) -> Iterator[Tie]:
        x, y = site.operands[0], site.results[0]
        active = {dim for dim, _ in self._active(site)}
        if site.str("keep_aspect_ratio_policy") != "stretch":
            active |= set(site.ints("axes"))  # the common scale depends on these sizes
        yield from (identity(x, dim, y, dim) for dim in range(x.rank) if dim not in active)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        sizes = _given(site.operands, 3)
        if sizes is None:
            return Rebuilt(site.attrs)
        left = kept.shape(site.results[0])
        return Rebuilt(site.attrs, {3: np.array([left[d] for d in site.ints("axes")], np.int64)})

    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        x, y = required(arrays), site.results[0]
        value = x if site.str("mode") == "nearest" else x.astype(np.float64)
        for dim, table in self._active(site):
            value = _applied(value, dim, table, site.str("mode") == "nearest")
        for dim, table in self._active(site):
            outside = ~table.inside.reshape(-1, *(1,) * (x.ndim - dim - 1))
            value = np.where(outside, site.float("extrapolation_value"), value)
        return (value.astype(y.dtype.numpy),)

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x, y, active = required(tensors), site.results[0], self._active(site)
        work = x
        if site.str("mode") == "nearest":
            work = _copied(emit, x, y.shape, dict(active))
        else:
            dtype = y.dtype if y.dtype is DType.FLOAT64 else DType.FLOAT32
            for dim, table in active:
                work = _resampled(emit, work, dim, table, dtype)
        outside = [(dim, emit.constant(t.inside)) for dim, t in active if not t.inside.all()]
        fill = emit.const(site.float("extrapolation_value"), y.dtype)

        def element(*at: Expr) -> Expr:
            value = work(*at) if work.dtype is y.dtype else emit.cast(work(*at), y.dtype)
            for dim, inside in outside:
                value = emit.select(inside(at[dim]), value, fill)
            return value

        return (emit.compute(y.shape, y.dtype, element),)

    def _active(self, site: Site) -> list[tuple[int, AxisTable]]:
        """The axes that change, with their tables."""
        made = ((dim, spec, axis_table(site.attrs, spec)) for dim, spec in self._specs(site).items())
        return [(dim, table) for dim, spec, table in made if not table.copies(spec.size)]

    def _specs(self, site: Site) -> dict[int, AxisSpec]:
        x, y, axes = site.operands[0], site.results[0], site.ints("axes")
        roi, scales = _given(site.operands, 1), _given(site.operands, 2)
        common = self._common_scale(site)
        specs = {}
        for i, dim in enumerate(axes):
            size, out = x.shape[dim], y.shape[dim]
            scale = float(scales[i]) if scales is not None else common or out / size
            crop = (0.0, 1.0) if roi is None else (float(roi[i]), float(roi[i + len(axes)]))
            specs[dim] = AxisSpec(size, out, scale, *crop)
        return specs

    def _common_scale(self, site: Site) -> float | None:
        """The one scale of all axes under `keep_aspect_ratio_policy`, else None."""
        policy, sizes = site.str("keep_aspect_ratio_policy"), _given(site.operands, 3)
        if sizes is None or policy == "stretch":
            return None
        x = site.operands[0]
        wanted = [float(s) / x.shape[d] for s, d in zip(sizes, site.ints("axes"), strict=True)]
        return min(wanted) if policy == "not_larger" else max(wanted)


def _given(operands: Operands, index: int) -> np.ndarray | None:
    """The data of an operand; an empty tensor counts as absent."""
    value = operands.optional(index)
    return value.constant.reshape(-1) if value is not None and value.size else None


def _applied(x: np.ndarray, dim: int, table: AxisTable, copy: bool) -> np.ndarray:
    if copy:
        return np.take(x, table.index[:, 0], axis=dim)
    column = (-1, *(1,) * (x.ndim - dim - 1))
    parts = (
        np.take(x, table.index[:, t], axis=dim) * table.weight[:, t].reshape(column) for t in range(table.taps)
    )
    return np.asarray(sum(parts))


def _copied(emit: Emitter, x: Tensor, shape: Sequence[int], tables: dict[int, AxisTable]) -> Tensor:
    index = {dim: emit.constant(t.index[:, 0]) for dim, t in tables.items()}
    return emit.compute(
        shape, x.dtype, lambda *at: x(*(index[d](i) if d in index else i for d, i in enumerate(at)))
    )


def _resampled(emit: Emitter, x: Tensor, dim: int, table: AxisTable, dtype: DType) -> Tensor:
    """One axis: a weighted sum of taps; from three taps on a stage of its own, so that axes stay separable."""
    shape = (*x.shape[:dim], len(table.index), *x.shape[dim + 1 :])
    index, weight = emit.constant(table.index), emit.constant(table.weight.astype(dtype.numpy))

    def tap(*i: Expr) -> Expr:
        at, t = i[:-1], i[-1]
        value = x(*at[:dim], index(at[dim], t), *at[dim + 1 :])
        return weight(at[dim], t) * (value if x.dtype is dtype else emit.cast(value, dtype))

    if table.taps > 2:
        return emit.reduce(shape, dtype, [table.taps], "sum", tap)

    def total(*at: Expr) -> Expr:
        value = tap(*at, emit.const(0, DType.INT32))
        for t in range(1, table.taps):
            value = value + tap(*at, emit.const(t, DType.INT32))
        return value

    return emit.compute(shape, dtype, total)
