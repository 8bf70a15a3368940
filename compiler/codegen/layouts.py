"""Which layout every activation has: one decision per value, for all its readers and all subsets of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.codegen.groups import CONVOLUTIONS, Group
from compiler.codegen.layout import Blocked, Layout, Plain
from compiler.ir.graph import Graph, Value
from compiler.ir.types import DType, ValueRef


def block_width(channels: int, vector: int) -> int:
    """Lanes per block: the fewest vectors, then the narrowest block that still needs no more of them.

    Up to four channels (images) stay together as they are, so that no lane is wasted on reading them.
    """
    if channels <= 4:
        return channels
    widths = [w for w in (4, 8, 16) if w <= vector]
    return min(widths, key=lambda w: (-(-channels // w), w))


def assign_layouts(graph: Graph, groups: Sequence[Group], vector: int) -> dict[ValueRef, Layout]:
    """Layout of every activation that is stored; a value that is missing is plain.

    Convolution templates read and write blocked values with the halo their readers need. Other groups keep what
    they read blocked as long as channels stay channels, so that no conversion stands inside a chain.
    """
    halos = _wanted_halos(groups)
    readers = _readers(groups)
    layouts: dict[ValueRef, Layout] = {}
    for value in graph.inputs:
        if value.ref in halos:
            layouts[value.ref] = _input_layout(value, halos[value.ref], vector)
    for group in groups:
        for value in group.outputs:
            if value.ref in halos:
                layouts[value.ref] = Blocked(block_width(value.shape[1], vector), halos[value.ref])
            elif group.algorithm in CONVOLUTIONS or _stays_blocked(group, value, layouts, readers):
                layouts[value.ref] = Blocked(block_width(value.shape[1], vector), (0,) * (value.rank - 2))
    return layouts


def _input_layout(value: Value, halo: tuple[int, ...], vector: int) -> Layout:
    return Blocked(block_width(value.shape[1], vector), halo)


def _wanted_halos(groups: Sequence[Group]) -> dict[ValueRef, tuple[int, ...]]:
    """Zero border each convolution input needs: the largest padding of its readers, per spatial axis.

    The last tile of an odd extent in a Winograd convolution reads one cell further.
    """
    halos: dict[ValueRef, tuple[int, ...]] = {}
    for group in groups:
        if group.algorithm not in CONVOLUTIONS:
            continue
        value, pads = group.anchor.operands[0], group.anchor.ints("pads")
        axes = value.rank - 2
        wanted = tuple(max(pads[i], pads[i + axes]) for i in range(axes))
        if group.algorithm == "winograd":
            odd = [n % 2 for n in group.anchor.results[0].shape[2:]]
            wanted = tuple(w + o for w, o in zip(wanted, odd, strict=True))
        known = halos.get(value.ref, (0,) * axes)
        halos[value.ref] = tuple(max(a, b) for a, b in zip(wanted, known, strict=True))
        if group.residual is not None:
            halos.setdefault(group.residual.ref, (0,) * axes)
    return halos


def _readers(groups: Sequence[Group]) -> dict[ValueRef, list[Group]]:
    found: dict[ValueRef, list[Group]] = {}
    for group in groups:
        for value in group.inputs():
            found.setdefault(value.ref, []).append(group)
    return found


def _stays_blocked(
    group: Group, value: Value, layouts: Mapping[ValueRef, Layout], readers: Mapping[ValueRef, list[Group]]
) -> bool:
    """Whether a generic group's output keeps the blocked form of an operand with the same channels."""
    if group.algorithm != "generic" or value.rank < 3 or value.dtype is not DType.FLOAT32 or value.shape[1] < 4:
        return False
    useful = group.reduces or any(g.algorithm != "view" for g in readers.get(value.ref, []))
    like = (
        isinstance(layouts.get(v.ref, Plain()), Blocked) and v.rank == value.rank and v.shape[1] == value.shape[1]
        for v in group.inputs()
    )
    return useful and any(like)
