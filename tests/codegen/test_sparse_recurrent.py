"""Recurrent kernels with sparse weights against onnxruntime on the graph with its zeros written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import build, open_bundle, parse_pass
from compiler.calibration.engine import Engine
from compiler.codegen.bundle import read_plan
from compiler.codegen.explain import explain
from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import Sources, candidates, situation
from compiler.codegen.plans import parse_plan
from compiler.codegen.strategies import recurrent
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import find_target
from compiler.codegen.templates import block_sparse, regular_block
from compiler.codegen.templates.recurrent_products import gate_rows
from compiler.codegen.templates.recurrent_shape import RecurrentShape
from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse, Encoding, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level
from compiler.ir.reference import difference
from compiler.ir.types import ValueRef
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.native import NativeLibrary
from tests.codegen.test_generate import check
from tests.codegen.test_sparse_kernels import runs_here
from tests.graphs import Builder
from tests.sparse import sparse_weight

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def runs(*sizes: int) -> RegularBlock:
    return RegularBlock(1, 2, sizes)


def mixed(rows: int) -> RegularBlock:
    """Every row its own run length, as DARB has it."""
    return runs(*(int(s) for s in np.random.default_rng(rows).choice((4, 8, 16, 32), rows)))


def blocks(height: int) -> BlockSparse:
    return BlockSparse(1, (height, 1))


@dataclass(frozen=True)
class Case:
    """One layer; W or R without an encoding is dense."""

    op: str
    hidden: int
    inputs: int
    w: Encoding | None
    r: Encoding | None
    steps: int = 5
    samples: int = 1
    attrs: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = ()
    bare: bool = False
    """Without bias, initial states and peepholes."""

    @property
    def both(self) -> bool:
        return self.attrs.get("direction") == "bidirectional"

    def __str__(self) -> str:
        forms = "-".join("dense" if e is None else str(e)[:10] for e in (self.w, self.r))
        return f"{self.op}-{self.hidden}-{forms}-{'-'.join(self.attrs)}"


BOTH = {"direction": "bidirectional"}
CASES = [
    Case("LSTM", 32, 48, runs(16), runs(16), attrs=BOTH),
    Case("LSTM", 37, 40, runs(8), runs(4), samples=3, attrs=BOTH, lengths=(5, 0, 3)),
    Case("LSTM", 48, 32, mixed(192), mixed(192), attrs=BOTH),
    Case("LSTM", 32, 24, blocks(16), blocks(16), samples=2, attrs=BOTH),
    Case("LSTM", 20, 33, blocks(4), Unstructured(1), attrs={"direction": "reverse"}),
    Case("LSTM", 40, 32, None, runs(16), bare=True, attrs={"clip": 0.8}),
    Case("LSTM", 24, 64, runs(32), None, samples=2, attrs={"input_forget": 1}),
    Case("GRU", 32, 32, runs(16), runs(16), attrs=BOTH),
    Case("GRU", 21, 48, blocks(8), blocks(8), samples=2, attrs=BOTH | {"linear_before_reset": 1}),
    Case("GRU", 36, 32, mixed(108), mixed(108), attrs=BOTH, lengths=(4,)),
    Case("GRU", 33, 16, runs(8), mixed(99), samples=2, attrs={"linear_before_reset": 1}, bare=True),
    Case("RNN", 32, 32, runs(8), blocks(16), attrs=BOTH),
    Case("LSTM", 4, 16, runs(4), blocks(8), steps=1),
]


def layer(b: Builder, case: Case, number: int) -> list[ValueRef]:
    """A node with every operand the case asks for; its results."""
    gates, directions = GATES[case.op], 2 if case.both else 1
    lead = (case.samples, case.steps) if case.attrs.get("layout") else (case.steps, case.samples)
    x = b.input(f"x{number}", *lead, case.inputs)
    state = (case.samples, directions) if case.attrs.get("layout") else (directions, case.samples)

    def weight(encoding: Encoding | None, inner: int, seed: int) -> ValueRef:
        shape = (directions, gates * case.hidden, inner)
        return b.weight(*shape) if encoding is None else sparse_weight(b.graph, encoding, shape, seed=seed)

    operands: list[ValueRef | None] = [x, weight(case.w, case.inputs, number), weight(case.r, case.hidden, 99)]
    if not case.bare:
        operands.append(b.weight(directions, 2 * gates * case.hidden, scale=0.5))
        operands.append(b.const(np.asarray(case.lengths, np.int32)) if case.lengths else None)
        operands.append(b.weight(*state, case.hidden, scale=0.5))
        if case.op == "LSTM":
            operands += [b.weight(*state, case.hidden, scale=0.5), b.weight(directions, 3 * case.hidden, scale=0.5)]
    results = 3 if case.op == "LSTM" else 2
    return list(b.apply(case.op, *operands, results=results, hidden_size=case.hidden, **case.attrs))


def network(cases: list[Case]) -> Graph:
    """All cases side by side, a task each."""
    b = Builder()
    for number, case in enumerate(cases):
        b.task(f"t{number}", *layer(b, case, number))
    return b.done()


def sparse_choices(graph: Graph, target: str, rank: int) -> dict[str, Choice]:
    """For every layer its best predicted sparse tile that multiplies no zeros, or the one `rank` places behind."""
    groups = make_groups(graph)
    known = situation(graph, groups, find_target(target))
    found = {}
    for group in groups:
        own = [c.choice for c in candidates(group, known) if c.choice.algorithm == "recurrent-sparse"]
        stored = [recurrent.sparse_form(group.anchor, o) is None for o in ("w", "r")]
        whole = [c for c in own if [c.tile[:4] == recurrent.DENSE, c.tile[4:] == recurrent.DENSE] == stored]
        found[group.anchor.node.ref.name] = whole[min(rank, len(whole) - 1)]
    return found


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {v.ref.name: rng.normal(size=v.shape).astype(v.dtype.numpy) for v in graph.inputs}


def deviations(graph: Graph, folder: Path, target: str, choices: dict[str, Choice]) -> dict[str, float]:
    """By task, the largest error of any result as a share of its largest value in onnxruntime."""
    library = generate(graph, find_target(target), sources=Sources(choices))
    assert all(k.template == "recurrent-sparse" for k in library.kernels)
    native, feeds = NativeLibrary(library, folder), feeds_of(graph)
    want = Engine.of(graph).run(feeds)
    native.check_units(library.full, feeds)
    found = {}
    for task, arrays in native.run(library.full, feeds).items():
        wanted = [want[ref.name] for ref in graph.tasks[task].outputs]
        errors = [np.abs(g - w).max() / max(np.abs(w).max(), 1e-6) for g, w in zip(arrays, wanted, strict=True)]
        found[task] = float(np.max(errors))
    return found


BUILDS = {"host": (0, range(len(CASES))), "x86-64-v3": (4, (0, 2, 3, 5, 6, 9))}
"""Place of the tile, and the cases, by target."""


@pytest.fixture(scope="module", params=BUILDS)
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    rank, numbers = BUILDS[request.param]
    runs_here(request.param)
    graph = network([CASES[i] for i in numbers])
    choices = sparse_choices(graph, request.param, rank)
    found = deviations(graph, tmp_path_factory.mktemp("sparse"), request.param, choices)
    return {f"{i}: {CASES[i]}": found[f"t{n}"] for n, i in enumerate(numbers)}


def test_as_onnxruntime_with_the_zeros_written_out(errors: dict[str, float]) -> None:
    assert {case: error for case, error in errors.items() if not error <= 1e-5} == {}


# ---------------------------------------------------------------------- the tests above can fail
def reversed_gates(shape: RecurrentShape, gates: Sequence[int]) -> np.ndarray:
    return gate_rows(shape, gates[::-1])


def next_units(shape: RecurrentShape, gates: Sequence[int]) -> np.ndarray:
    rows = gate_rows(shape, gates)
    return np.where(rows >= 0, rows // shape.hidden * shape.hidden + (rows + 1) % shape.hidden, -1)


def other_direction(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    return lambda *given: original(*given)[::-1]


def other_sizes(original: Callable[..., Any]) -> Callable[..., Any]:
    """Codes that name the neighbour of the input they should."""

    def pack(*given: Any) -> Any:
        made = original(*given)
        return dataclasses.replace(made, codes=made.codes ^ 1)

    return pack


def next_taps(original: Callable[..., Any]) -> Callable[..., Any]:
    def pack(*given: Any) -> Any:
        made = original(*given)
        return dataclasses.replace(made, index=np.roll(made.index, 1))

    return pack


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gates in another order": lambda p: p.setattr(recurrent, "gate_rows", reversed_gates),
    "units in another order": lambda p: p.setattr(recurrent, "gate_rows", next_units),
    "directions exchanged": lambda p: p.setattr(recurrent, "_matrices", other_direction(recurrent._matrices)),
    "codes of another input": lambda p: p.setattr(regular_block, "pack", other_sizes(regular_block.pack)),
    "lists of other inputs": lambda p: p.setattr(block_sparse, "pack", next_taps(block_sparse.pack)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_packed_wrongly_shows(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    form = blocks(16) if name.startswith("lists") else runs(16)
    graph = network([Case("LSTM", 16, 32, form, form, steps=2, attrs=BOTH, bare=True)])
    choices = sparse_choices(graph, "host", 0)
    MUTATIONS[name](monkeypatch)
    assert deviations(graph, tmp_path, "host", choices)["t0"] > 1e-2


# ---------------------------------------------------------------------- elsewhere
def test_samples_first(tmp_path: Path) -> None:
    """onnxruntime has no layout=1: the reference evaluator is the oracle."""
    b = Builder()
    case = Case("GRU", 20, 32, runs(8), blocks(4), samples=3, attrs=BOTH | {"layout": 1})
    b.task("t", *layer(b, case, 0))
    assert "recurrent-sparse" in check(b.done(), tmp_path, algorithm="recurrent-sparse")


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a76", "armv7-neon"])
def test_on_an_emulated_arm_core(name: str, tmp_path: Path) -> None:
    target = linkable(name)
    graph = network([CASES[0], CASES[2], CASES[8]])
    library = generate(graph, target, sources=Sources(sparse_choices(graph, target.name, 0)))
    assert {k.template for k in library.kernels} == {"recurrent-sparse"}
    check_emulated(library, graph, target, tmp_path)


@pytest.mark.cross
def test_every_level_on_an_emulated_arm_core(tmp_path: Path) -> None:
    target, graph = linkable("aarch64-cortex-a72"), nested(NESTED[:2])
    check_emulated(generate(graph, target), graph, target, tmp_path)


# ---------------------------------------------------------------------- sparsity levels
NESTED = [
    Case("LSTM", 32, 48, None, None, attrs=BOTH),
    Case("GRU", 48, 32, None, None, samples=2, attrs=BOTH | {"linear_before_reset": 1}),
    Case("GRU", 24, 16, None, None, lengths=(4,)),
    Case("RNN", 16, 32, None, None, bare=True, attrs={"direction": "reverse"}),
]


def nested(cases: list[Case]) -> Graph:
    """Three levels, in blocks of 8 rows."""
    return parse_pass("nest{levels=0.1+0.5+0.8,pattern=block8x1,dense=(),min_inputs=16}")(network(cases))


def test_every_level_is_right_and_stored_once(tmp_path: Path) -> None:
    graph = nested(NESTED)
    net = open_bundle(build(graph, "host", tmp_path, name="nested").path)
    feeds, seen = feeds_of(graph), set()
    for level in range(3):
        wanted = Engine.of(at_level(graph, level, alone=True)).run(feeds)
        found = net.run(feeds, level=level)
        for name, task in graph.tasks.items():
            for got, ref in zip(found[name].values(), task.outputs, strict=True):
                assert difference(got, wanted[ref.name]) < 1e-5, (level, name, ref)
        seen.add(b"".join(a.tobytes() for a in found["t0"].values()))
    assert len(seen) == 3
    dense = generate(at_level(graph, 0, alone=True), find_target("host"))
    assert net.bundle.manifest["pool"]["bytes"] <= 1.05 * len(dense.pool)


def test_an_extracted_level_has_the_bits_of_the_level(tmp_path: Path) -> None:
    graph = nested(NESTED[:2])
    net = open_bundle(build(graph, "host", tmp_path, name="nested").path)
    part = generate(at_level(graph, 1), find_target("host"), sources=parse_plan(read_plan(net.bundle)).sources)
    feeds = feeds_of(graph)
    whole = net.run(feeds, level=1)
    for name, arrays in NativeLibrary(part, tmp_path).run(part.full, feeds).items():
        assert [a.tobytes() for a in arrays] == [a.tobytes() for a in whole[name].values()]


def test_blocks_of_two_gates_have_no_levels() -> None:
    with pytest.raises(ConfigError, match="24 hidden units are no whole blocks of 16 rows; take a smaller pattern"):
        parse_pass("nest{levels=0+0.5,dense=(),min_inputs=16}")(network([NESTED[2]]))


def plan_of(case: Case) -> dict[str, Any]:
    library = generate(network([case]), find_target("x86-64-v4"))
    (step,) = library.plan["steps"]
    return dict(step)


def test_zeros_are_left_out_where_that_is_faster() -> None:
    found = plan_of(Case("LSTM", 64, 64, runs(16), runs(16)))
    assert found["algorithm"] == "recurrent-sparse" and found["zeros"] == "left out"
    assert found["weights"] == "regular16@4/64"


def test_weights_that_are_hardly_sparse_run_densely_and_the_plan_says_so() -> None:
    full = BlockSparse(1, (16, 1))
    b = Builder()
    x = b.input("x", 4, 8, 32)
    weights = [sparse_weight(b.graph, full, (1, 128, 32), density=1.0, seed=i) for i in range(2)]
    b.task("t", b.apply("LSTM", x, *weights, hidden_size=32))
    target = find_target("x86-64-v4")
    library = generate(b.done(), target)
    (step,) = library.plan["steps"]
    assert step["algorithm"] == "recurrent" and step["zeros"] == "multiplied"
    assert any("run densely, because that is faster" in r for r in explain(library.plan, target.machine).remarks)


def test_one_weight_of_two_run_densely_is_said() -> None:
    graph = network([Case("LSTM", 32, 48, runs(16), runs(16))])
    target = find_target("x86-64-v4")
    groups = make_groups(graph)
    choices = [c.choice for c in candidates(groups[0], situation(graph, groups, target))]
    mixed_ = next(c for c in choices if c.tile and c.tile[:4] == recurrent.DENSE)
    library = generate(graph, target, sources=Sources({"lstm": mixed_}))
    assert library.plan["steps"][0]["zeros"] == "left out in part"
    assert "run densely in part" in explain(library.plan, target.machine).remarks[-1]


@pytest.mark.parametrize(
    ("w", "why"), [(BlockSparse(2, (8, 1)), "blocks of inputs"), (RegularBlock(2, 1, (4,)), "runs along rows")]
)
def test_patterns_along_other_axes_run_densely(w: Encoding, why: str) -> None:
    graph = network([Case("LSTM", 16, 32, w, None)])
    groups = make_groups(graph)
    found = candidates(groups[0], situation(graph, groups, find_target("x86-64-v4")))
    assert {c.choice.algorithm for c in found} == {"recurrent"}, why
