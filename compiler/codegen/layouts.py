"""Which layout every activation has: one decision per value, for all its readers and all subsets of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compiler.codegen.families import CONVOLUTIONS
from compiler.codegen.groups import Group
from compiler.codegen.layout import Blocked, Border, Layout, Plain
from compiler.ir.graph import Graph, Value
from compiler.ir.types import DType, ValueRef
from compiler.machine import Machine

WIDTHS = (4, 8, 16)
"""Lanes of a block."""
MOST_PLANAR = 4
"""Channels up to which an image may lie one channel after another: a vector has several times as many lanes."""
NARROW_GAIN = 0.95
"""Share of the time of wider blocks below which narrower ones are worth their number."""


def block_width(channels: int, machine: Machine) -> int:
    """Lanes per block: the fewest vectors, then the narrowest block that still needs no more of them; narrower yet
    where fewer lanes are wasted, a core handles narrow vectors faster, and a register tile can have several.

    Up to four channels (images) stay together as they are, so that no lane is wasted on reading them.
    """
    if channels <= 4:
        return channels
    best = fewest_vectors(channels, machine.lanes)
    widths = [w for w in WIDTHS if w <= machine.lanes and (w == best or tile_vectors(-(-channels // w)))]
    times = {w: -(-channels // w) / machine.rate(w) for w in widths}
    least = min(times, key=lambda w: (times[w], -w))
    return least if times[least] <= NARROW_GAIN * times[best] else best


def channel_widths(groups: Sequence[Group], machine: Machine) -> dict[int, int]:
    """Lanes per block by number of channels, where they are not those of `block_width`: grouped convolutions want
    blocks that do not straddle groups, and results of few channels lie one channel after another (planar).

    By number of channels alone, so that values which are added have the same blocks.
    """
    found = dict.fromkeys(planar_channels(groups, machine), 1)
    for site in (g.anchor for g in groups if g.family == "grouped"):
        channels = site.results[0].shape[1]
        part = channels // site.int("group")
        width = block_width(part, machine)
        if width in WIDTHS and 2 * width >= machine.lanes and part % width == 0:
            found[channels] = min(width, found.get(channels, width))
    return found


def planar_channels(groups: Sequence[Group], machine: Machine) -> set[int]:
    """Numbers of channels whose images are planar: every convolution with so few results can store them so, with
    vectors along the columns of planar inputs, or along the channels of blocked ones."""
    few = range(1, min(MOST_PLANAR + 1, machine.lanes))
    made = [g for g in groups if g.family in CONVOLUTIONS and any(v.shape[1] in few for v in g.outputs)]
    found = set(few)
    while True:
        able = [g for g in made if _along_columns(g, found) or _along_channels(g, machine)]
        kept = found - {v.shape[1] for g in made if g not in able for v in g.outputs}
        if kept == found:
            break
        found = kept
    columns = [v for g in able if _along_columns(g, found) for v in g.segments]
    return found & {v.shape[1] for v in (*columns, *(v for g in able for v in g.outputs))}


def _along_columns(group: Group, planar: set[int]) -> bool:
    """Whether a convolution can have vectors along the columns of its input, which is planar then."""
    if group.family != "conv" or group.nested or group.anchor.ints("strides")[-1] != 1:
        return False
    return all(v.shape[1] in planar for v in group.segments)


def _along_channels(group: Group, machine: Machine) -> bool:
    """Whether a convolution can have vectors along its input channels: they come in blocks of one width."""
    widths = {block_width(v.shape[1], machine) for v in group.segments}
    return group.family == "conv" and not group.nested and len(widths) == 1 and widths <= set(WIDTHS)


def fewest_vectors(channels: int, lanes: int) -> int:
    """The narrowest vectors of at most `lanes` elements of which no more are needed than of any wider ones."""
    return min((w for w in WIDTHS if w <= lanes), key=lambda w: (-(-channels // w), w))


def tile_vectors(blocks: int) -> tuple[int, ...]:
    """Numbers of vectors of output channels, two or more, that register tiles of so many blocks can have."""
    return tuple(v for v in (2, 3, 4, 5, 7) if blocks % v == 0)


def assign_layouts(
    graph: Graph, groups: Sequence[Group], borders: Mapping[ValueRef, Border], machine: Machine
) -> dict[ValueRef, Layout]:
    """Layout of every activation that is stored; a value that is missing is plain.

    `borders` holds the values that templates read blocked, with the zero cells around them. Other groups keep what
    they read blocked as long as channels stay channels, so that no conversion stands inside a chain.
    """
    readers, widths = _readers(groups), channel_widths(groups, machine)

    def blocked(value: Value) -> Blocked:
        channels = value.shape[1]
        border = borders.get(value.ref, Border((0,) * (value.rank - 2), (0,) * (value.rank - 2)))
        return Blocked(widths.get(channels) or block_width(channels, machine), border.before, border.after)

    layouts: dict[ValueRef, Layout] = {}
    for value in graph.inputs:
        if value.ref in borders:
            layouts[value.ref] = blocked(value)
    for group in groups:
        for value in group.outputs:
            template = value.ref in borders or group.family in CONVOLUTIONS
            if template or _stays_blocked(group, value, layouts, readers):
                layouts[value.ref] = blocked(value)
    return layouts


def _readers(groups: Sequence[Group]) -> dict[ValueRef, list[Group]]:
    found: dict[ValueRef, list[Group]] = {}
    for group in groups:
        for value in group.inputs():
            found.setdefault(value.ref, []).append(group)
    return found


def _stays_blocked(
    group: Group, value: Value, layouts: Mapping[ValueRef, Layout], readers: Mapping[ValueRef, list[Group]]
) -> bool:
    """Whether a generic group's output keeps the blocked form of an operand.

    Not where axes change places, nor for one element per channel, which lies the same without blocks.
    """
    if group.family != "generic" or value.rank < 3 or value.dtype is not DType.FLOAT32 or value.shape[1] < 4:
        return False
    if math.prod(value.shape[2:]) == 1 or any(s.node.op.name in _MOVES_AXES for s in group.sites):
        return False
    useful = group.reduces or any(g.family != "view" for g in readers.get(value.ref, []))
    like = (isinstance(layouts.get(v.ref, Plain()), Blocked) and v.rank == value.rank for v in group.inputs())
    return useful and any(like)


_MOVES_AXES = frozenset(
    "Transpose MatMul Einsum DepthToSpace SpaceToDepth Gather GatherElements GatherND ScatterElements ScatterND "
    "Compress TopK".split()
)
"""Operators whose results have other axes than their operands, or entries from anywhere."""
