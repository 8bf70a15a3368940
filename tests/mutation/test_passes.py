"""Each pass is made to skip one slice or one edge: the checks after it notice every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import CompilerError, VerifyError
from compiler.ir.graph import Graph
from compiler.ir.op import Rebuilt
from compiler.ir.types import ValueRef
from compiler.ir.union import union
from compiler.passes import dead_channels, dedupe, fold
from compiler.passes.base import Pass
from compiler.passes.dead_channels import DeadChannels
from compiler.passes.dedupe import Deduplicate
from compiler.passes.extract import ExtractTasks
from compiler.passes.fold import FoldConstants
from compiler.passes.fold_batch_norm import FoldBatchNorm
from compiler.passes.join import JoinSiblings
from compiler.passes.prune import surgery
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify import magnitude
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.pipeline import Pipeline
from tests.graphs import Builder
from tests.mutation import networks
from tests.mutation.test_ties import NETWORKS
from tests.passes.test_join import siblings

LOUD = (CompilerError, ValueError, IndexError)


def run(pass_: Pass, graph: Graph) -> None:
    Pipeline((pass_,), numerics=True).run(graph)


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, work: Callable[[], object]) -> int:
    """How often `work` calls a function."""
    calls = 0
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        work()
    return calls


def on_call(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, change: Callable[..., Any]) -> None:
    """Replace the result of call `number`: `change(original, *args)`."""
    seen = 0
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        return change(original, *args, **kwargs) if seen == number + 1 else original(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_surgery_that_skips_one_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, pass_ = NETWORKS[name](), PruneChannels(parameters=0.7)
    calls = count_calls(monkeypatch, surgery, "taken", lambda: pass_(graph))
    assert calls
    for number in range(calls):
        with monkeypatch.context() as patch:
            on_call(patch, surgery, "taken", number, lambda original, value, kept: (value.type, value.constant))
            with pytest.raises(LOUD):
                pass_(graph)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_surgery_that_keeps_the_wrong_slice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right number of entries, but the first ones: all sizes fit."""
    graph, pass_ = NETWORKS[name](), PruneChannels(parameters=0.7, score="random")

    def first(original: Any, value: Any, kept: Any) -> Any:
        cut = tuple(slice(0, n) for n in kept.shape(value))
        return original(value, kept)[0], np.ascontiguousarray(value.constant[cut])

    calls = count_calls(monkeypatch, surgery, "taken", lambda: pass_(graph))
    unnoticed = []
    for number in range(calls):
        with monkeypatch.context() as patch:
            wrong = []

            def noted(original: Any, value: Any, kept: Any, wrong: list[bool] = wrong) -> Any:
                found, right = first(original, value, kept), original(value, kept)
                wrong.append(not np.array_equal(found[1], right[1]))
                return found

            on_call(patch, surgery, "taken", number, noted)
            try:
                pass_(graph)
            except VerifyError:
                continue
            unnoticed += [number] * wrong[0]
    assert not unnoticed


@pytest.mark.parametrize("name", ["split", "depthwise", "shuffle", "attention", "lstm"])
def test_surgery_that_forgets_attributes_and_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, pass_ = NETWORKS[name](), PruneChannels(parameters=0.7)
    classes = {type(n.op) for n in graph.nodes()}
    changing = []
    for cls in sorted(classes, key=lambda c: c.__name__):
        original = cls.rebuild

        def needed(self: Any, site: Any, kept: Any, original: Any = original, cls: Any = cls) -> Any:
            rebuilt = original(self, site, kept)
            if dict(rebuilt.attrs) != dict(site.attrs) or rebuilt.constants:
                changing.append(cls)
            return rebuilt

        with monkeypatch.context() as patch:
            patch.setattr(cls, "rebuild", needed)
            pass_(graph)
    assert changing
    for cls in set(changing):
        with monkeypatch.context() as patch:
            patch.setattr(cls, "rebuild", lambda self, site, kept: Rebuilt(site.attrs))
            with pytest.raises(LOUD):
                pass_(graph)


def dead() -> Graph:
    """Dead channels before an unpadded and a padded reader."""
    b = Builder(seed=3)

    def silent(x: ValueRef) -> ValueRef:
        weight = b.weight(6, b.graph.value(x).shape[1], 1, 1)
        data = b.graph.value(weight).constant.copy()
        data[[1, 2, 4]] = 0
        b.graph.update(weight, data=data)
        return b.apply("Relu", b.apply("Conv", x, weight, b.const(np.full(6, 0.7, np.float32))))  # type: ignore[no-any-return]

    h = b.conv(silent(b.input("x", 1, 3, 8, 8)), 5, 3)
    b.task("t", b.conv(silent(h), 4, 3, pads=(1, 1, 1, 1)))
    return b.done()


