"""Graph to library: the plan of the full graph, its kernels, and a program for every listed subset of tasks.

The plan is made once, on the full graph. A program is the list of steps its tasks need, with its own workspace
offsets; every subset calls the same kernels on the same packed weights, so outputs agree bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compiler.codegen.groups import Group, describe, make_groups
from compiler.codegen.kernels import Builder, Built, Slot
from compiler.codegen.layout import Layout, Plain
from compiler.codegen.layouts import assign_layouts
from compiler.codegen.lower import Compiled, compile_kernels
from compiler.codegen.memory import Interval, place
from compiler.codegen.pack import Pool
from compiler.codegen.planner import Decision, Decisions, Sources, decide, form, wanted_borders
from compiler.codegen.program import PLAN_SCHEMA, Argument, Call, Kernel, Level, Library, Port, Program, TaskIO
from compiler.codegen.record import step_record
from compiler.codegen.sharing import worth_sharing
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.target import Target
from compiler.cost.count import parameter_cost
from compiler.errors import ConfigError, LoweringError
from compiler.ir.graph import Graph, Ref, Value
from compiler.ir.levels import level_count
from compiler.ir.types import ValueRef
from compiler.progress import Say, silent, tracked
from compiler.workers.jobs import Workers

MOST_LISTED_TASKS = 6
"""Up to this many tasks every subset is listed by default."""

MOST_CELLS = 2**31 - 1
"""Elements of one buffer: kernels count them in 32 bits."""


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
class _Plan:
    """State while the steps of the full graph are written down."""

    graph: Graph
    builder: Builder
    masks: Mapping[Ref, int]
    decisions: Decisions
    steps: list[Step] = field(default_factory=list)
    alias: dict[Slot, Slot] = field(default_factory=dict)
    """Values that lie where another one does: reinterpreted shapes, network inputs and outputs, constants."""

    def add(self, built: Built, mask: int, nodes: tuple[str, ...]) -> None:
        """A step without anything to choose."""
        self.steps.append(Step(built, mask, nodes))

    def home(self, slot: Slot) -> Slot:
        """Where a slot's bytes are: a caller's pointer, the pool, or the value that owns the buffer."""
        if slot.kind == "plain" and slot.ref is not None and isinstance(self.builder.layout(slot.ref), Plain):
            slot = Slot("value", slot.ref)
        return self.home(self.alias[slot]) if slot in self.alias else slot


def generate(
    graph: Graph,
    target: Target,
    *,
    name: str | None = None,
    subsets: Iterable[frozenset[str]] | None = None,
    templates: bool = True,
    sources: Sources | None = None,
    workers: Workers | None = None,
    say: Say = silent,
) -> Library:
    """Compile every task of `graph` for `target`.

    `subsets` lists the task sets that get a function of their own; None lists all of them up to six tasks and
    each single task and the full set beyond. `templates=False` lowers everything by the generic route. `sources`
    holds a recorded plan and measurements; without them algorithms and tiles are chosen by rule. `workers` compile
    the kernels; None: this process does.
    Raises ConfigError for an unknown task or a plan that does not fit, LoweringError where a node cannot be
    compiled.
    """
    sources = sources or Sources()
    groups = form(graph, make_groups(graph, templates=templates), target, sources)
    decisions = decide(graph, groups, target, sources)
    layouts = assign_layouts(graph, groups, wanted_borders(groups, decisions), target.machine)
    _check_sizes(graph, layouts)
    pool = Pool()
    plan = _Plan(graph, Builder(graph, target, layouts, pool), graph.needed_masks(), decisions)
    _plan_inputs(plan)
    needs_plain = _plain_readers(groups, layouts)
    for group in tracked(say, f"{target.name}: layers", groups):
        _plan_group(plan, group, needs_plain)
    _plan_outputs(plan)
    symbols = _symbols(plan.steps, name or graph.name)
    compiled = compile_kernels({s: b.func for b, s in symbols.values()}, target, workers, say)
    masks = _listed(graph, subsets)
    every = (1 << len(graph.tasks)) - 1
    full = _program(plan, symbols, compiled, every)
    if full.workspace_bytes > target.most_bytes:
        raise LoweringError(
            f"graph '{graph.name}' needs {full.workspace_bytes:,} bytes of workspace, and {target.name} has "
            f"addresses for {target.most_bytes:,}; make its inputs smaller"
        )
    return Library(
        name=name or graph.name,
        inputs=tuple(_port(v, v.ref.name) for v in graph.inputs),
        tasks=tuple(_task_io(graph, t) for t in graph.tasks),
        kernels=tuple(
            Kernel(s, len(b.slots) + bool(compiled.scratch.get(s)), b.template, b.parts, b.members)
            for b, s in symbols.values()
        ),
        full=full,
        programs=tuple(full if m == every else _program(plan, symbols, compiled, m) for m in masks),
        pool=pool.data,
        pool_table=pool.table,
        objects=tuple(compiled.objects.values()),
        levels=tuple(_level(graph, i) for i in range(level_count(graph))),
        scratch_bytes=max((compiled.scratch.get(c.kernel, 0) for c in full.calls if c.shared), default=0),
        plan=_record(plan, symbols, target, sources.database),
    )


def _check_sizes(graph: Graph, layouts: Mapping[ValueRef, Layout]) -> None:
    """LoweringError where a buffer has more elements than kernels can count."""
    for value in graph.values():
        cells = layouts.get(value.ref, Plain()).elements(value.shape)
        if cells > MOST_CELLS:
            raise LoweringError(
                f"'{value.ref}' ({value.type}) would lie in a buffer of {cells:,} elements, with its border and "
                f"the channels that fill blocks; kernels count to {MOST_CELLS:,}. Make the input smaller"
            )


# ---------------------------------------------------------------------- steps of the full graph
def _plan_inputs(plan: _Plan) -> None:
    """Network inputs are read where the caller has them, or packed once where a template wants them blocked."""
    for index, value in enumerate(plan.graph.inputs):
        mask = plan.masks.get(value.ref, 0)
        layout = plan.builder.layout(value.ref)
        if isinstance(layout, Plain):
            plan.alias[Slot("value", value.ref)] = Slot("input", at=index)
        else:
            plan.alias[Slot("plain", value.ref)] = Slot("input", at=index)
            slots = (Slot("input", at=index), Slot("value", value.ref))
            plan.add(plan.builder.copy(value, Plain(), layout, slots), mask, (f"pack {value.ref}",))


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


def _plan_group(plan: _Plan, group: Group, needs_plain: Mapping[ValueRef, int]) -> None:
    stored = tuple(v for v in group.outputs if plan.masks.get(v.ref) and v.size)
    if group.family == "recurrent":
        stored = group.outputs
    if not stored:
        return
    if group.family == "view" and _alias_view(plan, group):
        return
    decision = plan.decisions[group.anchor.node.ref]
    built = STRATEGIES[decision.choice.algorithm].build(plan.builder, group, decision.choice, stored)
    flops, members = sum(s.node.op.flops(s) for s in group.sites), tuple(m.mask for m in group.members)
    plan.steps.append(Step(built, group.mask, describe(group), decision, flops, members))
    written_plain = {s.ref for s in built.slots if s.kind == "plain"}
    for value in stored:
        layout = plan.builder.layout(value.ref)
        if isinstance(layout, Plain):
            continue
        plain, blocked = Slot("plain", value.ref), Slot("value", value.ref)
        if value.ref in written_plain:
            plan.add(
                plan.builder.copy(value, Plain(), layout, (plain, blocked)), group.mask, (f"pack {value.ref}",)
            )
        elif value.ref in needs_plain:
            copy = plan.builder.copy(value, layout, Plain(), (blocked, plain))
            plan.add(copy, needs_plain[value.ref], (f"unpack {value.ref}",))


def _alias_view(plan: _Plan, group: Group) -> bool:
    """Let a reinterpreted value lie where its operand does; False where the result is wanted in another layout."""
    value, operand = group.outputs[0], group.anchor.operands[0]
    if not isinstance(plan.builder.layout(value.ref), Plain) or operand.data is not None:
        return False
    plan.alias[Slot("value", value.ref)] = Slot("plain", operand.ref)
    return True


def _plan_outputs(plan: _Plan) -> None:
    """Every task output reaches the caller: written there directly where nothing else reads it and only calls for
    that task write it, else copied."""
    position = itertools.count()
    times: dict[ValueRef, int] = {}
    for value in plan.graph.outputs:
        times[value.ref] = times.get(value.ref, 0) + 1
    users = _users(plan.steps)
    for bit, task in enumerate(plan.graph.tasks.values()):
        for ref in task.outputs:
            slot, value = Slot("output", at=next(position)), plan.graph.value(ref)
            stored = Slot("value", ref)
            sole = times[ref] == 1 and not plan.graph.uses(ref) and users.get(ref) == 1 << bit
            if not value.size:
                continue
            if sole and isinstance(plan.builder.layout(ref), Plain) and stored not in plan.alias:
                plan.alias[stored] = slot
                continue
            if value.data is not None:
                stored = plan.builder.levelled(ref.name, (value.data, *value.sparser), "plain")
            built = plan.builder.copy(value, plan.builder.layout(ref), Plain(), (stored, slot))
            plan.add(built, 1 << bit, (f"store {ref}",))


def _users(steps: Sequence[Step]) -> dict[ValueRef, int]:
    """The tasks whose calls read or write each value."""
    found: dict[ValueRef, int] = {}
    for step in steps:
        for position, slot in enumerate(step.built.slots):
            if slot.ref is not None:
                found[slot.ref] = found.get(slot.ref, 0) | step.tasks_of(position)
    return found


# ---------------------------------------------------------------------- kernels and programs
def _symbols(steps: Sequence[Step], name: str) -> dict[Hashable, tuple[Built, str]]:
    """One symbol per distinct kernel, numbered by first use."""
    found: dict[Hashable, tuple[Built, str]] = {}
    for step in steps:
        if step.built.key not in found:
            found[step.built.key] = (step.built, f"k_{name}_{len(found)}")
    return found


def _program(plan: _Plan, symbols: Mapping[Hashable, tuple[Built, str]], compiled: Compiled, mask: int) -> Program:
    """The steps the tasks of `mask` need, with workspace offsets of their own."""
    steps = [s for s in plan.steps if s.mask & mask]
    placement = place(_intervals(plan, steps, symbols, compiled, mask))
    calls = []
    for number, step in enumerate(steps):
        symbol = symbols[step.built.key][1]
        arguments = [
            _argument(plan.home(s), placement.offsets) if needed else Argument("none", 0)
            for s, needed in zip(step.built.slots, step.needs(mask), strict=True)
        ]
        if compiled.scratch.get(symbol):
            arguments.append(Argument("scratch", placement.offsets[_scratch(number)]))
        shared = _shared(plan, step)
        calls.append(Call(symbol, tuple(arguments), step.mask, step.nodes, step.built.parts, shared, step.members))
    return Program(mask, tuple(calls), placement.bytes, placement.lower_bound)


def _shared(plan: _Plan, step: Step) -> bool:
    """Whether threads share the step; the same in every subset."""
    predicted = step.decision.predicted if step.decision else None
    moved = sum(_bytes(plan, slot) for slot in step.built.slots if slot.ref is not None)
    return worth_sharing(step.built.parts, predicted, step.flops, moved, plan.builder.target.machine)


def _argument(home: Slot, offsets: Mapping[str, int]) -> Argument:
    if home.kind in ("value", "plain"):
        return Argument("workspace", offsets[_buffer(home)])
    kind = home.kind
    assert kind in ("input", "output", "pool")
    return Argument(kind, home.at, home.stride)


def _buffer(home: Slot) -> str:
    """Name of the buffer of a value in one of its two forms; the kind comes first, since a value may be called
    anything."""
    return f"{home.kind} {home.ref}"


def _scratch(number: int) -> str:
    """Name of the working memory of a step."""
    return f"scratch {number:06d}"


def _intervals(
    plan: _Plan, steps: Sequence[Step], symbols: Mapping[Hashable, tuple[Built, str]], compiled: Compiled, mask: int
) -> list[Interval]:
    """Lifetimes of every workspace buffer over these steps for the tasks of `mask`, scratch memory included."""
    found: dict[str, Interval] = {}
    for number, step in enumerate(steps):
        for slot in itertools.compress(step.built.slots, step.needs(mask)):
            home = plan.home(slot)
            if home.kind not in ("value", "plain") or home.ref is None:
                continue
            name = _buffer(home)
            size = _bytes(plan, home)
            known = found.get(name, Interval(name, size, number, number))
            found[name] = replace(known, last=number)
        scratch = compiled.scratch.get(symbols[step.built.key][1], 0)
        if scratch:
            name = _scratch(number)
            found[name] = Interval(name, scratch, number, number)
    return list(found.values())


def _bytes(plan: _Plan, home: Slot) -> int:
    assert home.ref is not None
    value = plan.graph.value(home.ref)
    layout = plan.builder.layout(home.ref) if home.kind == "value" else Plain()
    return layout.elements(value.shape) * value.dtype.bytes


def _listed(graph: Graph, subsets: Iterable[frozenset[str]] | None) -> tuple[int, ...]:
    """Bit masks of the subsets that get their own function, ascending."""
    bits = {task: 1 << i for i, task in enumerate(graph.tasks)}
    every = (1 << len(bits)) - 1
    if not bits:
        raise LoweringError(f"graph '{graph.name}' has no tasks")
    if subsets is None:
        return tuple(range(1, every + 1)) if len(bits) <= MOST_LISTED_TASKS else (*bits.values(), every)
    wanted = list(subsets)
    unknown = sorted({t for s in wanted for t in s} - set(bits))
    if unknown:
        raise ConfigError(f"unknown tasks {', '.join(unknown)}; the graph has {', '.join(bits)}")
    if any(not s for s in wanted):
        raise ConfigError("a subset of tasks cannot be empty")
    return tuple(sorted({sum(bits[t] for t in s) for s in wanted}))


def _level(graph: Graph, level: int) -> Level:
    constants = [v.at(level) for v in graph.parameters() if v.dtype.is_float]
    costs = [parameter_cost(v) for v in constants]
    return Level(
        sum(v.size for v in constants), sum(c.parameters for c in costs), sum(c.weight_bytes for c in costs)
    )


def _port(value: Value, label: str) -> Port:
    return Port(value.ref.name, value.type, label)


def _task_io(graph: Graph, task: str) -> TaskIO:
    made = graph.tasks[task]
    return TaskIO(task, tuple(_port(graph.value(r), n) for r, n in zip(made.outputs, made.labels, strict=True)))


def _names(plan: _Plan, mask: int) -> list[str]:
    return [task for i, task in enumerate(plan.graph.tasks) if mask >> i & 1]


def _record(
    plan: _Plan, symbols: Mapping[Hashable, tuple[Built, str]], target: Target, database: str
) -> dict[str, object]:
    """What was chosen, call by call: JSON-ready."""
    steps = []
    for step in plan.steps:
        chosen = {} if step.decision is None else step_record(plan.builder, step.built, step.nodes, step.decision)
        steps.append(
            {
                "nodes": list(step.nodes),
                "kernel": symbols[step.built.key][1],
                "template": step.built.template,
                "tasks": _names(plan, step.mask),
                **({"members": [_names(plan, mask) for mask in step.members]} if step.members else {}),
                "units": step.built.parts,
                "shared": _shared(plan, step),
                **chosen,
                **step.built.note,
            }
        )
    return {
        "schema": PLAN_SCHEMA,
        "target": target.preset,
        "lanes": target.lanes,
        "database": database or None,
        "steps": steps,
    }
