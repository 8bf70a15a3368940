"""LSTM, GRU and RNN layers: the gates of one vector of hidden units are computed and consumed in registers.

Per sample, the input part of all steps is one matrix product; each step is a matrix-vector product with the state.
Weights are packed in panels [D][H / v][depth][gates][v], so that the accumulators of a panel are the gates of the
same v units and the cell update needs no other data. Inputs and results are plain row-major ONNX tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.templates.common import Registers, chunks, kernel, splat, vector, view
from compiler.codegen.templates.functions import Functions
from compiler.errors import LoweringError
from compiler.ir.graph import Site
from compiler.ir.types import DType, ValueRef

_X, _W, _R, _B, _LENS, _H0, _C0, _P = range(8)
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
    def chains(self) -> int:
        """Independent sums per gate, so that about eight accumulators hide the latency of a multiply-add."""
        return -(-8 // self.gates)

    @property
    def depth(self) -> int:
        """Length of the recurrent reduction, a multiple of `chains`; zero weights fill it."""
        return -(-self.hidden // self.chains) * self.chains

    @property
    def state(self) -> int:
        """Elements of a state buffer."""
        return max(self.panels * self.block, self.depth)

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
            "r": (d, n, self.depth, self.gates * v),
            "b": (d, n, self.bias_rows * v),
        }
        return {**shapes, "p": (d, n, 3 * v)} if self.has_peepholes else shapes


@dataclass(frozen=True)
class LoweredSite:
    """A recurrent site as a kernel. `inputs`: values read row-major, or packed constants, in parameter order; the
    results of the site follow."""

    func: Any
    shape: RecurrentShape
    inputs: tuple[ValueRef | np.ndarray, ...]


def lower_site(site: Site, lanes: int) -> LoweredSite:
    """The kernel of an LSTM, GRU or RNN site for vectors of up to `lanes` floats. LoweringError beyond float32."""
    shape = recurrent_shape(site, lanes)
    position = {"x": _X, "w": _W, "r": _R, "b": _B, "p": _P, "lengths": _LENS, "h0": _H0, "c0": _C0}
    packed: Mapping[str, np.ndarray] = {}
    if shape.packed:
        constants = [site.operands.optional(i) for i in (_W, _R, _B, _P)]
        w, r, b, p = (None if v is None else v.constant for v in constants)
        assert w is not None and r is not None
        packed = pack_recurrent(shape, w, r, b, p)
    names = shape.parameters[: len(shape.parameters) - shape.outputs]
    inputs = tuple(packed[n] if n in packed else site.operands[position[n]].ref for n in names)
    return LoweredSite(recurrent_kernel(shape), shape, inputs)


def recurrent_shape(site: Site, lanes: int) -> RecurrentShape:
    """What the kernel of a normalised site depends on."""
    kind, attrs, operands = site.node.op.name, site.attrs, site.operands
    x, r = operands[_X], operands[_R]
    if x.dtype is not DType.FLOAT32:
        raise LoweringError(
            f"{kind} '{site.node.ref}': {x.dtype.value} is not compiled, only float32; convert the model"
        )
    there = [operands.optional(i) is not None for i in range(8)]
    samples_first, directions = bool(attrs["layout"]), r.shape[0]
    steps, samples = (x.shape[1], x.shape[0]) if samples_first else x.shape[:2]
    each = len(attrs["activations"]) // directions
    weights = [operands.optional(i) for i in (_W, _R, _B, _P)]
    return RecurrentShape(
        kind=kind,  # type: ignore[arg-type]
        steps=steps,
        samples=samples,
        inputs=x.shape[2],
        hidden=r.shape[2],
        reverse=(False, True) if directions == 2 else (attrs["direction"] == "reverse",),
        functions=tuple(tuple(attrs["activations"][d * each : (d + 1) * each]) for d in range(directions)),
        block=_block(r.shape[2], lanes),
        outputs=len(site.results),
        samples_first=samples_first,
        has_bias=there[_B],
        has_lengths=there[_LENS],
        has_initial_h=there[_H0],
        has_initial_c=there[_C0],
        has_peepholes=there[_P],
        clip=attrs.get("clip"),
        linear_before_reset=bool(attrs.get("linear_before_reset", 0)),
        input_forget=bool(attrs.get("input_forget", 0)),
        packed=all(v is None or v.data is not None for v in weights),
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

    Lanes beyond the hidden units and steps beyond the reduction are zero. The two halves of the bias are added,
    but for the recurrent half of a GRU's candidate gate with linear_before_reset, which stays a row of its own.
    """
    d, g, h = shape.directions, shape.gates, shape.hidden
    halves = np.zeros((d, 2, g, h), np.float32) if b is None else b.reshape(d, 2, g, h)
    rows = halves.sum(axis=1)
    if shape.linear_before_reset:
        rows = np.concatenate([rows[:, :2], halves[:, :1, 2], halves[:, 1:, 2]], axis=1)
    packed = {
        "w": _panels(shape, w.reshape(d, g, h, -1), shape.inputs),
        "r": _panels(shape, r.reshape(d, g, h, -1), shape.depth),
        "b": _panels(shape, rows[..., None], 1),
    }
    if p is not None:
        packed["p"] = _panels(shape, p.reshape(d, 3, h, 1), 1)
    return {name: array.reshape(shape.packed_shapes[name]) for name, array in packed.items()}


