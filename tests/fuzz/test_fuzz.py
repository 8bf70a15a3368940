"""Generators, oracle and watchdog of benchmarks/fuzz: they pass what is right and see what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.fuzz import judge, stages
from benchmarks.fuzz.adapt import adapted
from benchmarks.fuzz.case import Case, Member
from benchmarks.fuzz.compare import Done, Wrong
from benchmarks.fuzz.corpus import graph_case
from benchmarks.fuzz.emulation import emulate, hold_selftest
from benchmarks.fuzz.families import EXACT, family
from benchmarks.fuzz.grown import Grown, Pick
from benchmarks.fuzz.judge import Allowance, Arrays, Judge
from benchmarks.fuzz.layers import pooling
from benchmarks.fuzz.minimise import minimise
from benchmarks.fuzz.operators import ANY_BLOCKS, GRID_BLOCKS
from benchmarks.fuzz.worker import Worker, run_here
from compiler.calibration.engine import Engine
from compiler.codegen.emulate import SelftestResult
from compiler.codegen.target import find_target
from compiler.ir.adapters import Adapter
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.op import operator
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.types import DType, TensorType
from compiler.pipeline import parse
from tests.codegen.emulated import linkable
from tests.graphs import Builder

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.onnx"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_frozen_graph_is_right_at_every_stage(path: Path) -> None:
    result = run_here(dataclasses.replace(graph_case(path), target="host"))
    assert result.verdict == "right", result.detail


@pytest.mark.parametrize("seed", [2, 19])
def test_generated_family_is_right_at_every_stage(seed: int) -> None:
    case = family(seed)
    if not find_target(case.target).native:
        pytest.skip(f"this machine does not run {case.target}")
    result = run_here(case)
    assert result.verdict == "right", result.detail


def test_pools_that_round_up_run_elsewhere() -> None:
    """A window that would begin behind its input is one that ONNX's inference counts and nobody makes."""
    rounded = 0
    for seed in range(60):
        net = Grown("pooled", (1, 2, 2 + seed % 7, 5))
        model = net.model(pooling(net, Pick(seed), "x"))
        rounded += any(a.name == "ceil_mode" and a.i for a in model.graph.node[0].attribute)
        assert Engine(model).run({"x": np.zeros(net.shapes["x"], np.float32)})
    assert rounded


@pytest.mark.parametrize("block", [*ANY_BLOCKS, *GRID_BLOCKS])
def test_blocks_of_rare_operators_run_in_onnxruntime_and_are_accepted(block: str) -> None:
    made = {**ANY_BLOCKS, **GRID_BLOCKS}[block]
    for seed, shape in enumerate([(2, 4, 4, 5), (1, 3, 1, 2)] + [(5, 2, 3), (3, 7)] * (block in ANY_BLOCKS)):
        net = Grown("grown", shape)
        end = made(net, Pick(seed, 1), made(net, Pick(seed, 0), net.same("Sigmoid", "x")))
        model = net.model(end)
        feeds = {"x": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}
        (expected,) = Engine(model, optimise=False).run(feeds).values()
        assert expected.shape == net.shapes[end]
        (found,) = evaluate(load(model), feeds).values()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_seed_gives_the_same_family_again() -> None:
    first, again = family(11), family(11)
    assert {t: m.model.SerializeToString() for t, m in first.members.items()} == {
        t: m.model.SerializeToString() for t, m in again.members.items()
    }
    assert dataclasses.replace(first, members={}) == dataclasses.replace(again, members={})


def relu_case() -> Case:
    """A network of convolutions, with a Relu that its output depends on."""
    net = Grown("net", (1, 3, 6, 6))
    x = net.conv(net.relu(net.norm(net.conv("x", 4))), 5)
    model = net.model(str(net.add("ReduceMean", x, axes=[2, 3], keepdims=0)))
    return Case("relu", 0, {"task": Member(model)}, {}, EXACT)


def _nodes(case: Case) -> list[onnx.NodeProto]:
    return [n for m in case.members.values() for n in m.model.graph.node]