@pytest.mark.parametrize("step", ["_add", "_add_to_bias"])
def test_dead_channels_that_forget_a_constant(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(DeadChannels(), dead())
    monkeypatch.setattr(dead_channels, step, lambda *args: True)
    with pytest.raises(VerifyError):
        run(DeadChannels(), dead())


def test_dead_channels_whose_stand_in_takes_nothing_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_channels._Planner, "_hand_over", lambda *args: None)
    with pytest.raises(VerifyError):
        run(DeadChannels(), dead())


EXACT = {
    "fold-batch-norm": (FoldBatchNorm(), networks.batch_norm),
    "dead-channels": (DeadChannels(), dead),
    "join-siblings": (JoinSiblings(), lambda: siblings().done()),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_an_exact_pass_that_skips_one_slice_of_what_it_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row of every float array a pass writes is left at zero, one write at a time."""
    pass_, build = EXACT[name]
    graph = build()
    changed: list[bool] = []

    def cut(a: Any) -> Any:
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or not a.ndim:
            return a
        shortened = np.array(a)
        shortened[0] = 0
        changed.append(not np.array_equal(shortened, a))
        return shortened

    def skipped(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*map(cut, args), **{k: cut(v) for k, v in kwargs.items()})

    caught = 0
    for verb in ("update", "add_parameter"):
        for number in range(count_calls(monkeypatch, Graph, verb, lambda: pass_(graph))):
            changed.clear()
            with monkeypatch.context() as patch:
                on_call(patch, Graph, verb, number, skipped)
                try:
                    run(pass_, graph)
                except CompilerError:
                    caught += 1
                    continue
            assert not any(changed), f"{verb} number {number} lost a slice and nobody noticed"
    assert caught


def two_nets(same: bool) -> Graph:
    graphs = {}
    for i, task in enumerate("ab"):
        b = Builder(task, seed=7)
        h = b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 8, 3))
        if not same:
            b.rng = np.random.default_rng(i)
        b.task(task, b.conv(b.apply("Relu", b.conv(h, 8, 3)), 4, 1))
        graphs[task] = b.done()
    return union(graphs)


def test_deduplicate_that_ignores_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    run(Deduplicate(), two_nets(same=False))

    def blind(graph: Graph, node: Any) -> Any:
        operands = [o for _, o in graph.operands(node).present()]
        return node.op.name, tuple(o.ref if o.data is None else o.shape for o in operands)

    monkeypatch.setattr(dedupe, "_node_key", blind)
    with pytest.raises(VerifyError):
        run(Deduplicate(), two_nets(same=False))


def test_extract_that_drops_the_wrong_task(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two_nets(same=False)
    original = Graph.drop_task
    monkeypatch.setattr(Graph, "drop_task", lambda self, name: original(self, {"a": "b", "b": "a"}[name]))
    with pytest.raises(LOUD):
        run(ExtractTasks(tasks=("a",)), graph)


def test_folding_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    table = b.apply("Exp", b.const(np.array([0.1, 0.2, 0.3], np.float32)))
    b.task("t", b.apply("Mul", b.input("x", 1, 3), table))
    graph = b.done()
    run(FoldConstants(), graph)
    original = fold._store
    monkeypatch.setattr(fold, "_store", lambda g, s, results: original(g, s, tuple(np.roll(r, 1) for r in results)))
    with pytest.raises(VerifyError):
        run(FoldConstants(), graph)


def wide() -> Graph:
    b = Builder(seed=5)
    h = b.apply("Relu", b.conv(b.input("x", 1, 16, 6, 6), 32, 3))
    b.task("t", b.conv(h, 32, 1))
    return b.done()


def without_first_row(original: Any, data: Any, *rest: Any) -> Any:
    """Row 0 keeps all its weights."""
    made = original(data, *rest)
    made[0] = data[0]
    return made


def another_survivor(original: Any, data: Any, *rest: Any) -> Any:
    """As many weights stay, in other places."""
    return np.where(np.roll(original(data, *rest), 1, axis=1) != 0, data, np.float32(0))


def scaled(original: Any, data: Any, *rest: Any) -> Any:
    return original(data, *rest) * np.float32(1.5)


def one_too_few(original: Any, data: Any, *rest: Any) -> Any:
    made = original(data, *rest)
    made[:, np.flatnonzero(made.any(axis=(0, 2, 3)))[0]] = 0
    return made


@pytest.mark.parametrize("change", [without_first_row, another_survivor, scaled, one_too_few])
@pytest.mark.parametrize(
    "pass_",
    [
        Sparsify(density=0.3, dense=()),
        Sparsify(density=0.3, dense=(), scope="global"),
        Sparsify(pattern="unstructured", density=0.3, dense=()),
        Sparsify(pattern="regular8", dense=()),
        Sparsify(pattern="darb", density=0.1, dense=()),
    ],
)
def test_sparsify_that_skips_moves_scales_or_loses_weights(
    pass_: Sparsify, change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pass_, wide())
    original = magnitude.largest
    monkeypatch.setattr(magnitude, "largest", lambda data, *rest: change(original, data, *rest))
    with pytest.raises(VerifyError):
        run(pass_, wide())
