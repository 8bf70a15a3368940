"""How a network goes on from another one's value at a cut: as it is, in another order, through a map, or by new
weights of the layers that read it.

A map M, b per position (x_own ~ x_shared M + b) is fitted by least squares with a quarter of the samples held out;
on independently trained networks this is model stitching (Lenc & Vedaldi 2015; Bansal, Nakkiran & Barak 2021). It
costs a product. Where everything that reads the value is a layer with constant weights, these are fitted instead,
which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from compiler.calibration.engine import Engine
from compiler.calibration.tape import Feed
from compiler.ir.graph import Graph, NodeRef, Site
from compiler.ir.onnx_out import to_onnx
from compiler.ir.op import operator
from compiler.ir.ops.conv import Convolving
from compiler.ir.types import DType, ValueRef
from compiler.passes.merge.channels import layer_axes
from compiler.passes.merge.cuts import Cut
from compiler.passes.merge.emit import emit, parameter
from compiler.passes.merge.refit import store, takes_constant
from compiler.passes.merge.rows import bias, flat_rows, held_out, matrix, positions
from compiler.passes.merge.solve import EXACT, Freedom, Measured, measure, solve
from compiler.passes.merge.solve import Fit as Solved

NARROWEST = 3
"""Fewest axes of a value whose channels, on axis 1, a convolution can map."""


@dataclass(frozen=True, slots=True)
class Stitch:
    """One way to go on. `residual`: what is lost, as a share of variance on held-out inputs.

    `order` [channels]: which of the shared channels each own one is; `map`: weights and constant; `readers`: new
    weights per layer that reads the value. All empty: it is read as it is.
    """

    cut: Cut
    residual: float
    order: np.ndarray | None = None
    map: Solved | None = None
    readers: Mapping[NodeRef, Solved] | None = None

    @property
    def how(self) -> str:
        """A phrase for people."""
        if self.readers is not None:
            fitted = any(s.refitted for s in self.readers.values())
            return "by new weights of the layers that read it" if fitted else "as it is"
        if self.map is not None:
            _, inputs, outputs = self.map.weights.shape
            return f"through a map of {inputs} to {outputs} channels"
        return "as it is" if self.order is None else "in its own order of channels"


# ---------------------------------------------------------------------- values
class Samples:
    """Sampled rows of some values of a graph and all outputs of some tasks, on `feeds`.

    `wanted`: value -> the axis that counts its channels. Values that the tasks do not need are left out.
    """

    def __init__(
        self, graph: Graph, tasks: Iterable[str], wanted: Mapping[ValueRef, int], feeds: Sequence[Feed]
    ) -> None:
        part = graph.copy()
        for task in set(graph.tasks) - set(tasks):
            part.drop_task(task)
        needed = part.needed_masks()
        outputs = [v.ref for v in part.outputs if v.data is None]
        rows = {r: axis for r, axis in wanted.items() if r in needed}
        self.rows: dict[ValueRef, np.ndarray] = {}
        """[rows, channels] per value."""
        self.outputs = {v.ref: np.stack([v.constant] * len(feeds)) for v in part.outputs if v.data is not None}
        """[samples, ...] per output."""
        if not outputs:
            return
        part.set_task("samples", list(dict.fromkeys([*rows, *outputs])))
        engine = Engine(to_onnx(part), optimise=False)
        sampled: dict[ValueRef, list[np.ndarray]] = {r: [] for r in rows}
        answers: dict[ValueRef, list[np.ndarray]] = {r: [] for r in outputs}
        for number, feed in enumerate(feeds):
            made = engine.run(feed)
            for ref, axis in rows.items():
                count = positions(graph.value(ref), axis)
                sampled[ref].append(flat_rows(made[ref.name], axis, count, number))
            for ref in outputs:
                answers[ref].append(made[ref.name])
        self.rows = {r: np.concatenate(sampled.pop(r)) for r in rows}
        self.outputs |= {r: np.stack(answers.pop(r)) for r in [*answers]}


def readers(graph: Graph, cut: Cut, excluded: Callable[[str], bool]) -> list[Site] | None:
    """The layers that read the own value of a cut, where all that reads it are layers that can be fitted to it."""
    value = graph.value(cut.mine)
    sites = [graph.site(n) for n, _ in graph.uses(cut.mine)]
    for site in sites:
        axes = layer_axes(site)
        fits = axes is not None and not isinstance(site.node.op, Convolving) and site.operands[0].ref == cut.mine
        if not fits or cut.axis != value.rank - 1 or excluded(site.node.ref.name):
            return None
    return sites or None


# ---------------------------------------------------------------------- fits
class Stitcher:
    """Fits at the cuts of `original`. `targets`: sampled rows of everything there, by the originals."""

    def __init__(
        self,
        original: Graph,
        targets: Mapping[ValueRef, np.ndarray],
        samples: int,
        freedom: Freedom,
        excluded: Callable[[str], bool],
    ) -> None:
        self._original, self._targets, self._samples = original, targets, samples
        self._freedom, self._excluded = freedom, excluded

    def ways(self, cut: Cut, rows: np.ndarray | None) -> list[Stitch]:
        """The ways to go on from `rows` [rows, channels] of the shared value, cheaper ones first.

        Without a single axis of channels (`rows` None) there is none.
        """
        if rows is None or cut.axis is None:
            return []
        measured = self._measure(cut, rows, self._targets[cut.mine])
        order = _order(measured)
        sites = readers(self._original, cut, self._excluded)
        if sites is not None:
            return [self._refitted(cut, rows, sites, order)]
        found = []
        width = measured.train.y.shape[1]
        if order is not None:
            plain = solve(measured, np.eye(width)[None], None, Freedom.NOTHING)
            found.append(Stitch(cut, plain.residual))
            moved = solve(measured, _placed(order)[None], None, Freedom.NOTHING)
            if moved.residual < plain.residual:
                found.append(Stitch(cut, moved.residual, order=order))
        axes = self._original.value(cut.mine).rank, cut.axis
        mappable = axes[1] == axes[0] - 1 or (axes[1] == 1 and axes[0] >= NARROWEST)
        if mappable and self._freedom is Freedom.WEIGHTS and not (found and found[-1].residual <= EXACT):
            found.append(self._mapped(cut, measured, order))
        return found

    def _measure(self, cut: Cut, rows: np.ndarray, targets: np.ndarray) -> Measured:
        count = positions(self._original.value(cut.mine), cut.axis or 0)
        return measure([rows[None]], targets[None], held_out(self._samples, count))

    def _mapped(self, cut: Cut, measured: Measured, order: np.ndarray | None) -> Stitch:
        inputs, outputs = measured.train.xy.shape[1:]
        prior = np.zeros((inputs, outputs)) if order is None else _placed(order)
        fit = solve(measured, prior[None], np.zeros((1, outputs)), self._freedom)
        return Stitch(cut, fit.residual, map=fit)

    def _refitted(self, cut: Cut, rows: np.ndarray, sites: Sequence[Site], order: np.ndarray | None) -> Stitch:
        """New weights of layers, fitted to what the originals computed."""
        found = {}
        for site in sites:
            targets = self._targets[site.results[0].ref]
            old = matrix(site)
            if order is None:
                old = np.zeros((rows.shape[1], old.shape[1]))
            else:
                old = old if _is_identity(order) else _placed(order) @ old
            offset = None
            if takes_constant(self._original, site):
                own = bias(site)
                offset = np.zeros((1, old.shape[1])) if own is None else own[None]
            found[site.node.ref] = solve(self._measure(cut, rows, targets), old[None], offset, self._freedom)
        residual = max(fit.residual for fit in found.values())
        return Stitch(cut, residual, readers=found)


def _order(measured: Measured) -> np.ndarray | None:
    """Which input each target is most like, one to one, where there are as many; the same place where equal."""
    train = measured.train
    g, c, power = train.central()
    if c.shape[1] != c.shape[2]:
        return None
    spread = np.sqrt(np.maximum(np.diagonal(g[0])[:, None] * power[0][None], 0))
    alike = np.divide(c[0], spread, out=np.zeros_like(spread), where=spread > 0)
    alike[np.diag_indices(len(alike))] += EXACT
    rows, columns = linear_sum_assignment(alike, maximize=True)
    return np.asarray(rows[np.argsort(columns)])


def _placed(order: np.ndarray) -> np.ndarray:
    """The matrix [inputs, outputs] that puts channels in an order."""
    return np.eye(len(order))[:, order]


def _is_identity(order: np.ndarray) -> bool:
    return bool(np.array_equal(order, np.arange(len(order))))


# ---------------------------------------------------------------------- in the graph
def attach(graph: Graph, original: Graph, stitch: Stitch, name: str) -> None:
    """Let everything that reads the own value of a cut go on from the other network's. `name`: of new nodes."""
    cut = stitch.cut
    for ref, fit in (stitch.readers or {}).items():
        store(graph, original, original.site(original.node(ref)), fit)
    read = _emitted(graph, stitch, name)
    for node, index in graph.uses(cut.mine):
        graph.set_operand(node.ref, index, read)


