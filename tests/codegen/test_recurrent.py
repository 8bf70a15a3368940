"""The recurrent template: every case of the operator suite, constant and variable weights, against evaluate."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.lower import compile_kernels
from compiler.codegen.strategies.base import Situation
from compiler.codegen.strategies.recurrent import dense_seconds
from compiler.codegen.target import find_target
from compiler.codegen.templates.recurrent import LoweredSite, lower_site
from compiler.codegen.templates.recurrent_shape import pack_recurrent, recurrent_shape
from compiler.errors import LoweringError
from compiler.ir.graph import Site
from compiler.ir.types import ValueRef
from tests.codegen.native import loaded
from tests.ir import op_cases_recurrent
from tests.ir.op_case import Constant, OpCase, make_site, site_of

CASES = op_cases_recurrent.CASES


def variable(case: OpCase) -> OpCase:
    """The case with weights that arrive at run time."""
    operands = [o.array if isinstance(o, Constant) else o for o in case.operands]
    return dataclasses.replace(case, id=f"{case.id}-variable", operands=operands)


def wide(op: str, hidden: int, inputs: int, steps: int = 7, samples: int = 2, **attrs: object) -> OpCase:
    """More units than a vector has lanes, not a multiple of them, both directions."""
    rng, gates = np.random.default_rng(hidden), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)

    weights = [normal(2, gates * hidden, inputs), normal(2, gates * hidden, hidden), normal(2, 2 * gates * hidden)]
    lead = (samples, steps) if attrs.get("layout") else (steps, samples)
    operands = [normal(*lead, inputs), *(Constant(w) for w in weights)]
    full = {"hidden_size": hidden, "direction": "bidirectional", **attrs}
    name = f"wide-{hidden}x{inputs}-{steps}x{samples}-{'-'.join(attrs)}"
    return OpCase(op, name, operands, full, results=3 if op == "LSTM" else 2)


def seeded(count: int) -> list[OpCase]:
    """Random extents: units, inputs, steps and samples that are no multiples of tiles and vectors."""
    rng = np.random.default_rng(11)
    attrs: list[dict[str, object]] = [{}, {"linear_before_reset": 1}, {"layout": 1}]
    found = []
    for i in range(count):
        op = ("LSTM", "GRU", "RNN")[i % 3]
        chosen = attrs[int(rng.integers(3))]
        if op != "GRU":
            chosen = {k: v for k, v in chosen.items() if k != "linear_before_reset"}
        hidden, inputs, steps, samples = (int(n) for n in rng.integers(1, (70, 40, 12, 14)))
        found.append(wide(op, hidden, inputs, steps, samples, **chosen))
    return found


CANARY = 4096
WIDE = [wide("LSTM", 37, 20), wide("GRU", 37, 20), wide("GRU", 32, 5, linear_before_reset=1), wide("RNN", 21, 9)]
EMPTY = wide("GRU", 9, 5, samples=0)
VARIABLE = ("reverse", "bidirectional-states", "peepholes", "linear-before-reset")
ALL = [
    *CASES,
    *(variable(c) for c in CASES if c.id in VARIABLE),
    *WIDE,
    *seeded(9),
    wide("LSTM", 20, 9, 3, 13),
    EMPTY,
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """All kernels as one shared library, and the scratch bytes of each."""
    if not shutil.which("gcc"):
        pytest.skip("needs a C compiler to link")
    target = find_target("host")
    functions = {f"k{i}": lower_site(site_of(c), target).func for i, c in enumerate(ALL)}
    compiled = compile_kernels(functions, target)
    folder: Path = tmp_path_factory.mktemp("recurrent")
    return loaded(compiled.objects.values(), folder, "-lm"), compiled.scratch


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes."""
    raw = np.full(array.nbytes + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run(library, symbol: str, site: Site, lowered: LoweredSite, arrays) -> list[np.ndarray]:
    """Call a kernel; working memory holds NaN before the call, results lie at an odd address."""
    handle, scratch = library
    by_ref = {v.ref: arrays[i] for i, v in site.operands.present()}
    inputs = [aligned(by_ref[i] if isinstance(i, ValueRef) else i) for i in lowered.inputs]
    raw = [np.full(v.size + 1, np.nan, np.float32) for v in site.results]
    work = aligned(np.full(scratch[symbol] + CANARY, 0xFF, np.uint8))
    arguments = [*map(pointer, inputs), *(pointer(r[1:]) for r in raw)]
    arguments += [pointer(work)] if scratch[symbol] else []
    ranges = [(d, d + 1) for d in reversed(range(lowered.shape.directions))]
    for begin, end in ranges:
        assert getattr(handle, symbol)(*arguments, ctypes.c_int32(begin), ctypes.c_int32(end)) == 0
    assert (work[scratch[symbol] :] == 0xFF).all(), "the kernel wrote beyond its working memory"
    return [r[1:].reshape(v.shape) for r, v in zip(raw, site.results, strict=True)]


@pytest.mark.parametrize("number", range(len(ALL)), ids=lambda i: f"{ALL[i].op}-{ALL[i].id}")
def test_kernel_equals_evaluate(library, number: int):
    site, arrays = site_of(ALL[number]), ALL[number].arrays()
    lowered = lower_site(site, find_target("host"))
    got = run(library, f"k{number}", site, lowered, arrays)
    for g, want in zip(got, site.node.op.evaluate(site, arrays), strict=True):
        assert np.abs(g - want).max(initial=0) <= 1e-5 * max(np.abs(want).max(initial=0), 1e-2)


def test_a_layer_without_samples_has_a_predicted_time():
    target = find_target("host")
    shape = recurrent_shape(site_of(EMPTY), target)
    situation = Situation(target, frozenset(), 0)
    assert all(dense_seconds(shape, operand, situation) >= 0 for operand in ("w", "r"))


def test_working_memory_is_counted(library):
    """The gates of all steps alone need this much."""
    shape = recurrent_shape(site_of(WIDE[0]), find_target("host"))
    gates = 4 * shape.steps * shape.panels * shape.gates * shape.block
    assert library[1][f"k{ALL.index(WIDE[0])}"] >= gates


@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "armv7-neon", "x86-64-v3"])
def test_compiles_for_other_targets(target: str):
    chosen = find_target(target)
    functions = {f"k{i}": lower_site(site_of(c), chosen).func for i, c in enumerate(WIDE)}
    assert compile_kernels(functions, chosen).objects


