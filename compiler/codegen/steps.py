"""The steps of a full graph: kernel calls in order and what they read and write, before memory is planned.

Written once for all subsets of tasks: a program is the steps that its tasks need.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.codegen.groups import Group, describe
from compiler.codegen.kernels import Builder, Built, Slot
from compiler.codegen.layout import Layout, Plain
from compiler.codegen.planner import Decision, Decisions
from compiler.codegen.sharing import worth_sharing
from compiler.codegen.strategies import STRATEGIES
from compiler.ir.graph import Graph, Ref
from compiler.ir.types import ValueRef
from compiler.progress import Say, silent, tracked

Symbols = dict[Hashable, tuple[Built, str]]
"""Distinct kernels by key, each with its symbol, in order of first use."""


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel call before memory is planned; `decision` is None for copies between layouts."""

    built: Built
    mask: int
    nodes: tuple[str, ...]
    decision: Decision | None = None
    flops: int = 0
    members: tuple[int, ...] = ()
    """Of a kernel with members: the tasks that need each."""

    def needs(self, tasks: int) -> tuple[bool, ...]:
        """By slot, whether a call for these tasks uses it."""
        active = sum(1 << i for i, mask in enumerate(self.members) if mask & tasks)
        return tuple(bool(u & active) for u in self.built.users) or (True,) * len(self.built.slots)

    def tasks_of(self, slot: int) -> int:
        """The tasks whose calls use the slot at a position."""
        tasks = (t for t in range(self.mask.bit_length()) if self.mask >> t & 1)
        return sum(1 << t for t in tasks if self.needs(1 << t)[slot])


@dataclass
class Steps:
    """The steps of the full graph, and where what they read and write lies."""

    graph: Graph
    builder: Builder
    masks: Mapping[Ref, int]
    decisions: Decisions
    calls: list[Step] = field(default_factory=list)
    alias: dict[Slot, Slot] = field(default_factory=dict)
    """Values that lie where another one does: reinterpreted shapes, network inputs and outputs, constants."""

    def add(self, built: Built, mask: int, nodes: tuple[str, ...]) -> None:
        """A step without anything to choose."""
        self.calls.append(Step(built, mask, nodes))

    def home(self, slot: Slot) -> Slot:
        """Where a slot's bytes are: a caller's pointer, the pool, or the value that owns the buffer."""
        if slot.kind == "plain" and slot.ref is not None and isinstance(self.builder.layout(slot.ref), Plain):
            slot = Slot("value", slot.ref)
        return self.home(self.alias[slot]) if slot in self.alias else slot

    def bytes(self, slot: Slot) -> int:
        """Size of the buffer of a value in one of its two forms."""
        assert slot.ref is not None
        value = self.graph.value(slot.ref)
        layout = self.builder.layout(slot.ref) if slot.kind == "value" else Plain()
        return layout.elements(value.shape) * value.dtype.bytes

    def shared(self, step: Step) -> bool:
        """Whether threads share the step; the same in every subset."""
        predicted = step.decision.predicted if step.decision else None
        moved = sum(self.bytes(slot) for slot in step.built.slots if slot.ref is not None)
        return worth_sharing(step.built.parts, predicted, step.flops, moved, self.builder.target.machine)

    def names(self, mask: int) -> list[str]:
        """The tasks of a bit mask."""
        return [task for i, task in enumerate(self.graph.tasks) if mask >> i & 1]

    def symbols(self, name: str) -> Symbols:
        """One symbol per distinct kernel, numbered by first use; `name`: of the library."""
        found: Symbols = {}
        for step in self.calls:
            if step.built.key not in found:
                found[step.built.key] = (step.built, f"k_{name}_{len(found)}")
        return found


def steps_of(
    builder: Builder, groups: Sequence[Group], decisions: Decisions, outputs: int, say: Say = silent
) -> Steps:
    """The steps of every group, with copies where a reader, or the caller, wants a value in another layout.

    `outputs`: how many the caller has; a flattened portfolio returns each of them once per level.
    """
    steps = Steps(builder.graph, builder, builder.graph.needed_masks(), decisions)
    _add_inputs(steps)
    needs_plain = _plain_readers(groups, builder.layouts)
    for group in tracked(say, f"{builder.target.name}: layers", groups):
        _add_group(steps, group, needs_plain)
    _add_outputs(steps, outputs)
    return steps


