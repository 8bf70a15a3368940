"""What is told about one bundle: one object that becomes report.html, report.json and the CSV files of `reports/`.

Everything is a recorded fact of the build, so the same build gives the same bytes. Times measured later lie in
`reports/measured/`; `taskgraft report` puts them beside these facts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.calibration.evaluation import TaskEvaluation
from compiler.codegen.bundle import Bundle, read_plain
from compiler.codegen.explain import Explanation, explain
from compiler.codegen.program import Library
from compiler.codegen.target import Target
from compiler.cost.combine import CostReport
from compiler.errors import BundleError
from compiler.gates import GateResult
from compiler.ir.graph import Graph
from compiler.json_form import finite
from compiler.page import page
from compiler.pipeline import PassRecord
from compiler.report import combination_rows, layer_rows, summary, to_csv, to_json
from compiler.views import drawing, ownership, pool_sections

REPORT_SCHEMA = 1
"""Form of report.json; files of another one are refused."""
PARTS = frozenset(
    "name target preset build_id tasks summary combinations evaluation ownership pool graph steps remarks passes "
    "gates".split()
)
"""What report.json must hold to be shown."""
MOST_COMBINATIONS = 4095
"""Rows of report.json and report.html; combos.csv holds all."""
QUANTITIES = ("macs", "macs_dense", "flops", "parameters", "weight_bytes", "activation_bytes", "workspace_bytes")
COLUMNS = ("mask", "level", *QUANTITIES, "separate_flops", "separate_parameters")
"""Columns of the combinations in report.json; `mask` has bit i set for the i-th task."""


@dataclass(frozen=True)
class BundleReport:
    """Facts of one target of a build. `evaluation`, `gates` and `records` are empty where there was no release."""

    graph: Graph
    library: Library
    target: Target
    build_id: str
    costs: CostReport
    records: tuple[PassRecord, ...] = ()
    evaluation: tuple[TaskEvaluation, ...] = ()
    gates: tuple[GateResult, ...] = ()

    @property
    def plan(self) -> Explanation:
        """What runs every step, and why."""
        return explain(self.library.plan, self.target.machine)

    def record(self) -> dict[str, Any]:
        """JSON-ready: everything the page shows."""
        plan = self.plan
        steps = plan.record()["steps"]
        assert isinstance(steps, list)
        layers = layer_rows(self.graph)
        return {
            "schema": REPORT_SCHEMA,
            "name": self.library.name,
            "target": self.target.name,
            "preset": self.target.preset,
            "build_id": self.build_id,
            "tasks": [t.name for t in self.library.tasks],
            "summary": summary(self.costs),
            "combinations": self._combinations(),
            "evaluation": [{**e.record(), "lower_is_better": e.lower_is_better} for e in self.evaluation],
            "ownership": ownership(self.graph),
            "pool": {
                "bytes": len(self.library.pool),
                "sections": pool_sections(self.graph, self.library.pool_table, len(self.library.pool)),
            },
            "graph": drawing(self.graph, layers, steps),
            "steps": steps,
            "remarks": list(plan.remarks),
            "passes": [r.record() for r in self.records],
            "gates": [g.record() for g in self.gates],
            "measured": [],
        }

    def files(self) -> dict[str, bytes]:
        """The files of `reports/` by name."""
        record = self.record()
        verdicts = {"gates": record["gates"], "evaluation": [e.record() for e in self.evaluation]}
        texts = {
            "combos.csv": to_csv(combination_rows(self.costs, self.evaluation)),
            "layers.csv": to_csv(self._layers(record)),
            "summary.csv": to_csv(summary(self.costs)),
            "verify.json": to_json(verdicts),
            "report.json": to_json(record),
            "report.html": page([finite(record)]),
        }
        return {name: text.encode() for name, text in texts.items()}

    def _combinations(self) -> dict[str, object]:
        """Rows as lists under COLUMNS: all of them, or as many as the page holds; the full sets always."""
        bits = {t.name: 1 << i for i, t in enumerate(self.library.tasks)}
        rows = []
        for number, (row, other) in enumerate(self.costs.pairs(), 1):
            if number >= MOST_COMBINATIONS and len(row.tasks) < len(bits):
                continue
            facts = row.record()
            beside = (other.cost.flops, other.cost.parameters) if other else (None, None)
            rows.append([sum(bits[t] for t in row.tasks), row.level, *(facts[q] for q in QUANTITIES), *beside])
        total = sum(map(len, self.costs.levels))
        return {"columns": list(COLUMNS), "total": total, "rows": rows}

    @staticmethod
    def _layers(record: Mapping[str, Any]) -> list[dict[str, object]]:
        """The rows of layers.csv: every node, and what its kernel is predicted to take, told at its first node."""
        rows = []
        told: set[int] = set()
        for node in record["graph"]["nodes"]:
            if node["op"] in ("input", "output"):
                continue
            index = node["step"]
            step = None if index is None else record["steps"][index]
            first = step is not None and index not in told
            told |= set() if index is None else {index}
            rows.append(
                {
                    **{k: v for k, v in node.items() if k != "mask"},
                    "kernel": step["choice"] if step else None,
                    "chosen_by": step["chosen_by"] if step else None,
                    "predicted_seconds": step["predicted"] if step and first else None,
                    "weight_bytes": step["weight_bytes"] if step and first else None,
                }
            )
        return rows


def read_report(bundle: Bundle) -> dict[str, Any]:
    """report.json of a checked bundle. BundleError where it is missing, of another schema, or of another build."""
    where = bundle.path / "reports" / "report.json"
    try:
        record = json.loads(read_plain(bundle.path, "reports/report.json"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON: {error}") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != REPORT_SCHEMA:
        raise BundleError(f"{where} has schema {schema!r}, this version of taskgraft reads {REPORT_SCHEMA}")
    missing = sorted(PARTS - set(record))
    if missing:
        raise BundleError(f"{where} lacks {', '.join(missing)}; compile the bundle again")
    if record.get("build_id") != bundle.manifest["build_id"]:
        raise BundleError(f"{where} is of another build than the bundle's manifest; compile the bundle again")
    return dict(record)


def measured_path(bundle: Bundle, where: str) -> Path:
    """The file of `reports/measured/` for times taken at `where`, a name in words."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", where).strip("-.") or "times"
    return bundle.path / "reports" / "measured" / f"{slug}.json"


