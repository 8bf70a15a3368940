"""join-siblings: what is joined computes and costs what it did; what is read apart stays apart."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.encoding import Unstructured
from compiler.ir.reference import evaluate, random_feeds
from compiler.passes.dead import RemoveDeadCode
from compiler.passes.extract import ExtractTasks
from compiler.passes.join import JoinSiblings, _Rows
from tests.graphs import Builder
from tests.passes.joining import count, joined, layers
from tests.passes.merge import families
from tests.passes.narrow.test_relabel import shared


@pytest.mark.parametrize("tasks", ["ab", "abc"])
@pytest.mark.parametrize(
    ("family", "each"),
    [(families.plain, 3), (families.flat, 3), (families.mlp, 3), (families.normalised, 3), (families.residual, 7)],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_networks_that_share_everything_have_one_layer_each_but_for_the_heads(family, each, tasks):
    graph, _ = shared(family, tasks)
    assert layers(graph) == each * len(tasks)
    made = joined(graph)
    assert layers(made) == each - 1 + len(tasks)
    assert not count(made, "Concat")


@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_transposed_convolutions_side_by_side_are_one(tasks):
    graph, _ = shared(families.decoder, tasks)
    assert count(graph, "ConvTranspose") == 2 * len(tasks)
    made = joined(graph)
    assert count(made, "ConvTranspose") == 1 + len(tasks) and count(made, "Conv") == 3
    assert count(made, "Concat") == 1  # of the skip


def test_transposed_convolutions_by_groups_go_on_with_a_row():
    b = Builder()
    x, parts = b.input("x", 1, 3, 4, 4), []
    for groups in (2, 4):
        y = b.apply("Relu", b.conv(x, 2 * groups, 1))
        weight, bias = b.weight(2 * groups, 2, 3, 2), b.weight(2 * groups)
        parts.append(b.apply("ConvTranspose", y, weight, bias, group=groups, strides=(2, 1), pads=(0, 1, 1, 0)))
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 4, 1))
    made = joined(b.done())
    (site,) = (s for s in made.sites() if s.node.op.name == "ConvTranspose")
    assert site.int("group") == 6 and count(made, "Conv") == 2 and not count(made, "Concat")


def test_transposed_convolutions_whose_groups_are_of_other_sizes_stay_apart():
    b = Builder()
    x, parts = b.input("x", 1, 3, 4, 4), []
    for groups in (1, 2):
        y = b.apply("Relu", b.conv(x, 4, 1))
        parts.append(b.apply("ConvTranspose", y, b.weight(4, 4 // groups, 2, 2), group=groups))
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 4, 1))
    assert count(joined(b.done()), "ConvTranspose") == 2


def test_a_subset_of_what_was_joined_is_what_was_joined_of_the_subset():
    graph, _ = shared(families.plain, "ab")
    made = joined(graph)
    alone = ExtractTasks(tasks=("a",))(made)
    feeds = random_feeds(alone, np.random.default_rng(0))
    (output,) = alone.outputs
    np.testing.assert_array_equal(evaluate(alone, feeds)[output.ref.name], evaluate(made, feeds)[output.ref.name])


def test_joining_twice_changes_nothing():
    made = joined(shared(families.flat, "ab")[0])
    assert [v.ref for v in JoinSiblings()(made).values()] == [v.ref for v in made.values()]


def siblings(change=None, **options):
    """Two layers on one input, each with an activation, and a layer on both; `change` alters the parts."""
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    parts = [b.apply("Relu", b.conv(x, n, 3, pads=(1, 1, 1, 1), **options)) for n in (3, 5)]
    parts = change(b, x, parts) if change else parts
    y = b.conv(b.apply("Concat", *parts, axis=1), 4, 1)
    b.task("t", y)
    return b


def test_layers_side_by_side_are_one():
    made = joined(siblings().done())
    assert [n.op.name for n in made.nodes()] == ["Conv", "Relu", "Conv"]
    first = next(made.sites())
    assert first.results[0].shape == (1, 8, 6, 6) and first.operands[2].shape == (8,)


def other_activation(b, x, parts):
    return [parts[0], b.apply("Sigmoid", parts[1])]


def read_alone(b, x, parts):
    b.task("t2", b.conv(parts[1], 2, 1))
    return parts


def an_output(b, x, parts):
    b.task("u", parts[0])
    return parts


def not_all(b, x, parts):
    third = b.apply("Relu", b.conv(x, 2, 3, pads=(1, 1, 1, 1)))
    b.task("u", b.conv(b.apply("Concat", parts[0], third, axis=1), 2, 1))
    return parts


def another_kernel(b, x, parts):
    return [parts[0], b.apply("Relu", b.conv(x, 5, 1))]


def other_axis(b, x, parts):
    same = b.apply("Relu", b.conv(x, 3, 3, pads=(1, 1, 1, 1)))
    b.task("u", b.conv(b.apply("Concat", parts[0], same, axis=2), 2, 1))
    return [parts[0], b.apply("Relu", b.conv(x, 5, 1))]


@pytest.mark.parametrize("change", [other_activation, read_alone, an_output, another_kernel, other_axis, not_all])
def test_what_is_read_apart_stays_apart(change):
    graph = RemoveDeadCode()(siblings(change).done())
    assert [n.ref for n in joined(graph).nodes()] == [n.ref for n in graph.nodes()]


def test_layers_of_other_tasks_stay_apart():
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    parts = [b.apply("Relu", b.conv(x, n, 3)) for n in (3, 5)]
    b.task("both", b.conv(b.apply("Concat", *parts, axis=1), 4, 1))
    more = [b.apply("Relu", b.conv(x, 2, 3)), *parts]
    b.task("more", b.conv(b.apply("Concat", *more, axis=1), 4, 1))
    made = joined(b.done())
    assert sorted(v.shape[1] for s in made.sites() if s.node.op.name == "Relu" for v in s.results) == [2, 8]


def pooled_with_places(b, x, parts):
    """Poolings with the places of their maxima, which another Concat has."""
    values, places = zip(*(b.apply("MaxPool", p, results=2, kernel_shape=(2, 2)) for p in parts), strict=True)
    b.task("places", b.apply("Concat", *places, axis=1))
    return list(values)


def test_nodes_of_two_results_end_a_row():
    assert not _Rows(siblings(pooled_with_places).done()).standing()
    assert [len(j.nodes) for j in _Rows(siblings().done()).standing()] == [2, 2]


@pytest.mark.parametrize(
    ("batch", "shape", "nodes"), [(1, [-1], 2), (2, [-1], 5), (2, [2, -1], 2), (1, [1, -1], 2), (2, [1, -1], 5)]
)
def test_parts_that_are_flattened_over_samples_stay_apart(batch, shape, nodes):
    """Values of both parts would come in turns, sample by sample; with one sample they come one after the other."""
    b = Builder()
    x = b.input("x", batch, 3, 6, 6)
    parts = [b.apply("Reshape", b.conv(x, n, 1), b.const(shape)) for n in (3, 5)]
    b.task("t", b.apply("Concat", *parts, axis=len(shape) - 1))
    assert len(joined(b.done()).nodes()) == nodes


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("width", [1, 2])
def test_whatever_a_new_shape_does_to_channels_the_parts_stay_right(width, batch):
    """Every axis of Flatten and of Unsqueeze, and parts put together along every axis."""
    for op, dim, axis in itertools.product(("Flatten", "Unsqueeze"), range(5), range(5)):
        b = Builder()
        x = b.input("x", batch, 3, 2, 2)
        parts = [b.conv(x, width, 1) for _ in range(2)]
        if op == "Flatten":
            parts = [b.apply(op, p, axis=dim) for p in parts]
        else:
            parts = [b.apply(op, p, b.const([dim])) for p in parts]
        if axis < b.graph.value(parts[0]).rank:
            b.task("t", b.apply("Concat", *parts, axis=axis))
            joined(b.done())


@pytest.mark.parametrize("shapes", [((6,), (6,)), ((1, 1, 1), (5, 1, 1)), ((1, 1), (5, 1, 1))])
def test_constants_that_are_not_one_per_channel_stay_apart(shapes):
    """Slopes of columns, and a slope for all channels beside one for each."""

    def change(b, x, parts):
        return [b.apply("PRelu", p, b.weight(*shape)) for p, shape in zip(parts, shapes, strict=True)]

    graph = siblings(change).done()
    assert len(joined(graph).nodes()) == len(graph.nodes())


def test_what_was_joined_is_told_by_layer():
    found = JoinSiblings().run(siblings().done())
    first, second, _ = (n.ref.name for n in siblings().graph.nodes() if n.op.name == "Conv")
    assert [str(n) for n in found.notes] == [f"{first}: one layer with {second}"]


def test_sparse_weights_stay_as_they_are_stored():
    graph = siblings().graph
    weight = next(s for s in graph.sites() if s.node.op.name == "Conv").operands[1]
    graph.update(weight.ref, type=replace(weight.type, encoding=Unstructured()))
    graph = graph.freeze()
    assert len(joined(graph).nodes()) == len(graph.nodes())


def test_constants_per_channel_and_for_all_channels_go_along():
    def change(b, x, parts):
        slopes = [b.const(b.rng.uniform(0.1, 0.4, (n, 1, 1)).astype(np.float32)) for n in (3, 5)]
        parts = [b.apply("PRelu", p, s) for p, s in zip(parts, slopes, strict=True)]
        scale = b.const(np.float32(0.5))
        parts = [b.apply("Mul", p, scale) for p in parts]
        own = [b.const(np.full((1, 1, 1), 2.0, np.float32)) for _ in parts]
        return [b.apply("Add", p, o) for p, o in zip(parts, own, strict=True)]

    made = joined(siblings(change).done())
    assert [n.op.name for n in made.nodes()] == ["Conv", "Relu", "PRelu", "Mul", "Add", "Conv"]


def axes_of(b, *axes):
    return b.const(np.array(axes, np.int64))


def pooled(b, widths, change):
    """Layers on one input, pooled, then altered; their Concat along the axis of channels is a task."""
    x = b.input("x", 1, 3, 6, 6)
    parts = [change(b.apply("GlobalAveragePool", b.conv(x, n, 3))) for n in widths]
    b.task("t", b.apply("Relu", b.apply("Concat", *parts, axis=1)))
    return b.done()


def test_axes_that_are_dropped_and_added_are_so_once():
    b = Builder()
    made = joined(
        pooled(b, (3, 5), lambda p: b.apply("Unsqueeze", b.apply("Squeeze", p, axes_of(b, 2, 3)), axes_of(b, 2)))
    )
    assert [n.op.name for n in made.nodes()] == ["Conv", "GlobalAveragePool", "Squeeze", "Unsqueeze", "Relu"]


@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_an_axis_of_channels_that_is_dropped_stays_apart(axes):
    """Of one channel each it can go; of the channels of all it cannot."""
    b = Builder()
    drop = [axes_of(b, *axes)] if axes else []
    new = axes_of(b, 0, 1)
    graph = pooled(b, (1, 1), lambda p: b.apply("Unsqueeze", b.apply("Squeeze", p, *drop), new))
    assert layers(joined(graph)) == 2


def test_constants_that_differ_for_all_channels_stay_apart():
    def change(b, x, parts):
        return [b.apply("Mul", p, b.const(np.float32(n))) for n, p in enumerate(parts, 2)]

    graph = siblings(change).done()
    assert len(joined(graph).nodes()) == len(graph.nodes())


def test_a_wrong_result_is_refused(monkeypatch):
    def spoil(graph):
        for value in graph.parameters():
            graph.update(value.ref, data=value.constant * np.float32(1.01))

    graph = siblings().done()
    monkeypatch.setattr("compiler.passes.join.sweep", spoil)
    with pytest.raises(VerifyError, match=r"join-siblings: .* differs by"):
        JoinSiblings()(graph)
