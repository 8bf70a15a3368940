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

from benchmarks.fuzz import stages
from benchmarks.fuzz.adapt import adapted
from benchmarks.fuzz.case import Case
from benchmarks.fuzz.corpus import graph_case
from benchmarks.fuzz.families import family
from benchmarks.fuzz.judge import Allowance
from benchmarks.fuzz.minimise import minimise
from benchmarks.fuzz.stages import Wrong, emulated
from benchmarks.fuzz.worker import Worker, run_here
from compiler.calibration.engine import Engine
from compiler.codegen.emulate import SelftestResult
from compiler.codegen.target import find_target
from compiler.ir.adapters import Adapter
from compiler.ir.graph import Graph
from compiler.ir.op import operator
from compiler.ir.reference import evaluate
from compiler.ir.types import DType, TensorType

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


@pytest.mark.parametrize("seed", [424251])
def test_generated_networks_run_elsewhere(seed: int) -> None:
    """This one had a pool that rounds up, with a window that would begin behind its input."""
    for member in family(seed).members.values():
        engine = Engine(member.model)
        inputs = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in member.model.graph.input}
        assert engine.run({name: np.zeros(shape, np.float32) for name, shape in inputs.items()})


def test_a_seed_gives_the_same_family_again() -> None:
    first, again = family(11), family(11)
    assert {t: m.model.SerializeToString() for t, m in first.members.items()} == {
        t: m.model.SerializeToString() for t, m in again.members.items()
    }
    assert dataclasses.replace(first, members={}) == dataclasses.replace(again, members={})


def relu_case() -> Case:
    """A family whose first network has a Relu."""
    return next(c for c in map(family, range(50)) if any(n.op_type == "Relu" for n in _nodes(c)))


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
    count = iter(range(1000))
    monkeypatch.setattr(
        stages, "evaluate", lambda *a, **k: {n: x + next(count) for n, x in evaluate(*a, **k).items()}
    )
    assert run_here(case).verdict == "wrong"


def test_a_case_comes_back_from_its_folder(tmp_path: Path) -> None:
    case = family(7)
    case.save(tmp_path / "kept")
    again = Case.read(tmp_path / "kept")
    assert again == dataclasses.replace(case, members=again.members)
    assert [m.model for m in again.members.values()] == [m.model for m in case.members.values()]


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
        (["sample 0, t_y: error inf of scale, limit 0.0001", "u_z differs from the full set's"], True),
        ([], True),  # it died
    ],
)
def test_an_emulated_self_test_fails_unless_every_error_is_allowed(complaints: list[str], counts: bool) -> None:
    output = "".join(f"  subset 0x3: {c}\n" for c in complaints) + "FAILED\n"
    allowed = Allowance({"y": None, "z": 0.01})
    result = SelftestResult("failed", "ended with status 1", output)
    with pytest.raises(Wrong) if counts else contextlib.nullcontext():
        emulated(result, {"t_y": "y", "u_z": "z"}, allowed)
