"""LSTM, GRU and RNN layers: the gates of one vector of hidden units are computed and consumed in registers.

Per sample, the input part of all steps is one matrix product; each step is a matrix-vector product with the state.
Weights are packed in panels [D][H / v][depth][gates][v], so that the accumulators of a panel are the gates of the
same v units and the cell update needs no other data. Inputs and results are plain row-major ONNX tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.functions import clamp
from compiler.codegen.templates.common import Registers, chunks, kernel, splat, vector, view
from compiler.codegen.templates.recurrent_shape import RecurrentShape, pack_recurrent, recurrent_shape
from compiler.ir.graph import Site
from compiler.ir.ops.recurrent import C0, H0, LENS, B, P, R, W, X
from compiler.ir.types import ValueRef


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
    position = {"x": X, "w": W, "r": R, "b": B, "p": P, "lengths": LENS, "h0": H0, "c0": C0}
    packed: Mapping[str, np.ndarray] = {}
    if shape.packed:
        constants = [site.operands.optional(i) for i in (W, R, B, P)]
        w, r, b, p = (None if v is None else v.constant for v in constants)
        assert w is not None and r is not None
        packed = pack_recurrent(shape, w, r, b, p)
    names = shape.parameters[: len(shape.parameters) - shape.outputs]
    inputs = tuple(packed[n] if n in packed else site.operands[position[n]].ref for n in names)
    return LoweredSite(recurrent_kernel(shape), shape, inputs)


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
        # update gate and reset state of all units, between the two passes
        self.z, self.rh = (T.alloc_buffer((s.state if self._two_passes else 1,), "float32") for _ in range(2))
        self.tile = max(1, 12 // s.gates)
        self.acc = Registers(max(self.tile * s.gates, s.gates * s.chains), s.block)

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
        """Activation number `which` of the (clipped) vector x."""
        if self.s.clip is not None and clipped:
            x = clamp(x, -self.s.clip, self.s.clip)
        name = self.s.functions[d][which]
        if name == "Relu":
            return T.max(splat(0.0, self.s.block), x)
        return tirx.sigmoid(x) if name == "Sigmoid" else tirx.tanh(x)

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
