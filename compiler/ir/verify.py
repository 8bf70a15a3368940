"""Is a graph sound? Structure, types, ties, and what must hold after a named stage.

Every message says what, where, and both facts. ONNX itself has no level 3: a Conv whose weight expects 5 channels
on an 8-channel input passes the full checker, strict inference and opens in a runtime; it fails only when run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.graph import Graph, Site
from compiler.ir.levels import level_problems
from compiler.ir.op import Tie
from compiler.ir.relations import where
from compiler.ir.types import Axis, NodeRef, ValueRef

_MANY = 20


def verify(graph: Graph, stage: str | None = None) -> None:
    """Check `graph` at levels 1 (structure), 2 (types), 3 (ties) and 4 (`stage`: what that pass promises).

    Raises VerifyError with every problem of the first level that has one. The cost is one type inference per node.
    """
    for level in (_structure, _types, _ties, STAGES.get(stage or "", _nothing)):
        problems = list(level(graph))
        if problems:
            after = f"after {stage}: " if stage else ""
            raise _error(graph, [after + p for p in problems])


def _error(graph: Graph, problems: list[str]) -> VerifyError:
    shown = problems[:_MANY]
    if len(problems) > _MANY:
        shown.append(f"... and {len(problems) - _MANY} more")
    return VerifyError(f"graph '{graph.name}' is not sound\n  " + "\n  ".join(shown))


# ---------------------------------------------------------------------- 1 structure
def _structure(graph: Graph) -> Iterator[str]:
    try:
        nodes = graph.nodes()
    except VerifyError as error:
        yield str(error)
        return
    for node in nodes:
        operands, results = graph.edge_indices(node.ref)
        expected = [i for i in range(len(operands) + len(node.absent)) if i not in node.absent]
        if operands != expected:
            yield f"{node.op.name} '{node.ref}': operand indices are {_list(operands)}; expected {_list(expected)}"
        if results != list(range(len(results))):
            yield (
                f"{node.op.name} '{node.ref}': result indices are {_list(results)}; "
                f"expected {_list(range(len(results)))}"
            )
    inputs = {v.ref for v in graph.inputs}
    for value in graph.values():
        makers = graph.makers(value.ref)
        sources = makers + (value.ref in inputs) + (value.data is not None)
        if sources != 1:
            yield (
                f"value '{value.ref}': has {makers} producers"
                f"{', is a graph input' if value.ref in inputs else ''}"
                f"{', has data' if value.data is not None else ''}; expected exactly one source"
            )
    for task in graph.tasks.values():
        yield from (f"task '{task.name}': output '{r}' does not exist" for r in task.returned if r not in graph)


def _list(indices: object) -> str:
    return ", ".join(map(str, indices)) if indices else "none"  # type: ignore[call-overload]


# ---------------------------------------------------------------------- 2 types
def _types(graph: Graph) -> Iterator[str]:
    for value in graph.values():
        try:
            value.type.encoding.check(value.shape, value.data)
        except ValueError as error:
            yield f"value '{value.ref}': {error}"
    yield from level_problems(graph)
    for site in graph.sites():
        try:
            inferred = site.node.op.infer(site.node, site.operands, len(site.results))
        except VerifyError as error:
            yield str(error)
            continue
        for value, type_ in zip(site.results, inferred, strict=True):
            if value.type.shape != type_.shape or value.type.dtype != type_.dtype:
                yield f"{where(site)}: recorded {value.type}, inferred {type_} for result '{value.ref}'"


# ---------------------------------------------------------------------- 3 ties
def _ties(graph: Graph) -> Iterator[str]:
    for site in graph.sites():
        yield from _tie_problems(site)


def _tie_problems(site: Site) -> Iterator[str]:
    names = _axis_names(site)
    sizes = _sizes(site)
    for tie in site.node.op.ties(site):
        unknown = [x for x in (tie.a, tie.b) if x.owner not in names]
        if unknown:
            yield f"{where(site)}: ties {unknown[0]}, which is neither its operand nor its result"
            continue
        a, b = (f"{names[x.owner]} axis {x.dim}" for x in (tie.a, tie.b))
        used = _distinct(tie.index[tie.index >= 0])
        top = int(tie.index.max(initial=-1)) + 1
        size_a = sizes.setdefault(tie.a, top)
        size_b = sizes.setdefault(tie.b, len(tie.index))
        if len(tie.index) != size_b:
            yield f"{where(site)}: {b} has {size_b} entries, {a} has {len(tie.index)}"
        elif top > size_a or (_inside(site, tie) and used < size_a):
            # Two operands must match entirely; a result may be a slice of an operand.
            yield f"{where(site)}: {b} has {len(tie.index)} entries, {a} has {size_a}"


def _distinct(index: np.ndarray) -> int:
    """How many different entries there are; linear in the largest, for axes of millions."""
    seen = np.zeros(int(index.max(initial=-1)) + 1, np.bool_)
    seen[index] = True
    return int(np.count_nonzero(seen))


def _inside(site: Site, tie: Tie) -> bool:
    """Whether neither axis belongs to a result."""
    results = {v.ref for v in site.results}
    return tie.a.owner not in results and tie.b.owner not in results


def _axis_names(site: Site) -> dict[ValueRef | NodeRef, str]:
    names: dict[ValueRef | NodeRef, str] = {site.node.ref: "virtual"}
    names |= {v.ref: f"result {i} '{v.ref}'" for i, v in enumerate(site.results)}
    names |= {v.ref: f"operand {i} '{v.ref}'" for i, v in site.operands.present()}
    return names


def _sizes(site: Site) -> dict[Axis, int]:
    values = [*(v for _, v in site.operands.present()), *site.results]
    return {v.axis(d): n for v in values for d, n in enumerate(v.shape)}


# ---------------------------------------------------------------------- 4 stage
def _nothing(graph: Graph) -> Iterator[str]:
    yield from ()


def _unused(graph: Graph) -> Iterator[str]:
    needed = graph.needed_masks()
    inputs = {v.ref for v in graph.inputs}
    for node in graph.nodes():
        if node.ref not in needed:
            yield f"{node.op.name} '{node.ref}' is needed by no task"
    for value in graph.values():
        made = graph.producer(value.ref) is not None
        if value.ref not in needed and value.ref not in inputs and not made:
            yield f"value '{value.ref}' is needed by no task"


STAGES: Mapping[str, Callable[[Graph], Iterator[str]]] = MappingProxyType({"remove-dead-code": _unused})
"""Pass name -> what must hold after it, as problems found."""
