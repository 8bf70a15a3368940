"""Levels of a graph: what its tasks can be answered with at run time, chosen call by call. Of two kinds.

Nested sparsity: one network at several densities, level 0 the densest. The blocks of weights that a level
stores are among those of the level before it, with the same bits, so all levels are stored as the densest one;
vectors such as biases may differ. A parameter holds the data of every level (`Value.sparser`); parameters without
any are the same at all levels.

A portfolio (`compiler.ir.portfolio`): several networks for the same tasks, one per level, each cheaper than the
rest for some combinations of tasks. A task holds its outputs at every level (`Task.variants`).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from compiler.errors import ConfigError
from compiler.ir.dead import sweep
from compiler.ir.encoding import BlockSparse, Dense, Encoding
from compiler.ir.graph import Graph, Operands, Site, Value
from compiler.ir.types import Task, TensorType

LEVELS_KEY = "taskgraft.levels"
"""Metadata entry of an exported model with levels: see `written`."""

ORDER_KEY = "taskgraft.order"
"""Metadata entry of an exported level that was taken from others: see `written_order`."""

MOST_LEVELS = 16


def level_count(graph: Graph) -> int:
    """Levels of the graph; 1 where it has none besides its own data."""
    return 1 + max([_variants(graph), *(len(v.sparser) for v in graph.parameters())])


def is_portfolio(graph: Graph) -> bool:
    """Whether the levels of the graph are networks of their own."""
    return _variants(graph) > 0


def level_suffix(level: int) -> str:
    """Behind the name of what a task of a portfolio gives at a level: nothing at level 0."""
    return f" at level {level}" if level else ""


def _variants(graph: Graph) -> int:
    return max((len(t.variants) for t in graph.tasks.values()), default=0)


def level_problems(graph: Graph) -> Iterator[str]:
    """What is wrong with the levels of a graph whose values are sound one by one."""
    count = level_count(graph)
    if count > MOST_LEVELS:
        yield f"the graph has {count} levels; at most {MOST_LEVELS} are possible"
    for task in graph.tasks.values():
        yield from _variant_problems(graph, task)
    for value in graph.parameters():
        if value.sparser and is_portfolio(graph):
            yield f"value '{value.ref}': has sparsity levels, and the graph is a portfolio; it can be one of both"
        if value.sparser and len(value.sparser) + 1 != count:
            yield f"value '{value.ref}': has {len(value.sparser) + 1} levels, another one has {count}"
        if len(value.order) >= MOST_LEVELS:
            yield f"value '{value.ref}': has an order of {len(value.order)} levels; {MOST_LEVELS - 1} are the most"


def at_level(graph: Graph, level: int, *, alone: bool = False, order: bool = True) -> Graph:
    """The graph whose level 0 is `level` of this one, frozen; sparser levels stay unless it is to be `alone`.

    A library of it repeats the bits of this level: where it has no levels left, weights keep the order of their
    blocks (`Value.order`) and run by lists as weights with levels do, unless `order` is False. ConfigError where
    there is no such level. Of a portfolio only what the levels that are left need stays.
    """
    count = level_count(graph)
    if not 0 <= level < count:
        raise ConfigError(f"there is no level {level}; graph '{graph.name}' has levels 0 to {count - 1}")
    made = graph.copy()
    for value in graph.parameters():
        if value.nested:
            chosen = value.at(level)
            left = () if alone else chosen.sparser
            kept = _order(chosen) if order and not left else ()
            made.update(value.ref, type=value.type, data=chosen.data, sparser=left, order=kept)
    if is_portfolio(graph):
        for task in graph.tasks.values():
            outputs, *variants = task.ladder[level:]
            made.set_task(task.name, outputs, task.labels, () if alone else variants)
        sweep(made)
    return made.freeze()


def _variant_problems(graph: Graph, task: Task) -> Iterator[str]:
    """What is wrong with a task of a portfolio."""
    if len(task.variants) != _variants(graph):
        yield f"task '{task.name}': has {len(task.ladder)} levels, another one has {_variants(graph) + 1}"
    wanted = [graph.value(r).type for r in task.outputs]
    for level, outputs in enumerate(task.variants, 1):
        found = [graph.value(r).type for r in outputs]
        if found != wanted:
            yield f"task '{task.name}': gives {_types(found)} at level {level}, {_types(wanted)} at level 0"


def _types(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types)) or "nothing"


def _order(value: Value) -> tuple[np.ndarray, ...]:
    """What is kept of the sparser levels of a parameter with levels; vectors have no order, so only that there is
    one."""
    behind = value.sparser if isinstance(value.type.encoding, BlockSparse) else ()
    return value.order or behind or (value.constant,)


def site_with(site: Site, change: Callable[[Value], Value]) -> Site:
    """A node with other data of its operands."""
    operands = [site.operands.optional(i) for i in range(len(site.operands))]
    return Site(site.node, Operands([None if v is None else change(v) for v in operands]), site.results)


# ---------------------------------------------------------------------- text, for files
def written(graph: Graph) -> str:
    """The levels as JSON; empty where the graph has none.

    `count`: levels. By name, as base64 of deflated bytes: `ranks` (uint8 per block) of nested weights, `values` of
    vectors (every further level, one after another, little-endian).
    """
    count = level_count(graph)
    if count == 1:
        return ""
    return json.dumps(_record(count, ((v, (v.constant, *v.sparser)) for v in graph.parameters() if v.sparser)))


def written_order(graph: Graph) -> str:
    """The order of levels that were taken from others as JSON; empty where there is none.

    A list of records like those of `written`, one for every number of levels: this one, and those of its order.
    """
    ordered: dict[int, list[tuple[Value, Ladder]]] = {}
    for value in graph.parameters():
        if value.order:
            ladder = (value.constant, *value.order)
            ordered.setdefault(len(ladder), []).append((value, ladder))
    return json.dumps([_record(count, ordered[count]) for count in sorted(ordered)]) if ordered else ""


Ladder = tuple[np.ndarray, ...]
"""Data of a parameter at levels, the densest first."""


def _record(count: int, found: Iterable[tuple[Value, Ladder]]) -> dict[str, object]:
    ranks, values = {}, {}
    for value, ladder in found:
        form = value.type.encoding
        if isinstance(form, BlockSparse):
            ranks[value.ref.name] = _packed(form.ranks(ladder))
        else:
            values[value.ref.name] = _packed(np.stack(ladder[1:]))
    return {"count": count, "ranks": ranks, "values": values}


def read(
    text: str, array: Callable[[str], np.ndarray], encodings: Mapping[str, Encoding]
) -> dict[str, tuple[np.ndarray, ...]]:
    """The inverse of `written`: the data of every further level by name.

    `array` gives the data of level 0 by name. ValueError, TypeError or LookupError where something does not fit.
    """
    return _read(json.loads(text), array, encodings)


def read_order(
    text: str, array: Callable[[str], np.ndarray], encodings: Mapping[str, Encoding]
) -> dict[str, tuple[np.ndarray, ...]]:
    """The inverse of `written_order`, as `read`."""
    records = json.loads(text)
    if type(records) is not list or len(records) >= MOST_LEVELS:
        raise ValueError(f"a list of fewer than {MOST_LEVELS} records is expected")
    found: dict[str, tuple[np.ndarray, ...]] = {}
    for record in records:
        found |= _read(record, array, encodings)
    return found


def _read(
    record: Mapping[str, Any], array: Callable[[str], np.ndarray], encodings: Mapping[str, Encoding]
) -> dict[str, tuple[np.ndarray, ...]]:
    count = record["count"]
    if type(count) is not int or not 2 <= count <= MOST_LEVELS:
        raise ValueError(f"a count of levels from 2 to {MOST_LEVELS} is expected")
    found = {}
    for name, packed in record["ranks"].items():
        found[name] = _by_rank(packed, array(name), encodings.get(name), count)
    for name, packed in record["values"].items():
        data = array(name)
        Dense().check_level(data, data)
        found[name] = tuple(_unpacked(packed, (count - 1, *data.shape), data.dtype))
    return found


def _by_rank(packed: str, data: np.ndarray, encoding: Encoding | None, count: int) -> tuple[np.ndarray, ...]:
    if not isinstance(encoding, BlockSparse):
        raise ValueError("ranks belong to weights in blocks")
    encoding.check(tuple(data.shape), data)
    ranks = _unpacked(packed, encoding.alive(data).shape, np.dtype(np.uint8))
    return tuple(encoding.of_rank(data, ranks, least) for least in range(2, count + 1))


def _packed(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode("ascii")


def _unpacked(text: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    state = zlib.decompressobj()
    try:
        raw = state.decompress(base64.b64decode(text, validate=True), size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from None
    if len(raw) != size:
        raise ValueError(f"{'more than ' * (len(raw) > size)}{len(raw)} bytes where {size} are expected")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
