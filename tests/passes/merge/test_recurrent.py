"""Hidden units by label: what a split layer computes and costs, and which recurrent layers stay whole, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler import parse_pass
from compiler.calibration.engine import Engine
from compiler.errors import PassError, VerifyError
from compiler.ir.graph import Graph, Site
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.ops.recurrent import Recurrent
from compiler.ir.reference import difference
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.passes.merge.channels import ChannelMap, Role, recurrent_problem
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.narrowing import Narrow
from compiler.passes.narrow.relabel import relabelled
from compiler.passes.narrow.steps import Taking
from compiler.passes.prune.surgery import split_shared
from tests.codegen.test_generate import check
from tests.graphs import Builder
from tests.passes.merge.families import joined, recurrent
from tests.passes.merge.test_merge import data, feed, macs, outputs, permuted, subsets

TASKS = "abc"
UNITS, SCORES = 9, 3
LABELS = np.array([7, 7, 3, 1, 3, 2, 6, 4, 0])
"""Per unit the tasks that have it: sets within and beside each other, and a unit that is nobody's."""


def trunk(
    cell: str, direction: str = "forward", states: bool = True, peepholes: bool = False, **attrs: object
) -> Graph:
    """One recurrent layer that all tasks read, over 2 sequences of 5 steps."""
    b = Builder("trunk", 3)
    ways, gates = 1 + (direction == "bidirectional"), {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
    operands = [b.input("x", 5, 2, 4), b.weight(ways, gates * UNITS, 4), b.weight(ways, gates * UNITS, UNITS)]
    operands += [b.weight(ways, 2 * gates * UNITS)]
    results = 3 if cell == "LSTM" else 2
    initial = [b.weight(ways, 2, UNITS, scale=1) if states else None for _ in range(results - 1)]
    tail = [b.weight(ways, 3 * UNITS, scale=0.5)] if peepholes else []
    y, *_ = b.apply(
        cell, *operands, None, *initial, *tail, results=results, hidden_size=UNITS, direction=direction, **attrs
    )
    x = b.apply("Reshape", b.apply("Transpose", y, perm=(0, 2, 1, 3)), b.const([0, 0, -1]))
    for task in TASKS:
        b.task(task, b.apply("MatMul", x, b.weight(ways * UNITS, SCORES)))
    return b.done()


def forbidden_zeroed(graph: Graph, labels: np.ndarray) -> Graph:
    """The graph without the recurrent weights, and the readers' weights, that labels do not allow."""
    found = graph.copy()
    may = (labels[:, None] & labels[None]) == labels[:, None]
    for site in graph.sites():
        if isinstance(site.node.op, Recurrent):
            ref = site.operands[2].ref
            found.update(ref, data=site.operands[2].constant * np.tile(may, (site.node.op.gates, 1))[None])
        elif site.node.op.name == "MatMul":
            bit = next(1 << i for i, t in enumerate(TASKS) if site.results[0].ref in graph.tasks[t].outputs)
            weight = site.operands[1]
            mine = np.tile((labels & bit) > 0, weight.shape[0] // UNITS)
            found.update(weight.ref, data=weight.constant * mine[:, None])
    return found.freeze()


def labels_of(copies: Copies, labels: np.ndarray = LABELS) -> np.ndarray:
    """`labels` as the numbers of the channels."""
    (stream,) = copies.streams.streams
    found = copies.full()
    found[copies.numbers(stream)] = labels
    return found


def inputs(graph: Graph, count: int = 2) -> list[Mapping[str, np.ndarray]]:
    return [feed(graph, seed) for seed in range(count)]


def as_zeroed(
    made: Graph, graph: Graph, labels: np.ndarray, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the reference computes of `made`, which is, as in onnxruntime, `graph` without the forbidden weights."""
    expected, found = outputs(forbidden_zeroed(graph, labels), feeds), outputs(made, feeds)
    engine = Engine.of(made).run(feeds)
    for task in TASKS:
        assert difference(found[task], expected[task]) < 1e-5
        assert difference(engine[made.tasks[task].outputs[0].name], expected[task]) < 1e-4
    return found


LAYERS = {
    "forward": ("LSTM", {}),
    "reverse": ("LSTM", {"direction": "reverse"}),
    "bidirectional": ("LSTM", {"direction": "bidirectional"}),
    "no-states": ("LSTM", {"direction": "bidirectional", "states": False}),
    "peepholes": ("LSTM", {"peepholes": True, "direction": "reverse"}),
    "clipped": ("LSTM", {"clip": 0.4, "activations": ("Sigmoid", "Tanh", "Relu")}),
    "coupled": ("LSTM", {"input_forget": 1}),
    "rnn": ("RNN", {"direction": "bidirectional", "activations": ("Tanh", "Relu")}),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_split_is_the_layer_without_the_forbidden_weights(layer):
    """On the reference and in onnxruntime; every subset is a restriction, and costs what the rule says."""
    cell, options = LAYERS[layer]
    graph = trunk(cell, **options)
    copies = Copies(graph)
    feeds = inputs(graph)
    made = relabelled(copies, labels_of(copies), feeds[:1])
    found = as_zeroed(made, graph, LABELS, feeds[1])
    counted = macs(made)
    for tasks in subsets(made):
        part = ExtractTasks(tasks=tasks)(made)
        assert all(np.array_equal(y, found[t]) for t, y in outputs(part, feeds[1]).items())
        exported = load(to_onnx(part))
        assert sum(s.node.op.macs(s) for s in exported.sites()) == counted[frozenset(tasks)]
        assert counted[frozenset(tasks)] == by_rule(graph, tasks)


def by_rule(graph: Graph, tasks: tuple[str, ...]) -> int:
    """Per step, sample and direction: gates times the units that run times the inputs and units that they read."""
    mask = sum(1 << TASKS.index(t) for t in tasks)
    (site,) = [s for s in graph.sites() if isinstance(s.node.op, Recurrent)]
    steps, samples, width = site.operands[0].shape
    ways = site.operands[1].shape[0]
    running = [s for s in LABELS if s & mask]
    products = sum(width + sum(int(larger & s == s) for larger in LABELS) for s in running)
    heads = sum(int((LABELS >> TASKS.index(t) & 1).sum()) for t in tasks) * SCORES
    return steps * samples * ways * (site.node.op.gates * products + heads)


ONE_LABEL = {
    "gru": ("GRU", {"direction": "bidirectional"}),
    "gru-after": ("GRU", {"linear_before_reset": 1, "direction": "reverse"}),
    "gru-no-states": ("GRU", {"states": False}),
    "gru-clipped": ("GRU", {"clip": 0.4, "activations": ("Sigmoid", "Relu")}),
}
TOGETHER = np.array([7, 0, 7, 7, 0, 7, 7, 7, 7])
"""Per unit of a layer of one label the tasks that have it: all or none."""


@pytest.mark.parametrize("layer", ONE_LABEL)
def test_units_of_one_label_go_as_a_whole(layer):
    cell, options = ONE_LABEL[layer]
    graph = trunk(cell, **options)
    copies = Copies(graph)
    feeds = inputs(graph)
    labels = labels_of(copies, TOGETHER)
    made = relabelled(copies, labels, feeds[:1])
    as_zeroed(made, graph, TOGETHER, feeds[1])
    assert only(made).results[0].shape[3] == 7
    assert macs(made) == {q: round(n) for q, n in Bill(copies).subsets(labels).items()}


@pytest.mark.parametrize("layer", ONE_LABEL)
def test_nothing_takes_some_tasks_from_units_of_one_label(layer):
    cell, options = ONE_LABEL[layer]
    graph = trunk(cell, **options)
    copies = Copies(graph)
    bill = Bill(copies)
    assert bill.joint.all()
    loss = np.random.default_rng(0).random((copies.count, bill.every + 1))
    runs = bill.runs({})
    for share in (0.8, 0.5):
        cost = share * float(bill.by_label(copies.full()) @ runs)
        labels = Taking(bill, whole=False).down_to(copies.full(), loss, runs, cost)
        assert labels is not None and set(labels) == {0, bill.every}
    with pytest.raises(VerifyError, match="more labels than one, but it"):
        relabelled(copies, labels_of(copies), inputs(graph, 1))


def test_nothing_is_multiplied_by_zero():
    """Two sets that read nothing of each other are one node each, in both directions at once."""
    graph = trunk("LSTM", "bidirectional")
    copies = Copies(graph)
    (stream,) = copies.streams.streams
    labels = copies.full()
    labels[copies.numbers(stream)] = [1, 1, 1, 2, 2, 4, 4, 4, 4]
    made = relabelled(copies, labels, inputs(graph))
    cells = [s for s in made.sites() if isinstance(s.node.op, Recurrent)]
    assert {s.node.op.name for s in cells} == {"LSTM"} and len(cells) == 3
    assert all(s.str("direction") == "bidirectional" for s in cells)
    assert not any(n.op.name in ("Slice", "Concat") for n in made.nodes())


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_split_layer_can_be_split_again(direction):
    """Units of a smaller set read those of a larger one beside the input, and lose some of them."""
    graph = trunk("LSTM", direction)
    copies = Copies(graph)
    labels = copies.full()
    labels[copies.numbers(copies.streams.streams[0])] = [7, 7, 7, 7, 3, 3, 3, 4, 4]
    once = relabelled(copies, labels, inputs(graph)).copy()
    split_shared(once, matrices=True)
    copies = Copies(once.freeze())
    bill = Bill(copies)
    assert sorted(copies.full()) == sorted(labels)
    labels = copies.full()
    for label, others in ((7, [7, 7, 1, 6]), (3, [3, 1, 0])):
        labels[labels == label] = others
    twice = relabelled(copies, labels, inputs(graph))  # compares with the masked graph
    assert macs(twice) == {q: round(n) for q, n in bill.subsets(labels).items()}
    cells = [s for s in twice.sites() if s.node.op.name == "LSTM" and s.str("direction") != "reverse"]
    assert sum(s.int("hidden_size") for s in cells) == 8


def test_a_label_of_a_single_unit_keeps_the_rest_of_its_layer():
    """An axis of one entry counts no channels: its node is read whole, and what that reads is for all its tasks."""
    graph = trunk("LSTM")
    copies = Copies(graph)
    labels = copies.full()
    labels[copies.numbers(copies.streams.streams[0])] = [7, 7, 7, 7, 7, 7, 7, 7, 3]
    copies = Copies(relabelled(copies, labels, inputs(graph)))
    assert not copies.count
    assert "LSTM 'lstm[a+b]/forward' is computed as a whole, for several tasks" in copies.obstacle()


def test_a_sequence_of_one_step_reads_initial_states():
    b = Builder("one", 1)
    operands = [b.input("x", 1, 2, 4), b.weight(1, 20, 4), b.weight(1, 20, 5), None, None]
    y, _ = b.apply("LSTM", *operands, b.weight(1, 2, 5, scale=1), results=2, hidden_size=5)
    flat = b.apply("Squeeze", y, b.const([1]))
    for task in "ab":
        b.task(task, b.apply("MatMul", flat, b.weight(5, 3)))
    graph = b.done()
    copies = Copies(graph)
    labels = copies.full()
    labels[copies.numbers(copies.streams.streams[0])] = [3, 3, 1, 1, 2]
    made = relabelled(copies, labels, inputs(graph))  # compares with the masked layer
    assert macs(made)[frozenset("a")] == 2 * (4 * (2 * (4 + 2) + 2 * (4 + 4)) + 4 * 3)


# ---------------------------------------------------------------------- merge
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_shared_start_loses_nothing_and_all_units_are_for_all(direction, cell):
    graph = joined(*(recurrent(t, i, direction, (4 + i,), cell=cell) for i, t in enumerate(TASKS)))
    outcome = parse_pass("merge{start=shared}").run(graph, data(graph, 12))
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(outcome.graph, feeds)[task], expected) < 1e-5
    shared = only(outcome.graph)
    assert shared.node.op.name == cell and shared.results[0].shape[-1] == 15
    assert outcome.graph.needed_by()[shared.node.ref] == frozenset(TASKS)
    assert any("channels 15 for a and b and c (before 4 + 5 + 6)" in n.reason for n in outcome.notes)


def test_layers_on_top_of_each_other_and_last_states():
    """The second layer's inputs are the first one's units; what is read of it is the last state."""
    graph = joined(*(recurrent(t, i, "bidirectional", (5, 4), last=True) for i, t in enumerate("ab")))
    merged = parse_pass("merge{start=shared}")(graph, data(graph, 12))
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(merged, feeds)[task], expected) < 1e-5
    assert [s.results[0].shape[-1] for s in merged.sites() if s.node.op.name == "LSTM"] == [10, 8]


def test_a_permuted_copy_merges_beside_its_twin():
    first = recurrent("a", 0, "bidirectional")
    graph = joined(first, permuted(first, "b", 5))
    merged = parse_pass("merge{start=shared}")(graph, data(graph, 12))
    found = outputs(merged, feed(graph))
    for task, expected in outputs(graph, feed(graph)).items():
        assert difference(found[task], expected) < 1e-5
    assert difference(found["a"], found["b"]) < 1e-5


def test_units_go_behind_a_shared_start():
    graph = joined(*(recurrent(t, i, "bidirectional", (6, 6)) for i, t in enumerate("ab")))
    use = data(graph)
    merged = parse_pass("merge{start=shared}")(graph, use)
    pruned = parse_pass("prune-channels{flops=0.5}")(merged, use)
    assert macs(pruned)[frozenset("ab")] <= 0.5 * macs(merged)[frozenset("ab")]
    assert sum(s.int("hidden_size") for s in pruned.sites() if s.node.op.name == "LSTM") < 24


def test_a_recurrent_layer_that_reads_something_private_too_is_not_shared():
    """Its weights are placed and not fitted, so what it could not read under a common label would be lost."""

    def net(task: str, seed: int) -> Graph:
        b = Builder(task, seed)
        x = b.input("x", 5, 2, 4)
        weights = b.weight(1, 15, 4), b.weight(1, 15, 5), None, b.const(np.array([5, 5], np.int32))
        y, _ = b.apply("GRU", x, *weights, results=2, hidden_size=5)
        own = b.apply("MatMul", b.apply("Squeeze", y, b.const([1])), b.weight(5, 6))
        x = b.apply("Concat", b.apply("MatMul", x, b.weight(4, 6)), own, axis=2)
        y, _ = b.apply("LSTM", x, b.weight(1, 24, 12), b.weight(1, 24, 6), results=2, hidden_size=6)
        b.task(task, b.apply("MatMul", b.apply("Squeeze", y, b.const([1])), b.weight(6, 3)))
        return b.done()

    graph = joined(net("a", 0), net("b", 1))
    merged = parse_pass("merge{start=shared}")(graph, data(graph, 12))
    for task, expected in outputs(graph, feed(graph)).items():
        assert difference(outputs(merged, feed(graph))[task], expected) < 1e-5
    assert [n.op.name for n in merged.nodes()].count("LSTM") == 2
    assert any(n.ref.name.endswith("[a+b]") for n in merged.nodes())


def test_other_policies_keep_recurrent_layers_whole():
    graph = joined(recurrent("a", 0), recurrent("b", 1))
    outcome = parse_pass("merge{max_loss=0.9,max_drift=0.9}").run(graph, data(graph, 12))
    assert macs(outcome.graph) == macs(graph)
    assert any("no policy joins hidden units; start=shared and narrow" in r.reason for r in outcome.refusals)


# ---------------------------------------------------------------------- compiled
def test_a_compiled_split_layer_equals_the_reference_for_every_subset(tmp_path: Path):
    graph = trunk("LSTM", "bidirectional")
    copies = Copies(graph)
    check(relabelled(copies, labels_of(copies), inputs(graph)), tmp_path)


# ---------------------------------------------------------------------- what stays whole
def layer(cell: str, lengths: bool = False, computed: bool = False, **attrs: object) -> Graph:
    b = Builder(cell, 0)
    gates = {"LSTM": 4, "GRU": 3}[cell]
    x = b.input("x", 2, 2, 4)
    operands = [x, b.weight(1, gates * 5, 4), b.weight(1, gates * 5, 5), None]
    operands += [b.const(np.array([1, 2], np.int32)) if lengths else None]
    if computed:
        operands += [b.apply("MatMul", b.input("s", 1, 2, 3), b.weight(3, 5))]
    y, _ = b.apply(cell, *operands, results=2, hidden_size=5, **attrs)
    flat = b.apply("Reshape", y, b.const([4, 5]))
    for task in "ab":
        b.task(task, b.apply("MatMul", flat, b.weight(5, 3)))
    return b.done()


WHOLE = {
    "lengths": ("LSTM", {"lengths": True}, "sequences end where their own lengths say"),
    "gru-lengths": ("GRU", {"lengths": True}, "sequences end where their own lengths say"),
    "layout": ("LSTM", {"layout": 1}, "samples first"),
    "computed": ("LSTM", {"computed": True}, "its weights or initial states are computed"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_layers_without_labels_stay_whole_with_the_reason(case):
    cell, options, reason = WHOLE[case]
    graph = layer(cell, **options)
    site = only(graph)
    assert reason in recurrent_problem(site)
    channels = ChannelMap(graph, recurrent=True)
    assert channels.roles[site.node.ref] is Role.WHOLE
    assert any(reason in g.reason for g in channels.groups)
    copies = Copies(graph)
    assert not copies.count
    assert f"{cell} '{site.node.ref}'" in copies.obstacle() and reason in copies.obstacle()


@pytest.mark.parametrize("case", ["gru-lengths", "lengths"])
def test_narrow_says_what_stays_whole(case):
    pytest.importorskip("torch")
    cell, options, reason = WHOLE[case]
    graph = layer(cell, **options)
    calibration = {v.ref.name: np.ones((64 * v.shape[0], *v.shape[1:]), np.float32) for v in graph.inputs}
    with pytest.raises(PassError, match=f"no channels can be taken from a task: {cell} '.*{re.escape(reason)}"):
        Narrow()(graph, Resources(calibration=calibration, teacher=graph))


def test_narrowing_shared_grus_leaves_every_layer_one_label():
    pytest.importorskip("torch")
    graph = joined(*(recurrent(t, i, "bidirectional", (6, 5), cell="GRU") for i, t in enumerate("ab")))
    use = data(graph, 64)
    merged = parse_pass("merge{start=shared}")(graph, use)
    assert [s.results[0].shape[-1] for s in merged.sites() if s.node.op.name == "GRU"] == [12, 10]
    teacher = replace(use, teacher=graph)
    found = parse_pass("narrow{flops=0.5,step=0.2,drawn=32,between=0.1}")(merged, teacher)
    assert macs(found)[frozenset("ab")] <= 0.5 * macs(merged)[frozenset("ab")]
    cells = [s for s in found.sites() if s.node.op.name == "GRU"]
    assert len(cells) == 2 and sum(s.results[0].shape[-1] for s in cells) < 22
    assert all(found.needed_by()[s.node.ref] == frozenset("ab") for s in cells)


def only(graph: Graph) -> Site:
    (site,) = [s for s in graph.sites() if isinstance(s.node.op, Recurrent)]
    return site
