"""Sibling convolutions: convolutions of one layer that read some of the same buffers.

A merged layer is one convolution per set of tasks, each of which reads the channels of the sets that contain its
own; heads that begin with like convolutions on one trunk, and the branches of an inception module, have the same
form. Siblings run one after another, while what they read is in the near caches.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Sequence

from compiler.codegen.groups import Group
from compiler.ir.types import ValueRef

Siblings = tuple[int, ...]
"""Positions of the members in the list of all groups, ascending."""


def sibling_sets(groups: Sequence[Group]) -> tuple[Siblings, ...]:
    """All sets of at least two siblings among groups in execution order; the sets are disjoint.

    Members have equal geometry, as many steps before them at the longest (so that none can depend on another), and
    each reads a buffer that another one reads.
    """
    depths = _depths(groups)
    leader: dict[int, int] = {}
    first_reader: dict[tuple[Hashable, int, ValueRef], int] = {}

    def root(member: int) -> int:
        while leader[member] != member:
            member = leader[member]
        return member

    for number, group in enumerate(groups):
        if group.family != "conv":
            continue
        leader[number] = number
        for value in group.segments:
            known = first_reader.setdefault((_geometry(group), depths[number], value.ref), number)
            leader[root(number)] = root(known)
    found: dict[int, list[int]] = {}
    for member in leader:
        found.setdefault(root(member), []).append(member)
    return tuple(sorted(tuple(sorted(members)) for members in found.values() if len(members) > 1))


def layer_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups, in execution order before and after, with siblings next to each other."""
    together = {member: members for members in sibling_sets(groups) for member in members}
    unit = {n: together.get(n, (n,)) for n in range(len(groups))}
    readers: dict[Siblings, list[Siblings]] = {}
    missing: dict[Siblings, int] = dict.fromkeys(unit.values(), 0)
    for producer, reader in _edges(groups):
        readers.setdefault(unit[producer], []).append(unit[reader])
        missing[unit[reader]] += 1
    ready = [members for members, count in missing.items() if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        members = heapq.heappop(ready)
        order += members
        for reader_ in readers.get(members, ()):
            missing[reader_] -= 1
            if not missing[reader_]:
                heapq.heappush(ready, reader_)
    assert len(order) == len(groups), "siblings are equally deep, so that sets of them form no cycle"
    return tuple(groups[n] for n in order)


def _geometry(group: Group) -> Hashable:
    """What siblings have in common besides their depth: everything about the convolution but its channels."""
    site = group.anchor
    x, y = site.operands[0], site.results[0]
    attributes = (site.ints(a) for a in ("kernel_shape", "strides", "dilations", "pads"))
    return (x.shape[0], x.shape[2:], y.shape[2:], *attributes)


def _edges(groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    """(producer, reader) for every value that passes between two groups."""
    made = {value.ref: number for number, group in enumerate(groups) for value in group.outputs}
    for number, group in enumerate(groups):
        yield from ((made[v.ref], number) for v in group.inputs() if v.ref in made)


def _depths(groups: Sequence[Group]) -> list[int]:
    """Number of groups on the longest way to each."""
    depths = [0] * len(groups)
    for producer, reader in _edges(groups):
        depths[reader] = max(depths[reader], depths[producer] + 1)
    return depths
