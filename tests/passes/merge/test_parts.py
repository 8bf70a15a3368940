"""The parts of merge by themselves: labels, fits, likeness, prices, rows and limits, by hand and by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from compiler.calibration.tape import Tape
from compiler.errors import PassError
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.types import ValueRef
from compiler.passes.base import Resources
from compiler.passes.merge.channels import ChannelMap, Role
from compiler.passes.merge.emit import present_members
from compiler.passes.merge.join import Joiner
from compiler.passes.merge.labels import (
    Channel,
    Slab,
    Unit,
    average,
    base_name,
    own,
    separate,
    slabs,
    task_order,
    whole_multiples,
)
from compiler.passes.merge.lattice import CLOSED, LEAST, Limits, _less, lost_tasks, task_losses
from compiler.passes.merge.match import align
from compiler.passes.merge.merging import POLICIES, Merge, _deepest, _uniform, caps_of
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.pairing import classes_by_assignment
from compiler.passes.merge.readings import readings
from compiler.passes.merge.relevance import Likeness, Prices, Runs, worth
from compiler.passes.merge.rows import held_out, restored, value_rows
from compiler.passes.merge.solve import BETTER, Fit, Freedom, measure, solve
from compiler.passes.merge.stages import label, owners, stages
from compiler.passes.merge.streams import Stream, Streams, _classes
from compiler.passes.merge.trunks import Trunks
from compiler.passes.prune.fit import POSITIONS, spread
from tests.graphs import Builder
from tests.passes.merge.families import joined, plain, residual
from tests.passes.merge.test_merge import data


def streams_of(graph: Graph) -> Streams:
    return Streams(graph, align(graph), ChannelMap(graph))


@pytest.fixture(scope="module")
def pair() -> tuple[Graph, Streams, Originals]:
    """Two networks of widths 8, 12 and 6, 12, measured on 12 inputs."""
    graph = joined(plain("a", 0), plain("b", 1, (6, 12)))
    streams = streams_of(graph)
    return graph, streams, Originals(graph, streams, list(data(graph, 12).batches(graph)))


# ---------------------------------------------------------------------- labels
def test_channels_of_one_and_of_several_networks() -> None:
    assert own(Unit(3, 1)) == Channel((3,), (Unit(3, 1),), (1.0,), (1.0,)) and own(Unit(3, 1)).private
    both = average([Unit(4, 0), Unit(2, 5)], [7, 2])
    assert both == Channel((2, 4, 7), (Unit(4, 0), Unit(2, 5)), (1.0, 1.0), (0.5, 0.5))
    assert both.owner == Unit(4, 0) and not both.private and not average([Unit(1, 0)], [2]).private
    assert Channel((1, 2), (Unit(1, 0), Unit(2, 0)), (1.0, 1.0), (0.0, 1.0)).owner == Unit(2, 0)


def test_shared_widths_become_multiples_and_the_rest_is_everybodys_own_again() -> None:
    shared = [average([Unit(0, i), Unit(1, i)]) for i in range(5)]
    single = [own(Unit(0, 9)), average([Unit(2, 0), Unit(1, 9)])]
    found = whole_multiples([*shared, *single], 2)
    assert found[:4] == tuple(shared[:4])
    assert found[4:] == (own(Unit(0, 4)), own(Unit(1, 4)), own(Unit(0, 9)), own(Unit(2, 0)), own(Unit(1, 9)))
    assert whole_multiples([*shared, *single], 1) == (*shared, *single)
    assert whole_multiples(shared, 5) == tuple(shared)
    assert whole_multiples(shared, 6) == tuple(own(m) for c in shared for m in c.members)


def test_larger_task_sets_come_first_and_then_the_order_of_names() -> None:
    masks = sorted(range(8), key=task_order)
    assert masks == [0b111, 0b011, 0b101, 0b110, 0b001, 0b010, 0b100, 0]


def test_slabs_are_no_wider_than_the_narrowest_network(pair) -> None:
    _, streams, _ = pair
    stream = next(s for s in streams.streams if {streams.group(g).width for g in s.groups} == {8, 6})
    a, b = stream.groups
    shared = [average([Unit(a, i % 8)], [b]) for i in range(8)]
    found = slabs(streams, stream, [own(Unit(b, 2)), own(Unit(a, 1)), *shared, own(Unit(b, 4))])
    assert [(s.groups, len(s.channels), s.number) for s in found] == [
        ((a, b), 6, 0),
        ((a, b), 2, 1),
        ((a,), 1, 0),
        ((b,), 2, 0),
    ]
    assert found[0].channels + found[1].channels == tuple(shared) and all(s.stream == stream.index for s in found)
    assert found[3] == Slab(stream.index, (b,), (own(Unit(b, 2)), own(Unit(b, 4))), 0)
    assert separate(streams, stream) == tuple(
        own(Unit(g, i)) for g in (a, b) for i in range(streams.group(g).width)
    )


def test_members_of_the_networks_that_are_there_weigh_one_together() -> None:
    channel = Channel((0, 1, 2), (Unit(0, 5), Unit(1, 6), Unit(2, 7)), (1.0,) * 3, (0.5, 0.25, 0.25))
    sources = [SimpleNamespace(groups=(g, 9)) for g in range(3)]

    def found(channel: Channel, *numbers: int) -> list[tuple[int, Unit, float]]:
        there = [sources[n] for n in numbers]
        return [(sources.index(s), u, w) for s, u, w in present_members(there, channel)]  # type: ignore[arg-type]

    assert found(channel, 0, 1, 2) == [(0, Unit(0, 5), 0.5), (1, Unit(1, 6), 0.25), (2, Unit(2, 7), 0.25)]
    assert found(channel, 0, 2) == [(0, Unit(0, 5), 2 / 3), (2, Unit(2, 7), 1 / 3)]
    silent = Channel((0, 1, 2), channel.members, channel.slopes, (1.0, 0.0, 0.0))
    assert found(silent, 1, 2) == [(1, Unit(1, 6), 1.0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/conv2", "conv2"),
        ("conv2[a+b]", "conv2"),
        ("a/conv2[b]", "conv2"),
        ("c/conv2", "c/conv2"),
        ("conv2[a+c]", "conv2[a+c]"),
        ("conv2[a", "conv2[a"),
        ("[a]", "[a]"),
        ("a/", "a/"),
        ("conv[0][a]", "conv[0]"),
        ("b/a/x", "a/x"),
    ],
)
def test_names_without_task_and_label(name: str, expected: str) -> None:
    assert base_name(name, ("a", "b")) == expected


# ---------------------------------------------------------------------- streams and stages
def test_the_finest_partition_in_which_what_stands_together_is_together() -> None:
    assert _classes([1, 2, 3, 4, 5], []) == [[1], [2], [3], [4], [5]]
    assert _classes([5, 1, 2, 3, 4], [[4, 2], [], [3], [2, 5]]) == [[5, 2, 4], [1], [3]]
    assert _classes([1, 2, 3, 4], [[1, 2], [3, 4], [2, 3]]) == [[1, 2, 3, 4]]


def test_places_streams_and_owners() -> None:
    """A residual network meets a plain one in the stem; only the first one has what writes its stream later."""
    graph = joined(residual("a", 0, blocks=1), plain("b", 1, (8,)))
    streams = streams_of(graph)
    both = [s for s in streams.streams if len(s.groups) == 2]
    stem = both[0]
    assert label(streams, stem, 0b11) == stem.groups and label(streams, stem, 0b10) == stem.groups[1:]
    assert owners(stem, stem.groups) == stem.groups[:1]
    assert streams.mask_of(stem.groups) == 0b11 and streams.mask_of(stem.groups[:1]) == 0b01
    assert [p.role for p in stem.makers] == [Role.LAYER, Role.LAYER]
    assert [len(p.sources) for p in stem.makers] == [2, 1]
    assert stem.makers[0].mask_of(stem.groups) == 0b11 and stem.makers[1].mask_of(stem.groups) == 0b01
    assert not stem.may_own(stem.groups[1], stem.groups) and stem.may_own(stem.groups[1], stem.groups[1:])
    assert [p.index for p in streams.places] == list(range(len(streams.places)))
    for place in streams.places:
        for source in place.sources:
            assert streams.place(source.ref) is place
            assert streams.origin(source.site.results[0].ref) == (place.index, 0)
            read = [v.ref for _, v in source.site.operands.present() if v.data is None]
            made = [streams.origin(r) for r in read]
            assert all(
                o == r if isinstance(o, ValueRef) else o[0] < place.index for o, r in zip(made, read, strict=True)
            )


def test_stages_reach_from_the_inputs_as_far_as_all_networks_go() -> None:
    graph = joined(plain("a", 0, (8, 12, 10)), plain("b", 1, (6, 12)))
    streams = streams_of(graph)
    found = [labels for stage in stages(streams, lambda s, g: True) for labels in stage.values()]
    assert [[[streams.group(g).width for g in groups] for groups in labels] for labels in found] == [
        [[8, 6]],
        [[12, 12]],
    ]


def test_a_stage_is_shared_by_the_largest_set_of_tasks_that_can_then_by_the_rest() -> None:
    graph = joined(*(plain(t, i, (8, 12)) for i, t in enumerate("abcd")))
    streams = streams_of(graph)

    def allowed(stream: Stream, groups: tuple[int, ...]) -> bool:
        tasks = set(streams.alignment.names(streams.mask_of(groups)))
        return tasks in ({"a", "b", "d"}, {"a", "c"}, {"b", "d"})

    first, second = (labels for stage in stages(streams, allowed) for labels in stage.values())
    names = [streams.alignment.names(streams.mask_of(g)) for g in first]
    assert names == [("a", "b", "d")] and len(second) == 1
    pairs = stages(streams, lambda s, g: len(g) == 2)
    assert [len(labels) for stage in pairs for labels in stage.values()] == [2, 2]


@pytest.mark.parametrize("complete", [False, True])
def test_a_stage_that_reads_a_longer_stream_of_one_network(complete: bool) -> None:
    """The second block of a is only its own, so that what is behind it reads channels that b does not have."""
    graph = joined(residual("a", 0, blocks=2), residual("b", 1, blocks=1), residual("c", 2, blocks=1))
    streams = streams_of(graph)
    found = stages(streams, lambda s, g: True, complete=complete)
    last = [streams.alignment.names(streams.mask_of(g)) for g in found[-1].popitem()[1]]
    assert last == [("b", "c") if complete else ("a", "b", "c")]


# ---------------------------------------------------------------------- rows
def test_rows_are_chosen_evenly_and_one_sample_in_four_is_held_out() -> None:
    assert spread(5, 3).tolist() == [0, 1, 2, 3, 4] and spread(POSITIONS, 1).tolist() == list(range(POSITIONS))
    assert spread(2 * POSITIONS, 0).tolist() == list(range(0, 2 * POSITIONS, 2))
    assert spread(2 * POSITIONS, 1).tolist() == list(range(1, 2 * POSITIONS, 2))
    assert held_out(5, 2).tolist() == [False] * 6 + [True] * 2 + [False] * 2
    assert len(held_out(4, 100)) == 4 * POSITIONS and held_out(4, 100).sum() == POSITIONS


@pytest.mark.parametrize("samples", [3, 40])
def test_rows_of_a_value_are_its_channels_at_the_chosen_positions(samples: int) -> None:
    """Over chunks of samples, too."""
    b = Builder(seed=3)
    y = b.conv(b.input("x", 1, 2, 7, 8), 3, 2)
    b.task("t", y)
    graph = b.done()
    feeds = [{"x": x} for x in np.random.default_rng(0).normal(size=(samples, 1, 2, 7, 8)).astype(np.float32)]
    tape = Tape(graph, feeds)
    tape.run(graph.nodes())
    found = value_rows(tape, y, 1)
    expected = []
    for i, feed in enumerate(feeds):
        (value,) = evaluate(graph, feed).values()
        expected.append(value[0].reshape(3, -1).T[spread(42, i)])
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


def test_weights_come_back_in_the_form_of_the_layer() -> None:
    b = Builder(seed=3)
    x = b.input("x", 2, 6)
    turned = b.apply("Gemm", x, b.weight(4, 6), transB=1)
    straight = b.apply("MatMul", x, b.weight(6, 4))
    conv = b.conv(b.input("i", 1, 2, 5, 5), 3, (2, 3))
    up = b.apply("ConvTranspose", b.input("u", 1, 2, 5, 5), b.weight(2, 3, 2, 3))
    b.task("t", turned, straight, conv, up)
    forms = {s.node.op.name: restored(s, np.arange(24.0).reshape(12, 2)) for s in b.done().sites()}
    assert forms["Gemm"].shape == (2, 12) and forms["MatMul"].shape == (12, 2)
    assert forms["Conv"].shape == (2, 2, 2, 3) and forms["Conv"][1].ravel().tolist() == list(range(1, 24, 2))
    assert forms["ConvTranspose"].shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(forms["ConvTranspose"].swapaxes(0, 1), forms["Conv"])


# ---------------------------------------------------------------------- fits
def rows_of(seed: int, count: int = 60, noise: float = 0.1, offset: float = 2.0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(1, count, 4)), rng.normal(size=(1, 4, 3))
    return x, w, x @ w + offset + noise * rng.normal(size=(1, count, 3))


def test_measured_rows_are_split_however_they_come_in() -> None:
    x, _, y = rows_of(0)
    held = np.arange(60) % 4 == 3
    whole = measure([x], y, held)
    pieces = measure([x[:, :7], x[:, 7:8], x[:, 8:]], y, held)
    for a, b_ in ((whole.train, pieces.train), (whole.test, pieces.test)):
        np.testing.assert_allclose(a.xy, b_.xy)
        assert a.rows == b_.rows
    assert (whole.train.rows, whole.test.rows) == (45, 15)
    np.testing.assert_allclose(whole.test.xx, np.swapaxes(x[:, held], 1, 2) @ x[:, held])
    for none in (np.zeros(60, bool), np.ones(60, bool)):
        both = measure([x], y, none)
        assert both.train is both.test and both.train.rows == 60


@pytest.mark.parametrize("freedom", list(Freedom))
@pytest.mark.parametrize("offset", [True, False])
def test_the_fit_is_the_best_that_is_allowed(freedom: Freedom, offset: bool) -> None:
    x, w, y = rows_of(1, offset=2.0 if offset else 0.0)
    held = np.arange(60) % 4 == 3
    prior = w + 0.3
    found = solve(measure([x], y, held), prior, np.zeros((1, 3)) if offset else None, freedom)
    moved = (y[:, ~held] - x[:, ~held] @ prior).mean(axis=1)
    if freedom == Freedom.NOTHING or (freedom == Freedom.CONSTANTS and not offset):
        assert not found.refitted and np.array_equal(found.weights, prior) and not found.offset.any()
    elif freedom == Freedom.CONSTANTS:
        assert found.refitted and np.array_equal(found.weights, prior)
        np.testing.assert_allclose(found.offset, moved)
    else:
        np.testing.assert_allclose(found.weights, w, atol=0.1)
        np.testing.assert_allclose(found.offset, 2.0 if offset else 0.0, atol=0.1)
    error = ((x[:, held] @ found.weights + found.offset - y[:, held]) ** 2).mean(axis=1)
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    variance = y[:, held].var(axis=1) + 1e-5 * (y[:, held] ** 2).mean(axis=1)
    np.testing.assert_allclose(found.power, variance, rtol=1e-6)
    assert found.residual == pytest.approx(error.sum() / variance.sum())
    np.testing.assert_allclose(found.residuals, error / variance)


def test_what_is_lost_is_a_share_however_small_the_targets_are() -> None:
    fit = Fit(np.zeros((1, 1, 2)), np.zeros((1, 2)), np.array([1e-9, 3e-9]), np.array([2e-9, 6e-9]), True)
    assert fit.residual == pytest.approx(0.5) and fit.residuals == pytest.approx([0.5, 0.5])


def test_weights_that_are_as_good_as_exact_or_hardly_worse_stay() -> None:
    x, w, y = rows_of(2, noise=0.0, offset=0.0)
    held = np.arange(60) % 4 == 3
    assert not solve(measure([x], y, held), w, np.zeros((1, 3))).refitted
    x, w, y = rows_of(2, noise=1.0, offset=0.0)
    measured = measure([x], y, held)
    fit = solve(measured, w + 1, None)
    assert fit.refitted
    again = solve(measured, fit.weights, None)
    assert not again.refitted or again.error.sum() < BETTER * fit.error.sum()


# ---------------------------------------------------------------------- likeness and prices
def likeness_of(**features: list[list[float]]) -> Likeness:
    """`a`, `b` ... -> [rows][channels] at one place, groups 0, 1, ..."""
    rows = {i: np.array(f, np.float32) for i, f in enumerate(features.values())}
    return Likeness(None, SimpleNamespace(features={0: rows}))  # type: ignore[arg-type]


def test_correlations_and_slopes_between_networks() -> None:
    base, other = [1.0, 2.0, 4.0, 3.0], [2.0, 0.0, 1.0, 5.0]
    a = np.array([base, other, [7.0] * 4]).T
    b = np.array([[-3 * v for v in base], [5.0] * 4]).T
    found = likeness_of(a=a.tolist(), b=b.tolist())
    correlations, slopes = found.between(0, 1)
    assert correlations[0, 0] == pytest.approx(-1) and slopes[0, 0] == pytest.approx(-3)
    expected = np.corrcoef(other, base)[0, 1]
    assert correlations[1, 0] == pytest.approx(-expected)
    assert slopes[1, 0] == pytest.approx(-3 * np.cov(other, base, bias=True)[0, 1] / np.var(other))
    assert (
        correlations[2].tolist() == [0, 1] and correlations[0, 1] == 0
    )  # of constants either stands for the other
    back = found.between(1, 0)
    assert back[1][0, 0] == pytest.approx(-1 / 3)
    np.testing.assert_allclose(back[0], correlations.T)
    assert found.between(0, 5) is None and found.together([0, 5]) == []
    every = found.among([0, 1])
    assert every.shape == (5, 5) and every[0, 3] == pytest.approx(-1) and every[0, 1] == pytest.approx(expected)


def test_the_last_place_where_networks_meet_counts() -> None:
    first = {0: np.array([[1.0], [2.0]], np.float32), 1: np.array([[1.0], [2.0]], np.float32)}
    last = {0: np.array([[1.0], [2.0]], np.float32), 1: np.array([[2.0], [1.0]], np.float32)}
    found = Likeness(None, SimpleNamespace(features={4: last, 2: first}))  # type: ignore[arg-type]
    assert found.between(0, 1)[0][0, 0] == pytest.approx(-1)
    assert [t.tolist() for t in found.together([1])] == [[[2.0], [1.0]]]


def test_classes_of_like_channels_are_the_best_assignment() -> None:
    """Against all one-to-one assignments of two networks; a third one comes to those it is likest to."""
    rng = np.random.default_rng(5)
    shape = SimpleNamespace(group=lambda g: SimpleNamespace(width=[3, 4, 2][g]))
    mixing = rng.normal(size=(5, 9))
    rows = rng.normal(size=(40, 5)) @ mixing
    parts = [rows[:, :3], rows[:, 3:7], rows[:, 7:]]
    likeness = likeness_of(**{n: p.tolist() for n, p in zip("abc", parts, strict=True)})
    both = likeness.between(0, 1)[0] ** 2
    found = classes_by_assignment(shape, [0, 1], likeness)
    assert len(found) == 4 and [c[-1] for c in found] == [Unit(1, i) for i in range(4)]
    got = sum(both[a.channel, b.channel] for a, b in (c for c in found if len(c) == 2))
    best = max(sum(both[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(4), 3))
    assert got == pytest.approx(best)
    three = classes_by_assignment(shape, [0, 1, 2], likeness)
    assert sorted(u for c in three for u in c) == sorted(
        Unit(g, i) for g, n in enumerate((3, 4, 2)) for i in range(n)
    )


def test_a_channel_costs_its_products_as_often_as_its_tasks_are_called(pair) -> None:
    _, streams, _ = pair
    prices = Prices(streams, Runs("ab", {}))
    for place in streams.places:
        for source in place.sources:
            if place.role is Role.LAYER and source.groups:
                (group,) = source.groups
                site = source.site
                assert prices.making(group) == site.node.op.macs(site) / site.results[0].shape[1]
    assert [prices.runs(m) for m in (0b01, 0b10, 0b11)] == pytest.approx([2 / 3, 2 / 3, 1])
    calls = {frozenset("a"): 3.0, frozenset("ab"): 1.0}
    assert [Runs("ab", calls)(m) for m in (0b01, 0b10, 0b11)] == pytest.approx([1, 1 / 4, 1])
    assert Runs("abc", {})(0b101) == pytest.approx(6 / 7)


def test_a_channel_is_worth_what_its_readers_lose_without_it(pair) -> None:
    """A linear reader's rise of error, against fits with and without the channel; as a share of its variance."""
    _, streams, originals = pair
    found = worth(streams, originals)
    assert all(len(v) == streams.group(g).width and (v >= 0).all() for g, v in found.items())
    place = next(p for p in streams.places if p.role is Role.LAYER and p.sources[0].site.node.op.name == "Gemm")
    (source,) = (s for s in place.sources if s.mask == 1)
    (group,) = streams.channels.parts(source.site.operands[0])
    g = originals.own(source).central()[0][0]
    g = g + 1e-4 * np.trace(g) / len(g) * np.eye(len(g))
    w = source.site.operands[1].constant.T.astype(np.float64)
    inverse = np.linalg.inv(g)
    rise = (w**2).sum(axis=1) / np.diag(inverse)
    power = np.sum(w * (originals.own(source).central()[0][0] @ w))
    np.testing.assert_allclose(found[group], rise / power, rtol=1e-6)


