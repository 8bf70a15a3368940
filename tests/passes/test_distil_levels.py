"""distil on networks with sparsity levels: nested bit for bit, cores that stay, levels that learn."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.distil import Distil
from compiler.pipeline import parse
from tests.graphs import Builder

pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.training import distilling, loop, nesting
from compiler.training.distilling import HELD_OUT
from compiler.training.ladder import Ladder

SAMPLES = 100
LEVELS = 3
BASE = Distil(epochs=5, batch=16, rate=4e-3)


def network() -> Graph:
    b = Builder(seed=2)
    x = b.input("x", 1, 2, 6, 6)
    h = b.apply("Relu", b.conv(x, 16, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Relu", b.conv(h, 16, 3))
    h = b.apply("Flatten", b.apply("Relu", b.conv(h, 12, 3)))
    b.task("t", b.apply("Gemm", h, b.weight(5, b.graph.value(h).shape[1]), b.weight(5), transB=1))
    return b.graph.freeze()


@pytest.fixture(scope="module")
def original() -> Graph:
    return network()


@pytest.fixture(scope="module")
def use(original) -> Resources:
    data = np.random.default_rng(3).normal(size=(SAMPLES, 2, 6, 6)).astype(np.float32)
    return Resources(calibration={"x": data}, teacher=original)


@pytest.fixture(scope="module")
def nested(original) -> Graph:
    return parse("nest{levels=0.2+0.5+0.8,pattern=block4x1}")(original)


@pytest.fixture(scope="module")
def trained(nested, use) -> Graph:
    return BASE(nested, use)


@pytest.fixture(scope="module")
def descended(nested, use) -> Graph:
    return replace(BASE, rounds=2)(nested, use)


@pytest.fixture(scope="module")
def normalised(nested, use) -> Graph:
    return replace(BASE, rounds=2, normalise=True)(nested, use)


def error(graph: Graph, original: Graph, feeds: list[dict[str, np.ndarray]]) -> float:
    """Mean squared error of the outputs, as a share of their variance."""
    found, wanted = (
        np.stack([evaluate(g, f)[g.tasks["t"].outputs[0].name] for f in feeds]) for g in (graph, original)
    )
    return float(np.mean((found - wanted) ** 2) / wanted.var(0).mean())


def blocks(graph: Graph) -> dict[str, list[np.ndarray]]:
    """Weight -> which blocks every level stores."""
    return {
        v.ref.name: [v.type.encoding.alive(d) for d in (v.constant, *v.sparser)]
        for v in graph.parameters()
        if isinstance(v.type.encoding, BlockSparse)
    }


def test_levels_stay_nested_and_biases_are_their_own(nested, trained, descended, normalised):
    for graph in (trained, descended, normalised):
        before, after = blocks(nested), blocks(graph)
        assert before.keys() == after.keys() and len(after) == 2
        for name, levels in after.items():
            counts, allowed = ([int(a.sum()) for a in x] for x in (levels, before[name]))
            assert counts[-1] == allowed[-1]
            assert all(0.9 * n <= m <= n for m, n in zip(counts, allowed, strict=True)), (
                "dead outputs learn nothing"
            )
            value = next(v for v in graph.parameters() if v.ref.name == name)
            for k, alive in enumerate(levels[1:], 1):
                kept = np.repeat(alive, 4, axis=0).reshape(value.shape)
                assert value.at(k).constant.tobytes() == np.where(kept, value.constant, np.float32(0)).tobytes()
        own = [v for v in graph.parameters() if v.sparser and v.ref.name not in after]
        assert len(own) == 2 and all(v.rank == 1 for v in own)
        assert all(not np.array_equal(v.constant, v.sparser[1]) for v in own)


def test_the_sparsest_level_is_what_it_becomes_alone(nested, trained, use):
    """Denser levels are trained around a core that they leave alone, all of the first and last layer in it."""
    alone = BASE(at_level(nested, LEVELS - 1, alone=True), use)
    assert digest(at_level(trained, LEVELS - 1, alone=True, order=False)) == digest(alone)


def test_every_level_learns_and_none_is_worse_than_its_core(nested, trained, descended, normalised, original, use):
    feeds = list(use.batches(original))
    held_out = feeds[HELD_OUT - 1 :: HELD_OUT]
    for graph in (trained, descended, normalised):
        before, after = ([error(at_level(g, k), original, feeds) for k in range(LEVELS)] for g in (nested, graph))
        assert after[2] < 0.5 * before[2] and after[1] < 0.6 * before[1]
        judged = [error(at_level(graph, k), original, held_out) for k in range(LEVELS)]
        assert judged[0] < judged[1] < judged[2]


def test_rounds_choose_blocks_anew(nested, trained, descended):
    unchanged = blocks(nested)
    for name, levels in blocks(trained).items():
        assert not any((now & ~was).any() for now, was in zip(levels, unchanged[name], strict=True))
    for name, levels in blocks(descended).items():
        assert not (levels[0] & ~unchanged[name][0]).any(), "level 0 is where they come from"
        assert (levels[2] & ~unchanged[name][2]).any()


def test_an_interrupted_training_continues_to_the_same_bytes(nested, descended, use, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(line):
        if line.startswith("level 1: distil: epoch 2 of 5"):
            raise Interrupted

    kept, pass_ = replace(use, cache=tmp_path), replace(BASE, rounds=2)
    with pytest.raises(Interrupted):
        pass_(nested, replace(kept, say=stop))
    said = []
    outcome = pass_.run(nested, replace(kept, say=said.append))
    assert digest(outcome.graph) == digest(descended)
    assert "level 1: distil: continues after epoch 2" in said
    assert not any(line.startswith("level 2: distil: epoch") for line in said), "it is done"
    stages = [str(note).split(": ")[1] for note in outcome.notes]
    assert stages == ["round 1 of 2", "round 2 of 2", "level 2", "level 1", "level 0"]


def test_levels_that_cannot_be_trained_so_are_refused(original, nested, use):
    with pytest.raises(ConfigError, match="rounds are for networks with sparsity levels; run nest before"):
        Distil(rounds=2)(original, use)
    with pytest.raises(ConfigError, match="settle starts at 1, rounds at 0"):
        Distil(rounds=-1)(nested, use)


def test_a_vector_with_levels_keeps_its_levels(nested, use):
    graph = nested.copy()
    bias = next(v for v in graph.parameters() if v.rank == 1 and v.shape == (16,) and v.ref.name != "w1")
    graph.update(bias.ref, data=bias.constant, sparser=[bias.constant + 1, bias.constant + 2])
    after = replace(BASE, epochs=1)(graph.freeze(), use)
    assert len(after.value(bias.ref).sparser) == 2


# ---------------------------------------------------------------------- the order in which blocks leave
def test_blocks_leave_by_norm_and_in_order(nested):
    value = next(v for v in nested.parameters() if v.sparser)
    ladder, size = Ladder(value), value.size
    counts = list(ladder.counts)
    assert [int(a.sum()) for a in blocks(nested)[value.ref.name]] == counts
    for k, count in enumerate(counts):
        assert ladder.within(count, value.constant).tobytes() == value.at(k).constant.tobytes()
    ladder.forget()
    rng = np.random.default_rng(0)
    data = ladder.within(counts[0], rng.normal(size=value.shape).astype(np.float32))
    middle = ladder.between(2, 1)
    assert middle == round((counts[0] * counts[2]) ** 0.5) and ladder.between(2, 2) == counts[2]
    ladder.shrink(data, middle)
    ladder.shrink(data[..., ::-1, :], counts[2])
    for count in (counts[2], middle, counts[0]):
        assert ladder.inside(count).sum() <= 4 * count and ladder.inside(count).sum() > 4 * (count - 1) - size % 4
    form = value.type.encoding
    norms = np.sqrt((ladder.within(counts[0], data).reshape(-1, 4, size // value.shape[0]) ** 2).sum(1))
    stay, leave = (form.alive(ladder.within(c, data)) for c in (middle, counts[0]))
    assert norms[stay].min() >= norms[leave & ~stay].max()


def test_levels_of_recurrent_layers_learn_and_stay_nested() -> None:
    b = Builder(seed=4)
    x, bias = b.input("x", 3, 1, 16), b.weight(1, 128)
    y = b.apply("LSTM", x, b.weight(1, 64, 16), b.weight(1, 64, 16), bias, results=3, hidden_size=16)
    b.task("t", b.apply("Gemm", b.apply("Flatten", y[0]), b.weight(5, 16), b.weight(5), transB=1))
    original = b.graph.freeze()
    data = np.random.default_rng(5).normal(size=(SAMPLES, 3, 1, 16)).astype(np.float32)
    use = Resources(calibration={"x": data}, teacher=original)
    nested = parse("nest{levels=0.2+0.6,dense=last,min_inputs=16}")(original)
    trained = parse("distil{epochs=4,loss=mse,batch=16,rate=0.01}")(nested, use)
    feeds = [{"x": x} for x in data[:16]]
    for level, most in enumerate((1.0, 0.8)):
        before, after = (error(at_level(g, level), original, feeds) for g in (nested, trained))
        assert after < most * before
    for weight in (v for v in trained.parameters() if v.sparser):
        weight.type.encoding.check_level(weight.constant, weight.sparser[0])


def test_denser_levels_climb_at_a_rate_of_their_own(nested, trained, use):
    slower = replace(BASE, climb=0.25)(nested, use)
    last = LEVELS - 1
    assert digest(at_level(slower, last, alone=True)) == digest(at_level(trained, last, alone=True))
    assert digest(slower) != digest(trained)


def test_climb_alone_is_for_networks_with_levels(original, use):
    with pytest.raises(ConfigError, match="climb is for networks with sparsity levels; run nest before"):
        replace(BASE, climb=0.5)(original, use)


@pytest.mark.parametrize("climb", [0.0, -1.0])
def test_a_climb_goes_up(nested, use, climb):
    with pytest.raises(ConfigError, match="climb must be above 0"):
        replace(BASE, climb=climb)(nested, use)


def test_a_level_that_is_worse_than_it_came_is_told(trained, use):
    """Trained levels again: the core goes on, and what is around it is given one small step to follow."""
    again = replace(BASE, epochs=2, climb=1e-6).run(trained, use)
    told = {level: str(note) for level, note in zip((2, 1, 0), again.notes, strict=True)}
    assert "worse than" not in told[2], "the sparsest level keeps its best weights"
    came = re.search(r"worse than the (\S+) it came with: what it shares with sparser levels", told[0])
    assert came is not None
    now = re.search(r"before, (\S+) with", told[0])
    assert float(came[1]) < float(now[1])


def test_levels_that_are_trained_for_the_first_time_are_not_worse(nested, use):
    assert not any("worse" in str(note) for note in BASE.run(nested, use).notes)


@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_level_came_with_is_judged_as_its_training_is(nested, original, use, mixed):
    material = distilling.Material(original, list(use.batches(nested)), {})
    wanted = distilling.Wanted({"t": 1.0}, frozenset(), 2.0, 0.0)
    recipe = loop.Recipe(epochs=1, batch=16, rate=1e-9, patience=0, seed=0, mixed=mixed)
    first, *_ = nesting.distil_levels(nested.copy(), material, wanted, recipe, nesting.Schedule(0, 1, 1.0))
    assert first.name == f"level {LEVELS - 1}" and first.came == first.history.losses[0]
