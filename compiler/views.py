"""Views of a compiled graph for reports: who owns the channels of each layer, boxes and arrows, bytes of the pool.

Plain rows from recorded facts: the graph, the plan, the table of the weight pool. Nothing is measured or estimated
here. A `mask` has bit i set where the i-th task needs something; 0 where no task is known for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from compiler.codegen.program import PoolEntry
from compiler.ir.graph import Graph, Ref, Site
from compiler.ir.levels import level_suffix
from compiler.ir.op import MacOp
from compiler.ir.types import ValueRef

CHANNELS_SECOND = ("Conv", "ConvTranspose")
"""Operators whose channels are axis 1 of the result; those of the other products are its last axis."""


def layer_name(node: str, mask: int, tasks: Sequence[str]) -> str:
    """A node's name without what union and merge added: the task in front, the label `[a+b]` behind."""
    owners = "+".join(t for i, t in enumerate(tasks) if mask >> i & 1)
    base = node.removesuffix(f"[{owners}]")
    prefix, slash, rest = base.partition("/")
    return rest if slash and rest and prefix in tasks else base


def ownership(graph: Graph) -> list[dict[str, object]]:
    """Layers with multiply-adds in topological order: `layer`, `op`, and `owners`, a list of [mask, channels].

    Nodes that one layer became (one per set of tasks that share channels), and layers of one name in several
    networks, are one row.
    """
    masks, tasks = graph.needed_masks(), list(graph.tasks)
    rows: dict[tuple[str, str], dict[int, int]] = {}
    for site in graph.sites():
        mask = masks.get(site.node.ref, 0)
        if isinstance(site.node.op, MacOp) and mask:
            key = layer_name(site.node.ref.name, mask, tasks), site.node.op.name
            owners = rows.setdefault(key, {})
            owners[mask] = owners.get(mask, 0) + _channels(site)
    return [
        {"layer": layer, "op": op, "owners": [[m, n] for m, n in sorted(owners.items(), reverse=True)]}
        for (layer, op), owners in rows.items()
    ]


def _channels(site: Site) -> int:
    shape = site.results[0].shape
    if not shape:
        return 1
    return shape[1] if site.node.op.name in CHANNELS_SECOND and len(shape) > 1 else shape[-1]


def drawing(graph: Graph, layers: Sequence[Mapping[str, object]], steps: Sequence[Any]) -> dict[str, object]:
    """`nodes`: inputs, then the rows of `layers` (one per node of `graph`, in order), then outputs; `edges`: index
    pairs.

    Every node has `node` (its name), `op` (`input`, `output` or the operator) and `mask`; a layer also its
    row and `step`, the index among `steps` (facts of the plan, see `codegen.explain`) of its kernel, else None.
    """
    masks = graph.needed_masks()
    step_of = {name: i for i, step in enumerate(steps) for name in step["nodes"]}
    nodes: list[dict[str, object]] = []
    made: dict[Ref, int] = {}
    for value in graph.inputs:
        made[value.ref] = len(nodes)
        nodes.append(
            {"node": value.ref.name, "op": "input", "mask": masks.get(value.ref, 0), "type": str(value.type)}
        )
    edges: list[list[int]] = []
    for site, row in zip(graph.sites(), layers, strict=True):
        name, index = site.node.ref.name, len(nodes)
        nodes.append({**row, "mask": masks.get(site.node.ref, 0), "step": step_of.get(name)})
        edges += _arrows(made, (v.ref for _, v in site.operands.present()), index)
        made |= {v.ref: index for v in site.results}
    for bit, task in enumerate(graph.tasks.values()):
        for level, outputs in enumerate(task.ladder):
            for ref, label in zip(outputs, task.labels, strict=True):
                name = task.name if len(outputs) == 1 else f"{task.name}/{label}"
                name += level_suffix(level)
                edges += _arrows(made, [ref], len(nodes))
                nodes.append({"node": name, "op": "output", "mask": 1 << bit, "type": str(graph.value(ref).type)})
    return {"nodes": nodes, "edges": edges}


def _arrows(made: Mapping[Ref, int], sources: Any, target: int) -> list[list[int]]:
    """One arrow from each different maker of the values; constants have none."""
    return [[i, target] for i in dict.fromkeys(made[r] for r in sources if r in made)]


def pool_sections(graph: Graph, table: Sequence[PoolEntry], size: int) -> list[dict[str, object]]:
    """Bytes of the weight pool by `layout`, largest first, and by the tasks that read them: [mask, bytes] pairs.

    `size`: of the pool. Bytes that several tensors share count once, for the readers of all; the rest is `padding`.
    """
    masks = graph.needed_masks()
    readers: dict[int, int] = {}
    for entry in table:
        readers[entry.offset] = readers.get(entry.offset, 0) | masks.get(ValueRef(entry.name), 0)
    sections: dict[str, dict[int, int]] = {}
    places = sorted({e.offset: e for e in reversed(table)}.values(), key=lambda e: e.offset)
    used = 0
    for entry, limit in pairwise([*places, PoolEntry("", size, 0, "")]):
        mask, count = readers[entry.offset], min(entry.bytes, limit.offset - entry.offset)
        owners = sections.setdefault(entry.layout, {})
        owners[mask] = owners.get(mask, 0) + count
        used += count
    if size > used:
        sections["padding"] = {0: size - used}
    rows = sorted(sections.items(), key=lambda s: (-sum(s[1].values()), s[0]))
    return [{"section": name, "owners": [[m, n] for m, n in sorted(o.items(), reverse=True)]} for name, o in rows]
