"""What a merge promises: copies cost one network, strangers lose nothing, every subset is a restriction."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.cost.combine import cost_report
from compiler.errors import ConfigError, PassError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.op import MacOp
from compiler.ir.reference import difference, evaluate
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.passes.merge import originals
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.lattice import Limits, lost_tasks
from compiler.passes.merge.match import align
from compiler.passes.merge.merging import LIMITED, WIRING, Merge
from compiler.passes.merge.rows import value_rows
from compiler.passes.merge.streams import Streams
from compiler.passes.prune.channels import PruneChannels
from compiler.pipeline import Pipeline, parse
from tests.graphs import Builder
from tests.passes.merge.families import FAMILIES, conv, divided, head, inverted, joined, plain, renamed, residual

SAMPLES = 48


def data(graph: Graph, count: int = SAMPLES, seed: int = 3) -> Resources:
    """Correlated inputs, as real ones are."""
    (value,) = graph.inputs
    rng = np.random.default_rng(seed)
    rows = count * value.shape[0]
    base = rng.standard_normal((rows, 6)) @ rng.standard_normal((6, int(np.prod(value.shape[1:]))))
    noise = 0.3 * rng.standard_normal(base.shape)
    return Resources(
        calibration={value.ref.name: (base + noise).reshape(rows, *value.shape[1:]).astype(np.float32)}
    )


def feed(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    (value,) = graph.inputs
    return {value.ref.name: np.random.default_rng(seed).standard_normal(value.shape).astype(np.float32)}


def outputs(graph: Graph, feeds: dict[str, np.ndarray], tasks=None) -> dict[str, np.ndarray]:
    found = evaluate(graph, feeds, tasks)
    return {t: found[graph.tasks[t].outputs[0].name] for t in tasks or graph.tasks}


def macs(graph: Graph) -> dict[frozenset[str], int]:
    return {frozenset(r.tasks): r.cost.macs for r in cost_report(graph).combinations}


def subsets(graph: Graph) -> list[tuple[str, ...]]:
    names = tuple(graph.tasks)
    return [c for n in range(1, len(names) + 1) for c in itertools.combinations(names, n)]


def permuted(graph: Graph, task: str, seed: int) -> Graph:
    """The same function with hidden channels in another order (residual streams in one order throughout)."""
    streams = Streams(graph, align(graph), ChannelMap(graph))
    twin = graph.copy()
    rng = np.random.default_rng(seed)
    data = {v.ref: v.constant for v in graph.parameters()}
    for group in streams.channels.groups:
        order = rng.permutation(group.width)
        for axis in group.axes:
            if axis.owner in data:
                entries = group.entries(axis)
                moved = np.array(data[axis.owner])
                view, old = np.moveaxis(moved, axis.dim, 0), np.moveaxis(data[axis.owner], axis.dim, 0)
                for to, source in enumerate(order):
                    view[entries[to]] = old[entries[source]]
                data[axis.owner] = moved
    for ref, array in data.items():
        twin.update(ref, data=array)
    (name,) = graph.tasks
    twin.set_task(task, graph.tasks[name].outputs, graph.tasks[name].labels)
    if name != task:
        twin.drop_task(name)
    return twin.freeze()


# ---------------------------------------------------------------------- copies and strangers
def limited(policy, **limits):
    """A merge within limits, where the policy knows any."""
    return Merge(policy=policy, **(limits if policy in LIMITED else {}))


@pytest.mark.parametrize("policy", ["exact", "lattice"])
def test_a_copy_costs_nothing_and_changes_nothing(policy):
    graph = joined(residual("a", 0), renamed(residual("b", 0), 7))
    merged = limited(policy, max_loss=0, max_drift=0)(graph, data(graph))
    alone = ExtractTasks(tasks=("a",))(graph)
    assert macs(merged)[frozenset("ab")] == macs(alone)[frozenset("a")]
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert np.array_equal(outputs(merged, feeds)[task], expected)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_copy_with_permuted_channels_costs_one_network_and_two_heads(family):
    first = FAMILIES[family]("a", 0)
    graph = joined(first, permuted(first, "b", 5))
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(expected, outputs(graph, feeds)["a"]) < 1e-5, task  # it is the same function
    merged = Merge(max_loss=0, max_drift=0)(graph, data(graph))
    one, both = macs(ExtractTasks(tasks=("a",))(graph))[frozenset("a")], macs(merged)[frozenset("ab")]
    head = [s for s in merged.sites() if isinstance(s.node.op, MacOp)][-1]
    head_macs = head.node.op.macs(head)
    assert both == one + head_macs
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(merged, feeds)[task], expected) < 1e-4


def test_channels_that_are_multiples_of_each_other_are_placed_with_their_slopes():
    """Without any fit, a copy with channels of other sizes loses nothing."""
    first = plain("a", 0)
    twin, rng = renamed(first, 1).copy(), np.random.default_rng(7)
    twin.set_task("b", twin.tasks["a"].outputs)
    twin.drop_task("a")
    layers = [s for s in twin.sites() if isinstance(s.node.op, MacOp)]
    for layer, reader in itertools.pairwise(layers):
        sizes = rng.uniform(0.5, 2.0, layer.results[0].shape[1]).astype(np.float32)
        for value in layer.operands[1:]:
            factors = sizes.reshape(-1, *(1,) * (value.rank - 1))
            twin.update(value.ref, data=twin.value(value.ref).constant * factors)
        read = reader.operands[1]
        twin.update(read.ref, data=read.constant / sizes.reshape(1, -1, *(1,) * (read.rank - 2)))
    graph = joined(first, twin.freeze())
    feeds = feed(graph)
    expected = outputs(graph, feeds)
    assert difference(expected["b"], expected["a"]) < 1e-5
    merged = Merge(max_loss=1e-6, max_drift=1e-6, fit=False)(graph, data(graph))
    assert macs(merged)[frozenset("ab")] < 1.2 * macs(merged)[frozenset("a")]
    for task, found in outputs(merged, feeds).items():
        assert difference(found, expected[task]) < 1e-4


@pytest.mark.parametrize("family", list(FAMILIES))
def test_strangers_share_nothing_at_zero_loss_and_change_nothing(family):
    """Not even where few inputs make anything look like anything else: the held-out ones decide."""
    graph = joined(FAMILIES[family]("a", 0), FAMILIES[family]("b", 1))
    outcome = Merge(max_loss=0, max_drift=0).run(graph, data(graph))
    assert macs(outcome.graph) == macs(graph)
    assert digest(outcome.graph) == digest(Merge(policy="exact")(graph))
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert np.array_equal(outputs(outcome.graph, feeds)[task], expected)
    assert any("would lose more than allowed" in r.reason for r in outcome.refusals)


# ---------------------------------------------------------------------- what holds for every policy
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("policy", ["lattice", "prefix", "mtz", "zipit", "pam"])
def test_every_subset_is_a_restriction_and_costs_what_its_file_costs(family, policy):
    graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("abc")))
    one = limited(policy, max_drift=5.0, max_loss=9.0)
    merged = replace(one, depth=2 if policy == "prefix" else 0)(graph, data(graph))
    feeds, costs = feed(graph), macs(merged)
    full = outputs(merged, feeds)
    assert digest(merged) != digest(graph)
    for tasks in subsets(graph):
        part = ExtractTasks(tasks=tasks)(merged)
        for task, found in outputs(part, feeds).items():
            assert np.array_equal(found, full[task])
            assert np.array_equal(outputs(merged, feeds, tasks)[task], full[task])
        exported = load(to_onnx(part))
        assert sum(s.node.op.macs(s) for s in exported.sites()) == costs[frozenset(tasks)]
        if len(tasks) == 2:
            assert costs[frozenset(tasks)] >= max(costs[frozenset([t])] for t in tasks)
            assert costs[frozenset(tasks)] <= sum(costs[frozenset([t])] for t in tasks)
    engine = Engine.of(merged).run(feeds)
    for task, expected in full.items():
        assert difference(engine[merged.tasks[task].outputs[0].name], expected) < 1e-4


@pytest.mark.parametrize("policy", ["lattice", "mtz", "zipit", "prefix", "pam"])
def test_orders_do_not_matter_and_runs_repeat(policy):
    nets = {t: plain(t, i) for i, t in enumerate("abc")}
    use = data(joined(*nets.values()))
    results = [
        limited(policy, max_drift=0.4, max_loss=0.6)(joined(*(nets[t] for t in order)), use)
        for order in ("abc", "abc", "cab")
    ]
    assert to_onnx(results[0]).SerializeToString() == to_onnx(results[1]).SerializeToString()
    assert macs(results[0]) == macs(results[2])
    assert macs(results[0]) != macs(joined(*nets.values())), "something is merged"
    feeds = feed(results[0])
    expected, found = outputs(results[0], feeds), outputs(results[2], feeds)
    assert all(np.array_equal(found[t], expected[t]) for t in expected)


def test_no_combination_costs_more_than_the_separate_networks():
    for family in ("plain", "residual", "concat"):
        graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("abc")))
        merged = Merge(max_drift=0.5, max_loss=0.9)(graph, data(graph))
        before, after = macs(graph), macs(merged)
        assert all(after[q] <= before[q] for q in before)
        assert after[frozenset("abc")] < before[frozenset("abc")]


def pixels(task: str, seed: int, mode: str) -> Graph:
    """A convolution whose channels are made into four pixels each: those of one channel lie apart (DCR) or side by
    side (CRD)."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), 16)
    b.task(task, head(b, conv(b, b.apply("DepthToSpace", x, blocksize=2, mode=mode), 8), 3))
    return b.done()


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("policy", ["lattice", "prefix", "mtz", "zipit"])
def test_channels_of_several_results_of_a_layer_are_shared_whole(policy, mode):
    """Without any fit, a copy loses nothing."""
    graph = joined(pixels("a", 0, mode), permuted(pixels("a", 0, mode), "b", 5))
    merged = replace(limited(policy, max_loss=1e-6, max_drift=1e-6), fit=False)(graph, data(graph))
    one = macs(pixels("a", 0, mode))[frozenset("a")]
    assert macs(merged)[frozenset("ab")] < 1.01 * one
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(merged, feeds)[task], expected) < 1e-4


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_strangers_whose_channels_are_several_results_of_a_layer_lose_nothing_side_by_side(mode):
    graph = joined(pixels("a", 0, mode), pixels("b", 1, mode))
    merged, feeds = Merge(start="shared")(graph, data(graph)), feed(graph)
    assert Merge(policy="mtz")(graph, data(graph)).tasks.keys() == {"a", "b"}
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(merged, feeds)[task], expected) < 1e-4


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_a_shared_start_loses_nothing_and_lets_all_tasks_read_all_channels(family):
    graph = joined(FAMILIES[family]("a", 0), FAMILIES[family]("b", 1))
    outcome = Merge(start="shared").run(graph, data(graph))
    feeds = feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(outcome.graph, feeds)[task], expected) < 1e-4
    hidden = [n for n in outcome.graph.nodes() if n.op.name == "Conv"]
    needed = outcome.graph.needed_by()
    assert {needed[n.ref] for n in hidden} == {frozenset("ab")}


