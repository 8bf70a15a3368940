"""ONNX's backend tests through import and the compiled host library.

Every case that is imported gives the expected outputs or stands in compiled.json under its reason. By default the
cases of the operators that networks are made of run (the outside judge's list where it is at hand); all others are
marked slow. A case becomes a bundle once per combination of the element types of inputs and outputs (and, of those
operators, of ranks), which is all that a bundle adds to its kernels; the rest run the kernels alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest

from compiler import build, open_bundle
from compiler.codegen.generate import generate
from compiler.codegen.target import find_target
from compiler.errors import CompilerError
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from tests.backend.cases import BackendCase, cases
from tests.backend.test_backend_cases import PASS, _general, imported, right
from tests.codegen.native import NativeLibrary
from tests.shared import shared_path

EXPECTATIONS = Path(__file__).with_name("compiled.json")
NODE_PARTS = 12
OTHERS = ("simple", "pytorch-converted", "pytorch-operator")
BUNDLED: set[Hashable] = set()
"""What this process has built a bundle for: see `types` and `interface`."""
Of = Callable[[Graph], Hashable]
"""What a bundle depends on, of a graph of one task."""
Way = Callable[[Graph, dict[str, np.ndarray], Path], list[np.ndarray]]
"""From a graph of one task and its inputs to its outputs."""


def compiled(graph: Graph, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """By a bundle built for this machine."""
    bundle = build(graph, "host", folder, name="network", feeds=[feeds], selftest=False)
    (task,) = graph.tasks.values()
    found = open_bundle(bundle.path).run(feeds)[task.name]
    return [found[label] for label in task.labels] if isinstance(found, dict) else [found]


def kernels_alone(graph: Graph, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
    """By the kernels of that bundle in the order of its plan, each in two parts, without driver and manifest."""
    folder.mkdir(parents=True)
    library = generate(graph, find_target("host"))
    (outputs,) = NativeLibrary(library, folder).run(library.full, feeds).values()
    return outputs


def types(graph: Graph) -> Hashable:
    """The element types of inputs and outputs."""
    (task,) = graph.tasks.values()
    return tuple(v.dtype.value for v in (*graph.inputs, *(graph.value(r) for r in task.outputs)))


def interface(graph: Graph) -> Hashable:
    """The element types and ranks of inputs and outputs."""
    (task,) = graph.tasks.values()
    return tuple((v.dtype.value, v.rank) for v in (*graph.inputs, *(graph.value(r) for r in task.outputs)))


def once_a_bundle(seen: set[Hashable], of: Of) -> Way:
    """A bundle for what is not yet among `seen`, else the kernels alone."""

    def chosen(graph: Graph, feeds: dict[str, np.ndarray], folder: Path) -> list[np.ndarray]:
        new = of(graph) not in seen
        seen.add(of(graph))
        return (compiled if new else kernels_alone)(graph, feeds, folder)

    return chosen


def named(graph: Graph) -> Graph:
    """The graph with its task called `network`: the names of cases do not all make C names."""
    copy = graph.copy()
    (task,) = graph.tasks.values()
    copy.drop_task(task.name)
    copy.set_task("network", task.outputs, task.labels)
    return copy.freeze()


def outcome(case: BackendCase, folder: Path, way: Way) -> str:
    """`passes`, `refused` (see test_backend_cases), or what went wrong."""
    for number, (inputs, expected) in enumerate(case.data):
        try:
            graph, feeds = imported(case, inputs)
        except CompilerError:
            return "refused"
        try:
            got = way(named(graph), feeds, folder / f"{case.name}{number}")
        except CompilerError as error:
            return f"{type(error).__name__}: {_general(str(error))}"
        if not right(got, expected, case):
            if all(last_places(g, e) for g, e in zip(got, expected, strict=True)):
                return "half precision: rounded otherwise in the last two places"
            reference = list(evaluate(graph, feeds).values())
            same = len(reference) == len(got) and right(got, reference, case)
            return "as the reference evaluator, which differs from the expected value" if same else "wrong"
    return PASS


def last_places(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether float16 numbers differ by at most two units in the last place."""
    if got.dtype != np.float16 or got.shape != expected.shape:
        return False
    unit = np.spacing(np.abs(expected)).astype(np.float64)
    return bool((np.abs(got.astype(np.float64) - expected) <= 2 * unit).all())


def differences(found: dict[str, str]) -> str:
    grouped = json.loads(EXPECTATIONS.read_text())
    expected = {name: reason for reason, names in grouped.items() for name in names}
    wrong = {n: r for n, r in found.items() if r not in ("refused", expected.get(n, PASS))}
    return "\n".join(f"{n}: {r}; the list says: {expected.get(n, PASS)}" for n, r in wrong.items())


def core() -> set[str]:
    return set(json.loads(shared_path("judge", "core_names.json").read_text()))


@pytest.mark.parametrize("part", range(NODE_PARTS))
def test_core_cases(part: int, tmp_path: Path) -> None:
    chosen = core()
    way = once_a_bundle(BUNDLED, interface)
    found = {c.name: outcome(c, tmp_path, way) for c in cases("node", part, NODE_PARTS) if c.name in chosen}
    assert not differences(found), differences(found)


@pytest.mark.parametrize("kind", OTHERS)
def test_small_networks(kind: str, tmp_path: Path) -> None:
    way = once_a_bundle(BUNDLED, interface)
    found = {c.name: outcome(c, tmp_path, way) for c in cases(kind)}
    assert not differences(found), differences(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(NODE_PARTS))
def test_other_node_cases(part: int, tmp_path: Path) -> None:
    """Without the expansions of operators into simpler ones, which import makes itself."""
    chosen = core()
    others = (c for c in cases("node", part, NODE_PARTS) if c.name not in chosen)
    way = once_a_bundle(BUNDLED, types)
    found = {c.name: outcome(c, tmp_path, way) for c in others if not c.name.endswith("_expanded")}
    assert not differences(found), differences(found)


def test_no_expected_outcome_is_a_wrong_value() -> None:
    assert "wrong" not in json.loads(EXPECTATIONS.read_text())
