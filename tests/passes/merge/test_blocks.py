"""Transformer blocks that carry one label: copies cost one network, strangers stay, and limits hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.codegen.runtime import open_bundle
from compiler.compile import build
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import difference
from compiler.ir.text import digest
from compiler.ir.types import ValueRef
from compiler.passes.distil import Distil
from compiler.passes.extract import ExtractTasks
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.cuts import Cut
from compiler.passes.merge.lattice import lost_share
from compiler.passes.merge.merging import Merge
from compiler.passes.merge.solve import Freedom
from compiler.passes.merge.stitch import Stitcher, attach
from compiler.passes.prune.channels import PruneChannels
from tests.graphs import Builder
from tests.passes.merge.encoders import Form, encoder, tuned
from tests.passes.merge.families import joined, renamed
from tests.passes.merge.test_merge import data, feed, macs, outputs, subsets

FORMS = {
    "pre": Form(),
    "post": Form(first=False, gemm=True),
    "pre, parts, fused": Form(parts=True, fused=True),
    "post, parts": Form(first=False, parts=True),
}
FORMS_AND_POLICIES = [
    ("pre", "prefix"),
    ("post", "lattice"),
    ("pre, parts, fused", "lattice"),
    ("post, parts", "prefix"),
]

HEAD = 3 * 16
"""Multiply-adds of a head."""

SAMPLES = 128


def pair(form: Form = FORMS["pre"], amount: float = 0.02, **options) -> dict[str, Graph]:
    """Two networks trained on from the same one."""
    first = encoder("a", 0, form, **options)
    return {"a": first, "b": tuned(first, "b", 5, amount)}


def answers(graph: Graph, inputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Task -> its output on every input, by onnxruntime on the exported file."""
    engine = Engine(to_onnx(graph))
    found = [engine.run(one) for one in inputs]
    return {t: np.stack([f[o.outputs[0].name] for f in found]) for t, o in graph.tasks.items()}


