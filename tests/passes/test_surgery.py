"""Removal along ties equals masking, for every kind of network and random atoms."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from benchmarks.networks import NETWORKS
from compiler.errors import VerifyError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.ties import Atom, Closure
from compiler.ir.types import Axis, ValueRef, splat_value
from compiler.ir.verify import verify
from compiler.passes.prune.surgery import (
    Mask,
    Removal,
    join_shared,
    masked_difference,
    remove,
    split_shared,
)
from tests.graphs import Builder


def random_atoms(closure: Closure, rng: np.random.Generator) -> list[Atom]:
    """Random atoms of every group, at most half of it."""
    chosen: list[Atom] = []
    for group in closure.groups:
        count = int(rng.integers(0, len(group.atoms) // 2 + 1))
        chosen += [group.atoms[i] for i in rng.permutation(len(group.atoms))[:count]]
    return chosen


def pruned(graph: Graph, seed: int) -> tuple[Graph, Graph, Removal]:
    """(original with shared constants split, pruned, removal)."""
    original = graph.copy()
    split_shared(original)
    original.freeze()
    closure = Closure(original)
    removal = closure.removal(random_atoms(closure, np.random.default_rng(seed)))
    after = original.copy()
    remove(after, removal)
    return original, after, removal


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_random_removal_equals_the_masked_original(name: str, seed: int) -> None:
    original, after, removal = pruned(load(NETWORKS[name]()), seed)
    verify(after)
    assert masked_difference(original, after, removal, seeds=(seed,)) < 1e-5
    feeds = random_feeds(original, np.random.default_rng(seed))
    session = onnxruntime.InferenceSession(to_onnx(after).SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = evaluate(original, feeds, edit=Mask(original, removal)).values()
    assert difference(session.run(None, feeds)[0], expected) < 1e-5
    (untouched,) = evaluate(original, feeds).values()
    assert difference(expected, untouched) > 1e-3, "the mask hides something that matters"


def two_readers() -> Graph:
    """One scale vector in two places with different fates: one feeds a task output."""
    b = Builder()
    x = b.input("x", 1, 3, 4, 4)
    scale = b.const(np.linspace(0.5, 1.5, 6, dtype=np.float32).reshape(6, 1, 1), "scale")
    h = b.apply("Mul", b.conv(x, 6, 1), scale)
    b.task("t", b.apply("Mul", b.conv(h, 6, 1), scale))
    return b.done()


def test_shared_constants_are_split_where_readers_differ() -> None:
    graph = two_readers()
    assert not Closure(graph).groups, "together they are pinned by the output"
    work = graph.copy()
    origin = split_shared(work)
    closure = Closure(work.copy().freeze())
    (group,) = closure.groups
    remove(work, closure.removal(group.atoms[:2]))
    join_shared(work, origin)
    verify(work)
    assert sorted(work.value(ValueRef(n)).shape[0] for n in ("scale", "scale.1")) == [4, 6]


def test_joining_restores_what_did_not_change() -> None:
    graph = two_readers()
    work = graph.copy()
    join_shared(work, split_shared(work))
    assert [v.ref for v in work.values()] == [v.ref for v in graph.values()]


def test_a_shape_that_a_task_returns_stays_what_it_is() -> None:
    b = Builder()
    shape = b.const(np.array([1, 6, 16]), "shape")
    h = b.apply("Reshape", b.conv(b.input("x", 1, 3, 4, 4), 6, 1), shape)
    b.task("t", b.conv(b.apply("Relu", h), 2, 1), shape)
    graph = b.done()
    work = graph.copy()
    split_shared(work)
    (group,) = Closure(graph).groups
    remove(work, Closure(graph).removal(group.atoms[:2]))
    verify(work)
    assert work.value(h).shape == (1, 4, 16)
    assert work.value(shape).constant.tolist() == [1, 6, 16]


def test_a_splat_stays_a_splat() -> None:
    b = Builder()
    x = b.input("x", 1, 3, 4, 4)
    huge = b.graph.add_parameter("splat", np.broadcast_to(np.float32(0.5), (8, 3, 1, 1))).ref
    h = b.apply("Relu", b.apply("Conv", x, huge))
    b.task("t", b.conv(h, 2, 1))
    graph = b.done()
    closure = Closure(graph)
    after = graph.copy()
    remove(after, closure.removal(closure.groups[0].atoms[:5]))
    data = after.value(huge).constant
    assert data.shape == (3, 3, 1, 1) and splat_value(data) == 0.5


def test_an_axis_cannot_become_empty() -> None:
    graph = two_readers()
    with pytest.raises(VerifyError, match="'conv:0' axis 1 would lose all of its 6 entries"):
        remove(graph.copy(), {Axis(ValueRef("conv:0"), 1): np.arange(6)})


def test_an_open_removal_is_noticed() -> None:
    """Entries of one axis alone: types no longer fit."""
    original, _, removal = pruned(load(NETWORKS["resnet-folded"]()), 0)
    axis = next(a for a in removal if a.dim == 0)
    after = original.copy()
    with pytest.raises(VerifyError):
        remove(after, {axis: removal[axis]})
        verify(after)