def test_nodes_with_other_constants_that_have_no_channels_stay_apart():
    """Two networks that sample their maps at places of their own: one node cannot do both."""

    def net(task: str, seed: int) -> Graph:
        b = Builder(task, seed)
        y = conv(b, b.input("x", 1, 3, 8, 8), 6)
        places = b.const(b.rng.uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32))
        b.task(task, head(b, conv(b, b.apply("GridSample", y, places), 6), 3))
        return b.done()

    graph = joined(net("a", 0), net("b", 1))
    merged, feeds = Merge(start="shared")(graph, data(graph)), feed(graph)
    for task, expected in outputs(graph, feeds).items():
        assert difference(outputs(merged, feeds)[task], expected) < 1e-4


@pytest.mark.parametrize("policy", ["lattice", "prefix", "mtz", "zipit", "pam"])
def test_a_layer_whose_channels_go_two_ways_a_few_and_the_others(policy):
    """Its results are channels of two streams, the first of which is narrower; without any fit, a copy loses
    nothing.
    """
    graph = joined(divided("a", 0), permuted(divided("a", 0), "b", 5))
    merged = replace(limited(policy, max_loss=1e-6, max_drift=1e-6), fit=False)(graph, data(graph))
    feeds = feed(graph)
    if policy != "pam":  # which drops channels that say nothing of a task
        assert macs(merged)[frozenset("ab")] < 1.01 * macs(graph)[frozenset("a")]
        for task, expected in outputs(graph, feeds).items():
            assert difference(outputs(merged, feeds)[task], expected) < 1e-4
    for tasks in subsets(merged):
        found = outputs(ExtractTasks(tasks=tasks)(merged), feeds)
        assert all(np.array_equal(found[t], outputs(merged, feeds)[t]) for t in tasks)


