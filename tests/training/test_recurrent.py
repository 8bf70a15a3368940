"""Recurrent layers on torch tensors in all their forms against the reference evaluator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Site  # noqa: E402
from compiler.ir.reference import difference  # noqa: E402
from compiler.training.recurrent import recurrent  # noqa: E402
from tests.graphs import Builder  # noqa: E402

STEPS, SAMPLES, INPUTS, HIDDEN = 4, 3, 2, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def site_of(op: str, direction: str, parts: str, **attrs: object) -> Site:
    """A layer with the given `parts`: b(ias), l(engths), s(tates), p(eepholes)."""
    ways, gates = 1 + (direction == "bidirectional"), GATES[op]
    b = Builder(seed=len(parts) + ways)
    first = bool(attrs.get("layout"))
    x = b.input("x", *((SAMPLES, STEPS) if first else (STEPS, SAMPLES)), INPUTS)
    state = (SAMPLES, ways, HIDDEN) if first else (ways, SAMPLES, HIDDEN)
    lengths = b.const(np.array([4, 1, 3], np.int32)) if "l" in parts else None
    operands = [x, b.weight(ways, gates * HIDDEN, INPUTS, scale=1), b.weight(ways, gates * HIDDEN, HIDDEN, scale=1)]
    operands += [b.weight(ways, 2 * gates * HIDDEN, scale=1) if "b" in parts else None, lengths]
    operands += [b.weight(*state, scale=1) if "s" in parts else None]
    if op == "LSTM":
        operands += [b.weight(*state, scale=1) if "s" in parts else None]
        operands += [b.weight(ways, 3 * HIDDEN, scale=1) if "p" in parts else None]
    results = 3 if op == "LSTM" else 2
    made = b.apply(op, *operands, results=results, hidden_size=HIDDEN, direction=direction, **attrs)
    b.task("t", *made)
    return next(b.done().sites())


def same(site: Site) -> None:
    rng = np.random.default_rng(0)
    values = [site.operands.optional(i) for i in range(len(site.operands))]
    given = [None if v is None else 2 * rng.normal(size=v.shape) if v.data is None else v.constant for v in values]
    given[0] = given[0].astype(np.float32)
    found = recurrent(site, [None if a is None else torch.tensor(a) for a in given])
    expected = site.node.op.evaluate(site, given)
    assert len(found) == len(expected)
    for mine, wanted in zip(found, expected, strict=True):
        assert difference(mine.numpy(), wanted) < 1e-5


DIRECTIONS = ("forward", "reverse", "bidirectional")


@pytest.mark.parametrize("parts", ["", "b", "bl", "bs", "bls"])
@pytest.mark.parametrize("op", GATES)
def test_every_direction_is_that_of_the_reference(op: str, parts: str) -> None:
    for direction, layout in itertools.product(DIRECTIONS, (0, 1) if "l" not in parts else (0,)):
        same(site_of(op, direction, parts, layout=layout))


def test_peepholes_forget_gates_and_clips_of_an_lstm() -> None:
    for parts, forget, clip in itertools.product(("bp", "bsp", "blsp"), (0, 1), (None, 0.5)):
        attrs = {"input_forget": forget} | ({} if clip is None else {"clip": clip})
        same(site_of("LSTM", "bidirectional", parts, **attrs))


def test_a_gru_applies_its_reset_before_or_after_the_product() -> None:
    for after, clip in itertools.product((0, 1), (None, 0.5)):
        attrs = {"linear_before_reset": after} | ({} if clip is None else {"clip": clip})
        same(site_of("GRU", "bidirectional", "bs", **attrs))


def test_other_functions_of_every_gate_and_direction() -> None:
    names = ("Relu", "Tanh", "Sigmoid")
    for op, count in (("RNN", 1), ("GRU", 2), ("LSTM", 3)):
        for shift in range(3):
            chosen = [names[(n + shift) % 3] for n in range(2 * count)]
            same(site_of(op, "bidirectional", "bs", activations=tuple(chosen)))