@pytest.mark.parametrize("widths", [(8, 6), (2, 2)])
def test_channels_are_joined_as_far_as_a_label_can_compute_them(widths: tuple[int, int]) -> None:
    """With budget enough all of the narrower network's, however few; none where a label could read nothing."""
    graph = joined(*(plain(task, n, (width, 5)) for n, (task, width) in enumerate(zip("ab", widths, strict=True))))
    streams = streams_of(graph)
    originals = Originals(graph, streams, list(data(graph, 12).batches(graph)))
    stream = next(s for s in streams.streams if [streams.group(g).width for g in s.groups] == [*widths])
    known, likeness = readings(streams, originals, stream.index), Likeness(streams, originals)
    prices = Prices(streams, Runs(streams.alignment.tasks, {}))

    def shared(lost: float) -> int:
        def reach(group: int, groups: tuple[int, ...]) -> np.ndarray:
            assert len(groups) > 1  # what a network computes for itself alone loses nothing
            return np.full(streams.group(group).width, lost)

        budgets = dict.fromkeys(stream.groups, 1e6)
        found = Joiner(streams, stream, known, likeness, prices, reach, budgets).run()
        return sum(len(c.groups) > 1 for c in found)

    assert shared(0.0) == min(widths) and shared(np.inf) == 0


