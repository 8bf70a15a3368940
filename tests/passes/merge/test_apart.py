"""Networks that do with their channels what others do not: one adds what another one keeps apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler import parse_pass
from compiler.ir.graph import Graph
from compiler.ir.reference import difference, evaluate
from compiler.passes.base import Resources
from compiler.passes.extract import ExtractTasks
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.match import align
from compiler.passes.merge.streams import Streams
from tests.graphs import Builder
from tests.passes.merge.families import joined

ENDS = {
    "added": lambda b, one, two: [b.apply("Add", one, two)],
    "apart": lambda b, one, two: [one, two],
    "turned": lambda b, one, two: [
        b.apply("Add", one, b.apply("Gather", one, b.const(np.array([1, 0, 3, 2, 5, 4])), axis=1))
    ],
    "first": lambda b, one, two: [one],
    "part": lambda b, one, two: [
        b.apply("Slice", b.apply("Concat", one, two, axis=1), *(b.const(np.array([n])) for n in (0, 5, 1)))
    ],
    "beside": lambda b, one, two: [b.apply("Concat", one, two, axis=1)],
}


def network(kind: str, task: str, seed: int) -> Graph:
    """Two layers of six channels on one input, and a layer on what is made of them."""
    b = Builder(task, seed)
    x = b.input("x", 1, 4)
    layers = (b.apply("Gemm", x, b.weight(6, 4), b.weight(6), transB=1) for _ in range(2))
    read = ENDS[kind](b, *(b.apply("Relu", layer) for layer in layers))
    width = (b.graph.value(v).shape[1] for v in read)
    b.task(
        task, *(b.apply("Gemm", v, b.weight(2, n), b.weight(2), transB=1) for v, n in zip(read, width, strict=True))
    )
    return b.done()


FEEDS = [{"x": x} for x in np.random.default_rng(0).normal(size=(64, 1, 4)).astype(np.float32)]
PAIRS = [
    *itertools.permutations(("added", "apart"), 2),
    ("turned", "first"),
    ("part", "beside"),
    ("beside", "added"),
]
POLICIES = ["lattice,max_drift=0.5,max_loss=0.9", "prefix", "zipit", "mtz", "pam", "lattice,start=shared"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_what_does_not_correspond_channel_by_channel_stays_apart(kinds: tuple[str, str], policy: str) -> None:
    graph = joined(*(network(kind, task, seed) for seed, (kind, task) in enumerate(zip(kinds, "ab", strict=True))))
    made = parse_pass(f"merge{{policy={policy}}}")(graph, Resources(calibration=lambda: FEEDS))
    feed = FEEDS[0]
    before, after = evaluate(graph, feed), evaluate(made, feed)
    for task in graph.tasks:
        part = evaluate(ExtractTasks((task,))(made), feed)
        for a, b in zip(graph.tasks[task].outputs, made.tasks[task].outputs, strict=True):
            assert np.array_equal(part[b.name], after[b.name])
            if policy.endswith("shared"):
                assert difference(after[b.name], before[a.name]) < 1e-5


@pytest.mark.parametrize("kinds", PAIRS, ids="-".join)
def test_a_stream_has_one_group_of_each_network(kinds: tuple[str, str]) -> None:
    graph = joined(*(network(kind, task, seed) for seed, (kind, task) in enumerate(zip(kinds, "ab", strict=True))))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    assert sorted(g for s in streams.streams for g in s.groups) == [
        g.index for g in streams.channels.groups if g.split
    ]
    for stream in streams.streams:
        assert sum(streams.group_masks[g] for g in stream.groups) == streams.mask_of(stream.groups) <= 3
    if set(kinds) == {"added", "apart"}:
        assert sorted(len(s.groups) for s in streams.streams) == [1, 2]


@pytest.mark.parametrize("spec", ["merge", "merge{policy=mtz}", "merge{start=shared}"])
def test_channels_of_a_constant_that_is_not_finite_stay_together(spec: str) -> None:
    """A bias of minus infinity switches a unit off; zero times it made NaN of its neighbours."""
    networks = []
    for task, seed in (("a", 1), ("b", 2)):
        b = Builder(task, seed)
        bias = b.graph.value(b.weight(8)).constant.copy()
        bias[3] = -np.inf
        h = b.apply("Relu", b.apply("Gemm", b.input("x", 1, 6), b.weight(8, 6), b.const(bias), transB=1))
        h = b.apply("Relu", b.apply("Gemm", h, b.weight(8, 8), b.weight(8), transB=1))
        b.task(task, b.apply("Gemm", h, b.weight(3, 8), b.weight(3), transB=1))
        networks.append(b.done())
    both = joined(*networks)
    x = np.random.default_rng(0).standard_normal((32, 1, 6)).astype(np.float32)
    outcome = parse_pass(spec).run(both, Resources(calibration={"x": x}))
    told = {str(r).partition(": ")[2] for r in outcome.refusals}
    reason = "Gemm 'a/gemm' has weights or constants that are not finite"
    assert f"not shared: its channels are read together, {reason}" in told
    if "shared" in spec:
        feeds = {"x": x[0]}
        wanted, found = evaluate(both, feeds), evaluate(outcome.graph, feeds)
        pairs = zip(both.outputs, outcome.graph.outputs, strict=True)
        assert all(difference(found[b.ref.name], wanted[a.ref.name]) <= 1e-5 for a, b in pairs)


@pytest.mark.parametrize("spec", ["merge", "merge{policy=mtz}", "merge{start=shared}"])
def test_statistics_behind_a_flatten_move_with_every_entry_of_a_channel(spec: str) -> None:
    """A map becomes a row, so that a normalisation has as many numbers per channel as the map has places."""
    networks = []
    for task, seed in (("a", 1), ("b", 2)):
        b = Builder(task, seed)
        row = b.apply("Flatten", b.apply("Relu", b.conv(b.input("x", 1, 2, 3, 3), 4, 3, pads=(1, 1, 1, 1))))
        four = (b.const(np.abs(b.graph.value(b.weight(36)).constant) + 0.5) for _ in range(4))
        row = b.apply("BatchNormalization", row, *four)
        b.task(task, b.apply("Gemm", row, b.weight(3, 36), b.weight(3), transB=1))
        networks.append(b.done())
    both = joined(*networks)
    x = np.random.default_rng(0).standard_normal((64, 2, 3, 3)).astype(np.float32)
    merged = parse_pass(spec)(both, Resources(calibration={"x": x}))
    feeds = {"x": x[:1]}
    wanted, found = evaluate(both, feeds), evaluate(merged, feeds)
    limit = 1e-5 if "shared" in spec else 1.0
    pairs = zip(both.outputs, merged.outputs, strict=True)
    assert all(difference(found[b.ref.name], wanted[a.ref.name]) <= limit for a, b in pairs)


@pytest.mark.parametrize("spec", ["merge{max_loss=0.9,max_drift=0.9}", "merge{policy=mtz}", "merge{start=shared}"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_layers_stay_apart_where_one_reads_every_channel_twice(spec: str, first: str) -> None:
    networks = []
    for task, seed in (("a", 1), ("b", 2)):
        b = Builder(task, seed)
        h = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 6, 3))
        h = b.apply("Concat", h, h, axis=1) if task == first else h
        h = b.apply("Relu", b.conv(h, 5, 1))
        b.task(task, b.apply("Gemm", b.apply("Flatten", h), b.weight(3, 20), b.weight(3), transB=1))
        networks.append(b.done())
    both = joined(*networks)
    x = np.random.default_rng(0).standard_normal((64, 3, 4, 4)).astype(np.float32)
    outcome = parse_pass(spec).run(both, Resources(calibration={"x": x}))
    assert any("for a and b" in str(note) for note in outcome.notes)  # of the first layers
    if "shared" in spec:
        feeds = {"x": x[:1]}
        wanted, found = evaluate(both, feeds), evaluate(outcome.graph, feeds)
        pairs = zip(both.outputs, outcome.graph.outputs, strict=True)
        assert all(difference(found[b.ref.name], wanted[a.ref.name]) <= 1e-5 for a, b in pairs)
