"""Columns of tables that are looked up, such as embeddings: shared by networks, and labelled by sets of tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler import parse_pass
from compiler.calibration.engine import Engine
from compiler.ir.graph import Graph, Site
from compiler.ir.reference import difference
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.relabel import relabelled
from tests.codegen.test_generate import check
from tests.graphs import Builder
from tests.passes.merge.families import joined
from tests.passes.merge.test_merge import macs, outputs, subsets

WORDS, STEPS, SAMPLES = 11, 5, 2


def tagger(*tasks: str, seed: int = 0, words: int = WORDS, width: int = 4, table_seed: int | None = None) -> Graph:
    """Scores for every step of sequences of words, by an LSTM over an embedding."""
    b = Builder("+".join(tasks), seed)
    tokens = b.apply("Cast", b.input("x", STEPS, SAMPLES), to=7)
    table = np.random.default_rng(seed if table_seed is None else table_seed).standard_normal((words, width))
    x = b.apply("Gather", b.const(table.astype(np.float32)), tokens)
    y, _ = b.apply("LSTM", x, b.weight(1, 24, width), b.weight(1, 24, 6), results=2, hidden_size=6)
    h = b.apply("Squeeze", y, b.const([1]))
    for task in tasks:
        b.task(task, b.apply("MatMul", h, b.weight(6, 3)))
    return b.done()


def words(seed: int = 0, sequences: int = SAMPLES, known: int = WORDS) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, known, (STEPS, sequences)).astype(np.float32)


def sentences(count: int) -> Resources:
    return Resources(calibration={"x": np.concatenate([words(seed) for seed in range(count)])})


def tables(graph: Graph) -> list[Site]:
    return [s for s in graph.sites() if s.node.op.name == "Gather"]


def test_tables_of_two_networks_become_one_and_nothing_is_lost():
    graph = joined(tagger("a", seed=0, width=4), tagger("b", seed=1, width=5))
    outcome = parse_pass("merge{start=shared}").run(graph, sentences(12))
    feeds = {"x": words(99)}
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(outcome.graph, feeds)[task], expected) < 1e-5
    found = tables(outcome.graph)
    assert sum(s.operands[0].shape[1] for s in found) == 9
    assert all(outcome.graph.needed_by()[s.node.ref] == frozenset("ab") for s in found)
    assert [n.op.name for n in outcome.graph.nodes()].count("LSTM") == 1
    assert any("channels 9 for a and b (before 4 + 5)" in n.reason for n in outcome.notes)


def test_a_table_that_is_common_stays_and_layers_behind_it_are_shared():
    graph = joined(tagger("a", seed=0, table_seed=7), tagger("b", seed=1, table_seed=7))
    outcome = parse_pass("merge{start=shared}").run(graph, sentences(12))
    (table,) = tables(outcome.graph)
    assert table.operands[0].shape == (WORDS, 4)
    assert [n.op.name for n in outcome.graph.nodes()].count("LSTM") == 1
    for task, expected in outputs(graph, {"x": words(99)}).items():
        assert difference(outputs(outcome.graph, {"x": words(99)})[task], expected) < 1e-5


def test_tables_of_other_words_stay_apart_and_so_does_what_is_behind():
    graph = joined(tagger("a", seed=0), tagger("b", seed=1, words=WORDS + 1))
    outcome = parse_pass("merge{start=shared}").run(graph, sentences(12))
    assert macs(outcome.graph) == macs(graph) and len(tables(outcome.graph)) == 2
    assert {r.where.split()[0] for r in outcome.refusals} >= {"Gather", "LSTM"}


def test_other_policies_keep_tables_whole_and_say_so():
    graph = joined(tagger("a", seed=0), tagger("b", seed=1))
    outcome = parse_pass("merge{max_loss=0.9,max_drift=0.9}").run(graph, sentences(120))
    assert len(tables(outcome.graph)) == 2
    assert any("no policy joins columns of tables" in r.reason for r in outcome.refusals)


COLUMNS = np.array([7, 3, 1, 6, 0, 7])
"""Per column the tasks that have it; one is nobody's."""
UNITS = np.array([7, 7, 3, 1, 6, 4])


def labelled() -> tuple[Graph, Copies, np.ndarray]:
    graph = tagger("a", "b", "c", width=len(COLUMNS))
    copies = Copies(graph)
    labels = copies.full()
    for site, wanted in ((tables(graph)[0], COLUMNS), (cell(graph), UNITS)):
        made = copies.on(site.results[0], 7)
        assert made is not None
        labels[made] = wanted
    return graph, copies, labels


def cell(graph: Graph) -> Site:
    (site,) = [s for s in graph.sites() if s.node.op.name == "LSTM"]
    return site


def forbidden_zeroed(graph: Graph) -> Graph:
    """The graph without the weights by which units, and scores, would read what is not for all of their tasks."""
    found, site = graph.copy(), cell(graph)
    for index, read in ((1, COLUMNS), (2, UNITS)):
        may = (UNITS[:, None] & read[None]) == UNITS[:, None]
        found.update(site.operands[index].ref, data=site.operands[index].constant * np.tile(may, (4, 1))[None])
    for bit, task in enumerate("abc"):
        weight = graph.site(graph.producer(graph.tasks[task].outputs[0])).operands[1]
        found.update(weight.ref, data=np.where((UNITS >> bit & 1)[:, None], weight.constant, np.float32(0)))
    return found.freeze()


def test_columns_by_label_are_the_table_without_what_labels_forbid():
    graph, copies, labels = labelled()
    made = relabelled(copies, labels, [{"x": words(0)}])
    feeds = {"x": words(99)}
    found, expected = outputs(made, feeds), outputs(forbidden_zeroed(graph), feeds)
    engine = Engine.of(made).run(feeds)
    for task in "abc":
        assert difference(found[task], expected[task]) < 1e-5
        assert difference(engine[made.tasks[task].outputs[0].name], expected[task]) < 1e-4
    assert sorted(s.operands[0].shape[1] for s in tables(made)) == [1, 1, 1, 2]
    assert macs(made) == {q: round(n) for q, n in Bill(copies).subsets(labels).items()}
    for tasks in subsets(made):
        part = ExtractTasks(tasks=tasks)(made)
        assert all(np.array_equal(y, found[t]) for t, y in outputs(part, feeds).items())


def test_tables_by_label_compile(tmp_path):
    _, copies, labels = labelled()
    check(relabelled(copies, labels, [{"x": words(0)}]), tmp_path)


def test_narrow_takes_columns_from_tasks():
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    graph = joined(tagger("a", seed=0), tagger("b", seed=1))
    shared = parse_pass("merge{start=shared}")(graph, sentences(12))
    use = replace(sentences(60), teacher=graph)
    narrow = parse_pass("narrow{flops=0.5,drawn=32}")(shared, use)
    assert macs(narrow)[frozenset("ab")] < macs(shared)[frozenset("ab")]
    assert sum(s.operands[0].shape[1] for s in tables(narrow)) < 8


def test_training_changes_tables_that_are_looked_up():
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    graph, other = tagger("a", seed=0), tagger("a", seed=0, table_seed=3)
    trained = parse_pass("distil{epochs=3,batch=8}")(other, replace(sentences(40), teacher=graph))
    (before,), (after,) = tables(other), tables(trained)
    assert not np.array_equal(before.operands[0].constant, after.operands[0].constant)