# ---------------------------------------------------------------------- limits
def test_a_budget_is_halved_until_only_exact_joins_are_left() -> None:
    share, seen = 1.0, []
    while share != CLOSED:
        seen.append(share)
        share = _less(share)
    assert seen == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0] and LEAST == 1 / 64


def test_tasks_that_lose_more_than_is_allowed() -> None:
    limits = Limits(0.1, {"a": 0.1, "b": 0.0, "c": 0.2})
    assert lost_tasks({"a": 0.1, "b": 1e-7, "c": 0.2}, limits) == []
    assert lost_tasks({"a": 0.11, "b": 2e-6, "c": np.nan}, limits) == ["a", "b", "c"]


def test_the_loss_of_a_task_is_that_of_its_worst_output_on_held_out_inputs() -> None:
    b = Builder()
    x = b.input("x", 1, 2)
    b.task("a", b.apply("Relu", x), b.apply("Neg", x))
    graph = b.done()
    first, second = graph.tasks["a"].outputs
    rows = np.random.default_rng(0).normal(size=(9, 2))
    wrong = {first: rows + 0.1, second: rows.copy()}
    wrong[second][[3, 7]] += np.array([[1.0, 0], [0, 1.0]])
    wrong[second][[0, 1]] = np.nan  # these are not held out
    originals = SimpleNamespace(samples=9, outputs={first: rows, second: rows})
    assembly = SimpleNamespace(graph=graph, outputs=wrong.__getitem__)
    streams = SimpleNamespace(graph=graph, alignment=SimpleNamespace(tasks=("a",)))
    spread = ((rows[[3, 7]] - rows[[3, 7]].mean(axis=0)) ** 2).sum()
    assert task_losses(streams, originals, assembly)["a"] == pytest.approx(2 / spread)  # type: ignore[arg-type]


