"""Which channels of a network can be computed per label, and what every node does with them.

A channel is an atom of the ties' closure: entries of several axes that exist together, such as a filter, its
bias, the channel of the map and of every activation behind it. Channels of one layer, or of one residual stream,
form a group. A node either makes channels from others by constant weights (LAYER), and in a recurrent layer from
what they were one step before too (RECURRENT), looks them up in a constant table (TABLE), works on each channel
alone (EACH), or passes channels on (ROUTE). Everything else reads its operands whole (WHOLE): groups that it
touches keep one owner.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph, NodeRef, Site, Value
from compiler.ir.ops.conv import Convolving
from compiler.ir.ops.elementwise import positive
from compiler.ir.ops.recurrent import C0, H0, LENS, B, P, R, Recurrent, W
from compiler.ir.relations import where
from compiler.ir.ties import Atom, Closure
from compiler.ir.types import Axis
from compiler.passes.linear import per_output


class Role(enum.Enum):
    """What a node does with channels."""

    LAYER = "layer"
    RECURRENT = "recurrent"
    TABLE = "table"
    EACH = "each"
    ROUTE = "route"
    WHOLE = "whole"


MAKERS = (Role.LAYER, Role.RECURRENT, Role.TABLE)
"""Roles of nodes that make channels by constant weights."""

ROUTING = ("Concat", "Split", "Slice", "Gather")
"""Operators that move whole channels along their own axis; their other uses are EACH or WHOLE."""


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """A group: channels that span the same axes, in the order of their first entry. `split`: they may be labelled
    one by one; else `reason` says why all of them keep one label.
    """

    index: int
    atoms: tuple[Atom, ...]
    split: bool
    reason: str = ""

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.atoms)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes the channels have entries on."""
        return tuple(self.atoms[0].entries)

    def entries(self, axis: Axis) -> np.ndarray:
        """Positions on `axis`, [channels, entries per channel]."""
        return np.stack([atom.entries[axis] for atom in self.atoms])


