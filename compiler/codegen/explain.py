"""What a plan says about every step, and what the steps cost: facts for people and for JSON. No tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compiler.codegen.profile import choice_text
from compiler.errors import plural
from compiler.machine import Machine

MOST_GENERIC = 0.05
"""Share of the time in generic steps above which a warning is due."""
RATED = 1e-7
"""Seconds below which the clock is too coarse for a rate."""
NAMED = 3
"""Steps that a line names."""


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One call of the full program. Times in seconds, rates in FLOPs per second; None where not known."""

    nodes: tuple[str, ...]
    tasks: tuple[str, ...]
    """The tasks that need it."""
    kind: str
    """`copy`, `generic`, or another algorithm."""
    choice: str
    """Algorithm and tile; for a copy the layouts."""
    chosen_by: str
    """`database`, `rule` or `plan`; empty where there is one way only."""
    why: str
    reads: tuple[str, ...]
    """Shape and layout of everything that is read besides constants."""
    writes: tuple[str, ...]
    flops: int
    """Of the plain algorithm: one multiply-add is two, zeros of sparse weights left out."""
    weight_bytes: int
    """Packed constants."""
    zeros: str
    """Sparse weights only: whether their zeros are `left out`, `multiplied`, or `left out in part`: of one of two
    weights."""
    predicted: float | None
    seconds: float | None
    """Measured inside the whole network."""
    share: float | None
    """Of the time of all steps."""
    rate: float | None
    peak: float | None
    """The rate as a share of the core's nominal peak; more than 1 where an algorithm saves multiplications."""


@dataclass(frozen=True)
class Explanation:
    """All steps in the order they run, and what is worth saying about them."""

    preset: str
    peak: float
    """Nominal FLOPs per second of one core."""
    steps: tuple[StepFacts, ...]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Time of all steps; None where nothing was measured."""
        times = [s.seconds for s in self.steps]
        return None if not times or None in times else sum(t for t in times if t is not None)

    def record(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "target": self.preset,
            "peak_flops": self.peak,
            "seconds": self.seconds,
            "steps": [asdict(s) for s in self.steps],
            "remarks": list(self.remarks),
            "warnings": list(self.warnings),
        }


def explain(plan: Mapping[str, Any], machine: Machine, times: Sequence[float] | None = None) -> Explanation:
    """The plan of a library in words; `times`: seconds of every step where they were measured."""
    total = sum(times) if times else 0.0
    steps = tuple(
        _facts(step, machine, None if times is None else times[i], total) for i, step in enumerate(plan["steps"])
    )
    measured = times is not None
    remarks = [*_share_lines(steps, measured), *_dense_lines(steps)]
    return Explanation(plan["target"], machine.peak_flops, steps, tuple(remarks), tuple(_warnings(steps)))


def _facts(step: Mapping[str, Any], machine: Machine, seconds: float | None, total: float) -> StepFacts:
    copy = "algorithm" not in step
    flops = int(step.get("flops", 0))
    rate = flops / seconds if flops and seconds and seconds >= RATED else None
    return StepFacts(
        nodes=tuple(step["nodes"]),
        tasks=tuple(step["tasks"]),
        kind="copy" if copy else step["algorithm"],
        choice=f"{step['from']} to {step['to']}" if copy else choice_text(step),
        chosen_by="" if copy or step["ways"] == 1 else step["chosen_by"],
        why="" if copy else _why(step),
        reads=_shapes(step, "reads", "from"),
        writes=_shapes(step, "writes", "to"),
        flops=flops,
        weight_bytes=int(step.get("weight_bytes", 0)),
        zeros=step.get("zeros", ""),
        predicted=_seconds(step.get("predicted_ns")),
        seconds=seconds,
        share=None if seconds is None else seconds / total if total else 0.0,
        rate=rate,
        peak=None if rate is None else rate / machine.peak_flops,
    )


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds * 1e-9


def _shapes(step: Mapping[str, Any], key: str, layout: str) -> tuple[str, ...]:
    """Shapes with layouts; a copy has one shape and two layouts."""
    values = step[key] if key in step else [{"shape": step["shape"], "layout": step[layout]}]
    return tuple(f"{'x'.join(map(str, v['shape'])) or 'scalar'} {v['layout']}" for v in values)


# ---------------------------------------------------------------------- why
def _why(step: Mapping[str, Any]) -> str:
    """What the choice rests on, and how far behind the best of the others are."""
    siblings = f"{len(step['members'])} siblings by one kernel; " if step.get("members") else ""
    return siblings + _grounds(step)


def _grounds(step: Mapping[str, Any]) -> str:
    """Why this choice among all of them."""
    if step["ways"] == 1:
        return "the only way"
    kind = "measured" if step["measured_ns"] is not None else "predicted"
    rivals = sorted((o for o in step["others"] if o[f"{kind}_ns"] is not None), key=lambda o: o[f"{kind}_ns"])
    own = step[f"{kind}_ns"]
    behind = [f"{choice_text(o)} {o[f'{kind}_ns'] / own - 1:+.0%}" for o in rivals[:NAMED] if own]
    basis = {
        "database": ("fastest measured", "then"),
        "rule": (f"best predicted of {step['ways']}", "then"),
        "plan": (f"recorded, one of {step['ways']}", f"{kind}:"),
    }
    what, others = basis[step["chosen_by"]]
    return f"{what}; {others} {', '.join(behind)}" if behind else what


# ---------------------------------------------------------------------- lines
def _share_lines(steps: Sequence[StepFacts], measured: bool) -> list[str]:
    """Time and share of copies and of generic steps."""
    lines = []
    kinds = (
        ("copy", "copy between layouts", "copies between layouts"),
        ("generic", "generic step", "generic steps"),
    )
    for kind, one, many in kinds:
        found = [s for s in steps if s.kind == kind]
        if not found:
            continue
        count = plural(len(found), one, many)
        if not measured:
            lines.append(count)
            continue
        seconds = sum(s.seconds or 0.0 for s in found)
        largest = sorted(found, key=lambda s: -(s.seconds or 0.0))[:NAMED]
        named = ", ".join(f"{_name(s)} {s.share or 0.0:.1%}" for s in largest)
        lines.append(f"{count}: {seconds * 1e6:.1f} us, {sum(s.share or 0.0 for s in found):.1%} ({named})")
    return lines


def _dense_lines(steps: Sequence[StepFacts]) -> list[str]:
    """Layers whose sparse weights are multiplied with all their zeros, or those of one of them."""
    lines = []
    for zeros, how in (("multiplied", "run densely"), ("left out in part", "run densely in part")):
        found = [s for s in steps if s.zeros == zeros]
        if not found:
            continue
        named = ", ".join(f"{_name(s)} ({s.choice})" for s in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        lines.append(
            f"{plural(len(found), 'layer')} with sparse weights {how}, because that is faster: {named}{more}"
        )
    return lines


def _warnings(steps: Sequence[StepFacts]) -> list[str]:
    generic = sum(s.share or 0.0 for s in steps if s.kind == "generic")
    if generic <= MOST_GENERIC:
        return []
    largest = sorted((s for s in steps if s.kind == "generic"), key=lambda s: -(s.share or 0.0))[:NAMED]
    named = ", ".join(f"{_name(s)} {s.share:.1%}" for s in largest)
    return [f"generic steps take {generic:.1%} of the time, more than {MOST_GENERIC:.0%}: {named}"]


def _name(step: StepFacts) -> str:
    return step.nodes[0]