@pytest.mark.parametrize("deepest", range(6))
def test_the_deepest_merge_within_the_limits_is_found(deepest: int) -> None:
    """Against every depth; the least one is taken in any case."""
    for least in range(3):
        tried: list[int] = []

        def build(depth: int, tried=tried):
            tried.append(depth)
            findings = SimpleNamespace(unread=[1] if depth > deepest else [], residuals={})
            return SimpleNamespace(
                depth=depth, findings=findings, losses={}, assembly=SimpleNamespace(findings=findings)
            )

        found = _deepest(build, least, 5, Limits(0.1, {}))
        assert found.depth == max(least, deepest) and len(tried) <= 4


class Depths(Trunks):
    """One trunk of which cuts up to the `deepest` keep the limits; notes what is taken and which were looked at."""

    def __init__(self, deepest: int) -> None:
        self.deepest, self.tried, self.taken = deepest, list[int](), 0

    def _at(self, depth: int, forced: bool):  # type: ignore[no-untyped-def]
        self.tried.append(depth)
        return SimpleNamespace(depth=depth) if forced or depth <= self.deepest else None

    def _accept(self, trial) -> None:  # type: ignore[no-untyped-def]
        self.taken = trial.depth


@pytest.mark.parametrize("deepest", range(6))
@pytest.mark.parametrize("least", range(3))
def test_the_deepest_trunk_within_the_limits_is_found(deepest: int, least: int) -> None:
    trunks = Depths(deepest)
    trunks.trunk(least, 5)
    assert trunks.taken == max(least, deepest) and len(trunks.tried) <= 5


