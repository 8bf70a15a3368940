"""Any labels at all: what a merge builds from them holds together, and labels that are none are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.reference import difference
from compiler.ir.verify import verify
from compiler.passes.extract import ExtractTasks
from compiler.passes.merge.assemble import Assembly
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.labels import Channel, Unit, average, check, own, separate
from compiler.passes.merge.match import align
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.streams import Streams
from tests.passes.merge.families import FAMILIES, joined, plain, residual
from tests.passes.merge.test_merge import data, feed, macs, outputs, subsets


def random_channels(streams: Streams, stream, rng: np.random.Generator) -> tuple[Channel, ...]:
    """Channels of random labels: joined across networks, widened, or as they were; in random order."""
    channels: list[Channel] = []
    left = [Unit(g, i) for g in stream.groups for i in range(streams.group(g).width)]
    rng.shuffle(left)  # type: ignore[arg-type]
    units = [Unit(*map(int, u)) for u in left]
    while units:
        first = units.pop()
        kind = rng.integers(3)
        partner = next((u for u in units if u.group != first.group), None)
        if kind == 0 and partner is not None:
            units.remove(partner)
            channels.append(average([first, partner]))
        elif kind == 1:
            channels.append(average([first], stream.groups))
        else:
            channels.append(own(first))
    return (average([Unit(stream.groups[0], 0)], stream.groups), *_without(channels, Unit(stream.groups[0], 0)))


def _without(channels: list[Channel], unit: Unit) -> list[Channel]:
    return [c for c in channels if unit not in c.members]


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 10**6))
def test_random_labels_keep_the_closure(family, seed):
    """Whatever the labels: a node only reads what all of its tasks may read, so subsets are restrictions."""
    graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("abc")))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    use = data(graph, 8)
    measured = Originals(graph, streams, list(use.batches(graph)))
    rng = np.random.default_rng(seed)

    def decide(assembly, place, found):
        return {s.index: random_channels(streams, s, rng) for s in found}

    work = graph.copy()
    assembly = Assembly(work, streams, measured, decide)
    assembly.run()
    check(streams, assembly.labelling)
    sweep(work)
    verify(work)
    needed = work.needed_by()
    for node in work.nodes():
        assert needed[node.ref] <= label_of(node.ref.name, needed[node.ref]), node.ref
    feeds = feed(graph)
    full, costs = outputs(work, feeds), macs(work)
    for tasks in subsets(graph):
        part = ExtractTasks(tasks=tasks)(work)
        assert all(np.array_equal(outputs(part, feeds)[t], full[t]) for t in tasks)
        assert sum(s.node.op.macs(s) for s in part.sites()) == costs[frozenset(tasks)]


def label_of(name: str, needed: frozenset[str]) -> frozenset[str]:
    """The tasks in a node's name, `conv[a+b]`; a node that kept its name may be needed by whoever it was."""
    inside = name.rpartition("[")[2].partition("]")[0]
    return frozenset(inside.split("+")) if "[" in name else needed


def test_separate_labels_are_the_separate_networks_with_their_own_bits():
    for family in FAMILIES:
        graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("ab")))
        streams = Streams(graph, align(graph), ChannelMap(graph))
        measured = Originals(graph, streams, list(data(graph, 24).batches(graph)))
        work = graph.copy()
        Assembly(work, streams, measured, lambda a, p, f: {s.index: separate(streams, s) for s in f}).run()  # noqa: B023
        sweep(work)
        feeds = feed(graph)
        assert all(difference(outputs(work, feeds)[t], y) < 1e-6 for t, y in outputs(graph, feeds).items())
        assert macs(work) == macs(graph)
        kept = {v.constant.tobytes() for v in graph.parameters()}
        assert {v.constant.tobytes() for v in work.parameters()} == kept


def test_labels_that_are_none_are_refused():
    graph = joined(plain("a", 0), plain("b", 1))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    stream = streams.streams[0]
    a, b = stream.groups
    for channels, message in (
        ((average([Unit(a, 99)]),), "is no member"),
        ((average([Unit(a, 0), Unit(b, 0)]), own(Unit(a, 0))), "is a member of two channels"),
        ((Channel((b,), (Unit(a, 0),), (1.0,), (1.0,)),), "is no member of label"),
        ((Channel((a,), (Unit(a, 0),), (1.0,), (0.5,)),), "the weights of"),
    ):
        with pytest.raises(VerifyError, match=message):
            check(streams, {stream.index: channels})


def test_a_stream_needs_an_owner_with_all_its_layers():
    """The networks meet in their stems, but only one goes on adding to what the stem makes."""
    graph = joined(residual("a", 0, blocks=1), plain("b", 1, (8,)))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    stream = next(s for s in streams.streams if len(s.groups) == 2)
    a, b = stream.groups
    assert streams.mask_of([a]) == 1
    check(streams, {stream.index: (Channel((a, b), (Unit(a, 0), Unit(b, 0)), (1.0, 1.0), (1.0, 0.0)),)})
    with pytest.raises(VerifyError, match="lacks a layer that writes"):
        check(streams, {stream.index: (Channel((a, b), (Unit(b, 0), Unit(a, 0)), (1.0, 1.0), (1.0, 0.0)),)})
