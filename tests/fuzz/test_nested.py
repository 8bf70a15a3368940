"""The stages of sparsity levels in benchmarks/fuzz: they pass what is right and see a fault at each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz import nested
from benchmarks.fuzz.case import Case
from benchmarks.fuzz.compare import Done, Wrong
from benchmarks.fuzz.grown import Pick
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.levels import level_count
from compiler.ir.reference import random_feeds
from compiler.pipeline import parse
from tests.graphs import Builder

STAGES = ["nest", "file of levels", "passes that keep levels", "reference of levels", "extract of levels",
          "generate levels", "run levels", "run levels within budgets", "generate a level alone",
          "run a level alone"]  # fmt: skip


def taken_through(
    monkeypatch: pytest.MonkeyPatch, levels: str = "0+0.5+0.9", options: Mapping[str, str] = nested.MILD
) -> tuple[Done, list[str]]:
    """Two tasks behind one convolution, one of them recurrent, through all stages; also what they told."""
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("image", 1, 3, 6, 6), 8, 3))
    rows = b.apply("Reshape", x, b.const(np.array([4, 1, 32], np.int64)))
    b.task("steps", b.apply("GRU", rows, b.weight(1, 24, 32), b.weight(1, 24, 8), hidden_size=8))
    b.task("map", b.conv(x, 4, 1))
    graph = b.done()
    done, told = Done(), list[str]()
    monkeypatch.setattr(nested, "drawn", lambda pick: {"levels": levels, **options})
    feeds = random_feeds(graph, np.random.default_rng(0))
    try:
        nested.nested(Case("levels", 0, {}), [graph], feeds, done, told.append)
    except Wrong as error:
        told.append(f"wrong: {error}")
    return done, told


def test_levels_that_are_right_go_through_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken_through(monkeypatch) == (Done(), STAGES)


def test_options_that_leave_no_layer_become_milder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken_through(monkeypatch, options={"min_inputs": "1000"}) == (Done(), STAGES)


def test_why_there_are_no_levels_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    done, told = taken_through(monkeypatch, levels="0.5")
    assert (told, len(done.skipped)) == (["nest"], 1)
    assert "give 2 to 16 rising shares" in done.skipped[0]


def less(graph: Graph) -> Graph:
    """The graph with one block less in the sparsest level of a weight that has levels."""
    value = next(v for v in graph.parameters() if v.nested)
    form, (*levels, last) = value.type.encoding, (value.constant, *value.sparser)
    assert isinstance(form, BlockSparse)
    ranks = form.alive(last).astype(np.uint8)
    ranks[tuple(np.argwhere(ranks)[0])] = 0
    data, *sparser = (*levels, form.of_rank(last, ranks, 1))
    made = graph.copy()
    made.update(value.ref, data=data, sparser=sparser)
    return made.freeze()


def behind(function: Callable[..., Graph], applies: Callable[[Graph], bool]) -> Callable[..., Graph]:
    """What a function gives, with a block less where that applies."""

    def changed(*arguments: Any, **options: Any) -> Graph:
        found = function(*arguments, **options)
        return less(found) if applies(found) else found

    return changed


def has_levels(graph: Graph) -> bool:
    return level_count(graph) > 1


FAULTS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "file of levels": (
        "load",
        lambda right: behind(right, has_levels),
        "the file of all levels is another graph",
    ),
    "passes that keep levels": (
        "parse",
        lambda right: lambda spec: behind(right(spec), lambda graph: spec == "deduplicate"),
        "level 2 after deduplicate",
    ),
    "reference of levels": (
        "at_level",
        lambda right: behind(right, lambda graph: not has_levels(graph)),
        "by itself",
    ),
    "extract of levels": (
        "ExtractTasks",
        lambda right: lambda tasks: behind(right(tasks), has_levels),
        "alone at level 2",
    ),
    "run levels": (
        "generate",
        lambda right: lambda graph, *a, **o: right(less(graph) if has_levels(graph) else graph, *a, **o),
        "of scale",
    ),
    "run levels within budgets": (
        "MOST_BUDGET",
        lambda right: 0,  # what should have no limit falls
        "has other bits than at level",
    ),
    "run a level alone": (
        "generate",
        lambda right: lambda graph, *a, **o: right(graph if has_levels(graph) else less(graph), *a, **o),
        "has other bits than among all levels",
    ),
}
"""By the stage that finds it: what is wrong, and what is said."""


@pytest.mark.parametrize("stage", FAULTS)
def test_a_fault_in_one_level_is_found(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, changed, complaint = FAULTS[stage]
    monkeypatch.setattr(nested, name, changed(getattr(nested, name)))
    _, (*told, wrong) = taken_through(monkeypatch)
    assert told[-1] == stage
    assert wrong.startswith("wrong: ") and complaint in wrong


def test_options_of_levels_are_those_of_the_seed() -> None:
    specs = [nested.specified(nested.drawn(Pick(seed, 8))) for seed in range(40)]
    assert specs == [nested.specified(nested.drawn(Pick(seed, 8))) for seed in range(40)]
    assert {parse(spec).levels_after(1) for spec in specs} == {2, 3, 4}