class ChannelMap:
    """Groups of a graph, the role of every node, and what each value is made of.

    `exclude(name)`: values and nodes whose channels stay as they are. `recurrent`: hidden units, and columns of
    tables, may be labelled one by one; else these layers are read whole. `beside`: layers may read channels beside
    values that are read whole; whoever says so answers for such a value being for all tasks that read it.
    """

    def __init__(
        self,
        graph: Graph,
        exclude: Callable[[str], bool] = lambda name: False,
        *,
        recurrent: bool = False,
        beside: bool = False,
    ) -> None:
        self.graph = graph
        self._recurrent, self._beside = recurrent, beside
        self.closure = Closure(graph, exclude=exclude)
        self._groups = [Channels(i, g.atoms, True) for i, g in enumerate(self.closure.groups)]
        self._on = self._groups_by_axis()
        self.roles: dict[NodeRef, Role] = {s.node.ref: Role.WHOLE for s in graph.sites()}
        self._settle()

    @property
    def groups(self) -> tuple[Channels, ...]:
        """All groups."""
        return tuple(self._groups)

    def channel_dim(self, value: Value) -> int | None:
        """The axis of a value that has channels which may be labelled one by one; None where it is read whole."""
        dims = [d for d in range(value.rank) if self._on.get(value.axis(d))]
        return dims[0] if dims and all(self._groups[g].split for g in self._on[value.axis(dims[0])]) else None

    def parts(self, value: Value) -> tuple[int, ...]:
        """The groups on a value's channel axis, in order of their first entry; none where it is read whole."""
        dim = self.channel_dim(value)
        return () if dim is None else tuple(self._on[value.axis(dim)])

    def counts(self, axis: Axis) -> bool:
        """Whether an axis, of a parameter too, has channels of some group."""
        return axis in self._on

    # ------------------------------------------------------------------ finding what can be split
    def _groups_by_axis(self) -> dict[Axis, list[int]]:
        found: dict[Axis, list[tuple[int, int]]] = {}
        for group in self._groups:
            for axis in group.axes:
                first = min(int(a.entries[axis][0]) for a in group.atoms)
                found.setdefault(axis, []).append((first, group.index))
        return {axis: [g for _, g in sorted(pairs)] for axis, pairs in found.items()}

    def _settle(self) -> None:
        """Refuse groups until every one that is left is understood by every node that touches it."""
        for found in self.groups:
            reason = self._irregular(found)
            if reason:
                self._refuse(found.index, reason)
        for site in self.graph.sites():
            axes = layer_axes(site)
            if axes is not None and not _finite(site):
                for group in self._on.get(axes[1], ()):
                    self._refuse(group, f"{where(site)} has weights or constants that are not finite")
        changed = True
        while changed:
            changed = self._partly_covered()
            for site in self.graph.sites():
                role, reason = self._role(site)
                self.roles[site.node.ref] = role
                if role is Role.WHOLE:
                    for group in self._touched(site):
                        changed |= self._refuse(group, reason)

    def _refuse(self, index: int, reason: str) -> bool:
        group = self._groups[index]
        if group.split:
            self._groups[index] = Channels(index, group.atoms, False, reason)
        return group.split

    def _irregular(self, group: Channels) -> str:
        for axis in group.axes:
            if len({len(a.entries[axis]) for a in group.atoms}) > 1:
                return f"its channels have different numbers of entries on {axis}"
        return ""

    def _partly_covered(self) -> bool:
        """Refuse groups on axes of values that hold other entries too, or on two axes of one value."""
        changed = False
        for value in self.graph.values():
            dims = [d for d in range(value.rank) if self._on.get(value.axis(d))]
            for dim in dims:
                groups = self._on[value.axis(dim)]
                held = sum(self._groups[g].entries(value.axis(dim)).size for g in groups if self._groups[g].split)
                computed = value.data is None
                reason = ""
                if computed and len(dims) > 1:
                    reason = f"'{value.ref}' has channels on two axes"
                elif computed and held < value.shape[dim] and not self._is_beside(value, dim):
                    reason = f"'{value.ref}' also holds entries that must stay whole"
                if reason:
                    refused = [self._refuse(g, reason) for g in groups]
                    changed |= any(refused)
        return changed

    def _touched(self, site: Site) -> list[int]:
        values = (*(v for _, v in site.operands.present()), *site.results)
        axes = [v.axis(d) for v in values for d in range(v.rank)]
        return list(dict.fromkeys(g for axis in axes for g in self._on.get(axis, ()) if self._groups[g].split))

    # ------------------------------------------------------------------ roles
    def _role(self, site: Site) -> tuple[Role, str]:
        """The role of a node, and for WHOLE why, as a phrase about the groups it touches."""
        what = f"{site.node.op.name} '{site.node.ref}'"
        if table_axis(site) is not None and self.channel_dim(site.results[0]) is not None:
            reason = self._table_problem(site)
            return (Role.WHOLE, f"{what} {reason}") if reason else (Role.TABLE, "")
        if maker_axes(site) is not None:
            recurrent = isinstance(site.node.op, Recurrent)
            reason = self._recurrent_problem(site) if recurrent else ""
            reason = reason or self._positions_problem(site)
            made = Role.RECURRENT if recurrent else Role.LAYER
            return (Role.WHOLE, f"{what} {reason}") if reason else (made, "")
        data = [v for _, v in site.operands.present() if v.data is None]
        dims = [self.channel_dim(v) for v in (*data, *site.results)]
        if all(d is None for d in dims):
            return Role.WHOLE, ""
        if any(d is None for d in dims):
            if dims[-1] is not None and self._is_beside(site.results[0], dims[-1]):
                return Role.ROUTE, ""
            return Role.WHOLE, f"{what} combines them with values that are read whole"
        if self._is_route(site):
            return Role.ROUTE, ""
        groups = {self.parts(v) for v in (*data, *site.results)}
        if len(groups) > 1 or len(site.results) != 1:
            return Role.WHOLE, f"{what} mixes channels"
        if _sums_along(site, dims[0]):
            return Role.WHOLE, f"{what} adds up channels in their order"
        if any(len(self._tied_dims(v)) > 1 for _, v in site.operands.present() if v.data is not None):
            return Role.WHOLE, f"{what} has a parameter with channels on two axes"
        return Role.EACH, ""

    def _positions_problem(self, site: Site) -> str:
        inward, outward = maker_axes(site) or (None, None)
        for value in (site.operands[0], site.results[0]):
            dim = self.channel_dim(value)
            if dim is not None and value.axis(dim) not in (inward, outward):
                return "counts them as positions"
        return ""

    def _recurrent_problem(self, site: Site) -> str:
        reason = recurrent_problem(site)
        if reason or self._recurrent:
            return reason
        return "is read whole, because no policy joins hidden units; start=shared and narrow give them labels"

    def _table_problem(self, site: Site) -> str:
        made = site.results[0]
        if made.axis(self.channel_dim(made) or 0) != table_axis(site):
            return "counts them as positions"
        if self._recurrent:
            return ""
        return "is read whole, because no policy joins columns of tables; start=shared and narrow give them labels"

    def _is_route(self, site: Site) -> bool:
        """Whether whole channels are moved along their own axis, each group at most once per result."""
        if site.node.op.name not in ROUTING or any(v.data is None for v in site.operands[1:]) != (
            site.node.op.name == "Concat"
        ):
            return False
        data = [v for _, v in site.operands.present() if v.data is None]
        before = [g for v in data for g in self.parts(v)]
        if len(set(before)) < len(before) or {self.channel_dim(v) for v in data} != {
            self.channel_dim(site.results[0])
        }:
            return False
        moved = all(set(self.parts(v)) <= set(before) for v in site.results)
        return moved and any(self.parts(v) != self.parts(data[0]) for v in site.results)

    def _is_beside(self, value: Value, dim: int) -> bool:
        """Whether a value puts channels beside values that are read whole, along `dim`, for layers to read."""
        node = self.graph.producer(value.ref)
        if not self._beside or node is None or node.op.name != "Concat" or self.graph.is_output(value.ref):
            return False
        site = self.graph.site(node)
        operands = [v for _, v in site.operands.present()]
        groups = [g for v in operands for g in self.parts(v)]
        readers = [maker_axes(self.graph.site(n)) for n, _ in self.graph.uses(value.ref)]
        return (
            site.int("axis") == dim
            and len(set(groups)) == len(groups)
            and len({v.ref for v in operands}) == len(operands)
            and all(v.data is None and self.channel_dim(v) in (None, dim) for v in operands)
            and all(axes is not None and axes[0] == value.axis(dim) for axes in readers)
        )

    def _tied_dims(self, value: Value) -> list[int]:
        return [d for d in range(value.rank) if self.counts(value.axis(d))]