def lost(nets: dict[str, Graph], merged: Graph, inputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Task -> what its own subset's file loses against its original file, as a share of variance."""
    found = {}
    for task, net in nets.items():
        after = answers(ExtractTasks(tasks=(task,))(merged), inputs)[task]
        found[task] = lost_share(answers(net, inputs)[task], after)
    return found


def owners(graph: Graph) -> dict[frozenset[str], int]:
    """Tasks -> multiply-adds that are computed for exactly them."""
    needed, found = graph.needed_by(), {}
    for site in graph.sites():
        tasks = needed[site.node.ref]
        found[tasks] = found.get(tasks, 0) + site.node.op.macs(site)
    return {tasks: macs for tasks, macs in found.items() if macs}


# ---------------------------------------------------------------------- copies and strangers
@pytest.mark.parametrize("form,policy", FORMS_AND_POLICIES)
def test_a_copy_with_channels_in_another_order_costs_one_network_and_a_head(form, policy):
    first = encoder("a", 0, FORMS[form])
    graph = joined(first, renamed(encoder("b", 0, FORMS[form], shuffle=9), 7))
    expected = outputs(graph, feed(graph))
    assert difference(expected["b"], expected["a"]) < 1e-5  # it is the same function
    merged = Merge(policy=policy, max_loss=0, max_drift=0)(graph, data(graph))
    assert macs(merged)[frozenset("ab")] == macs(first)[frozenset("a")] + HEAD
    for task, found in outputs(merged, feed(graph)).items():
        assert difference(found, expected[task]) < 1e-5


def test_a_network_goes_on_from_one_that_goes_on_from_another_later():
    """a attaches to b and then b, whose value a has gone on from is gone by that, to c."""
    first = encoder("a", 0, FORMS["pre"])
    second = tuned(first, "b", 5, 0.001)
    nets = {"a": first, "b": second, "c": tuned(second, "c", 6, 0.01)}
    graph = joined(*nets.values())
    use = data(graph, SAMPLES + 64)
    inputs = [dict(b) for b in use.batches(graph)]
    outcome = Merge(max_loss=0.2, max_drift=0.9, samples=SAMPLES).run(graph, use)
    one, trunk = macs(first)[frozenset("a")], macs(outcome.graph)[frozenset("abc")]
    assert trunk < 1.1 * one
    assert max(lost(nets, outcome.graph, inputs[SAMPLES:]).values()) < 0.2
    assert any("shared by a and b and c" in n.reason for n in outcome.notes)


@pytest.mark.parametrize("form", ["pre", "post, parts"])
def test_a_copy_costs_one_network(form):
    first = encoder("a", 0, FORMS[form])
    graph = joined(first, renamed(encoder("b", 0, FORMS[form]), 7))
    merged = Merge(max_loss=0, max_drift=0)(graph, data(graph))
    assert macs(merged)[frozenset("ab")] == macs(first)[frozenset("a")]
    expected = outputs(graph, feed(graph))
    assert all(np.array_equal(found, expected[t]) for t, found in outputs(merged, feed(graph)).items())


@pytest.mark.parametrize("form,policy", [("pre", "lattice"), ("post, parts", "prefix")])
def test_strangers_share_nothing_at_zero_loss_and_change_nothing(form, policy):
    graph = joined(encoder("a", 0, FORMS[form]), encoder("b", 1, FORMS[form]))
    outcome = Merge(policy=policy, max_loss=0, max_drift=0).run(graph, data(graph))
    assert digest(outcome.graph) == digest(Merge(policy="exact")(graph))
    apart = [r for r in outcome.refusals if r.where.startswith("block up to")]
    assert len(apart) == 5 and all("apart, a from b" in r.reason for r in apart)
    assert any("cannot be told from what" in r.reason for r in apart)


# ---------------------------------------------------------------------- within limits
@pytest.mark.parametrize("form,policy", FORMS_AND_POLICIES)
def test_networks_trained_on_from_one_share_blocks_within_the_limits(form, policy):
    nets = pair(FORMS[form])
    graph = joined(*nets.values())
    use = data(graph, SAMPLES)
    outcome = Merge(policy=policy, max_drift=0.05, max_loss=0.02).run(graph, use)
    assert macs(outcome.graph)[frozenset("ab")] < 0.8 * macs(graph)[frozenset("ab")]
    held = [one for i, one in enumerate(use.batches(graph)) if i % 4 == 3]
    losses = lost(nets, outcome.graph, held)
    assert all(loss <= 0.021 for loss in losses.values()) and max(losses.values()) > 1e-5
    shared = [n for n in outcome.notes if n.where.startswith("block up to")]
    assert any("shared by a and b, computed by the nodes of" in n.reason for n in shared)


@pytest.mark.parametrize("order", ["abc", "cba"])
def test_two_relatives_and_a_stranger(order):
    nets = {**pair(), "c": encoder("c", 1)}
    graph = joined(*(nets[t] for t in order))
    merged = Merge(max_drift=0.02, max_loss=0.02)(graph, data(graph, SAMPLES))
    found = owners(merged)
    assert set(found) == {frozenset("ab"), frozenset("a"), frozenset("b"), frozenset("c")}
    assert found[frozenset("c")] == macs(graph)[frozenset("c")]
    assert found[frozenset("ab")] > 0.8 * macs(graph)[frozenset("a")]


def test_labels_of_successive_blocks_are_nested():
    """Three networks with one first block, two of them with one second block: {a, b, c}, then {a, b}."""
    first = encoder("a", 0)
    nets = {"a": first, "b": tuned(first, "b", 5, 0.01), "c": tuned(encoder("c", 0, again=3), "c", 6, 0.01)}
    graph = joined(*nets.values())
    use = data(graph, SAMPLES)
    outcome = Merge(max_drift=0.05, max_loss=0.05).run(graph, use)
    found = owners(outcome.graph)
    every = frozenset("abc")
    assert found[every] > 0.3 * macs(first)[frozenset("a")] and found[frozenset("ab")] > 0
    assert all(one == every or len(one) == 1 or one == frozenset("ab") for one in found)
    held = [one for i, one in enumerate(use.batches(graph)) if i % 4 == 3]
    assert max(lost(nets, outcome.graph, held).values()) <= 0.051


def test_another_block_behind_a_shared_one_reads_it_in_its_own_order():
    """Channels in another order and a second block of its own: a Gather stands where the networks part."""
    first = encoder("a", 0)
    graph = joined(first, encoder("b", 0, shuffle=9, again=3))
    merged = Merge(max_loss=0, max_drift=0)(graph, data(graph))
    assert [n.op.name for n in merged.nodes() if "[b]" in n.ref.name] == ["Gather"]
    one, own = macs(first)[frozenset("a")], owners(merged)[frozenset("b")]
    assert macs(merged)[frozenset("ab")] == one + own < 1.6 * one
    expected = outputs(graph, feed(graph))
    assert all(difference(found, expected[t]) < 1e-5 for t, found in outputs(merged, feed(graph)).items())


def cousins() -> dict[str, Graph]:
    """Three blocks each, the first one from the same network and moved by a tenth, the others of their own."""
    first = encoder("a", 0, blocks=3)
    return {"a": first, "b": tuned(encoder("b", 0, blocks=3, again=3), "b", 5, 0.1)}


@pytest.mark.slow
def test_a_map_stands_where_the_value_as_it_is_would_lose_too_much():
    """It costs a product per position, which the task that leaves through it pays, and is worth it in sum."""
    nets = cousins()
    graph = joined(*nets.values())
    use = data(graph, SAMPLES)
    before, after = macs(graph), {}
    for loss, kinds in ((0.02, []), (0.1, ["MatMul", "Add"])):
        outcome = Merge(max_drift=0.5, max_loss=loss).run(graph, use)
        after[loss] = macs(outcome.graph)
        assert [n.op.name for n in outcome.graph.nodes() if "[" in n.ref.name] == kinds
        held = [one for i, one in enumerate(use.batches(graph)) if i % 4 == 3]
        assert max(lost(nets, outcome.graph, held).values()) <= loss
    assert any("through a map of 16 to 16 channels" in n.reason for n in outcome.notes)
    assert after[0.1][frozenset("ab")] < after[0.02][frozenset("ab")] < before[frozenset("ab")]
    assert sorted(after[0.1][frozenset(t)] - before[frozenset(t)] for t in "ab") == [0, 8 * 16 * 16]
    caps = tuple(f"{t}:{before[frozenset(t)]}" for t in "ab")
    capped = Merge(max_drift=0.5, max_loss=0.1, caps=caps)(graph, use)
    assert all(macs(capped)[frozenset(t)] <= before[frozenset(t)] for t in "ab")


def test_layers_behind_a_cut_are_fitted_so_that_more_is_shared():
    nets = cousins()
    graph = joined(*nets.values())
    use = data(graph, SAMPLES)
    held = [one for i, one in enumerate(use.batches(graph)) if i % 4 == 3]
    both = frozenset("ab")
    placed, fitted = (Merge(max_drift=0.5, max_loss=0.01, fit=fit)(graph, use) for fit in (False, True))
    assert macs(fitted)[both] < macs(placed)[both]
    assert max(lost(nets, fitted, held).values()) <= 0.01


@pytest.mark.parametrize("shape,axis", [((1, 5, 4), 2), ((1, 4, 3, 2), 1)])
def test_ways_to_go_on_from_another_networks_value(shape, axis):
    """Against numpy: channels in another order, and a map between different widths."""
    rng, width = np.random.default_rng(0), shape[axis]
    for own, order in ((width, rng.permutation(width)), (width - 1, None)):
        b = Builder()
        x = b.input("x", *shape)
        theirs = b.apply("Relu", x)
        mine = b.apply("Sigmoid", b.input("y", *(own if d == axis else n for d, n in enumerate(shape))))
        b.task("t", b.apply("Exp", mine))
        graph = b.done()
        positions = int(np.prod(shape)) // width
        rows = rng.standard_normal((400 // positions * positions, width)).astype(np.float32)
        weights, constant = rng.standard_normal((width, own)), rng.standard_normal(own)
        targets = rows @ weights + constant if order is None else rows[:, order]
        cut = Cut(0, mine, theirs, axis)
        stitcher = Stitcher(graph, {mine: targets}, 400 // positions, Freedom.WEIGHTS, lambda name: False)
        way = stitcher.ways(cut, rows)[-1]
        assert way.residual < 1e-5 and (way.order is None) == (order is None)
        after = graph.copy()
        attach(after, graph, way, "cut[b]")
        value = rng.standard_normal(shape).astype(np.float32)
        feeds = {"x": value, "y": np.zeros(graph.value(ValueRef("y")).shape, np.float32)}
        found = np.moveaxis(np.log(outputs(after.freeze(), feeds)["t"]), axis, -1)
        shared = np.moveaxis(np.maximum(value, 0), axis, -1)
        expected = shared @ weights + constant if order is None else shared[..., order]
        assert difference(found, expected) < 2e-3


# ---------------------------------------------------------------------- what holds for every result
@pytest.mark.parametrize("form,policy", [("pre, parts, fused", "lattice"), ("post", "prefix")])
def test_every_subset_is_a_restriction_and_costs_what_its_file_costs(form, policy):
    first = encoder("a", 0, FORMS[form])
    nets = [first, tuned(first, "b", 5, 0.02), tuned(encoder("c", 0, FORMS[form], again=3), "c", 6, 0.02)]
    graph = joined(*nets)
    merged = Merge(policy=policy, max_drift=0.3, max_loss=0.3)(graph, data(graph))
    assert digest(merged) != digest(graph)
    full, costs = outputs(merged, feed(graph)), macs(merged)
    for tasks in subsets(graph):
        part = ExtractTasks(tasks=tasks)(merged)
        assert all(np.array_equal(found, full[t]) for t, found in outputs(part, feed(graph)).items())
        exported = load(to_onnx(part))
        assert sum(s.node.op.macs(s) for s in exported.sites()) == costs[frozenset(tasks)]


def test_orders_do_not_matter_and_runs_repeat():
    nets = {**pair(), "c": encoder("c", 1)}
    use = data(joined(*nets.values()))
    results = [
        Merge(max_drift=0.1, max_loss=0.1)(joined(*(nets[t] for t in order)), use)
        for order in ("abc", "abc", "cab")
    ]
    assert to_onnx(results[0]).SerializeToString() == to_onnx(results[1]).SerializeToString()
    assert macs(results[0]) == macs(results[2]) != macs(joined(*nets.values()))
    expected, found = (outputs(r, feed(r)) for r in (results[0], results[2]))
    assert all(np.array_equal(found[t], expected[t]) for t in expected)


def test_the_merged_network_compiles_and_every_subset_has_its_bits(tmp_path):
    nets = {**pair(), "c": encoder("c", 1)}
    graph = joined(*nets.values())
    merged = Merge(max_drift=0.05, max_loss=0.05)(graph, data(graph))
    build(merged, output=tmp_path / "out", name="encoders")
    opened, inputs = open_bundle(tmp_path / "out"), feed(graph)
    full = opened.run(inputs)
    for task, expected in answers(merged, [inputs]).items():
        assert difference(full[task], expected[0]) < 1e-5
    for tasks in subsets(graph):
        assert all(np.array_equal(found, full[t]) for t, found in opened.run(inputs, tasks=list(tasks)).items())


def test_training_brings_a_merged_pair_closer_to_the_originals():
    pytest.importorskip("torch")
    nets = pair(amount=0.4)
    graph = joined(*nets.values())
    use = replace(data(graph, SAMPLES), teacher=graph)
    merged = Merge(max_drift=0.9, max_loss=0.9)(graph, use)
    trained = Distil(epochs=3, batch=8, rate=5e-4, loss="mse")(merged, use)
    held = list(data(graph, 32, seed=8).batches(graph))
    before, after = (sum(lost(nets, g, held).values()) for g in (merged, trained))
    assert macs(trained) == macs(merged) != macs(graph)
    assert 1e-5 < after < before


def test_heads_and_feed_forward_channels_of_shared_blocks_can_be_pruned():
    graph = joined(*pair().values())
    use = data(graph)
    merged = Merge(max_drift=0.1, max_loss=0.1)(graph, use)
    pruned = PruneChannels(flops=0.7, recover="least-squares")(merged, use)
    assert macs(pruned)[frozenset("ab")] < 0.75 * macs(merged)[frozenset("ab")]


# ---------------------------------------------------------------------- options
def test_depth_counts_the_cuts():
    """The stream in front of the first block is the first cut, the second is behind its attention."""
    graph = joined(*pair().values())
    use = data(graph)
    costs = [macs(Merge(policy="prefix", depth=d)(graph, use))[frozenset("ab")] for d in range(1, 6)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 5
    assert costs[-1] == macs(graph)[frozenset("a")] + HEAD


@pytest.mark.parametrize(("options", "wanted"), [({"policy": "mtz"}, 1), ({}, 2)])
def test_networks_are_looked_at_once_unless_blocks_change_them(options, wanted, monkeypatch):
    made: list[Graph] = []

    class Counted(ChannelMap):
        def __init__(self, graph: Graph, *given, **more) -> None:
            made.append(graph)
            super().__init__(graph, *given, **more)

    monkeypatch.setattr("compiler.passes.merge.merging.ChannelMap", Counted)
    graph = joined(*pair().values())
    Merge(**options)(graph, data(graph))
    assert len(made) == wanted


@pytest.mark.parametrize("options", [{"policy": "mtz"}, {"start": "shared"}])
def test_policies_that_label_channels_one_by_one_leave_blocks_apart(options):
    graph = joined(*pair().values())
    outcome = Merge(**options).run(graph, data(graph))
    assert macs(outcome.graph) == macs(graph)
    assert any("prefix and lattice share them" in r.reason for r in outcome.refusals)


def test_excluded_nodes_stay():
    graph = joined(*pair().values())
    use = data(graph)
    merged = Merge(max_drift=0.1, max_loss=0.1, exclude=("?/softmax",))(graph, use)
    assert sum(n.op.name == "Softmax" for n in merged.nodes()) == 4
    assert owners(merged)[frozenset("ab")] == 8 * 6 * 16  # what is in front of the first one


def test_limits_of_one_task():
    graph = joined(*pair(amount=0.1).values())
    outcome = Merge(max_drift=0.5, max_loss=0.9, limits=("a:0", "b:0.5")).run(graph, data(graph))
    owner = {s.node.ref.name[0] for s in outcome.graph.sites() if s.node.op.name == "Softmax"}
    assert owner == {"a"}


def test_calls_that_pay_more_than_they_save():
    """Whoever only ever asks for one of the tasks would pay the other's network and a map."""
    graph = joined(*pair(amount=0.3).values())
    use = data(graph)
    merged = Merge(max_drift=0.9, max_loss=0.9)(
        graph, replace(use, workload={frozenset("a"): 1, frozenset("b"): 1})
    )
    before, after = macs(graph), macs(merged)
    assert all(after[frozenset(t)] <= before[frozenset(t)] for t in "ab")