def read_measured(bundle: Bundle) -> list[dict[str, Any]]:
    """Times of every combination as `bench --save` wrote them: `where`, and `subsets` with `tasks` ("a+b"), `level`
    and `seconds_median`. BundleError where a file is not of this form."""
    folder = bundle.path / "reports" / "measured"
    names = sorted(p.name for p in folder.glob("*.json")) if folder.is_dir() else []
    return [_times(read_plain(bundle.path, f"reports/measured/{name}"), folder / name) for name in names]


def _times(data: bytes, where: Path) -> dict[str, Any]:
    try:
        record = json.loads(data)
        seconds = {(str(s["tasks"]), int(s["level"])): float(s["seconds_median"]) for s in record["subsets"]}
        if not all(0 <= value < math.inf for value in seconds.values()):
            raise ValueError("a time is no number of seconds")
        rows = [{"tasks": t, "level": n, "seconds_median": value} for (t, n), value in seconds.items()]
        return {"where": str(record["where"]), "subsets": rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BundleError(f"{where} does not hold times of `bench --save` ({reason}); remove it") from None


def comparison(records: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """One row per bundle for summary.csv of several: cost, size, metrics of all tasks at level 0, of a portfolio at
    the level that is the cheapest for all of them together."""
    rows = []
    tasks = list(dict.fromkeys(t for r in records for t in r["tasks"]))
    for record in records:
        compiled = record["summary"][-1]
        level = compiled.get("level", 0)
        metrics = {
            e["task"]: (e["bundle"] or e["graph"])["metric"]
            for e in record["evaluation"]
            if e.get("level", 0) == level
        }
        rows.append(
            {
                "name": record["name"],
                "target": record["target"],
                "level": level,
                **{k: v for k, v in compiled.items() if k not in ("stage", "level")},
                "pool_bytes": record["pool"]["bytes"],
                **{f"metric_{t}": metrics.get(t) for t in tasks},
            }
        )
    return rows
