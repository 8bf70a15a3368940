"""The comparison of one case: check the outputs of every contender, then time all of them in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.host import flush_bytes, machine_lock
from benchmarks.outputs import Arrays, Expected
from benchmarks.peers import KERNELS, OURS, PEAK, PEERS, Peer
from benchmarks.peers.client import PeerError, Worker
from benchmarks.peers.peak_engine import FLOPS as PEAK_FLOPS
from benchmarks.rounds import Timing, duel, race
from benchmarks.rows import OUR_FAULT, Row, times
from benchmarks.settings import Settings, say
from compiler import find_target

SLOWEST = 5.0
"""Peers that take more seconds than this for a call are not timed."""


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: an engine with what it loads. `label` is the peer's name in the row.

    `expected`: what it computes, where that is another function than the problem's.
    """

    label: str
    peer: Peer
    model: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: Expected | None = None


@dataclass(frozen=True)
class Problem:
    """What every contender of a case computes. `flops` of one call of ours: None where no rate is wanted."""

    case: str
    feeds: Arrays
    expected: Expected
    flops: int | None = None
    wall: bool = False
    """Compare by wall clock, whatever the threads."""
    against_peak: bool = False
    """A row more, against the peer `peak`: the time in which the core could do `flops`; the ratio is the share."""


@dataclass
class _Field:
    """The contenders that run and are right, and why the others are not here."""

    workers: dict[str, Worker] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    hot: dict[str, Timing] = field(default_factory=dict)
    cold: dict[str, Timing] = field(default_factory=dict)
    peak: float | None = None
    """Operations per second the core can do."""


def compare(problem: Problem, ours: Contender, peers: Sequence[Contender], settings: Settings) -> list[Row]:
    """A row per peer. A contender that cannot run, or is wrong, gives rows that say why."""
    with ExitStack() as stack:
        found = _Field()
        for contender in (ours, *peers):
            try:
                _admit(stack.enter_context(started(contender, problem.feeds, settings)), contender, problem, found)
            except PeerError as error:
                found.errors[contender.label] = str(error)
        if ours.label in found.errors:
            return _failed(problem, peers, OUR_FAULT + found.errors[ours.label])
        peak = _peak_worker(settings, stack) if problem.flops else None
        try:
            _time(found, peak, settings)
        except PeerError as error:
            return _failed(problem, peers, f"while timing: {error}")
    rows = [_row(problem, ours.label, p.label, found) for p in peers]
    return [*rows, _peak_row(problem, ours.label, found)] if problem.against_peak else rows


def started(contender: Contender, feeds: Arrays, settings: Settings) -> Worker:
    """A worker with its model loaded. PeerError with the reason."""
    worker = Worker(contender.peer.launch(settings.venvs), contender.peer.patience)
    try:
        common = {"threads": len(settings.cores), "kept": str(settings.kept), "mcpu": find_target("host").mcpu}
        options = {**common, **contender.options}
        worker.load(contender.model, feeds, settings.cores, options)
    except BaseException:
        worker.close()
        raise
    return worker


def reference(file: Path, feeds: Arrays, settings: Settings) -> Expected:
    """What onnxruntime computes from an ONNX file, optimised and not. PeerError with the reason."""
    found = []
    for optimise in (True, False):
        judge = Contender("onnxruntime", PEERS["onnxruntime"], file, {"optimise": optimise})
        with started(judge, feeds, settings) as worker:
            found.append(worker.outputs())
    return Expected.of(*found)


def kernels(label: str, file: Path, settings: Settings, algorithm: str = "") -> Contender:
    """Our kernels without copies between layouts; `algorithm` wherever it applies, else the planner's choice."""
    return Contender(label, KERNELS, file, {"target": settings.target, "algorithm": algorithm})


def bundle(folder: Path, label: str = "ours", **options: Any) -> Contender:
    """Our contender: a bundle; the options are those of its engine."""
    return Contender(label, OURS, folder, options)


def _admit(worker: Worker, contender: Contender, problem: Problem, found: _Field) -> None:
    expected = contender.expected or problem.expected
    found.differences[contender.label] = expected.check(worker.outputs())
    (once,) = worker.run(1).wall
    if once > SLOWEST and contender.peer.requirements:
        raise PeerError(f"one call takes {once:.1f} s; more than {SLOWEST:g} s is not timed")
    found.workers[contender.label] = worker


# ---------------------------------------------------------------------- times
def loop_options(settings: Settings) -> dict[str, Any]:
    """What a yardstick in C is built for: the target of our bundles."""
    target = find_target(settings.target)
    return {"lanes": target.lanes, "march": "native" if settings.target == "host" else target.mcpu}


def _peak_worker(settings: Settings, stack: ExitStack) -> Worker | None:
    yardstick = Contender(PEAK.name, PEAK, Path(), loop_options(settings))
    try:
        return stack.enter_context(started(yardstick, {}, settings))
    except PeerError as error:
        say(f"peak of the core: {error}")
        return None


def _time(found: _Field, peak: Worker | None, settings: Settings) -> None:
    names, workers = list(found.workers), list(found.workers.values())
    with machine_lock(settings.lock):
        hot = race([*workers, peak] if peak else workers, settings.effort)
        cold = race(workers, settings.effort, flush_bytes()) if settings.cold else []
    found.hot = dict(zip(names, hot, strict=False))
    found.cold = dict(zip(names, cold, strict=False))
    found.peak = PEAK_FLOPS / hot[-1].cpu if peak else None


def _row(problem: Problem, ours: str, peer: str, found: _Field) -> Row:
    if peer in found.errors:
        return Row(problem.case, peer, error=found.errors[peer])
    hot = duel(found.hot[ours], found.hot[peer], problem.wall)
    cold = duel(found.cold[ours], found.cold[peer], problem.wall) if found.cold else None
    rate = None if problem.flops is None else problem.flops / hot.ours
    return Row(
        problem.case,
        peer,
        **times(hot, cold),
        difference=found.differences[ours],
        peer_difference=found.differences[peer],
        gflops=rate and rate * 1e-9,
        peak=rate and found.peak and rate / found.peak,
        version=found.workers[peer].version,
        note=_note(found, ours, peer),
    )


def _failed(problem: Problem, peers: Sequence[Contender], error: str) -> list[Row]:
    """The rows that were asked for, with one reason for all of them."""
    labels = [p.label for p in peers] + [PEAK.name] * problem.against_peak
    return [Row(problem.case, label, error=error) for label in labels]


def _peak_row(problem: Problem, ours: str, found: _Field) -> Row:
    assert problem.flops is not None, "a share of the peak needs the operations"
    if found.peak is None:
        return Row(problem.case, PEAK.name, error="the peak of the core was not measured")
    seconds = found.hot[ours].cpu
    least = problem.flops / found.peak
    return Row(
        problem.case,
        PEAK.name,
        seconds * 1e3,
        least * 1e3,
        least / seconds,
        clock="cpu",
        difference=found.differences[ours],
        gflops=problem.flops / seconds * 1e-9,
        peak=least / seconds,
        note=_note(found, ours),
    )


def _note(found: _Field, *labels: str) -> str:
    """What the engines say about themselves."""
    return "; ".join(f"{label}: {note}" for label in labels if (note := found.workers[label].note))