def _add_inputs(steps: Steps) -> None:
    """Network inputs are read where the caller has them, or packed once where a template wants them blocked."""
    for index, value in enumerate(steps.graph.inputs):
        mask = steps.masks.get(value.ref, 0)
        layout = steps.builder.layout(value.ref)
        if isinstance(layout, Plain):
            steps.alias[Slot("value", value.ref)] = Slot("input", at=index)
        else:
            steps.alias[Slot("plain", value.ref)] = Slot("input", at=index)
            slots = (Slot("input", at=index), Slot("value", value.ref))
            steps.add(steps.builder.copy(value, Plain(), layout, slots), mask, (f"pack {value.ref}",))


def _plain_readers(groups: Sequence[Group], layouts: Mapping[ValueRef, Layout]) -> dict[ValueRef, int]:
    """Values stored blocked that some kernel reads row-major, with the tasks that need the copy."""
    found: dict[ValueRef, int] = {}
    for group in groups:
        if group.family not in ("gemm", "contraction", "recurrent", "view"):
            continue
        for value in group.inputs():
            if value.data is None and not isinstance(layouts.get(value.ref, Plain()), Plain):
                found[value.ref] = found.get(value.ref, 0) | group.mask
    return found


def _add_group(steps: Steps, group: Group, needs_plain: Mapping[ValueRef, int]) -> None:
    stored = tuple(v for v in group.outputs if steps.masks.get(v.ref) and v.size)
    if group.family == "recurrent":
        stored = group.outputs
    if not stored:
        return
    if group.family == "view" and _alias_view(steps, group):
        return
    decision = steps.decisions[group.anchor.node.ref]
    built = STRATEGIES[decision.choice.algorithm].build(steps.builder, group, decision.choice, stored)
    flops, members = sum(s.node.op.flops(s) for s in group.sites), tuple(m.mask for m in group.members)
    steps.calls.append(Step(built, group.mask, describe(group), decision, flops, members))
    written_plain = {s.ref for s in built.slots if s.kind == "plain"}
    for value in stored:
        layout = steps.builder.layout(value.ref)
        if isinstance(layout, Plain):
            continue
        plain, blocked = Slot("plain", value.ref), Slot("value", value.ref)
        if value.ref in written_plain:
            steps.add(
                steps.builder.copy(value, Plain(), layout, (plain, blocked)), group.mask, (f"pack {value.ref}",)
            )
        elif value.ref in needs_plain:
            copy = steps.builder.copy(value, layout, Plain(), (blocked, plain))
            steps.add(copy, needs_plain[value.ref], (f"unpack {value.ref}",))


def _alias_view(steps: Steps, group: Group) -> bool:
    """Let a reinterpreted value lie where its operand does; False where the result is wanted in another layout."""
    value, operand = group.outputs[0], group.anchor.operands[0]
    if not isinstance(steps.builder.layout(value.ref), Plain) or operand.data is not None:
        return False
    steps.alias[Slot("value", value.ref)] = Slot("plain", operand.ref)
    return True


def _add_outputs(steps: Steps, outputs: int) -> None:
    """Every task output reaches the caller: written there directly where nothing else reads it and only calls for
    the tasks that return it there write it, else copied."""
    returned = _returned(steps.graph, outputs)
    times = Counter(ref for ref, _ in returned)
    users = _users(steps.calls)
    for (ref, place), tasks in returned.items():
        slot, value, stored = Slot("output", at=place), steps.graph.value(ref), Slot("value", ref)
        sole = times[ref] == 1 and not steps.graph.uses(ref) and users.get(ref) == tasks
        if not value.size:
            continue
        if sole and isinstance(steps.builder.layout(ref), Plain) and stored not in steps.alias:
            steps.alias[stored] = slot
            continue
        if value.data is not None:
            stored = steps.builder.levelled(ref.name, (value.data, *value.sparser), "plain")
        built = steps.builder.copy(value, steps.builder.layout(ref), Plain(), (stored, slot))
        steps.add(built, tasks, (f"store {ref}",))


def _returned(graph: Graph, outputs: int) -> dict[tuple[ValueRef, int], int]:
    """By value and place among the caller's `outputs`: the tasks that return it there."""
    found: dict[tuple[ValueRef, int], int] = {}
    place = itertools.count()
    for bit, task in enumerate(graph.tasks.values()):
        for ref in task.outputs:
            key = ref, next(place) % outputs
            found[key] = found.get(key, 0) | 1 << bit
    return found


def _users(steps: Sequence[Step]) -> dict[ValueRef, int]:
    """The tasks whose calls read or write each value."""
    found: dict[ValueRef, int] = {}
    for step in steps:
        for position, slot in enumerate(step.built.slots):
            if slot.ref is not None:
                found[slot.ref] = found.get(slot.ref, 0) | step.tasks_of(position)
    return found
