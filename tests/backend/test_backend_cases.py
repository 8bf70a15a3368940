"""ONNX's backend tests through import, verification, export and onnxruntime.

Every case gives the expected outputs or stands in expectations.json under its reason; a case that starts to pass
must leave the list. Where onnxruntime has no kernel for a case, or another value than the standard, the reference
evaluator's value is compared.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented, RuntimeException

from compiler.errors import CompilerError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from tests.backend.cases import BackendCase, cases, frozen
from tests.ir.onnx_models import run

EXPECTATIONS = Path(__file__).with_name("expectations.json")
PARTS = [("node", i, 8) for i in range(8)] + [
    ("simple", 0, 1),
    ("pytorch-converted", 0, 1),
    ("pytorch-operator", 0, 1),
    ("real", 0, 3),
    ("real", 1, 3),
    ("real", 2, 3),
]
PASS = "passes"
NO_KERNEL = (Fail, NotImplemented, RuntimeException)


def outcome(case: BackendCase) -> str:
    """`passes`, or why not in words that do not depend on names and sizes."""
    for inputs, expected in case.data:
        try:
            reason = attempt(case, inputs, expected)
        except CompilerError as error:
            reason = f"{type(error).__name__}: {_general(str(error))}"
        if reason != PASS:
            return reason
    return PASS


def attempt(case: BackendCase, inputs: list, expected: list) -> str:
    graph, feeds = imported(case, inputs)
    exported = to_onnx(graph)
    assert digest(load(exported)) == digest(graph), f"{case.name}: another digest after export and import"
    wanted = [r.name for t in graph.tasks.values() for r in t.outputs]
    try:
        by_name = dict(zip([o.name for o in exported.graph.output], run(exported, feeds), strict=True))
        got = [by_name[n] for n in wanted]
        if right(got, expected, case):
            return PASS
        note = "onnxruntime differs from the expected value, the reference evaluator does not"
    except NO_KERNEL:
        got, note = None, "onnxruntime has no kernel; the reference evaluator is right"
    values = evaluate(graph, feeds)
    mine = [values[n] for n in wanted]
    if right(mine, expected, case):
        return note
    same = got is not None and right(mine, got, case)
    return "onnxruntime and the reference evaluator agree on another value" if same else "wrong"


def right(got: list, expected: list, case: BackendCase) -> bool:
    return len(got) >= len(expected) and all(_same(g, e, case) for g, e in zip(got, expected, strict=False))


def imported(case: BackendCase, inputs: list) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph and its feeds; operands that must be constant are frozen more widely at a second try."""
    for widely in (False, True):
        model, values = frozen(case.model, inputs, widely)
        constant = {t.name for t in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in constant]
        shapes = {n: np.shape(v) for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
        try:
            return load(model, inputs=shapes), dict(zip(names, values, strict=True))
        except CompilerError as error:
            if widely or "constant" not in str(error):
                raise
    raise AssertionError("unreachable")


def _same(got: np.ndarray, expected: np.ndarray, case: BackendCase) -> bool:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    return bool(np.allclose(got.astype(wide), expected.astype(wide), case.rtol, case.atol, equal_nan=True))


def _general(message: str) -> str:
    """The first problem of a message without names, counts and advice."""
    lines = [line.strip() for line in message.splitlines()]
    line = re.sub(r"'[^']*'", "...", lines[1] if len(lines) > 1 else lines[0])
    line = re.sub(r" x\d+, first at \.\.\.|\[ShapeInferenceError\] | \(operand .*", "", line)
    return re.sub(r"(?<=[ \[(,])-?\d+\b(?!-)", "N", line).split(";")[0]


def expectations() -> dict[str, str]:
    grouped = json.loads(EXPECTATIONS.read_text())
    return {name: reason for reason, names in grouped.items() for name in names}


@pytest.mark.parametrize(("kind", "part", "parts"), PARTS)
def test_backend_cases(kind: str, part: int, parts: int) -> None:
    expected = expectations()
    found = {case.name: outcome(case) for case in cases(kind, part, parts)}
    different = {n: (r, expected.get(n, PASS)) for n, r in found.items() if r != expected.get(n, PASS)}
    assert not different, "\n".join(f"{n}: {got}; the list says: {want}" for n, (got, want) in different.items())


def test_no_expected_outcome_is_a_wrong_value() -> None:
    assert [n for n, r in expectations().items() if r.startswith("wrong")] == []


def write_expectations() -> None:
    """Run every case and write the list anew: python -m tests.backend.test_backend_cases."""
    grouped: dict[str, list[str]] = {}
    for part in PARTS:
        for case in cases(*part):
            reason = outcome(case)
            if reason != PASS:
                grouped.setdefault(reason, []).append(case.name)
    rows = {reason: sorted(grouped[reason]) for reason in sorted(grouped)}
    EXPECTATIONS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("ORT_LOGGING_LEVEL", "4")
    write_expectations()
