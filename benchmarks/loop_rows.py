"""Results of the study of innermost loops: a row per case, stage and target, for files, terminals and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

NONE = "–"
COLUMNS = (
    f"{'case':26}{'target':20}{'kernel':28}{'instr.':>7}{'mul-adds':>9}{'share':>7}{'by el.':>7}{'spills':>7}"
    f"{'products/cycle':>15}{'per pipe':>9}"
)


@dataclass(frozen=True)
class LoopRow:
    """An innermost loop. `peer` is the target whose code it is, `version` the model that estimated its cycles.

    `share`: multiply-adds of all instructions, of loops without them vector arithmetic; `by_element`: of the
    multiply-adds those that take an element of a vector; `spills`: accesses to the stack; `products` of elements
    per cycle; `per_pipe`: by each of the core's vector pipes. None where `error` says why.
    """

    case: str
    peer: str
    kernel: str | None = None
    """Algorithm and tile."""
    instructions: int | None = None
    multiply_adds: int | None = None
    share: float | None = None
    by_element: float | None = None
    spills: int | None = None
    products: float | None = None
    per_pipe: float | None = None
    version: str | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """JSON-ready, without what is empty."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items() if v is not None}


def line(row: LoopRow) -> str:
    """A row for a terminal."""
    head = f"{row.case:26}{row.peer:20}"
    if row.share is None:
        return f"{head}{row.error}"
    counts = f"{row.instructions:7}{row.multiply_adds:9}{row.share:7.0%}{row.by_element or 0:7.0%}{row.spills:7}"
    cycles = NONE if row.products is None else f"{row.products:.2f}"
    pipe = NONE if row.per_pipe is None else f"{row.per_pipe:.2f}"
    return f"{head}{row.kernel or '':28}{counts}{cycles:>15}{pipe:>9}  {row.error or ''}".rstrip()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line per case, a column per target: share of multiply-adds, products per cycle, spills."""
    targets = list(dict.fromkeys(r["peer"] for r in rows))
    lines = [f"| case | {' | '.join(targets)} |", f"| --- |{' --: |' * len(targets)}"]
    for case in dict.fromkeys(r["case"] for r in rows):
        own = {r["peer"]: r for r in rows if r["case"] == case}
        lines.append(f"| {case} | {' | '.join(_cell(own.get(t)) for t in targets)} |")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.get("error"):
            reasons.setdefault(f"{row['peer']}: {row['error']}", []).append(row["case"])
    notes = [f"- {', '.join(cases)}: {reason}" for reason, cases in reasons.items()]
    return "\n".join([*lines, *(["", "Not measured:", "", *notes] if notes else [])])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row.get("share") is None:
        return NONE
    pipe = row.get("per_pipe")
    parts = [f"{100 * row['share']:.0f} %", NONE if pipe is None else f"{pipe:.2f}"]
    return ", ".join([*parts, f"{row['spills']} spills"] if row["spills"] else parts)