# ---------------------------------------------------------------------- options and refusals
@pytest.mark.parametrize(
    "options,message",
    [
        ({"policy": "best"}, "policy is 'best'; it can be lattice, exact"),
        *(({n: -1.0}, f"{n} cannot be") for n in ("max_drift", "max_loss", "beta", "alpha", "threshold")),
        *(({"policy": "zipit", n: 2.0}, f"{n} cannot be above 1") for n in ("alpha", "beta")),
        ({"policy": "pam", "threshold": 2.0}, "threshold cannot be above 1"),
        *(({"share": wrong}, "share lies in") for wrong in (0.0, 1.5)),
        *(({n: least}, "multiple and samples start at 1") for n, least in (("multiple", 0), ("samples", 0))),
        ({"depth": -1}, "depth at 0"),
        ({"start": "wide"}, "start is 'wide'; it can be separate or shared"),
        ({"start": "shared", "policy": "mtz"}, "start is 'shared'; .* the latter for lattice only"),
        ({"limits": ("z:0.1",)}, "limits: 'z:0.1' is not TASK:SHARE"),
        ({"limits": ("a:0.1", "a:0.2")}, "limits: 'a' is given twice"),
        ({"caps": ("a/b:10", "b/a:20")}, "caps: 'b/a' is given twice"),
        ({"limits": ("a:nan",)}, "limits: 'a:nan' is not TASK:SHARE"),
        ({"caps": ("a/z:10",)}, "caps: 'a/z:10' is not TASK/TASK:MACS"),
        ({"caps": ("a/b:0",)}, "caps: 'a/b:0' is not TASK/TASK:MACS"),
        ({"policy": "mtz", "max_loss": 0.01}, "max_loss says nothing to policy mtz, only to lattice, prefix"),
        ({"policy": "pam", "share": 0.5}, "share says nothing to policy pam, only to mtz"),
        ({"start": "shared", "multiple": 4}, "multiple says nothing to policy lattice with start=shared"),
    ],
)
def test_wrong_options(options, message):
    graph = joined(plain("a", 0), plain("b", 1))
    with pytest.raises(ConfigError, match=message):
        Merge(**options)(graph, data(graph))