# ---------------------------------------------------------------------- options
def test_caps_and_limits_are_read_by_task() -> None:
    graph = joined(plain("a", 0), plain("b", 1))
    assert caps_of(("a/b:1500", "b:7.5"), graph) == {frozenset("ab"): 1500.0, frozenset("b"): 7.5}
    for wrong in ("a/c:1", "a:0", "a", "a:-1"):
        with pytest.raises(ValueError, match="is not TASK/TASK:MACS with tasks of a, b"):
            caps_of((wrong,), graph)
    assert Merge(max_loss=0.2, limits=("b:0",))._losses(graph) == {"a": 0.2, "b": 0.0}
    assert set(_uniform(("a", "b"))) == {frozenset("a"), frozenset("b"), frozenset("ab")}


def test_capped_combinations_count_as_much_as_all_others() -> None:
    graph = joined(plain("a", 0), plain("b", 1))
    calls = {frozenset("a"): 3.0, frozenset("b"): 1.0}
    use = Resources(workload=calls)
    assert Merge()._workload(graph, use) == calls
    assert Merge(caps=("a/b:9", "b:9"))._workload(graph, use) == {
        frozenset("a"): 3 / 8,
        frozenset("b"): 1 / 8 + 1 / 4,
        frozenset("ab"): 1 / 4,
    }
    assert sum(Merge(caps=("a:9",))._workload(graph, Resources()).values()) == pytest.approx(1)


