"""Reports from one object: rows for CSV and JSON, before and after."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from compiler.calibration.evaluation import TaskEvaluation
from compiler.cost.combine import CostReport, Row
from compiler.cost.count import node_cost, totals
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.json_form import finite


def to_json(value: object) -> str:
    """Readable JSON with a final newline; keys keep their order, numbers that are not finite are null."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the columns of the first one; None is an empty cell."""
    stream = io.StringIO()
    if rows:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return stream.getvalue()


def combination_rows(costs: CostReport, evaluations: Sequence[TaskEvaluation] = ()) -> list[dict[str, object]]:
    """One row per combination for combos.csv: its cost, that of the separate models, metric and drift per task."""
    return [_combination(row, other, evaluations) for row, other in costs.pairs()]


def _combination(row: Row, other: Row | None, evaluations: Sequence[TaskEvaluation]) -> dict[str, object]:
    record = {**row.record(), "tasks": "+".join(row.tasks)}
    record["separate_flops"] = other.cost.flops if other else None
    record["separate_parameters"] = other.cost.parameters if other else None
    for one in (e for e in evaluations if e.level == row.level):
        known = one.task in row.tasks
        record[f"metric_{one.task}"] = one.final.metric if known else None
        record[f"drift_{one.task}"] = one.final.drift if known else None
    return record


def layer_rows(graph: Graph) -> list[dict[str, object]]:
    """One row per node for layers.csv."""
    owners = graph.needed_by()
    rows = []
    for site in graph.sites():
        cost = node_cost(site)
        rows.append(
            {
                "node": site.node.ref.name,
                "op": site.node.op.name,
                "tasks": "+".join(t for t in graph.tasks if t in owners.get(site.node.ref, frozenset())),
                "operands": " ".join(str(v.type) for _, v in site.operands.present()),
                "results": " ".join(str(v.type) for v in site.results),
                "macs": cost.macs,
                "macs_dense": cost.macs_dense,
                "flops": cost.flops,
                "activation_bytes": cost.activation_bytes,
                "origin": " ".join(site.node.origin),
            }
        )
    return rows


def level_rows(graph: Graph) -> list[dict[str, object]]:
    """One row per level: the share of all weights that it stores, and what it costs."""
    elements = sum(v.size for v in graph.parameters() if v.dtype.is_float)
    costs = [totals(at_level(graph, level, alone=True)) for level in range(level_count(graph))]
    return [
        {
            "level": level,
            "density": cost.parameters / elements if elements else 1.0,
            "parameters": cost.parameters,
            "weight_bytes": cost.weight_bytes,
            "macs": cost.macs,
            "flops": cost.flops,
        }
        for level, cost in enumerate(costs)
    ]


def summary(costs: CostReport) -> list[dict[str, object]]:
    """Costs of all tasks together: the separate models, where they are known, and what is compiled, of a portfolio
    at its cheapest level."""
    rows = [_stage("separate", costs.separate[-1])] if costs.separate else []
    *_, whole = costs.cheapest()
    return [*rows, _stage("compiled", whole)]


def _stage(name: str, row: Row) -> dict[str, object]:
    cost = row.cost
    return {
        "stage": name,
        "level": row.level,
        "macs": cost.macs,
        "flops": cost.flops,
        "parameters": cost.parameters,
        "weight_bytes": cost.weight_bytes,
        "workspace_bytes": row.workspace_bytes,
    }