def test_a_loss_that_is_no_number_is_over_every_limit():
    limits = Limits(0.1, {"a": 0.5, "b": 0.5, "c": 0.5})
    assert lost_tasks({"a": np.nan, "b": 0.4, "c": 0.6}, limits) == ["a", "c"]


def test_calibration_is_needed():
    graph = joined(plain("a", 0), plain("b", 1))
    with pytest.raises(ConfigError, match="policy lattice needs calibration inputs"):
        Merge()(graph)
    assert Merge(policy="exact")(graph).tasks.keys() == {"a", "b"}


def test_a_single_network_stays_as_it_is_and_nothing_is_told():
    graph = plain("a", 0)
    outcome = Merge().run(graph, data(graph))
    assert digest(outcome.graph) == digest(graph) and not outcome.notes and not outcome.refusals


def test_options_as_text():
    one = parse("merge{policy=mtz,share=0.5,limits=a:0.1+b:0.2,caps=a/b:100}")
    assert one == Merge(policy="mtz", share=0.5, limits=("a:0.1", "b:0.2"), caps=("a/b:100",))
    assert parse(str(one)) == one


def test_a_cap_that_cannot_be_met():
    graph = joined(plain("a", 0), plain("b", 1))
    with pytest.raises(PassError, match=r"a/b takes 55,368 multiply-adds, its cap is 30,000\. Allow more loss"):
        Merge(caps=("a/b:30000",), max_drift=0, max_loss=0)(graph, data(graph))


