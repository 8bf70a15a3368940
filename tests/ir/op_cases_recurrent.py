"""Cases of LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir.graph import Site
from tests.ir.op_case import Constant, OpCase, make_site
from tests.ir.op_values import real, weight
from tests.ir.oracles import by_onnxruntime

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {}
CASES: list[OpCase] = []

# ---------------------------------------------------------------------- recurrent
STEPS, SAMPLES, INPUTS, HIDDEN = 5, 2, 3, 4


def by_transposing(site: Site, *operands: np.ndarray | None) -> list[np.ndarray]:
    """onnxruntime has no layout=1: run layout=0 on transposed operands and transpose the results."""
    flipped = [o.swapaxes(0, 1) if o is not None and i in (0, 5, 6) else o for i, o in enumerate(operands)]
    twin = make_site(site.node.op.name, flipped, {**site.attrs, "layout": 0}, len(site.results))
    y, *states = by_onnxruntime(twin, {f"i{i}": o for i, o in enumerate(flipped) if o is not None})
    return [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in states)]


def recurrent(
    op: str,
    label: str,
    directions: int = 1,
    bias: bool = True,
    lens: Sequence[int] | None = None,
    states: bool = False,
    peepholes: bool = False,
    **attrs: object,
) -> OpCase:
    """A recurrent case with few steps, samples, inputs and units."""
    gates, layout = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], int(attrs.get("layout", 0))
    operands: list[np.ndarray | Constant | None] = [
        real(STEPS, SAMPLES, INPUTS),
        weight(directions, gates * HIDDEN, INPUTS),
        weight(directions, gates * HIDDEN, HIDDEN),
        weight(directions, 2 * gates * HIDDEN) if bias else None,
        np.array(lens, np.int32) if lens is not None else None,
        real(directions, SAMPLES, HIDDEN, seed=5) if states else None,
        real(directions, SAMPLES, HIDDEN, seed=6) if states and op == "LSTM" else None,
        weight(directions, 3 * HIDDEN, seed=7) if peepholes else None,
    ]
    results = 3 if op == "LSTM" else 2
    batch_axes = {0: 1 - layout, 4: 0, 5: 1 - layout, 6: 1 - layout}
    hidden_axes = {1: 1, 2: 1, 3: 1, 5: 2, 6: 2, 7: 1}
    free = [
        f"i{i}.{dim}" for axes in (batch_axes, hidden_axes) for i, dim in axes.items() if operands[i] is not None
    ]
    free += ["i0.2", "i1.2", "i2.2", f"o0.{0 if layout else 2}", "o0.3"]
    free += [f"o{i}.{dim}" for i in range(1, results) for dim in (1 - layout, 2)]
    if layout:
        operands = [o.swapaxes(0, 1) if isinstance(o, np.ndarray) and o.ndim == 3 else o for o in operands]
    while operands[-1] is None:
        operands.pop()
    return OpCase(
        op,
        label,
        operands,
        {"hidden_size": HIDDEN, "direction": ["forward", "bidirectional"][directions - 1], **attrs},
        results=results,
        free=" ".join(free),
        macs=STEPS * SAMPLES * directions * gates * HIDDEN * (INPUTS + HIDDEN),
        lowers=False,
        oracle=by_transposing if layout else "onnxruntime",
    )


CASES += [
    *(
        case
        for op in ("LSTM", "GRU", "RNN")
        for case in (
            recurrent(op, "forward"),
            recurrent(op, "reverse", direction="reverse", bias=False),
            recurrent(op, "bidirectional-states", 2, states=True),
            recurrent(op, "lengths", 2, lens=[3, 5], states=True),
            recurrent(op, "clip", clip=0.5),
        )
    ),
    recurrent("LSTM", "peepholes", 2, peepholes=True, states=True, clip=0.7),
    recurrent("LSTM", "input-forget", input_forget=1),
    recurrent("LSTM", "activations", activations=["Sigmoid", "Relu", "Tanh"]),
    recurrent("GRU", "linear-before-reset", 2, linear_before_reset=1, states=True),
    recurrent("GRU", "zero-length", lens=[0, 5], states=True),
    recurrent("LSTM", "zero-length", lens=[0, 5], states=True),
    recurrent("RNN", "zero-length", lens=[0, 5], states=True),
    recurrent("RNN", "relu", activations=["Relu"]),
    recurrent("LSTM", "layout", 2, layout=1, states=True),
    recurrent("GRU", "layout", lens=[3, 5], layout=1),
]
REFUSED += [
    (
        recurrent("LSTM", "softsign", activations=["Sigmoid", "Softsign", "Tanh"]),
        "LSTM Softsign Sigmoid, Tanh, Relu",
    ),
    (
        OpCase("GRU", "no-steps", [real(0, 2, 3), weight(1, 12, 3), weight(1, 12, 4)], {"hidden_size": 4}),
        "GRU without steps sequence",
    ),
    (recurrent("GRU", "too-few", 2, activations=["Sigmoid", "Tanh"]), "GRU 2 per direction"),
]