def _emitted(graph: Graph, stitch: Stitch, name: str) -> ValueRef:
    """The value that is read, behind the nodes of the stitch."""
    cut = stitch.cut
    value = graph.value(cut.theirs)
    axis = cut.axis or 0
    if stitch.order is not None:
        order = parameter(graph, f"{name}/order", stitch.order, DType.INT64)
        return emit(graph, name, operator("Gather"), {"axis": axis}, [value.ref, order])[0].ref
    if stitch.map is None:
        return value.ref
    weights, offset = stitch.map.weights[0], stitch.map.offset[0]
    if axis == value.rank - 1:
        weight = parameter(graph, f"{name}/weight", weights, value.dtype)
        (product,) = emit(graph, name, operator("MatMul"), {}, [value.ref, weight])
        constant = parameter(graph, f"{name}/constant", offset, value.dtype)
        return emit(graph, f"{name}/add", operator("Add"), {}, [product.ref, constant])[0].ref
    taps = weights.T.reshape(*weights.T.shape, *(1,) * (value.rank - 2))
    weight = parameter(graph, f"{name}/weight", taps, value.dtype)
    constant = parameter(graph, f"{name}/bias", offset, value.dtype)
    ones, zeros = (1,) * (value.rank - 2), (0,) * (2 * (value.rank - 2))
    attrs = {
        "auto_pad": "NOTSET",
        "dilations": ones,
        "group": 1,
        "kernel_shape": ones,
        "pads": zeros,
        "strides": ones,
    }
    return emit(graph, name, operator("Conv"), attrs, [value.ref, weight, constant])[0].ref