def _panels(shape: RecurrentShape, rows: np.ndarray, depth: int) -> np.ndarray:
    """[D, rows, H, K] to [D, panels, depth, rows, lanes]."""
    d, count, hidden, inner = rows.shape
    full = np.zeros((d, count, shape.panels * shape.block, depth), np.float32)
    full[:, :, :hidden, :inner] = rows
    return np.ascontiguousarray(full.reshape(d, count, shape.panels, shape.block, depth).transpose(0, 2, 4, 1, 3))


# ---------------------------------------------------------------------- the kernel
def recurrent_kernel(shape: RecurrentShape) -> Any:
    """The PrimFunc for `shape`; parameters as `shape.parameters`."""
    with kernel(shape.parameters, {"lengths": "int32"}) as made:
        _Recurrent(shape, made.pointers).emit()
    return made.func


class _Recurrent:
    """Emission state of one recurrent layer."""

    def __init__(self, shape: RecurrentShape, pointers: Mapping[str, Any]) -> None:
        self.s = s = shape
        self.pointers = pointers
        first = (s.samples, s.steps) if s.samples_first else (s.steps, s.samples)
        self.X = view(pointers["x"], (*first, s.inputs))
        self.weights: dict[str, Any] = {
            n: view(pointers[n], size) if s.packed else T.alloc_buffer(size, "float32")
            for n, size in s.packed_shapes.items()
        }
        # gates of every step of one sample, before the recurrent part
        self.G = T.alloc_buffer((s.steps, s.panels, s.gates * s.block), "float32")
        self.h, self.next_h, self.c = (T.alloc_buffer((s.state,), "float32") for _ in range(3))
        self.z, self.rh = (
            (T.alloc_buffer((s.state,), "float32") for _ in range(2)) if self._two_passes else (None,) * 2
        )
        self.tile = max(1, 12 // s.gates)
        self.acc = Registers(max(self.tile * s.gates, s.gates * s.chains), s.block)
        self.math = Functions(s.block)

    @property
    def _two_passes(self) -> bool:
        """Whether the reset gate of all units is needed before the candidate of any."""
        return self.s.kind == "GRU" and not self.s.linear_before_reset

    def emit(self) -> None:
        """Directions, samples, steps: the recurrence allows no other order of the steps."""
        if not self.s.packed:
            self._pack()
        for d in range(self.s.directions):
            with T.serial(self.s.samples) as n:
                self._input_part(d, n)
                self._start(d, n)
                length = self._length(n)
                with T.serial(length) as step:
                    t = length - 1 - step if self.s.reverse[d] else step
                    self._step(d, t)
                    self._store(d, n, t)
                self._finish(d, n, length)

    def _length(self, n: Any) -> Any:
        """Steps of sample n, never outside the buffers."""
        if not self.s.has_lengths:
            return tirx.IntImm("int32", self.s.steps)
        given = view(self.pointers["lengths"], (self.s.samples,), "int32")[n]
        return T.min(T.max(given, 0), self.s.steps)

    # ------------------------------------------------------------------ phases
    def _input_part(self, d: int, n: Any) -> None:
        s, v = self.s, self.s.block
        with T.serial(s.panels) as panel:
            for top, count, repeat in chunks(s.steps, self.tile):
                cells = [(m, g, m * s.gates + g) for m in range(count) for g in range(s.gates)]
                with T.serial(repeat) as i:
                    for _, g, k in cells:
                        self.acc.put(k, self.weights["b"][d, panel, vector(g * v, v)])
                    with T.serial(s.inputs) as j:
                        for m, g, k in cells:
                            t = i * count + top + m
                            x = self.X[n, t, j] if s.samples_first else self.X[t, n, j]
                            w = self.weights["w"][d, panel, j, vector(g * v, v)]
                            self.acc.put(k, self.acc.get(k) + splat(x, v) * w)
                    for m, g, k in cells:
                        T.buffer_store(self.G, self.acc.get(k), [i * count + top + m, panel, vector(g * v, v)])

    def _start(self, d: int, n: Any) -> None:
        """The initial states; an empty sequence ends in zero, as in onnxruntime."""
        s = self.s
        with T.serial(s.state) as j:
            # elements beyond the units are multiplied by zero weights: they must be finite
            for state in (self.h, self.c, *((self.rh,) if self._two_passes else ())):
                T.buffer_store(state, tirx.FloatImm("float32", 0.0), [j])
        for name, state in (("h0", self.h), ("c0", self.c)):
            if name in self.pointers:
                with T.serial(s.hidden) as j:
                    value = self._state_view(name)[self._state_at(d, n, j)]
                    if s.has_lengths:
                        value = tirx.if_then_else(self._length(n) > 0, value, tirx.FloatImm("float32", 0.0))
                    T.buffer_store(state, value, [j])

    def _state_view(self, name: str) -> Any:
        first = (self.s.samples, self.s.directions) if self.s.samples_first else (self.s.directions, self.s.samples)
        return view(self.pointers[name], (*first, self.s.hidden))

    def _state_at(self, d: int, n: Any, j: Any) -> tuple[Any, ...]:
        return (n, d, j) if self.s.samples_first else (d, n, j)

    def _step(self, d: int, t: Any) -> None:
        cell: dict[str, Callable[[int, Any, Any], None]] = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}
        with T.serial(self.s.panels) as panel:
            cell[self.s.kind](d, t, panel)
        if self._two_passes:
            with T.serial(self.s.panels) as panel:
                self._candidate(d, t, panel)

    def _store(self, d: int, n: Any, t: Any) -> None:
        """The new state becomes the state, and a row of Y."""
        s = self.s
        with T.serial(s.panels) as panel:
            at = vector(panel * s.block, s.block)
            T.buffer_store(self.h, self.next_h[at], [at])
        self._row(d, n, t, lambda j: self.h[j])

    def _row(self, d: int, n: Any, t: Any, value: Callable[[Any], Any]) -> None:
        """Write step t of Y, one element at a time: the caller's buffer need not be aligned to vectors."""
        s = self.s
        outer = (s.samples, s.steps, s.directions) if s.samples_first else (s.steps, s.directions, s.samples)
        y = view(self.pointers["y"], (*outer, s.hidden))
        with T.serial(s.hidden) as j:
            T.buffer_store(y, value(j), [n, t, d, j] if s.samples_first else [t, d, n, j])

    def _finish(self, d: int, n: Any, length: Any) -> None:
        """Rows past the end of a short sequence are zero; the last states are results."""
        s = self.s
        if s.has_lengths:
            with T.serial(s.steps - length) as past:
                self._row(d, n, length + past, lambda j: tirx.FloatImm("float32", 0.0))
        for name, state in (("yh", self.h), ("yc", self.c)):
            if name in self.pointers:
                with T.serial(s.hidden) as j:
                    T.buffer_store(self._state_view(name), state[j], list(self._state_at(d, n, j)))

    # ------------------------------------------------------------------ cells
    def _gate_sums(self, d: int, t: Any, panel: Any, gates: Sequence[int], state: Any) -> None:
        """Accumulator i becomes gate number gates[i] of the panel before its activation."""
        s, v = self.s, self.s.block
        cells = [(i, g, q, q * len(gates) + i) for i, g in enumerate(gates) for q in range(s.chains)]
        for _, g, q, k in cells:
            self.acc.put(k, self._start_of(d, t, panel, g) if q == 0 else splat(0.0, v))
        with T.serial(s.depth // s.chains) as j:
            for _, g, q, k in cells:
                weight = self.weights["r"][d, panel, j * s.chains + q, vector(g * v, v)]
                self.acc.put(k, self.acc.get(k) + splat(state[j * s.chains + q], v) * weight)
        for i, _, q, k in cells:
            if q:
                self.acc.put(i, self.acc.get(i) + self.acc.get(k))

    def _start_of(self, d: int, t: Any, panel: Any, gate: int) -> Any:
        v = self.s.block
        if gate == 2 and self.s.linear_before_reset:  # the reset gate multiplies this sum with its own bias
            return self.weights["b"][d, panel, vector(3 * v, v)]
        return self.G[t, panel, vector(gate * v, v)]

    def _act(self, d: int, which: int, x: Any, clipped: bool = True) -> Any:
        """Activation number `which` of the (clipped) vector x; store it before the next one."""
        if self.s.clip is not None and clipped:
            x = self.math.clamp(x, -self.s.clip, self.s.clip)
        return self.math.apply(self.s.functions[d][which], x)

    def _units(self, panel: Any) -> Any:
        return vector(panel * self.s.block, self.s.block)

    def _rnn(self, d: int, t: Any, panel: Any) -> None:
        self._gate_sums(d, t, panel, [0], self.h)
        T.buffer_store(self.next_h, self._act(d, 0, self.acc.get(0)), [self._units(panel)])

    def _gru(self, d: int, t: Any, panel: Any) -> None:
        """Update gate z and reset gate r; the candidate follows at once or in a second pass over the panels."""
        at, one_pass = self._units(panel), not self._two_passes
        self._gate_sums(d, t, panel, [0, 1, 2] if one_pass else [0, 1], self.h)
        for k in (0, 1):
            self.acc.put(k, self._act(d, 0, self.acc.get(k)))
        if not one_pass:
            T.buffer_store(self.z, self.acc.get(0), [at])
            T.buffer_store(self.rh, self.acc.get(1) * self.h[at], [at])
            return
        inputs = self.G[t, panel, vector(2 * self.s.block, self.s.block)]
        self.acc.put(2, self._act(d, 1, inputs + self.acc.get(1) * self.acc.get(2)))
        self._blend(panel, self.acc.get(0), self.acc.get(2))

    def _candidate(self, d: int, t: Any, panel: Any) -> None:
        self._gate_sums(d, t, panel, [2], self.rh)
        self.acc.put(0, self._act(d, 1, self.acc.get(0)))
        self._blend(panel, self.z[self._units(panel)], self.acc.get(0))

    def _blend(self, panel: Any, update: Any, candidate: Any) -> None:
        at, one = self._units(panel), splat(1.0, self.s.block)
        T.buffer_store(self.next_h, (one - update) * candidate + update * self.h[at], [at])

    def _lstm(self, d: int, t: Any, panel: Any) -> None:
        i, o, f, g = range(4)
        acc, at, s = self.acc, self._units(panel), self.s
        self._gate_sums(d, t, panel, [i, o, f, g], self.h)
        acc.put(i, self._act(d, 0, acc.get(i) + self._peephole(d, panel, 0)))
        forget = self._act(d, 0, acc.get(f) + self._peephole(d, panel, 2))
        acc.put(f, splat(1.0, s.block) - acc.get(i) if s.input_forget else forget)
        acc.put(g, self._act(d, 1, acc.get(g)))
        T.buffer_store(self.c, acc.get(f) * self.c[at] + acc.get(i) * acc.get(g), [at])
        acc.put(o, self._act(d, 0, acc.get(o) + self._peephole(d, panel, 1)))
        acc.put(g, self._act(d, 2, self.c[at], clipped=False))
        T.buffer_store(self.next_h, acc.get(o) * acc.get(g), [at])

    def _peephole(self, d: int, panel: Any, row: int) -> Any:
        """P * c for row i, o or f; zero without peepholes."""
        v = self.s.block
        if not self.s.has_peepholes:
            return splat(0.0, v)
        return self.weights["p"][d, panel, vector(row * v, v)] * self.c[self._units(panel)]

    # ------------------------------------------------------------------ weights that are not constant
    def _pack(self) -> None:
        """`pack_recurrent` in the kernel, element by element."""
        s, d = self.s, self.s.directions
        w = view(self.pointers["w"], (d, s.gates, s.hidden, s.inputs))
        r = view(self.pointers["r"], (d, s.gates, s.hidden, s.hidden))
        self._pack_one("w", s.gates, s.inputs, s.inputs, lambda i, g, u, k: w[i, g, u, k])
        self._pack_one("r", s.gates, s.depth, s.hidden, lambda i, g, u, k: r[i, g, u, k])
        self._pack_one("b", s.bias_rows, 1, 1, self._bias_element())
        if s.has_peepholes:
            p = view(self.pointers["p"], (d, 3, s.hidden))
            self._pack_one("p", 3, 1, 1, lambda i, g, u, k: p[i, g, u])

    def _bias_element(self) -> Callable[..., Any]:
        s = self.s
        if not s.has_bias:
            return lambda i, g, u, k: tirx.FloatImm("float32", 0.0)
        b = view(self.pointers["b"], (s.directions, 2, s.gates, s.hidden))

        def element(i: Any, g: int, u: Any, k: Any) -> Any:
            if s.linear_before_reset and g >= 2:
                return b[i, g - 2, 2, u]
            return b[i, 0, g, u] + b[i, 1, g, u]

        return element

    def _pack_one(self, name: str, rows: int, depth: int, inner: int, element: Callable[..., Any]) -> None:
        s, target = self.s, self.weights[name]
        with (
            T.serial(s.directions) as d,
            T.serial(s.panels) as panel,
            T.serial(depth) as k,
            T.serial(s.block) as lane,
        ):
            unit = panel * s.block + lane
            inside = tirx.all(unit < s.hidden, k < inner)
            for g in range(rows):
                value = tirx.if_then_else(inside, element(d, g, unit, k), tirx.FloatImm("float32", 0.0))
                at = g * s.block + lane
                T.buffer_store(target, value, [d, panel, k, at] if name in "wr" else [d, panel, at])