def test_a_cap_that_is_met():
    graph = joined(plain("a", 0), plain("b", 1))
    merged = Merge(caps=("a/b:50000",), max_drift=0.5, max_loss=0.9)(graph, data(graph))
    assert macs(merged)[frozenset("ab")] <= 50000


def test_limits_of_one_task_hold_for_it_alone():
    graph = joined(plain("a", 0), plain("b", 1))
    outcome = Merge(max_drift=0.5, max_loss=0.9, limits=("a:0.3",)).run(graph, data(graph))
    losses = {n.where: float(n.reason.split()[1].rstrip("%")) for n in outcome.notes if n.where.startswith("task")}
    assert losses["task 'a'"] <= 30.0


def test_widths_are_multiples():
    graph = joined(plain("a", 0, (16, 16)), plain("b", 1, (16, 16)))
    merged = Merge(max_drift=0.5, max_loss=0.9, multiple=4)(graph, data(graph))
    widths = [s.results[0].shape[1] for s in merged.sites() if s.node.op.name == "Conv"]
    assert any("[a+b]" in n.ref.name for n in merged.nodes()) and all(w % 4 == 0 for w in widths)


def test_excluded_layers_stay():
    graph = joined(plain("a", 0), plain("b", 1))
    outcome = Merge(max_drift=0.5, max_loss=0.9, exclude=("a/conv*",)).run(graph, data(graph))
    assert macs(outcome.graph) == macs(graph)


def test_few_samples_are_told():
    graph = joined(plain("a", 0), plain("b", 1))
    outcome = Merge(max_drift=0.5, max_loss=0.9).run(graph, data(graph, 20))
    assert any("20 calibration inputs say little" in n.reason for n in outcome.notes)


def test_facts_per_layer():
    graph = joined(plain("a", 0, (8, 12, 16)), plain("b", 1, (8, 12)))
    outcome = Merge(max_drift=0.5, max_loss=0.9).run(graph, data(graph))
    shared = [n.reason for n in outcome.notes if n.reason.startswith("channels")]
    assert any("for a and b" in s and "(before 8 + 8)" in s for s in shared)
    assert any("only in a: 'b' has no layer at this place" in r.reason for r in outcome.refusals)


def test_merged_then_pruned_then_extracted():
    graph = joined(plain("a", 0, (16, 16)), plain("b", 1, (16, 16)))
    use = data(graph)
    passes = (Merge(max_drift=0.5, max_loss=0.9), PruneChannels(flops=0.6, recover="least-squares"))
    after, records = Pipeline(passes).run(graph, use)
    assert macs(after)[frozenset("ab")] < 0.61 * macs(graph)[frozenset("ab")]
    assert records[0].notes and records[0].record()["notes"]


def test_a_shallower_network_shares_what_it_has():
    """The deeper one's extra layer reads shared channels; nothing behind it corresponds."""
    graph = joined(plain("a", 0, (16, 16, 16)), plain("b", 1, (16, 16)))
    merged = Merge(policy="prefix", depth=1)(graph, data(graph))
    names = [n.ref.name for n in merged.nodes() if "[" in n.ref.name]
    assert names and all("[a+b]" in n for n in names)


def test_another_activation_ends_the_sharing():
    def net(task: str, seed: int, activation: str) -> Graph:
        b = Builder(task, seed)
        x = b.apply(activation, b.conv(b.input("x", 1, 3, 8, 8), 8, 3, pads=(1, 1, 1, 1)))
        b.task(task, head(b, conv(b, x, 8), 2))
        return b.done()

    graph = joined(net("a", 0, "Relu"), net("b", 1, "Tanh"))
    merged = Merge(max_drift=0.9, max_loss=5.0)(graph, data(graph))
    needed = merged.needed_by()
    of_both = [n for n in merged.nodes() if len(needed[n.ref]) == 2]
    assert {n.op.name for n in of_both} == {"Conv"}
    assert any("[a+b]" in n.ref.name for n in of_both)


