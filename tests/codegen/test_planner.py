"""Where choices come from, and that nothing is built that the strategies do not propose."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, describe, make_groups
from compiler.codegen.planner import Decision, Sources, candidates, decide, situation
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Candidate, Choice
from compiler.codegen.strategies.convolution import MOST_ERROR
from compiler.codegen.strategies.winograd import Winograd
from compiler.codegen.target import Target, find_target
from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse, RegularBlock
from compiler.ir.graph import Graph
from tests.codegen.test_generate import check
from tests.graphs import Builder
from tests.sparse import sparse_weight

V4 = find_target("x86-64-v4")


def layer(channels: int = 64, out: int = 64, size: int = 28, kernel: int = 3, **attrs) -> Graph:
    """One convolution with a Relu behind it."""
    b = Builder()
    half = kernel // 2
    y = b.conv(b.input("x", 1, channels, size, size), out, kernel, pads=(half,) * 4, **attrs)
    b.task("t", b.apply("Relu", y))
    return b.done()


def ranked(graph: Graph, target: Target = V4) -> tuple[Candidate, ...]:
    """Candidates of the first group."""
    groups = make_groups(graph)
    return candidates(groups[0], situation(graph, groups, target))


def decided(graph: Graph, sources: Sources, target: Target = V4) -> Decision:
    """The decision on the first group."""
    groups = make_groups(graph)
    return decide(graph, groups, target, sources)[groups[0].anchor.node.ref]


class Times:
    """Measurements for every group alike."""

    def __init__(self, times: Mapping[Choice, int]) -> None:
        self.known = times

    def times(self, group: Group, target: Target) -> Mapping[Choice, int]:
        return self.known


def test_the_rule_takes_the_best_predicted():
    graph = layer()
    found = decided(graph, Sources())
    assert (found.source, found.choice) == ("rule", ranked(graph)[0].choice)
    assert found.predicted == min(c.seconds for c in found.candidates) > 0


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_bias_of_equal_elements_is_a_bias(op_type: str):
    """Folded from an Expand it is one element in memory."""
    b = Builder()
    bias = b.const(np.broadcast_to(np.float32(0.5), (16,)))
    b.task("t", b.apply(op_type, b.input("x", 1, 16, 9, 9), b.weight(16, 16, 3, 3), bias))
    assert make_groups(b.done())[0].family == {"Conv": "conv", "ConvTranspose": "transposed"}[op_type]


def test_measurements_come_before_the_rule_and_a_plan_before_both():
    graph = layer()
    first, second, third, *_ = (c.choice for c in ranked(graph))
    measured = Times({first: 300, second: 200, third: 100})
    assert decided(graph, Sources(measured=measured)).choice == third
    assert decided(graph, Sources(measured=measured)).source == "database"
    recorded = {"conv": second}
    found = decided(graph, Sources(recorded, measured=measured))
    assert (found.choice, found.source) == (second, "plan")
    assert found.measured == measured.known


def test_a_recorded_choice_keeps_its_origin():
    graph = layer()
    first, second, *_ = (c.choice for c in ranked(graph))
    assert decided(graph, Sources({"conv": first})).source == "rule"
    assert decided(graph, Sources({"conv": second}, measured=Times({second: 5}))).source == "database"
    assert decided(graph, Sources({"conv": second})).source == "plan"


def test_measurements_of_what_this_layer_cannot_run_are_left_out():
    graph = layer()
    unfit = {Choice("conv", (1000, 1, 1)): 1, Choice("winograd9x9", (1,)): 1, Choice("gemm", (1, 1, 1)): 1}
    found = decided(graph, Sources(measured=Times(unfit)))
    assert (found.source, dict(found.measured)) == ("rule", {})


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (
            Choice("conv", (1000, 1, 1)),
            "'conv 1000x1x1' of the plan has a tile that this layer cannot run with; 'conv",
        ),
        (Choice("conv", (28, 1)), "a tile that this layer cannot run with"),
        (Choice("conv"), "a tile that this layer cannot run with"),
        (Choice("depthwise", (4, 1)), "does not apply to it, or would lose accuracy; there are"),
        (Choice("generic"), "does not apply"),
        (Choice("fft", (2, 2)), "is unknown; there are"),
    ],
    ids=str,
)
def test_a_choice_that_no_strategy_proposes_is_refused(choice: Choice, reason: str):
    with pytest.raises(ConfigError, match=r"'conv' \(Conv\).*") as caught:
        decided(layer(), Sources({"conv": choice}))
    assert reason in str(caught.value)
    assert "Compile without it" in str(caught.value)


def test_all_misfits_of_a_plan_are_listed_together():
    b = Builder()
    y = b.apply("Relu", b.conv(b.input("x", 1, 32, 8, 8), 32, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(y, 32, 1))
    graph = b.done()
    fused = {"conv": ("conv",), "gone": ("gone",)}
    sources = Sources({"gone": Choice("conv", (1, 1, 1)), "conv": Choice("conv", (99, 1, 1))}, fused)
    with pytest.raises(ConfigError) as caught:
        decide(graph, make_groups(graph), V4, sources)
    lines = str(caught.value).splitlines()
    assert "graph 'net'" in lines[0]
    assert [line.strip().split(":")[0] for line in lines[1:-1]] == ["'gone'", "'conv'", "'conv.1'", "'conv' (Conv)"]
    assert "one kernel for conv in the plan, for conv, relu here" in lines[2]
    assert "the plan does not say how it runs" in lines[3]


def test_a_complete_plan_may_leave_out_what_runs_in_one_way_only():
    b = Builder()
    b.task("t", b.apply("Softmax", b.conv(b.input("x", 1, 8, 4, 4), 8, 3), axis=1))
    graph = b.done()
    groups = make_groups(graph)
    conv = candidates(groups[0], situation(graph, groups, V4))[1].choice
    sources = Sources({"conv": conv}, {"conv": describe(groups[0])})
    assert decide(graph, groups, V4, sources)[groups[0].anchor.node.ref].choice == conv


def test_candidates_are_distinct_and_best_first():
    for graph in (layer(), layer(kernel=1), layer(group=64), layer(size=7, channels=512, out=512)):
        found = ranked(graph)
        assert [c.seconds for c in found] == sorted(c.seconds for c in found)
        assert len({c.choice for c in found}) == len(found)


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3", "aarch64-cortex-a72", "armv7-neon"])
@pytest.mark.parametrize("grown", ["channels", "out", "size"])
def test_more_work_is_never_predicted_faster(grown: str, target: str):
    """Every factor doubled: the best prediction grows, and by no more than sizes that fit tiles badly explain."""
    for kernel in (1, 3):
        sizes = {"channels": 32, "out": 32, "size": 14}
        times = []
        for _ in range(4):
            times.append(ranked(layer(kernel=kernel, **sizes), find_target(target))[0].seconds)
            sizes[grown] *= 2
        growth = [b / a for a, b in itertools.pairwise(times)]
        assert all(1.2 < g < (9 if grown == "size" else 4.5) for g in growth), growth


def test_what_is_remembered_of_a_shape_is_what_a_new_planner_finds():
    """One shape alone, behind a concatenation, and with weights around it that leave the cache."""

    def concatenated() -> Graph:
        b = Builder()
        halves = b.apply("Concat", b.input("x", 1, 8, 12, 12), b.input("y", 1, 24, 12, 12), axis=1)
        b.task("t", b.apply("Relu", b.conv(halves, 32, 3, pads=(1, 1, 1, 1))))
        return b.done()

    def crowded() -> Graph:
        b = Builder()
        b.task("t", b.apply("Relu", b.conv(b.input("x", 1, 32, 12, 12), 32, 3, pads=(1, 1, 1, 1))))
        b.task(
            "u",
            b.apply(
                "MatMul", b.input("z", 1, 4096), b.const(np.tile(np.arange(4096, dtype=np.float32), (4096, 1)))
            ),
        )
        return b.done()

    def found(strategy: Winograd, graph: Graph, target: Target) -> list[Candidate]:
        groups = make_groups(graph)
        (convolution,) = (g for g in groups if g.anchor.node.op.name == "Conv")
        return list(strategy.candidates(convolution, situation(graph, groups, target)))

    same = layer(32, 32, 12)
    graphs = [same, concatenated(), crowded(), layer(32, 48, 12), same]
    targets = [V4, find_target("aarch64-cortex-a53")]
    one = Winograd((4, 4))
    remembered = [found(one, g, t) for g in graphs for t in targets]
    fresh = [found(Winograd((4, 4)), g, t) for g in graphs for t in targets]
    assert remembered == fresh
    assert fresh[0] == fresh[8] != fresh[4]  # the same shape, with its weights from memory


def test_a_slower_core_is_predicted_slower():
    graph = layer()
    cores = "x86-64-v4 x86-64-v3 aarch64-cortex-a76 aarch64-cortex-a72 aarch64-cortex-a53 armv7-neon".split()
    times = [ranked(graph, find_target(n))[0].seconds for n in cores]
    assert times == sorted(times)


# ---------------------------------------------------------------------- accuracy of Winograd
SQUARE = ("winograd2x2", "winograd4x2", "winograd4x4", "winograd5x5", "winograd6x6")


def scaled(scale: float) -> Graph:
    """A layer with weights of this size."""
    b = Builder()
    weight = (b.rng.normal(0, 1, (32, 32, 3, 3)) * scale).astype(np.float32)
    b.task("t", b.apply("Conv", b.input("x", 1, 32, 28, 28), b.const(weight, "w"), pads=(1, 1, 1, 1)))
    return b.done()


@pytest.mark.parametrize("scale", [1e38, np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_whose_transforms_overflow_are_left_to_other_algorithms(scale: float):
    assert "winograd4x4" in {c.choice.algorithm for c in ranked(scaled(1e-3))}
    offered = {c.choice.algorithm for c in ranked(scaled(scale))}
    assert "conv" in offered and not offered & set(SQUARE[1:])


def test_winograd_is_proposed_where_its_error_is_small_and_only_there():
    graph = layer()
    anchor = make_groups(graph)[0].anchor
    offered = {c.choice.algorithm for c in ranked(graph)}
    assert {"conv", *SQUARE} == offered
    for name in SQUARE:
        assert 0 < STRATEGIES[name].error(anchor) <= MOST_ERROR  # type: ignore[attr-defined]


def test_tiles_of_winograd_go_by_where_its_weights_come_from():
    """On AVX2: two vectors a step from a cache; from memory wide panels, which are read once for all tiles."""
    target = find_target("x86-64-v3")
    cached, memory = (
        next(c.choice for c in ranked(graph, target) if c.choice.algorithm == algorithm)
        for graph, algorithm in ((layer(128, 128, 16), "winograd4x4"), (layer(512, 512, 7), "winograd4x2"))
    )
    assert cached.tile[1] >= 4 and cached.tile[2] == 2
    assert memory.tile[0] >= 2 * 4 and memory.tile[2] == 4


def test_inputs_of_a_single_channel_stay_in_the_registers_of_avx2():
    five = layer(1, 6, 28, 5)
    wide, narrow = (ranked(five, find_target(f"x86-64-v{n}"))[0].choice for n in (4, 3))
    assert wide.algorithm == narrow.algorithm == "conv"
    assert narrow.tile[0] <= 7 < wide.tile[0]


def test_winograd_that_would_lose_accuracy_is_refused_from_every_source(monkeypatch: pytest.MonkeyPatch):
    graph = layer()
    tile = next(c.choice for c in ranked(graph) if c.choice.algorithm == "winograd4x4")
    assert decided(graph, Sources({"conv": tile})).choice == tile
    anchor = make_groups(graph)[0].anchor
    error = STRATEGIES["winograd4x4"].error(anchor)  # type: ignore[attr-defined]
    monkeypatch.setattr("compiler.codegen.strategies.winograd.MOST_ERROR", error * 0.999)
    assert "winograd4x4" not in {c.choice.algorithm for c in ranked(graph)}
    assert decided(graph, Sources(measured=Times({tile: 1}))).source == "rule"
    with pytest.raises(ConfigError, match="would lose accuracy"):
        decided(graph, Sources({"conv": tile}))


# ---------------------------------------------------------------------- every candidate is right
ENCODINGS = {"blocks": BlockSparse(block=(8, 1)), "runs": RegularBlock(sizes=(8,))}


def random_layer(rng: np.random.Generator, family: str) -> Graph:
    """A small layer of a family with arbitrary sizes."""
    b = Builder(seed=int(rng.integers(1 << 30)))
    if family == "gemm":
        rows, inner, columns = (int(n) for n in rng.integers(1, 70, 3))
        x = b.input("x", rows, inner)
        y = b.apply("Gemm", x, b.weight(columns, inner), b.weight(columns), transB=1)
    else:
        channels, out = (int(n) for n in rng.integers(5, 70, 2))
        size = tuple(int(n) for n in rng.integers(4, 20, 2))
        kernel = (3, 3) if rng.random() < 0.6 else tuple(int(n) for n in rng.integers(1, 4, 2))
        pads = tuple(int(n) for n in rng.integers(0, 2, 4))
        strides = (1, 1) if rng.random() < 0.7 else tuple(int(n) for n in rng.integers(1, 3, 2))
        group = channels if family == "depthwise" else 1
        encoding = ENCODINGS.get(family)
        channels = 16 * (channels // 16 + 1) if encoding else channels
        x = b.input("x", int(rng.integers(1, 3)), channels, *size)
        if encoding:
            weight = sparse_weight(b.graph, encoding, (out, channels, *kernel))
            y = b.apply("Conv", x, weight, b.weight(out), pads=pads, strides=strides)
        else:
            y = b.conv(x, channels if group > 1 else out, kernel, pads=pads, strides=strides, group=group)
    b.task("t", b.apply("Relu", y))
    return b.done()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["conv", "depthwise", "gemm", *ENCODINGS])
def test_candidates_of_every_strategy_give_the_right_numbers(family: str, seed: int, tmp_path):
    """Sampled from all candidates, the worst predicted ones as well as the best."""
    rng = np.random.default_rng([seed, len(family)])
    graph = random_layer(rng, family)
    found = ranked(graph, find_target("host"))
    for name in sorted({c.choice.algorithm for c in found}):
        fitting = [c.choice for c in found if c.choice.algorithm == name]
        rank = int(rng.integers(len(fitting)))
        folder = tmp_path / name
        folder.mkdir()
        assert name in check(graph, folder, algorithm=name, rank=rank)
    skipping = {s.name for s in STRATEGIES.values() if s.skips_zeros}
    assert bool(skipping & {c.choice.algorithm for c in found}) == (family in ENCODINGS)


def test_generated_code_follows_the_plan():
    graph = layer()
    for choice in {c.choice.algorithm: c.choice for c in ranked(graph, find_target("host"))}.values():
        library = generate(graph, find_target("host"), sources=Sources({"conv": choice}))
        steps = [s for s in library.plan["steps"] if s["template"] != "copy"]  # type: ignore[attr-defined]
        assert [(s["algorithm"], s["tile"]) for s in steps] == [(choice.algorithm, list(choice.tile))]