def _finite(site: Site) -> bool:
    """Whether all constants of a layer are: weights of a label are sums with many zeros, and zero times infinity
    is NaN.
    """
    return all(np.isfinite(v.data).all() for _, v in site.operands.present() if v.data is not None)


def _sums_along(site: Site, dim: int | None) -> bool:
    """Whether each entry along an axis of the result has those before it in it, though ties say that it can do
    without them: CumSum along this axis.
    """
    if site.node.op.name != "CumSum":
        return False
    return positive(int(site.operands[1].constant.reshape(-1)[0]), site.operands[0].rank) == dim


def layer_axes(site: Site) -> tuple[Axis, Axis] | None:
    """(axis of operand 0 that the weights contract, axis of the result along which they have outputs) of a layer:
    Conv or ConvTranspose with one group, Gemm or MatMul with constant weights; None for every other node.
    """
    name, attrs, convolves = site.node.op.name, site.attrs, isinstance(site.node.op, Convolving)
    if not (convolves or name in ("Gemm", "MatMul")) or site.operands[0].data is not None:
        return None
    x, y = site.operands[0], site.results[0]
    weights = [v for _, v in site.operands.present()[1:]]
    if any(v.data is None or not v.dtype.is_float for v in weights):
        return None
    if convolves:
        return (x.axis(1), y.axis(1)) if site.int("group") == 1 else None
    if site.operands[1].rank != 2 or x.rank < 2:
        return None
    if name == "Gemm":
        plain = attrs["alpha"] == 1 and attrs["beta"] == 1 and not attrs["transA"]
        bias = site.operands.optional(2)
        if not plain or (bias is not None and not per_output(bias, y.shape[-1])):
            return None
    return x.axis(-1), y.axis(-1)


def maker_axes(site: Site) -> tuple[Axis, Axis] | None:
    """`layer_axes`, and the same of a recurrent layer: (axis of the inputs of X, axis of the hidden units of Y)."""
    if isinstance(site.node.op, Recurrent):
        return site.operands[0].axis(2), site.results[0].axis(3)
    return layer_axes(site)


def table_axis(site: Site) -> Axis | None:
    """The axis of the results that has the columns of a constant table [rows, columns], looked up by row; None for
    every other node.
    """
    if site.node.op.name != "Gather" or site.int("axis") or site.operands[1].data is not None:
        return None
    table = site.operands[0]
    looked_up = table.data is not None and table.rank == 2 and table.dtype.is_float
    return site.results[0].axis(-1) if looked_up else None


def made_axis(site: Site) -> Axis | None:
    """The axis of the results along which a node makes channels by constant weights; None for every other node."""
    axes = maker_axes(site)
    return table_axis(site) if axes is None else axes[1]


def recurrent_problem(site: Site) -> str:
    """Why hidden units of a recurrent layer have no labels, as a phrase; empty where they do."""
    if site.int("layout"):
        return "is read whole: it has samples first (layout 1), and a split needs steps first"
    if site.operands.optional(LENS) is not None:
        return "is read whole: sequences end where their own lengths say, before the states that a split reads"
    given = [site.operands.optional(i) for i in (W, R, B, H0, C0, P)]
    if any(v is not None and v.data is None for v in given):
        return "is read whole: its weights or initial states are computed"
    return ""


def one_label(site: Site) -> str:
    """Why all hidden units of a recurrent layer have the same label, as a phrase; empty where each has its own.

    An LSTM or RNN adds up products with the states of other units, which may as well be inputs that are known
    already. A GRU first multiplies them by its reset gate.
    """
    gru = site.node.op.name == "GRU"
    return "its reset gate multiplies the recurrent term, so a split would not be exact" if gru else ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight of a layer.

    `index`: of the operand; `read`: the value whose channels it contracts; `dims`: its own axes along which it
    reads and makes channels; `blocks`: how often the results' channels are repeated on the latter, one block
    behind the other.
    """

    index: int
    read: Value
    dims: tuple[int, int]
    blocks: int = 1


def matrices(site: Site) -> tuple[Matrix, ...]:
    """The weights of a layer, recurrent or not, that combine channels."""
    x, op = site.operands[0], site.node.op
    if isinstance(op, Recurrent):
        return Matrix(W, x, (2, 1), op.gates), Matrix(R, site.results[0], (2, 1), op.gates)
    swapped = op.name == "Conv" or site.attrs.get("transB")
    return (Matrix(1, x, (1, 0) if swapped else (0, 1)),)
