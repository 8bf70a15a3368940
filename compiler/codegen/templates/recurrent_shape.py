"""What a recurrent kernel depends on, and how its weights are packed; plain data, no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compiler.codegen.target import Target, by_element_fits
from compiler.errors import LoweringError
from compiler.ir.graph import Site
from compiler.ir.ops.recurrent import C0, H0, LENS, B, P, R, W, X
from compiler.ir.types import DType

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True, slots=True)
class RecurrentShape:
    """Everything the generated code depends on."""

    kind: Literal["LSTM", "GRU", "RNN"]
    steps: int
    samples: int
    inputs: int
    hidden: int
    reverse: tuple[bool, ...]
    """One per direction."""
    functions: tuple[tuple[str, ...], ...]
    """Activations f, g, h per direction."""
    block: int
    """Hidden units per vector."""
    outputs: int
    """Results stored: Y, Y_h, Y_c."""
    samples_first: bool = False
    """layout=1: X [N, S, I], Y [N, S, D, H], states [N, D, H]."""
    has_bias: bool = True
    has_lengths: bool = False
    has_initial_h: bool = False
    has_initial_c: bool = False
    has_peepholes: bool = False
    clip: float | None = None
    linear_before_reset: bool = False
    input_forget: bool = False
    packed: bool = True
    """Weights arrive packed by `pack_recurrent`; else in ONNX form, and the kernel packs them in every call."""
    registers: int = 16
    """Vector registers of the target."""
    input_lanes: int = 1
    """Elements of a row or state read as one vector and multiplied by element; 1: broadcast loads."""

    @property
    def directions(self) -> int:
        return len(self.reverse)

    @property
    def gates(self) -> int:
        return _GATES[self.kind]

    @property
    def panels(self) -> int:
        """Vectors that hold the hidden units."""
        return -(-self.hidden // self.block)

    @property
    def rows(self) -> int:
        """Rows of the input part: one per step and sample."""
        return self.steps * self.samples

    @property
    def two_passes(self) -> bool:
        """Whether the reset gate of all units is needed before the candidate of any."""
        return self.kind == "GRU" and not self.linear_before_reset

    @property
    def input_rows(self) -> int:
        """Rows of the input part in registers together, such that tiles are alike; one where there are no rows."""
        tiles = max(1, -(-self.rows // self._rows_in_registers))
        return max(1, -(-self.rows // tiles))

    @property
    def together(self) -> int:
        """Samples that share one reading of the recurrent weights; one where sequences end at different steps."""
        return 1 if self.has_lengths else max(1, min(self.samples, self._rows_in_registers))

    @property
    def chains(self) -> int:
        """Independent sums per gate, so that about eight accumulators hide the latency of a multiply-add."""
        return max(1, -(-8 // (self.gates * self.together)))

    @property
    def _rows_in_registers(self) -> int:
        """Rows whose gates fit beside weights and inputs."""
        if self.input_lanes == 1:
            return max(1, (self.registers - 2 - self.gates) // self.gates)
        fitting = (r for r in range(self.registers, 1, -1) if by_element_fits(r, self.gates, self.registers))
        return next(fitting, 1)

    @property
    def bias_rows(self) -> int:
        """Bias vectors per panel: one per gate, and the recurrent bias that the reset gate multiplies."""
        return self.gates + self.linear_before_reset

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the pointer parameters in order."""
        given = (
            ("b", self.packed or self.has_bias),
            ("p", self.has_peepholes),
            ("lengths", self.has_lengths),
            ("h0", self.has_initial_h),
            ("c0", self.has_initial_c),
        )
        return ("x", "w", "r", *(n for n, there in given if there), *("y", "yh", "yc")[: self.outputs])

    @property
    def packed_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the packed weights."""
        d, n, v = self.directions, self.panels, self.block
        shapes = {
            "w": (d, n, self.inputs, self.gates * v),
            "r": (d, n, self.hidden, self.gates * v),
            "b": (d, n, self.bias_rows * v),
        }
        return {**shapes, "p": (d, n, 3 * v)} if self.has_peepholes else shapes


def recurrent_shape(site: Site, target: Target) -> RecurrentShape:
    """What the kernel of a normalised site depends on."""
    kind, attrs, operands = site.node.op.name, site.attrs, site.operands
    x, r = operands[X], operands[R]
    if x.dtype is not DType.FLOAT32:
        raise LoweringError(
            f"{kind} '{site.node.ref}': {x.dtype.value} is not compiled, only float32; convert the model"
        )
    there = [operands.optional(i) is not None for i in range(8)]
    samples_first, directions = bool(attrs["layout"]), r.shape[0]
    steps, samples = (x.shape[1], x.shape[0]) if samples_first else x.shape[:2]
    each = len(attrs["activations"]) // directions
    weights = [operands.optional(i) for i in (W, R, B, P)]
    return RecurrentShape(
        kind=kind,  # type: ignore[arg-type]
        steps=steps,
        samples=samples,
        inputs=x.shape[2],
        hidden=r.shape[2],
        reverse=(False, True) if directions == 2 else (attrs["direction"] == "reverse",),
        functions=tuple(tuple(attrs["activations"][d * each : (d + 1) * each]) for d in range(directions)),
        block=_block(r.shape[2], target.lanes),
        outputs=len(site.results),
        samples_first=samples_first,
        has_bias=there[B],
        has_lengths=there[LENS],
        has_initial_h=there[H0],
        has_initial_c=there[C0],
        has_peepholes=there[P],
        clip=attrs.get("clip"),
        linear_before_reset=bool(attrs.get("linear_before_reset", 0)),
        input_forget=bool(attrs.get("input_forget", 0)),
        packed=all(v is None or v.data is not None for v in weights),
        registers=target.vector_registers,
        input_lanes=target.input_lanes,
    )


def _block(hidden: int, lanes: int) -> int:
    """Lanes per vector: the widest, or narrower where that many would stay empty."""
    width = lanes
    while width > 4 and width // 2 >= hidden:
        width //= 2
    return width


# ---------------------------------------------------------------------- packing
def pack_recurrent(
    shape: RecurrentShape, w: np.ndarray, r: np.ndarray, b: np.ndarray | None, p: np.ndarray | None
) -> dict[str, np.ndarray]:
    """ONNX weights W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], P [D, 3*H] in the kernel's form, by parameter name.

    Lanes beyond the hidden units and steps beyond the reduction are zero. Bias as by `folded_bias`.
    """
    d, g, h = shape.directions, shape.gates, shape.hidden
    packed = {
        "w": _panels(shape, w.reshape(d, g, h, -1), shape.inputs),
        "r": _panels(shape, r.reshape(d, g, h, -1), h),
        "b": _panels(shape, folded_bias(shape, b)[..., None], 1),
    }
    if p is not None:
        packed["p"] = _panels(shape, p.reshape(d, 3, h, 1), 1)
    return {name: array.reshape(shape.packed_shapes[name]) for name, array in packed.items()}


def folded_bias(shape: RecurrentShape, b: np.ndarray | None) -> np.ndarray:
    """B [D, 2*G*H] (None: zeros) as float32 [D, bias rows, H]: the two halves are added, but for the recurrent half
    of a GRU's candidate gate with linear_before_reset, which stays a row of its own."""
    d, g, h = shape.directions, shape.gates, shape.hidden
    halves = np.zeros((d, 2, g, h), np.float32) if b is None else b.reshape(d, 2, g, h)
    rows = np.asarray(halves.sum(axis=1))
    if shape.linear_before_reset:
        rows = np.concatenate([rows[:, :2], halves[:, :1, 2], halves[:, 1:, 2]], axis=1)
    return rows


def _panels(shape: RecurrentShape, rows: np.ndarray, depth: int) -> np.ndarray:
    """[D, rows, H, K] to [D, panels, depth, rows, lanes]."""
    d, count, hidden, inner = rows.shape
    full = np.zeros((d, count, shape.panels * shape.block, depth), np.float32)
    full[:, :, :hidden, :inner] = rows
    return np.ascontiguousarray(full.reshape(d, count, shape.panels, shape.block, depth).transpose(0, 2, 4, 1, 3))
