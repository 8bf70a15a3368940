"""Sparsity levels of one library: what a switch costs against loading a variant, what levels take in memory against
variants side by side, whether switching at random repeats every bit, and budgets of time under load.

Variants are the levels as libraries of their own, planned alike, so that each stores what it needs and no more.
`switch_us` is what calls take longer that go round all levels than calls that stay at one, the least over rounds.
`load_us` is the least that bringing a variant in can cost: mapping the library and what its first call takes
longer than later ones, files in the page cache, digests not checked. `memory_ratio` is the resident memory of all
variants, each run, over that of the one library run at all levels. `load_average` says how busy the machine was
besides: budgets are of elapsed time, and on a busy machine they tell about its other work. `deadline` has what
`holding` explains, for calls at the densest level, calls with a budget, and an empty loop that takes as long.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import SEED, generated, prepare
from benchmarks.deadlines import SLACK, held, table
from benchmarks.families import MODELS
from benchmarks.host import machine_lock, pinned
from benchmarks.ours import PASSES, through
from benchmarks.random_switching import switch
from benchmarks.resident import resident
from benchmarks.results import keep, record_of
from benchmarks.settings import Settings, chosen, parser, positive, say
from benchmarks.sources import sources_digest
from compiler import Graph, build, load_config, open_bundle, parse_pass
from compiler.codegen.runtime import Network
from compiler.ir.levels import at_level, level_count
from compiler.release import load_release, transform

LEVELS = "0+0.125+0.25+0.375+0.5+0.625+0.75+0.875"
"""As many variants as the portfolio of DNNShifter (Eccles et al., FGCS 152, 2024) has."""
FEW = "0+0.5+0.75"
ROUNDS = 25
QUICKER = 50
"""A quick study makes this many times fewer calls."""
RESOLUTION_US = 0.05
"""A switch is taken to cost this much at least when ratios are formed: less is not told from nothing."""


@dataclass(frozen=True)
class Subject:
    """A nested network, compiled, with inputs; `labels` by task where there are any.

    `switches` at random and `calls` with a budget are as many as its size allows.
    """

    graph: Graph
    folder: Path
    samples: Sequence[Mapping[str, np.ndarray]]
    labels: Mapping[str, np.ndarray]
    switches: int
    calls: int


def fashion(levels: str, settings: Settings, samples: int = 2000) -> Subject:
    """Three trained networks of models/ as one library, with the samples of their evaluation set."""
    release = load_release(load_config(MODELS / "fashion" / "release.toml"))
    graph = parse_pass(f"nest{{levels={levels},pattern=block8x1,scope=global}}")(transform(release)[0])
    data = np.load(MODELS / "fashion" / "evaluation.npz")
    (name,) = (v.ref.name for v in graph.inputs)
    found = [{name: x[None]} for x in data[name][:samples]]
    labels = {t: data[t][:samples] for t in graph.tasks}
    return Subject(graph, built(graph, settings, f"fashion-{levels}"), found, labels, 1_000_000, 10_000)


def vgg(levels: str, settings: Settings) -> Subject:
    """VGG16 for images of 32 x 32 with random weights: large, for memory and loading."""
    ready = prepare(generated()["vgg16-32"], settings.kept)
    graph = parse_pass(f"nest{{levels={levels},pattern=block16x1}}")(through(ready.graph, PASSES))
    return Subject(graph, built(graph, settings, f"vgg-{levels}"), [ready.feeds], {}, 20_000, 500)


SUBJECTS: dict[str, Callable[[str, Settings], Subject]] = {"fashion": fashion, "vgg16-32": vgg}


def built(graph: Graph, settings: Settings, identity: str, plan: Path | None = None) -> Path:
    """The bundle of a graph from the folder of kept ones, built unless it is there: every subset of tasks, or all
    tasks alone by the plan of another bundle."""
    folder = settings.kept / f"levels-{sources_digest()[:12]}-{identity}"
    if not folder.exists():
        subsets = None if plan is None else [frozenset(graph.tasks)]
        build(graph, settings.target, folder, name="net", subsets=subsets, selftest=False, plan=plan or ())
    return folder


# ---------------------------------------------------------------------- the parts of a study
def switch_seconds(net: Network, feeds: Mapping[str, np.ndarray], rounds: int) -> tuple[float, list[float]]:
    """Seconds that a switch adds to a call, and those of a call at each level: least over rounds."""
    levels = range(len(net.levels))
    bound = net.bind(net.tasks, **feeds)
    least, mixed = [np.inf] * len(levels), np.inf
    repeat = 20
    for _ in range(rounds):
        for level in levels:
            least[level] = min(least[level], _timed(bound, [level] * (repeat * len(levels))))
        mixed = min(mixed, _timed(bound, [*levels] * repeat))
    return max(0.0, mixed - float(np.mean(least))), least


def _timed(bound: Callable[[int], object], order: Sequence[int]) -> float:
    bound(order[0])
    start = time.perf_counter()
    for level in order:
        bound(level)
    return (time.perf_counter() - start) / len(order)


def accuracies(net: Network, subject: Subject) -> list[dict[str, float]]:
    """Share of samples whose largest output is the label, by task, for every level."""
    found = []
    for level in range(len(net.levels)):
        outputs = [net.run(x, level=level) for x in subject.samples]
        picked = {t: np.array([int(o[t].argmax()) for o in outputs]) for t in subject.labels}
        found.append({t: float(np.mean(picked[t] == subject.labels[t])) for t in subject.labels})
    return found


def variants(subject: Subject, settings: Settings, name: str) -> list[Path]:
    """Every level as a library of its own, all tasks."""
    count = level_count(subject.graph)
    parts = (at_level(subject.graph, level, alone=True) for level in range(count))
    names = (f"{name}-of{count}-alone{i}" for i in range(count))
    return [built(part, settings, own, subject.folder) for own, part in zip(names, parts, strict=True)]


def measured(name: str, settings: Settings, given: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one network."""
    less = QUICKER if given.quick else 1
    say(f"{name}: build")
    subject = SUBJECTS[name](FEW if given.quick else LEVELS, settings)
    others = variants(subject, settings, name)
    net, core = open_bundle(subject.folder), settings.cores[0]
    feeds = subject.samples[0]
    say(f"{name}: time")
    with machine_lock(settings.lock), pinned(core):
        added, levels = switch_seconds(net, feeds, max(3, ROUNDS // less))
        one, many = resident([subject.folder], feeds, core), resident(others, feeds, core)
    switch_us, load_us = added * 1e6, float(np.median(many.load_us))
    sizes = [open_bundle(p).bundle.manifest["pool"]["bytes"] for p in others]
    pool = net.bundle.manifest["pool"]["bytes"]
    record: dict[str, Any] = {
        "load_average": os.getloadavg(),
        "switch_us": switch_us,
        "load_us": load_us,
        "opened_us": float(np.median(many.opened_us)),
        "load_over_switch": load_us / max(switch_us, RESOLUTION_US),
        "memory_ratio": many.bytes / one.bytes,
        "resident_bytes": {"levels": one.bytes, "variants": many.bytes},
        "pool_bytes": {"levels": pool, "variants": sizes, "over_densest": pool / sizes[0]},
        "density": list(net.levels),
        "level_us": [s * 1e6 for s in levels],
    }
    by_level = accuracies(net, subject) if subject.labels else [{} for _ in net.levels]
    if subject.labels:
        record["accuracy"] = by_level
    say(f"{name}: switch at random, then budgets")
    record["random_switching"] = switch(net, subject.samples[:4], given.switches or subject.switches // less, SEED)
    calls = given.calls or subject.calls // less
    samples, labels = subject.samples, subject.labels
    record["deadline"] = held(net, samples, labels, by_level, SLACK, calls, core, settings.lock)
    return record


def main(arguments: list[str]) -> int:
    """0 unless bits differed or a library is larger than it may be."""
    options = parser("switching", __doc__, without=("hot", "prepare", "venvs"))
    options.add_argument("--switches", type=positive, metavar="N", help="calls at random subsets and levels")
    options.add_argument("--calls", type=positive, metavar="N", help="calls with a budget, per load")
    given = options.parse_args(arguments)
    settings, wrong = Settings.of(given), False
    results = {}
    for name in chosen(given.only, ["fashion"] if given.quick and not given.only else SUBJECTS):
        seeds = {"inputs and switching": SEED}
        record = record_of("switching", arguments, name, seeds, measured(name, settings, given))
        results[name] = record
        wrong |= record["random_switching"]["wrong"] > 0 or record["pool_bytes"]["over_densest"] > 1.05
        if given.save:
            keep(given.save, f"switching-{name}", record)
        if not given.json:
            print(_lines(record))
    if given.json:
        print(json.dumps(results, indent=1))
    return int(wrong)


def _lines(record: Mapping[str, Any]) -> str:
    switching, deadline = record["random_switching"], record["deadline"]
    rows = [
        f"{record['network']}: {len(record['density'])} levels",
        f"  a switch {record['switch_us']:.3f} us, loading a variant {record['load_us']:.0f} us",
        f"  resident memory of variants {record['memory_ratio']:.2f} x that of levels",
        f"  pool {record['pool_bytes']['over_densest']:.4f} x that of the densest level",
        f"  {switching['calls']} random switches, {switching['wrong']} wrong, {switching['growth_bytes']} B grown",
        f"  target {deadline['target_us']:.0f} us for each call",
        table(deadline, list(deadline["phases"]["idle"]["ways"]["fixed"]["accuracy"])),
    ]
    return "\n".join(rows)