def test_a_wrong_operator_is_found_and_minimised(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = type(operator("Relu"))
    right = relu.evaluate

    def wrong(self: Any, site: Any, operands: Any) -> Any:
        return [a * np.float32(1.01) for a in right(self, site, operands)]

    monkeypatch.setattr(relu, "evaluate", wrong)
    case = relu_case()
    found = run_here(case)
    assert (found.verdict, found.stage) == ("wrong", "reference")
    small = minimise(case, lambda c: run_here(c).signature == found.signature, tries=40)
    assert small.nodes < case.nodes
    assert not small.passes
    assert any(n.op_type == "Relu" for n in _nodes(small))


def test_a_subset_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = family(2)

    def other(graph: Graph, feeds: Arrays) -> Arrays:
        part = len(graph.tasks) < len(case.members)
        return {n: x + part for n, x in evaluate(graph, feeds).items()}

    monkeypatch.setattr(stages, "evaluate", other)
    found = run_here(case)
    assert (found.verdict, found.stage) == ("wrong", "extract")
    assert "has other bits than in the whole graph" in found.detail


def test_a_judge_that_divides_by_zero_is_none() -> None:
    """onnxruntime normalises equal values to NaN, where ONNX's function gives zeros."""
    b = Builder()
    ones = b.apply("Exp", b.apply("Sub", *2 * [b.input("x", 1, 2, 4, 4)]))
    b.task("t", b.apply("MeanVarianceNormalization", ones))
    result = run_here(Case("equal values", 0, {"t": Member(to_onnx(b.done()))}))
    assert (result.verdict, "MeanVarianceNormalization" in result.detail) == ("unrunnable", True)


def test_a_case_comes_back_from_its_folder(tmp_path: Path) -> None:
    case = family(7)
    case.save(tmp_path / "kept")
    again = Case.read(tmp_path / "kept")
    assert again == dataclasses.replace(case, members=again.members)
    assert [m.model for m in again.members.values()] == [m.model for m in case.members.values()]


def test_limits_are_looked_for_only_where_something_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    large = b.const(np.array(1000, np.float32))
    y = b.apply("Sub", b.apply("Add", b.input("x", 64), large), large)
    b.task("only", y)
    graph, feeds = b.done(), {"x": np.linspace(1, 2, 64, dtype=np.float32)}
    still = evaluate(graph, feeds)
    limits = Judge(graph, feeds, 0, still).allowed.limits
    assert 1e-3 < (limits[y.name] or 0) < 5e-3  # rounding of a thousand moves what is left of it

    asked = []

    def counted(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        asked.append(arguments)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(judge, "evaluate", counted)
    lazy = Judge(graph, feeds, 0, still)
    close, far = ({n: a * np.float32(1 + e) for n, a in still.items()} for e in (5e-6, 0.009))
    assert not lazy.wrong(still, still) and not lazy.changed(close, still) and not asked
    assert lazy.wrong(far, still) and lazy.changed(far, still) and asked


class Deadly(Case):
    """Ends the process that unpacks it."""

    def __reduce__(self) -> Any:
        return os.abort, ()


def test_a_dead_or_late_child_is_a_result() -> None:
    with Worker(seconds=30) as worker:
        died = worker.run(Deadly("deadly", 0, {}))
    assert (died.verdict, died.detail, died.found) == ("crash", "SIGABRT", True)
    with Worker(seconds=0.2) as worker:
        late = worker.run(family(7))
    assert (late.verdict, late.found) == ("hang", True)


@pytest.mark.parametrize(
    "steps",
    [
        [{"layout": "NHWC"}, {"bgr": True}, {"scale": [1.0, 2.0, 3.0], "offset": -1.0}],
        [{"bgr": True}, {"gray": True}, {"resize": [9, 4], "mode": "linear"}],
        [{"resize": [3, 11], "mode": "nearest"}, {"scale": 0.5}],
    ],
    ids=str,
)
def test_adapters_mean_what_the_second_opinion_says(steps: list[dict[str, Any]]) -> None:
    graph = Graph("adapter")
    source = graph.add_input("image", TensorType(DType.FLOAT32, (2, 3, 5, 7)))
    graph.set_task("made", [Adapter(graph).apply(source, steps).ref])
    image = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    (found,) = evaluate(graph.freeze(), {"image": image}).values()
    np.testing.assert_allclose(found, adapted(image, steps), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("complaints", "counts"),
    [
        (["sample 0, t_y: error 0.3 of scale, limit 0.0001"], False),  # not judged
        (["sample 0, u_z: error 0.001 of scale, limit 0.0001"], False),  # less than it may
        (["sample 0, u_z: error 0.1 of scale, limit 0.0001"], True),
        (["level 1: sample 0, u_z: error 0.1 of scale, limit 0.0001"], False),  # it may at that level
        (["level 1: sample 0, t_y: error 0.3 of scale, limit 0.0001"], True),  # and this is judged there
        (["sample 0, t_y: error inf of scale, limit 0.0001", "u_z differs from the full set's"], True),
        ([], True),  # it died
    ],
)
def test_an_emulated_self_test_fails_unless_every_error_is_allowed(complaints: list[str], counts: bool) -> None:
    output = "".join(f"  subset 0x3: {c}\n" for c in complaints) + "FAILED\n"
    judges = [knowing({"y": None, "z": 0.01}), knowing({"v": 0.01, "w": None})]
    result = SelftestResult("failed", "ended with status 1", output)
    with pytest.raises(Wrong) if counts else contextlib.nullcontext():
        hold_selftest(result, [{"t_y": "y", "u_z": "z"}, {"t_y": "v", "u_z": "w"}], judges)


def knowing(limits: dict[str, float | None]) -> Judge:
    """A judge that has found out what outputs may differ by."""
    made = Judge.__new__(Judge)
    made.__dict__["allowed"] = Allowance(limits)
    return made


def test_levels_and_portfolios_run_under_emulation() -> None:
    name, told = linkable("armv7-neon").name, list[str]()
    done = stages.check(dataclasses.replace(family(430008), target=name), told.append)
    if any("cannot run or emulate" in reason for reason in done.skipped):
        pytest.skip("nothing emulates the processor")
    assert [t for t in told if t.endswith(f" {name}")] == [
        f"emulate {name}", f"emulate levels on {name}", f"emulate the portfolio on {name}"
    ]  # fmt: skip


def test_a_wrong_level_is_found_under_emulation() -> None:
    b = Builder()
    b.task("map", b.conv(b.input("image", 1, 3, 6, 6), 8, 3))
    whole = parse("nest{levels=0+0.5,pattern=block4x1,dense=(),min_inputs=1}")(b.done())
    given, target = random_feeds(whole, np.random.default_rng(0)), linkable("aarch64-cortex-a72")
    graphs = [at_level(whole, level, alone=True) for level in range(2)]
    known = [(g, o, Judge(g, given, 0, o)) for g in graphs for o in [evaluate(g, given)]]
    done = Done()
    emulate(whole, target, given, known, done)
    if done.skipped:
        pytest.skip(done.skipped[0])
    sparser, outputs, judge = known[1]
    wrong = {name: array + 1 for name, array in outputs.items()}
    with pytest.raises(Wrong, match=r"level 1: sample 0, map: error .* of scale"):
        emulate(whole, target, given, [known[0], (sparser, wrong, judge)], done)
