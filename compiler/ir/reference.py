"""The meaning of a graph, in numpy: every operator's own `evaluate`, in topological order.

Slow and plain on purpose: this is what passes, exports and compiled libraries are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from compiler.errors import ConfigError
from compiler.ir.graph import Graph, Node, Site
from compiler.ir.types import ValueRef

Arrays = dict[ValueRef, np.ndarray]
Edit = Callable[[ValueRef, np.ndarray], np.ndarray]

TINY = 1e-12
UNITS = 16
"""Units in the last place by which two right ways of computing the same may differ."""


def evaluate(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    tasks: Iterable[str] | None = None,
    keep: Collection[str] | None = None,
    edit: Edit | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of `tasks` (default: all) on `feeds` (input name -> array), by value name.

    `keep` names further values to return; only they and the outputs stay in memory. `edit` replaces every input,
    parameter and result before anybody reads it, which is how entries are masked. Raises ConfigError for feeds,
    tasks or values that do not fit.
    """
    wanted = _wanted(graph, tasks, keep or ())
    nodes = _needed(graph, wanted)
    arrays = {r: a if edit is None else edit(r, a) for r, a in _checked_feeds(graph, feeds).items()}
    uses = Counter(v.ref for n in nodes for _, v in graph.operands(n).present())
    for node in nodes:
        site = graph.site(node)
        operands = _operands(site, arrays, edit)
        # Overflow and invalid values are part of what a network computes; comparisons deal with them.
        with np.errstate(all="ignore"):
            results = site.node.op.evaluate(site, operands)
        for value, array in zip(site.results, results, strict=True):
            arrays[value.ref] = array if edit is None else edit(value.ref, array)
        _release(site, arrays, uses, wanted)
    return {r.name: arrays[r] if r in arrays else graph.value(r).constant for r in wanted}


def _operands(site: Site, arrays: Arrays, edit: Edit | None) -> list[np.ndarray | None]:
    found: list[np.ndarray | None] = [None] * len(site.operands)
    for i, value in site.operands.present():
        if value.data is None:
            found[i] = arrays[value.ref]
        else:
            found[i] = value.data if edit is None else edit(value.ref, value.data)
    return found


def _release(site: Site, arrays: Arrays, uses: Counter[ValueRef], wanted: Collection[ValueRef]) -> None:
    for _, value in site.operands.present():
        uses[value.ref] -= 1
        if not uses[value.ref] and value.ref not in wanted:
            arrays.pop(value.ref, None)


def _wanted(graph: Graph, tasks: Iterable[str] | None, keep: Iterable[str]) -> dict[ValueRef, None]:
    """Task outputs, then kept values, in order and once each."""
    names = list(graph.tasks) if tasks is None else list(tasks)
    unknown = [n for n in names if n not in graph.tasks]
    missing = [n for n in keep if ValueRef(n) not in graph]
    if unknown or missing:
        what = [*(f"no task '{n}'" for n in unknown), *(f"no value '{n}'" for n in missing)]
        raise ConfigError(f"graph '{graph.name}' has {', '.join(what)}; its tasks are {', '.join(graph.tasks)}")
    refs = [r for n in names for r in graph.tasks[n].outputs]
    return dict.fromkeys([*refs, *(ValueRef(n) for n in keep)])


def _needed(graph: Graph, wanted: Iterable[ValueRef]) -> Sequence[Node]:
    """The nodes above `wanted`, in topological order."""
    needed: set[ValueRef] = set(wanted)
    chosen: list[Node] = []
    for node in reversed(graph.nodes()):
        if any(v.ref in needed for v in graph.results(node)):
            chosen.append(node)
            needed.update(v.ref for _, v in graph.operands(node).present())
    return chosen[::-1]


def _checked_feeds(graph: Graph, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Every graph input as an array of its type; ConfigError with all that do not fit."""
    problems, arrays = [], {}
    for value in graph.inputs:
        array = feeds.get(value.ref.name)
        if array is None:
            problems.append(f"'{value.ref}' is missing")
        elif tuple(np.shape(array)) != value.shape:
            problems.append(f"'{value.ref}' has shape {tuple(np.shape(array))}, expected {value.shape}")
        else:
            arrays[value.ref] = np.asarray(array, value.dtype.numpy)
    unknown = sorted(set(feeds) - {v.ref.name for v in graph.inputs})
    problems += [f"'{name}' is not an input" for name in unknown]
    if problems:
        raise ConfigError(f"inputs of graph '{graph.name}': {'; '.join(problems)}")
    return arrays


def difference(found: np.ndarray, expected: np.ndarray, floor: float = TINY) -> float:
    """max|found - expected| / max(max|expected|, floor); inf where shapes or non-finite places differ.

    Relative to the tensor, because element-wise ratios mean nothing near zero.
    """
    if found.shape != expected.shape:
        return float("inf")
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), floor))


def roundings(graph: Graph) -> dict[ValueRef, float]:
    """Per value, what rounding may change it by, relative to the tensor: UNITS of the coarsest type of floats that
    anything on the way to it was rounded to. Inputs and parameters are what they are: 0.
    """
    found = {v.ref: 0.0 for v in graph.values()}
    for node in graph.nodes():
        before = max((found[v.ref] for _, v in graph.operands(node).present()), default=0.0)
        for value in graph.results(node):
            unit = float(np.finfo(value.dtype.value).eps) if value.dtype.is_float else 0.0
            found[value.ref] = max(before, UNITS * unit)
    return found


def comparable(expected: np.ndarray) -> bool:
    """Whether equality with an array says anything: `difference` is 0 of floats that are all infinite or NaN."""
    return expected.dtype.kind != "f" or not expected.size or bool(np.isfinite(expected).any())


def random_feeds(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Seeded inputs: standard normal for floats, small non-negative integers, random booleans."""
    feeds = {}
    for value in graph.inputs:
        dtype = value.dtype.numpy
        if value.dtype.is_float:
            feeds[value.ref.name] = rng.standard_normal(value.shape).astype(dtype)
        else:
            feeds[value.ref.name] = rng.integers(0, 2, value.shape).astype(dtype)
    return feeds