def test_statistics_are_kept_by_content(tmp_path, monkeypatch):
    graph = joined(*(FAMILIES["depthwise"](t, i) for i, t in enumerate("ab")))
    use = replace(data(graph), cache=tmp_path)
    one = Merge(max_drift=0.9, max_loss=3.0)
    measured = []

    def counting(tape, *arguments):
        measured.append(tape.samples)
        return value_rows(tape, *arguments)

    monkeypatch.setattr(originals, "value_rows", counting)
    first = one(graph, use)
    assert len(list(tmp_path.iterdir())) == 1 and max(measured) > WIRING
    measured.clear()
    assert digest(one(graph, use)) == digest(first)
    assert max(measured) == WIRING  # the check of the wiring alone measures again
    one(graph, replace(data(graph, seed=4), cache=tmp_path))
    other = joined(*(FAMILIES["depthwise"](t, i + 1) for i, t in enumerate("ab")))
    one(other, replace(data(other), cache=tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    assert digest(one(graph, data(graph))) == digest(first)


def separable(task: str, seed: int, width: int, between: bool) -> Graph:
    """Two convolutions, with a depthwise one between them or without."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 3, 8, 8), width)
    x = conv(b, x, width, group=width) if between else x
    b.task(task, head(b, conv(b, x, 12), 3))
    return b.done()


@pytest.mark.parametrize("widths", [(8, 8), (8, 6), (6, 8)])
@pytest.mark.parametrize(
    "options", ["policy=lattice", "policy=prefix", "policy=mtz", "policy=zipit", "policy=pam", "start=shared"]
)
def test_a_depthwise_layer_that_one_network_lacks(options, widths):
    graph = joined(separable("a", 1, widths[0], True), separable("b", 2, widths[1], False))
    outcome = parse(f"merge{{{options}}}").run(graph, data(graph))
    merged, feeds = outcome.graph, feed(graph)
    found = outputs(merged, feeds)
    reasons = [r.reason for r in outcome.refusals]
    assert options in ("policy=lattice", "policy=mtz") or any(
        "without weights in 'a/conv.1'" in r for r in reasons
    ), reasons
    for task in ("a", "b"):
        alone = ExtractTasks((task,))(merged)
        assert np.array_equal(outputs(alone, feeds)[task], found[task])
        assert np.isfinite(found[task]).all()


@pytest.mark.parametrize(
    "options",
    ["policy=prefix,max_loss=99.0,max_drift=9.0", "policy=mtz", "policy=zipit", "policy=pam", "start=shared"],
)
def test_networks_of_one_depth_share_where_a_shallower_one_cannot(options):
    """c lacks a block of the residual stream, and with it weights on channels that a and b have in between."""
    nets = [inverted("a", 1), inverted("b", 2), inverted("c", 3, 10, blocks=1)]
    graph = joined(*nets)
    outcome = parse(f"merge{{{options}}}").run(graph, data(graph, 64))
    merged, feeds = outcome.graph, feed(graph)
    masks = merged.needed_by()
    layers = [s for s in merged.sites() if isinstance(s.node.op, MacOp) and len(s.results[0].shape) == 4]
    last = [s for s in layers if s.results[0].shape[2:] == (4, 4)]
    assert any({"a", "b"} <= masks[s.node.ref] for s in last)
    before, found = outputs(graph, feeds), outputs(merged, feeds)
    for task in "abc":
        assert np.array_equal(outputs(ExtractTasks((task,))(merged), feeds)[task], found[task])
        assert options != "start=shared" or difference(found[task], before[task]) < 1e-5


def test_why_networks_of_different_depth_share_nothing():
    graph = joined(inverted("a", 1, blocks=1), inverted("b", 2, blocks=2))
    outcome = parse("merge{policy=mtz}").run(graph, data(graph, 64))
    assert macs(outcome.graph) == macs(graph)
    stem = next(r.reason for r in outcome.refusals if r.where == "Conv 'a/conv'")
    assert "or need 'b/conv.3', which adds to the same channels, of a too" in stem, outcome.refusals


@pytest.mark.parametrize("policy", ["lattice", "prefix", "mtz", "zipit", "pam"])
def test_a_layer_that_reads_only_zeros(policy):
    """Real networks have them: every unit of a layer dead, and its reader left with a constant."""
    whole, dead = plain("a", 0), plain("b", 1).copy()
    silent = next(n for n in dead.nodes() if n.op.name == "Conv")
    bias = dead.operands(silent)[2]
    dead.update(bias.ref, data=np.full(bias.shape, -1e3, np.float32))
    graph = joined(whole, dead.freeze())
    merged = limited(policy, max_loss=0.1)(graph, data(graph))
    assert all(n <= macs(graph)[q] for q, n in macs(merged).items() if len(q) == 2)
    assert all(np.isfinite(y).all() for y in outputs(merged, feed(merged)).values())
    if policy == "lattice":
        assert macs(merged)[frozenset("b")] <= macs(graph)[frozenset("b")]


def shifted(task: str, seed: int) -> Graph:
    """`plain`, behind a normalisation of its own that cannot be folded into a zero-padded convolution."""
    b = Builder(task, seed)
    x = b.apply("Sub", b.input("x", 1, 3, 8, 8), b.weight(1, 3, 1, 1))
    for width in (8, 12):
        x = conv(b, x, width)
    b.task(task, head(b, x, 3))
    return b.done()


@pytest.mark.parametrize("order", ["abc", "bac", "acb"])
@pytest.mark.parametrize("policy", ["lattice", "prefix", "mtz", "zipit", "pam"])
def test_a_network_that_normalises_its_input_itself_reads_nothing_in_common(policy, order):
    networks = {"a": plain("a", 0), "b": shifted("b", 1), "c": plain("c", 2)}
    graph = joined(*(networks[t] for t in order))
    outcome = limited(policy, max_loss=9.0, max_drift=5.0).run(graph, data(graph))
    merged, feeds = outcome.graph, feed(graph)
    found, costs = outputs(merged, feeds), macs(merged)
    for task in order:
        assert np.array_equal(outputs(ExtractTasks((task,))(merged), feeds)[task], found[task])
    if policy == "mtz":
        assert difference(found["b"], outputs(graph, feeds)["b"]) < 1e-5
        assert costs[frozenset("ac")] < costs[frozenset("a")] + costs[frozenset("c")]
    assert not any(r.reason.startswith("channels") and " and " not in r.reason for r in outcome.refusals)


def test_the_reason_names_the_network_whose_input_is_its_own():
    graph = joined(plain("a", 0), shifted("b", 1))
    outcome = Merge(policy="mtz").run(graph, data(graph))
    first = next(r for r in outcome.refusals if r.where == "Conv 'a/conv'")
    assert first.reason == "not shared by a and b: what b reads there is its own, and read whole"


def test_the_constant_of_a_shared_product_goes_to_every_add_behind_it():
    """Adds whose constants have other shapes are no partners: each network keeps its own behind the product."""

    def network(task, seed, shape):
        b = Builder(task, seed)
        x = b.apply("Add", b.apply("MatMul", b.input("x", 4, 12), b.weight(12, 16)), b.weight(16))
        x = b.apply("MatMul", b.apply("Relu", x), b.weight(16, 10))
        x = b.apply("Relu", b.apply("Add", x, b.weight(*shape, scale=1.0)))
        b.task(task, b.apply("Gemm", x, b.weight(10, 3), b.weight(3)))
        return b.done()

    def constants(shape):
        graph = joined(network("a", 1, (10,)), network("b", 2, shape))
        merged = Merge(policy="mtz")(graph, data(graph))
        adds = [s for s in merged.sites() if s.node.op.name == "Add" and s.results[0].shape[-1] == 10]
        return [s.operands[1].constant.reshape(-1) for s in adds]

    (together,), apart = constants((10,)), constants((1, 10))
    assert len(apart) == 2
    assert np.allclose(np.mean(apart, axis=0), together, atol=1e-6)
