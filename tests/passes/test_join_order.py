"""join-siblings where a Concat has other channels between those of siblings: its readers follow, or all stays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.ir.encoding import Unstructured
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.dead import RemoveDeadCode
from compiler.passes.dedupe import Deduplicate
from compiler.passes.extract import ExtractTasks
from compiler.passes.join import JoinSiblings
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.relabel import relabelled
from tests.graphs import Builder
from tests.passes import joining
from tests.passes.joining import count, layers
from tests.passes.merge import families
from tests.passes.narrow.test_relabel import drawn, shared


def joined(graph):
    return joining.joined(graph, lambda made: Engine.of(made).run)


# ---------------------------------------------------------------------- one Concat
def interleaved(read, batch=1):
    """Three layers on one input, the second one with another activation, and what `read` makes of their Concat."""
    b = Builder()
    x = b.input("x", batch, 3, 6, 6)
    acts = ("Relu", "Sigmoid", "Relu")
    parts = [b.apply(act, b.conv(x, n, 3, pads=(1, 1, 1, 1))) for act, n in zip(acts, (3, 2, 4), strict=True)]
    b.task("t", read(b, x, b.apply("Concat", *parts, axis=1)))
    return RemoveDeadCode()(b.done())


def conv(b, y):
    return b.conv(y, 4, 3)


def normalised(b, x, y):
    return conv(b, b.apply("BatchNormalization", y, *(b.const(np.linspace(0.5, 1.5, 9, dtype=np.float32)),) * 4))


def sloped(b, x, y):
    return conv(b, b.apply("PRelu", b.apply("MaxPool", y, kernel_shape=(2, 2)), b.weight(9, 1, 1)))


def pooled(b, x, y):
    return b.apply("Gemm", b.apply("Flatten", b.apply("GlobalAveragePool", y)), b.weight(9, 4), b.weight(4))


def flattened(b, x, y):
    return b.apply("Gemm", b.apply("Flatten", y), b.weight(4, 9 * 36), transB=1)


def reshaped(b, x, y):
    n = b.graph.value(y).shape[0]
    return b.apply(
        "MatMul", b.apply("Reshape", b.apply("Mul", y, b.weight(1, 9, 1, 1)), b.const([n, -1])), b.weight(324, 4)
    )


def channels_last(b, x, y):
    return b.apply("MatMul", b.apply("Transpose", y, perm=(0, 2, 3, 1)), b.weight(9, 5))


def depthwise(b, x, y):
    return b.conv(b.apply("Relu", b.conv(y, 9, 3, group=9)), 4, 1)


def added(b, x, y):
    """The other addend is a layer, which can make its channels in any order."""
    return conv(b, b.apply("Add", y, b.conv(x, 9, 1)))


def gated(b, x, y):
    return conv(b, b.apply("Mul", y, b.apply("Sigmoid", b.apply("GlobalAveragePool", y))))


def twice(b, x, y):
    return b.apply("Add", conv(b, y), b.apply("Relu", conv(b, b.apply("Tanh", y))))


def transposed(b, x, y):
    return b.apply("ConvTranspose", y, b.weight(9, 4, 3, 3), b.weight(4))


def one_weight(b, x, y):
    """Two layers with one weight."""
    weight = b.weight(4, 9, 3, 3)
    return b.apply("Add", b.apply("Conv", y, weight), b.apply("Conv", b.apply("Tanh", y), weight))


FOLLOW = [
    normalised,
    sloped,
    pooled,
    flattened,
    reshaped,
    channels_last,
    depthwise,
    added,
    gated,
    twice,
    transposed,
]
FOLLOW += [one_weight, lambda b, x, y: conv(b, y)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("read", FOLLOW, ids=lambda f: f.__name__)
def test_what_reads_a_concat_follows_its_order(read, batch):
    graph = interleaved(read, batch)
    made = joined(graph)
    assert layers(made) == layers(graph) - 1
    (concat,) = (s for s in made.sites() if s.node.op.name == "Concat")
    assert [v.shape[1] for v in concat.operands[:]] == [7, 2]
    assert digest(JoinSiblings()(made)) == digest(made)


def an_output(b, x, y):
    b.task("u", y)
    return conv(b, y)


def competing(b, x, y):
    return conv(b, b.apply("Softmax", y, axis=1))


def grouped(b, x, y):
    return b.conv(y, 6, 3, group=3)


def averaged(b, x, y):
    return conv(b, b.apply("ReduceMean", y, b.const([1]), keepdims=1))


def summed(b, x, y):
    return conv(b, b.apply("ReduceSum", y, b.const([1]), keepdims=1))


def running(b, x, y):
    return conv(b, b.apply("CumSum", y, b.const(1)))


def divided(b, x, y):
    return b.apply("Concat", *(conv(b, p) for p in b.apply("Split", y, b.const([4, 5]), axis=1, results=2)), axis=1)


def nested(b, x, y):
    return conv(b, b.apply("Concat", y, b.apply("Tanh", x), axis=1))


def added_input(b, x, y):
    """The other addend has the channels of the input, which nothing can put in another order."""
    return conv(b, b.apply("Add", y, b.apply("Tile", x, b.const([1, 3, 1, 1]))))


def other_order(b, x, y):
    """Two Concats that are added: each would have to follow the other."""
    parts = [v.ref for v in b.graph.operands(b.graph.producer(y))[:]]
    return conv(b, b.apply("Add", y, b.apply("Concat", *parts[::-1], axis=1)))


def as_positions(b, x, y):
    return b.apply("MatMul", b.apply("Reshape", y, b.const([-1, 9, 36])), b.weight(36, 4))


def sparse(b, x, y):
    y = conv(b, y)
    weight = b.graph.operands(b.graph.producer(y))[1]
    b.graph.update(weight.ref, type=replace(weight.type, encoding=Unstructured()))
    return y


def shared_weight(b, x, y):
    """The weight is also that of a layer on channels of the input."""
    weight = b.weight(4, 9, 3, 3)
    return b.apply(
        "Add", b.apply("Conv", y, weight), b.apply("Conv", b.apply("Tile", x, b.const([1, 3, 1, 1])), weight)
    )


BLOCK = [an_output, competing, grouped, averaged, running, divided, nested, added_input, other_order, as_positions]
BLOCK += [summed, sparse, shared_weight]


@pytest.mark.parametrize("read", BLOCK, ids=lambda f: f.__name__)
def test_what_cannot_follow_keeps_its_order(read):
    graph = Deduplicate()(interleaved(read))
    assert digest(joined(graph)) == digest(graph)


def test_one_fixed_concat_decides_for_those_that_can_follow():
    """The layers stand in one Concat as an output has them; in the other one they stand apart and turned round."""
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    first, other, last = (b.apply(act, b.conv(x, 2 + i, 3)) for i, act in enumerate(("Relu", "Tanh", "Relu")))
    b.task("t", b.conv(b.apply("Concat", last, other, first, axis=1), 4, 1), b.apply("Concat", first, last, axis=1))
    made = joined(b.done())
    assert count(made, "Relu") == 1 and layers(made) == 3
    (concat,) = (s for s in made.sites() if s.node.op.name == "Concat")
    assert [v.shape[1] for v in concat.operands[:]] == [6, 3]


@pytest.mark.parametrize(
    ("acts", "widths"), [(("Tanh", "Relu", "Relu"), [1, 5]), (("Relu", "Relu", "Tanh", "Relu"), [3, 3, 4])]
)
def test_in_a_fixed_order_neighbours_are_joined(acts, widths):
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    b.task("t", b.apply("Concat", *(b.apply(act, b.conv(x, 1 + i, 3)) for i, act in enumerate(acts)), axis=1))
    made = joined(b.done())
    (concat,) = (s for s in made.sites() if s.node.op.name == "Concat")
    assert layers(made) == len(widths) and [v.shape[1] for v in concat.operands[:]] == widths


def test_concats_that_become_the_same_are_one_and_their_readers_are_joined():
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    first, other, last = (b.apply(act, b.conv(x, 2, 3)) for act in ("Relu", "Tanh", "Relu"))
    parts = [
        b.apply("Relu", b.conv(b.apply("Concat", *p, axis=1), 3, 1))
        for p in ((first, other, last), (last, other, first))
    ]
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 2, 1))
    made = joined(b.done())
    assert layers(made) == 4 and count(made, "Concat") == 1


def test_siblings_with_other_readers_do_not_keep_the_rest_apart():
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    parts = [b.apply("Relu", b.conv(x, 2, 3)) for _ in range(3)]
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 4, 1), b.conv(parts[1], 2, 1))
    assert layers(joined(b.done())) == 4


# ---------------------------------------------------------------------- groups of channels
@pytest.mark.parametrize("tasks", ["ab", "abc"])
def test_depthwise_layers_go_on_with_a_row(tasks):
    graph, _ = shared(families.depthwise, tasks)
    made = joined(graph)
    assert layers(made) == 5 + len(tasks) and not count(made, "Concat")
    groups = [n.attrs["group"] for n in made.nodes() if n.op.name == "Conv"]
    assert groups == [1, 8 * len(tasks), 1, 16 * len(tasks), 1]


def in_groups(*groups):
    """Layers on one input, each followed by a Conv of (channels read, channels made, groups)."""
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    parts = [b.apply("Relu", b.conv(b.conv(x, i, 3), o, 3, group=g)) for i, o, g in groups]
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 4, 1))
    return b.done()


def test_whole_groups_go_on_with_a_row():
    made = joined(in_groups((4, 6, 2), (6, 9, 3), (4, 6, 2)))
    assert sorted(n.attrs["group"] for n in made.nodes() if n.op.name == "Conv")[-1] == 7
    made = joined(in_groups((1, 1, 1), (3, 3, 3)))
    assert [n.attrs["group"] for n in made.nodes() if n.op.name == "Conv"] == [1, 4, 1]


@pytest.mark.parametrize("groups", [((4, 6, 2), (6, 6, 2)), ((4, 4, 4), (4, 8, 4)), ((4, 4, 1), (3, 3, 1))])
def test_groups_of_other_sizes_stay_apart(groups):
    graph = in_groups(*groups)
    assert len(joined(graph).nodes()) == len(graph.nodes())


def test_statistics_of_one_channel_each_are_put_together():
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    ones = b.const(np.ones(1, np.float32))
    parts = [b.apply("BatchNormalization", b.conv(x, 1, 3), ones, ones, ones, ones) for _ in range(2)]
    b.task("t", b.conv(b.apply("Concat", *parts, axis=1), 4, 1))
    assert count(joined(b.done()), "BatchNormalization") == 1


# ---------------------------------------------------------------------- labelled networks
CHAINS = [
    lambda b, y, n: b.apply("AveragePool", b.apply("Relu", y), kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    lambda b, y, n: b.apply("PRelu", b.conv(y, n, 3, group=n, pads=(1, 1, 1, 1)), b.weight(n, 1, 1)),
]


def conv_of(b, y):
    return b.conv(y, int(b.rng.integers(1, 4)), 1)


def follower(b, y):
    flat = b.apply("Flatten", b.apply("GlobalAveragePool", b.apply("Relu", y)))
    return b.apply("Gemm", flat, b.weight(3, b.graph.value(flat).shape[1]), transB=1)


def stop(b, y):
    return b.conv(b.apply("Softmax", y, axis=1), 3, 1)


def labelled(seed, stops):
    """Channels for random sets of tasks, in random order in what each set of tasks reads, then random readers,
    of which some cannot follow another order where there are to be `stops`.
    """
    b, rng = Builder("labelled", seed), np.random.default_rng(seed)
    x = b.input("x", 1, 3, 6, 6)
    masks = range(1, 8)
    made = []
    for mask in [*masks, *rng.choice(masks, 12)]:
        y = b.conv(x, int(rng.integers(1, 4)), 3, pads=(1, 1, 1, 1))
        made.append((mask, CHAINS[rng.integers(2)](b, y, b.graph.value(y).shape[1])))
    read: dict[int, list] = {}
    for mask in [*masks, *rng.choice(masks, 4)]:
        entries = [y for m, y in made if m & mask == mask]
        joint = b.apply("Concat", *(entries[i] for i in rng.permutation(len(entries))), axis=1)
        reader = rng.choice([conv_of, conv_of, lambda b, y: conv_of(b, b.apply("Tanh", y)), stop][: 3 + stops])
        read.setdefault(int(mask), []).append(b.apply("Relu", reader(b, joint)))
    for bit, task in enumerate("abc"):
        entries = [y for mask, found in read.items() if mask >> bit & 1 for y in found]
        joint = b.apply("Concat", *(entries[i] for i in rng.permutation(len(entries))), axis=1)
        b.task(task, (rng.choice([follower, stop]) if stops else follower)(b, joint))
    return RemoveDeadCode()(b.done())


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_labels_in_random_order(seed, stops):
    graph = labelled(seed, stops)
    made = joined(graph)
    assert layers(made) <= layers(graph) - (0 if stops else 8) and len(made.nodes()) <= len(graph.nodes())
    assert digest(JoinSiblings()(made)) == digest(made) and digest(JoinSiblings()(graph)) == digest(made)
    feeds = {"x": np.random.default_rng(seed).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    whole = evaluate(made, feeds)
    for size in (1, 2):
        for tasks in itertools.combinations(made.tasks, size):
            part = evaluate(ExtractTasks(tasks)(made), feeds)
            assert part and all(np.array_equal(values, whole[name]) for name, values in part.items())


@pytest.mark.parametrize(
    ("family", "depth"),
    [(families.plain, 2), (families.mlp, 2), (families.flat, 2), (families.depthwise, 5), (families.residual, 6)],
)
def test_a_narrowed_network_has_at_most_a_node_per_set_of_tasks_and_layer(family, depth, monkeypatch):
    graph, feeds = shared(family, "ab")
    copies = Copies(graph)
    labels = drawn(copies, Bill(copies), 1)
    made = relabelled(copies, labels, feeds[:2])
    monkeypatch.setattr("compiler.passes.narrow.relabel.JoinSiblings", Nothing)
    apart = relabelled(copies, labels, feeds[:2])
    assert layers(made) <= 3 * depth + 2 < layers(apart)
    assert digest(joined(apart)) == digest(made)


class Nothing:
    """A pass that leaves all as it is."""

    def rewrite(self, graph, use):
        return ()