def test_constant_weights_are_packed_at_compile_time():
    site = site_of(CASES[0])
    lowered = lower_site(site, find_target("x86-64-v3"))
    assert lowered.shape.packed
    assert [i for i in lowered.inputs if isinstance(i, ValueRef)] == [site.operands[0].ref]


def test_packing_keeps_every_weight_once():
    shape = recurrent_shape(site_of(wide("LSTM", 5, 3)), find_target("armv7-neon"))
    w = np.arange(1, 2 * 20 * 3 + 1, dtype=np.float32).reshape(2, 20, 3)
    packed = pack_recurrent(shape, w, np.zeros((2, 20, 5), np.float32), None, None)["w"]
    assert sorted(packed[packed != 0]) == sorted(w.ravel())
    panel, lane, gate, column = 1, 0, 2, 1  # unit 4 is lane 0 of panel 1
    assert packed[1, panel, column, gate * 4 + lane] == w[1, gate * 5 + 4, column]


def test_other_types_are_refused():
    doubles = [a.astype(np.float64) for a in CASES[0].arrays() if a is not None]
    site = make_site("LSTM", doubles, {"hidden_size": 4}, 3)
    with pytest.raises(LoweringError, match="float64 is not compiled, only float32"):
        lower_site(site, find_target("x86-64-v3"))
