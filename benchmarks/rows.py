"""Results: one row per case and peer, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.rounds import Duel

PLAIN = ("case", "peer", "ours_ms", "peer_ms", "ratio")
"""Keys that every row has; None where `error` says why nothing was measured. Other keys are left out if empty."""

OUR_FAULT = "ours: "
"""Start of an error that is not the peer's."""
REFUSED = "not compiled by us: "
"""Start of the reason where our compiler says that it does not take a network: no fault, but no result either."""


@dataclass(frozen=True)
class Row:
    """Times in milliseconds per call, `ratio` = peer / ours. `cold_*`: the caches were flushed before each call.

    `difference` is ours against onnxruntime, `peer_difference` the peer's: largest error over largest magnitude.
    """

    case: str
    peer: str
    ours_ms: float | None = None
    peer_ms: float | None = None
    ratio: float | None = None
    clock: str | None = None
    cold_ours_ms: float | None = None
    cold_peer_ms: float | None = None
    cold_ratio: float | None = None
    difference: float | None = None
    peer_difference: float | None = None
    gflops: float | None = None
    """Ours, by the multiply-adds of the plain algorithm."""
    peak: float | None = None
    """`gflops` over the core's measured peak; above 1 where an algorithm needs fewer multiplications."""
    library_bytes: int | None = None
    pool_bytes: int | None = None
    """Of our bundle: the shared library, and the weights in it."""
    version: str | None = None
    """Of the peer."""
    note: str | None = None
    error: str | None = None

    @property
    def our_fault(self) -> bool:
        """Whether nothing was measured because our side failed."""
        return bool(self.error and self.error.startswith(OUR_FAULT))

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: _rounded(v) for k, v in values.items() if k in PLAIN or v not in (None, "")}


def _rounded(value: Any) -> Any:
    """Six significant digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def times(hot: Duel, cold: Duel | None) -> dict[str, Any]:
    """The fields of a row that come from timing."""
    found = {"ours_ms": hot.ours * 1e3, "peer_ms": hot.peer * 1e3, "ratio": hot.ratio, "clock": hot.clock}
    if cold is not None:
        found |= {"cold_ours_ms": cold.ours * 1e3, "cold_peer_ms": cold.peer * 1e3, "cold_ratio": cold.ratio}
    return found


def geometric_mean(rows: Sequence[Row]) -> float | None:
    """Of the ratios that were measured; None if there are none."""
    ratios = [r.ratio for r in rows if r.ratio]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def to_json(rows: Sequence[Row]) -> str:
    """A JSON list, one row per line."""
    return "[\n" + ",\n".join(json.dumps(r.record()) for r in rows) + "\n]"


_HEADS = (("ours ms", 10), ("peer ms", 10), ("ratio", 8), ("cold", 7), ("error", 9), ("GFLOP/s", 9), ("peak", 6))
COLUMNS = f"{'case':36}{'peer':14}" + "".join(f"{name:>{width}}" for name, width in _HEADS)


def line(row: Row) -> str:
    """A row for a terminal."""
    if row.ratio is None:
        return f"{row.case:36}{row.peer:14}  {row.error}"
    remarks = [r for r in ("wall clock" if row.clock == "wall" else "", row.note, row.error) if r]
    numbers = f"{_number(row.ours_ms, 10)}{_number(row.peer_ms, 10)}{_number(row.ratio, 8)}"
    cold = f"{row.cold_ratio:7.2f}" if row.cold_ratio else " " * 7
    worst = max((d for d in (row.difference, row.peer_difference) if d is not None), default=None)
    error = " " * 9 if worst is None else f"{worst:9.0e}"
    speed = " " * 9 if row.gflops is None else f"{row.gflops:9.1f}"
    peak = " " * 6 if row.peak is None else f"{row.peak:6.0%}"
    return f"{row.case:36}{row.peer:14}{numbers}{cold}{error}{speed}{peak}  {'; '.join(remarks)}".rstrip()


def _number(value: float | None, width: int) -> str:
    """Four significant digits."""
    assert value is not None
    digits = max(0, 3 - math.floor(math.log10(value))) if value > 0 else 3
    return f"{value:{width}.{min(digits, 6)}f}"


def means(rows: Sequence[Row]) -> str:
    """A line per peer: geometric mean and least ratio, real networks apart."""
    lines = []
    for peer in dict.fromkeys(r.peer for r in rows):
        own = [r for r in rows if r.peer == peer]
        others = [r for r in own if r.case.startswith("real:")]
        for what, some in (("", [r for r in own if r not in others]), (", real networks", others)):
            mean = geometric_mean(some)
            if mean is not None and len(some) > 1:
                ratio, case = min((r.ratio, r.case) for r in some if r.ratio)
                measured = sum(r.ratio is not None for r in some)
                lines.append(f"{peer}{what}: geometric mean {mean:.2f} of {measured}, least {ratio:.2f} ({case})")
    return "\n".join(lines)
