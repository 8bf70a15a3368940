"""Graph to library: the plan of the full graph, its kernels, and a program for every listed subset of tasks.

The plan is made once, on the full graph. A program is the list of steps its tasks need, with its own workspace
offsets; every subset calls the same kernels on the same packed weights, so outputs agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compiler.codegen.groups import make_groups
from compiler.codegen.kernels import Builder
from compiler.codegen.layout import Layout, Plain
from compiler.codegen.layouts import assign_layouts
from compiler.codegen.lower import compile_kernels
from compiler.codegen.pack import Pool
from compiler.codegen.planner import Sources, decide, form, wanted_borders
from compiler.codegen.program import Level, Library, Port, Program, TaskIO
from compiler.codegen.programs import Programs
from compiler.codegen.record import plan_record
from compiler.codegen.steps import steps_of
from compiler.codegen.target import Target
from compiler.codegen.variants import flattened
from compiler.cost.combine import cheapest_levels
from compiler.cost.count import parameter_cost
from compiler.errors import ConfigError, LoweringError
from compiler.ir.graph import Graph, Value
from compiler.ir.levels import at_level, is_portfolio, level_count
from compiler.ir.types import ValueRef
from compiler.progress import Say, silent
from compiler.workers.jobs import Workers

MOST_LISTED_TASKS = 6
"""Up to this many tasks every subset is listed by default."""

MOST_CELLS = 2**31 - 1
"""Elements of one buffer: kernels count them in 32 bits."""


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
    sources, masks, flat = sources or Sources(), _listed(graph, subsets), flattened(graph)
    cheapest = cheapest_levels(graph) if is_portfolio(graph) else ()
    groups = form(flat, make_groups(flat, templates=templates), target, sources)
    decisions = decide(flat, groups, target, sources)
    layouts = assign_layouts(flat, groups, wanted_borders(groups, decisions), target.machine)
    _check_sizes(flat, layouts)
    pool = Pool()
    builder = Builder(flat, target, layouts, pool)
    steps = steps_of(builder, groups, decisions, len(graph.outputs), say)
    symbols = steps.symbols(name or graph.name)
    compiled = compile_kernels({s: b.func for b, s in symbols.values()}, target, workers, say)
    programs = Programs(steps, symbols, compiled.scratch)
    every = (1 << len(flat.tasks)) - 1
    full = programs.program(every)
    _check_workspace(graph, full, target)

    def listed(level: int) -> tuple[Program, ...]:
        chosen = (mask << level * len(graph.tasks) for mask in masks)
        return tuple(full if m == every else programs.program(m) for m in chosen)

    return Library(
        name=name or graph.name,
        inputs=tuple(_port(v, v.ref.name) for v in graph.inputs),
        tasks=tuple(_task_io(graph, t) for t in graph.tasks),
        kernels=programs.kernels,
        full=full,
        programs=listed(0),
        variants=tuple(listed(level) for level in range(1, level_count(graph)) if is_portfolio(graph)),
        cheapest=cheapest,
        pool=pool.data,
        pool_table=pool.table,
        objects=tuple(compiled.objects.values()),
        levels=tuple(_level(graph, i) for i in range(level_count(graph))),
        scratch_bytes=max((compiled.scratch.get(c.kernel, 0) for c in full.calls if c.shared), default=0),
        plan=plan_record(steps, symbols, target, sources.database),
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


def _check_workspace(graph: Graph, full: Program, target: Target) -> None:
    """LoweringError where the target has no addresses for so much memory."""
    if full.workspace_bytes > target.most_bytes:
        raise LoweringError(
            f"graph '{graph.name}' needs {full.workspace_bytes:,} bytes of workspace, and {target.name} has "
            f"addresses for {target.most_bytes:,}; make its inputs smaller"
        )


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
    constants = [v for v in at_level(graph, level, alone=True).parameters() if v.dtype.is_float]
    costs = [parameter_cost(v) for v in constants]
    return Level(
        sum(v.size for v in constants), sum(c.parameters for c in costs), sum(c.weight_bytes for c in costs)
    )


def _port(value: Value, label: str) -> Port:
    return Port(value.ref.name, value.type, label)


def _task_io(graph: Graph, task: str) -> TaskIO:
    made = graph.tasks[task]
    return TaskIO(task, tuple(_port(graph.value(r), n) for r, n in zip(made.outputs, made.labels, strict=True)))