def test_a_combination_over_its_cap_is_told_with_both_numbers() -> None:
    graph = joined(plain("a", 0), plain("b", 1))
    with pytest.raises(PassError, match=r"merge: b takes [\d,]+ multiply-adds, its cap is 100\. Allow more loss"):
        Merge(caps=("b:100", "a/b:1e12"))._check_caps(graph)
    Merge(caps=("b:1e9",))._check_caps(graph)
    Merge()._check_caps(graph)


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"policy": "lattice", "max_loss": 0.1, "multiple": 4}, []),
        (
            {"policy": "lattice", "depth": 1},
            ["depth says nothing to policy lattice, only to prefix, mtz, pam, zipit, lattice with start=shared"],
        ),
        ({"start": "shared", "depth": 1, "samples": 8, "fit": False}, []),
        (
            {"start": "shared", "max_loss": 0.1},
            [
                "max_loss says nothing to policy lattice with start=shared, only to lattice with start=separate, "
                "prefix"
            ],
        ),
        ({"policy": "zipit", "alpha": 0.5, "beta": 0.5, "depth": 2}, []),
        (
            {"policy": "pam", "alpha": 0.5, "threshold": 0.1},
            ["alpha says nothing to policy pam, only to zipit"],
        ),
        (
            {"policy": "exact", "max_drift": 0.1},
            ["max_drift says nothing to policy exact, only to lattice, prefix"],
        ),
        ({"policy": "exact", "caps": ("a:1",)}, []),
        ({"policy": "best", "alpha": 0.5}, []),
    ],
)
def test_options_that_a_policy_does_not_read_are_told(options: dict[str, object], idle: list[str]) -> None:
    assert Merge(**options)._idle() == idle  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_option_that_a_policy_does_not_read_is_refused(policy: str) -> None:
    """Each at another value than its default, under every policy."""
    other = {
        "max_drift": 0.1, "max_loss": 0.1, "limits": ("a:0.1",), "multiple": 2, "depth": 1, "share": 0.5,
        "alpha": 0.5, "beta": 0.5, "threshold": 0.1, "fit": False, "samples": 9, "exclude": ("a/*",),
        "caps": ("a:9",),
    }  # fmt: skip
    assert set(other) | {"policy", "start"} == {f.name for f in fields(Merge)}
    use = Resources(calibration={})
    graph = joined(plain("a", 0), plain("b", 1))
    told = {n: Merge(policy=policy, **{n: v}).wrong(graph, use) for n, v in other.items()}  # type: ignore[arg-type]
    everybody = {"caps"} if policy == "exact" else {"caps", "fit", "samples", "exclude"}
    own = {
        "lattice": {"max_drift", "max_loss", "limits", "multiple"},
        "prefix": {"max_drift", "max_loss", "limits", "depth"},
        "mtz": {"depth", "share"},
        "pam": {"depth", "threshold"},
        "zipit": {"depth", "alpha", "beta"},
    }
    assert {n for n, problems in told.items() if not problems} == everybody | own.get(policy, set())


@pytest.mark.parametrize("tasks", ["ab", "a"])
def test_policy_exact_and_a_single_network_keep_their_caps(tasks: str) -> None:
    graph = joined(*(plain(t, i) for i, t in enumerate(tasks)))
    Merge(policy="exact", caps=("a:1e9",))(graph)
    with pytest.raises(PassError, match=r"a takes [\d,]+ multiply-adds, its cap is 100"):
        Merge(policy="exact", caps=("a:100",))(graph)
