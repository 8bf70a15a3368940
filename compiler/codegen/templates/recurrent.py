"""LSTM, GRU and RNN layers: the gates of one vector of hidden units are computed and consumed in registers.

The input part of all steps and samples is one matrix product; each step is a matrix-vector product with the state
of every sample. Weights are packed in panels [D][H / v][depth][gates][v], so that the accumulators of a panel are
the gates of the same v units and the cell update needs no other data. Every other step takes the panels backwards:
it finds in cache what the step before has just read. Inputs and results are plain row-major ONNX tensors.

Sparse weights are multiplied by the kernels of sparse matrix products (`recurrent_products`), all inputs before the
first step and the state before the cells of each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.functions import clamp
from compiler.codegen.target import Target
from compiler.codegen.templates.common import KernelBuilder, chunks, kernel, splat, vector, view
from compiler.codegen.templates.product import ProductTile, pieces
from compiler.codegen.templates.recurrent_products import (
    Emitter,
    GateProduct,
    Gates,
    dtypes,
    gate_passes,
    parameters,
    planes,
)
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


def lower_site(site: Site, target: Target) -> LoweredSite:
    """The dense kernel of an LSTM, GRU or RNN site for a target. LoweringError beyond float32."""
    shape = recurrent_shape(site, target)
    return LoweredSite(recurrent_kernel(shape), shape, kernel_inputs(site, shape, {}))


def kernel_inputs(
    site: Site, shape: RecurrentShape, products: Mapping[str, Sequence[np.ndarray]]
) -> tuple[ValueRef | np.ndarray, ...]:
    """Values and constants in the order of the kernel's parameters, results left out; `products`: what stands in
    the place of a weight, by its name."""
    position = {"x": X, "w": W, "r": R, "b": B, "p": P, "lengths": LENS, "h0": H0, "c0": C0}
    packed: Mapping[str, np.ndarray] = {}
    if shape.packed:
        constants = [site.operands.optional(i) for i in (W, R, B, P)]
        w, r, b, p = (None if v is None else v.constant for v in constants)
        assert w is not None and r is not None
        packed = pack_recurrent(shape, w, r, b, p)
    found: list[ValueRef | np.ndarray] = []
    for name in shape.parameters[: len(shape.parameters) - shape.outputs]:
        if name in products:
            found += products[name]
        else:
            found.append(packed[name] if name in packed else site.operands[position[name]].ref)
    return tuple(found)


def recurrent_kernel(shape: RecurrentShape, products: Sequence[GateProduct] = ()) -> Any:
    """The PrimFunc for `shape`; parameters as `parameters(shape, products)`, then the range of directions.

    `products`: those with sparse weights; for R one for every pass over the gates.
    """
    with kernel(parameters(shape, products), dict(dtypes(shape, products)), divided=True) as made:
        body = _Recurrent(shape, made, products)
        with made.each_part() as part:
            for d in range(shape.directions):
                if shape.directions == 1:
                    body.direction(d)
                    continue
                with T.If(part == d), T.Then():
                    body.direction(d)
    return made.func


class _State:
    """A vector of hidden units per sample; `width` elements each, those behind the units without meaning."""

    def __init__(self, samples: int, width: int) -> None:
        self.buffer = T.alloc_buffer((samples * width,), "float32")
        self._width = width

    def get(self, n: Any, at: Any) -> Any:
        """Units `at` (an index of one or several) of sample n."""
        return self.buffer[self._of(n, at)]

    def put(self, n: Any, at: Any, value: Any) -> None:
        """Store units `at` of sample n."""
        T.buffer_store(self.buffer, value, [self._of(n, at)])

    def _of(self, n: Any, at: Any) -> Any:
        first = n * self._width
        return tirx.Ramp(first + at.base, at.stride, at.lanes) if isinstance(at, tirx.Ramp) else first + at


class _Recurrent:
    """Emission state of one recurrent layer. Directions use the same working memory one after another."""

    def __init__(self, shape: RecurrentShape, made: KernelBuilder, products: Sequence[GateProduct]) -> None:
        self.s = s = shape
        self.pointers = made.pointers
        self.X = view(made.pointers["x"], (s.rows, s.inputs))
        self.weights: dict[str, Any] = {
            n: view(made.pointers[n], size) if s.packed else T.alloc_buffer(size, "float32")
            for n, size in s.packed_shapes.items()
            if n not in {p.operand for p in products}
        }
        # gates of every step and sample before the recurrent part
        self.G = self._gates("w", range(s.gates))

        def state(there: bool = True) -> _State:
            return _State(s.samples, s.panels * s.block) if there else _State(1, 1)

        self.h, self.next_h, self.c = state(), state(), state(s.kind == "LSTM")
        # update gate and reset state of all units, between the two passes
        self.z, self.rh = state(s.two_passes), state(s.two_passes)
        self._sparse(made, products)
        self.inputs = ProductTile(s.input_rows, s.gates, s.block, lanes=s.input_lanes)
        self.tile = ProductTile(s.together, s.gates, s.block, s.chains, s.input_lanes)

    def _gates(self, operand: str, gates: Sequence[int]) -> Gates:
        _, sums, batch = planes(self.s, operand, gates)
        return Gates(sums, batch, len(gates), self.s.block)

    def _sparse(self, made: KernelBuilder, products: Sequence[GateProduct]) -> None:
        """Emitters of the products with sparse weights, and where those with R leave their sums, by their gates."""
        every = range(self.s.directions)
        self.sums = {p.gates: self._gates("r", p.gates) for p in products if p.operand == "r"}
        self.products: dict[tuple[int, str, tuple[int, ...]], Emitter] = {}
        for p in products:
            x, y = self.pointers["x"], self.G.buffer
            if p.operand == "r":
                state = self.h if p.gates == gate_passes(self.s)[0] else self.rh
                x, y = state.buffer, self.sums[p.gates].buffer
            self.products |= {(d, p.operand, p.gates): p.emitter(d, made, x, y) for d in every}

    def direction(self, d: int) -> None:
        """All of direction `d`: the recurrence allows no other order of the steps."""
        s = self.s
        if not s.packed:
            self._pack(d)
        self._input_part(d)
        for first, count, repeat in chunks(s.samples, s.together):
            with T.serial(repeat) as i:
                samples = [first + i * count + m for m in range(count)]
                for n in samples:
                    self._start(d, n)
                length = self._length(samples[0])
                with T.serial(length) as step:
                    t = length - 1 - step if s.reverse[d] else step
                    self._step(d, t, step, samples)
                    for n in samples:
                        self._store(d, n, t)
                for n in samples:
                    self._finish(d, n, length)

    def _length(self, n: Any) -> Any:
        """Steps of sample n, never outside the buffers; with lengths, samples run one by one."""
        if not self.s.has_lengths:
            return tirx.IntImm("int32", self.s.steps)
        given = view(self.pointers["lengths"], (self.s.samples,), "int32")[n]
        return T.min(T.max(given, 0), self.s.steps)

    # ------------------------------------------------------------------ loops
    @contextmanager
    def _each_panel(self, step: Any) -> Iterator[Any]:
        """The loop over panels, backwards in odd steps."""
        last = self.s.panels - 1
        with T.serial(self.s.panels) as panel:
            yield tirx.Select(step % 2 == 0, panel, last - panel) if last else panel

    def _each_run(self) -> Iterator[Any]:
        """Emits what the loop body emits for whole vectors of units, then for the units that are left."""
        full, rest = divmod(self.s.hidden, self.s.block)
        if full:
            with T.serial(full) as panel:
                yield self._units(panel)
        for start, width in pieces(rest, self.s.block):
            yield vector(full * self.s.block + start, width)

    def _units(self, panel: Any) -> Any:
        return vector(panel * self.s.block, self.s.block)

    # ------------------------------------------------------------------ phases
    def _input_part(self, d: int) -> None:
        """G of every step and sample: bias and input weights."""
        s = self.s
        sparse = self.products.get((d, "w", tuple(range(s.gates))))
        if sparse is not None:
            sparse.emit()
            return
        with T.serial(s.panels) as panel:
            for first, count, repeat in chunks(s.rows, s.input_rows):
                with T.serial(repeat) as i:
                    self._input_tile(d, panel, first + i * count, count)

    def _input_tile(self, d: int, panel: Any, top: Any, count: int) -> None:
        s, v = self.s, self.s.block
        self.inputs.multiply(
            (count, s.gates),
            s.inputs,
            lambda m, g: self.weights["b"][d, panel, vector(g * v, v)],
            lambda m, k, lanes: self.X[top + m, vector(k, lanes)],
            lambda k, g: self.weights["w"][d, panel, k, vector(g * v, v)],
        )
        for m in range(count):
            for g in range(s.gates):
                value = self.inputs.sums.get(self.inputs.place(m, g))
                self.G.put(top + m, panel, g, value)

    def _start(self, d: int, n: Any) -> None:
        """The initial states; an empty sequence ends in zero, as in onnxruntime."""
        s = self.s
        used = [(self.h, True), (self.c, s.kind == "LSTM"), (self.rh, s.two_passes)]
        with T.serial(s.panels) as panel:
            # lanes beyond the units are multiplied by zero weights: they must be finite
            for state, there in used:
                if there:
                    state.put(n, self._units(panel), splat(0.0, s.block))
        for name, state in (("h0", self.h), ("c0", self.c)):
            if name in self.pointers:
                with T.If(self._length(n) > 0), T.Then():
                    for at in self._each_run():
                        state.put(n, at, self._state_view(name)[(*self._state(d, n), at)])

    def _state_view(self, name: str) -> Any:
        first = (self.s.samples, self.s.directions) if self.s.samples_first else (self.s.directions, self.s.samples)
        return view(self.pointers[name], (*first, self.s.hidden))

    def _state(self, d: int, n: Any) -> tuple[Any, Any]:
        return (n, d) if self.s.samples_first else (d, n)

    def _step(self, d: int, t: Any, step: Any, samples: Sequence[Any]) -> None:
        cell: dict[str, Callable[..., None]] = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}
        first, *others = gate_passes(self.s)
        self._multiply(d, first, samples)
        with self._each_panel(step) as panel:
            cell[self.s.kind](d, t, panel, samples)
        for gates in others:
            self._multiply(d, gates, samples)
            with self._each_panel(step) as panel:
                self._candidate(d, t, panel, samples)

    def _multiply(self, d: int, gates: tuple[int, ...], samples: Sequence[Any]) -> None:
        """Sparse R times the state of consecutive samples; dense R is multiplied gate by gate where it is used."""
        product = self.products.get((d, "r", gates))
        if product is not None:
            product.emit(samples[0], len(samples), self.s.samples)

    def _store(self, d: int, n: Any, t: Any) -> None:
        """The new state becomes the state, and a row of Y."""
        with T.serial(self.s.panels) as panel:
            at = self._units(panel)
            self.h.put(n, at, self.next_h.get(n, at))
        y, row = self._row(d, n, t)
        for at in self._each_run():
            T.buffer_store(y, self.h.get(n, at), [*row, at])

    def _row(self, d: int, n: Any, t: Any) -> tuple[Any, list[Any]]:
        """Y and the place of step t in it."""
        s = self.s
        outer = (s.samples, s.steps, s.directions) if s.samples_first else (s.steps, s.directions, s.samples)
        return view(self.pointers["y"], (*outer, s.hidden)), [n, t, d] if s.samples_first else [t, d, n]

    def _finish(self, d: int, n: Any, length: Any) -> None:
        """Rows past the end of a short sequence are zero; the last states are results."""
        if self.s.has_lengths:
            with T.serial(self.s.steps - length) as past:
                y, row = self._row(d, n, length + past)
                for at in self._each_run():
                    T.buffer_store(y, splat(0.0, _width(at)), [*row, at])
        for name, state in (("yh", self.h), ("yc", self.c)):
            if name in self.pointers:
                for at in self._each_run():
                    T.buffer_store(self._state_view(name), state.get(n, at), [*self._state(d, n), at])

    # ------------------------------------------------------------------ cells
    def _gate_sums(
        self, d: int, t: Any, panel: Any, samples: Sequence[Any], gates: Sequence[int], state: _State
    ) -> None:
        """Sum (m, i) of the tile becomes gate number gates[i] of sample m before its activation."""
        v = self.s.block
        sums = self.sums.get(tuple(gates))
        if sums is not None:
            for m, n in enumerate(samples):
                for i, gate in enumerate(gates):
                    self._put(m, i, self._start_of(d, t, n, panel, gate) + sums.get(n, panel, i))
            return
        self.tile.multiply(
            (len(samples), len(gates)),
            self.s.hidden,
            lambda m, i: self._start_of(d, t, samples[m], panel, gates[i]),
            lambda m, k, lanes: state.get(samples[m], vector(k, lanes)),
            lambda k, i: self.weights["r"][d, panel, k, vector(gates[i] * v, v)],
        )

    def _start_of(self, d: int, t: Any, n: Any, panel: Any, gate: int) -> Any:
        v = self.s.block
        if gate == 2 and self.s.linear_before_reset:  # the reset gate multiplies this sum with its own bias
            return self.weights["b"][d, panel, vector(3 * v, v)]
        return self.G.get(self._input_row(t, n), panel, gate)

    def _input_row(self, t: Any, n: Any) -> Any:
        return n * self.s.steps + t if self.s.samples_first else t * self.s.samples + n

    def _get(self, m: int, i: int) -> Any:
        return self.tile.sums.get(self.tile.place(m, i))

    def _put(self, m: int, i: int, value: Any) -> None:
        self.tile.sums.put(self.tile.place(m, i), value)

    def _act(self, d: int, which: int, x: Any, clipped: bool = True) -> Any:
        """Activation number `which` of the (clipped) vector x."""
        if self.s.clip is not None and clipped:
            x = clamp(x, -self.s.clip, self.s.clip)
        name = self.s.functions[d][which]
        if name == "Relu":
            return T.max(splat(0.0, self.s.block), x)
        return tirx.sigmoid(x) if name == "Sigmoid" else tirx.tanh(x)

    def _rnn(self, d: int, t: Any, panel: Any, samples: Sequence[Any]) -> None:
        self._gate_sums(d, t, panel, samples, [0], self.h)
        for m, n in enumerate(samples):
            self.next_h.put(n, self._units(panel), self._act(d, 0, self._get(m, 0)))

    def _gru(self, d: int, t: Any, panel: Any, samples: Sequence[Any]) -> None:
        """Update gate z and reset gate r; the candidate follows at once or in a second pass over the panels."""
        at, one_pass = self._units(panel), not self.s.two_passes
        self._gate_sums(d, t, panel, samples, [0, 1, 2] if one_pass else [0, 1], self.h)
        for m, n in enumerate(samples):
            for i in (0, 1):
                self._put(m, i, self._act(d, 0, self._get(m, i)))
            if one_pass:
                inputs = self.G.get(self._input_row(t, n), panel, 2)
                self._put(m, 2, self._act(d, 1, inputs + self._get(m, 1) * self._get(m, 2)))
                self._blend(n, panel, self._get(m, 0), self._get(m, 2))
            else:
                self.z.put(n, at, self._get(m, 0))
                self.rh.put(n, at, self._get(m, 1) * self.h.get(n, at))

    def _candidate(self, d: int, t: Any, panel: Any, samples: Sequence[Any]) -> None:
        self._gate_sums(d, t, panel, samples, [2], self.rh)
        for m, n in enumerate(samples):
            self._put(m, 0, self._act(d, 1, self._get(m, 0)))
            self._blend(n, panel, self.z.get(n, self._units(panel)), self._get(m, 0))

    def _blend(self, n: Any, panel: Any, update: Any, candidate: Any) -> None:
        at, one = self._units(panel), splat(1.0, self.s.block)
        self.next_h.put(n, at, (one - update) * candidate + update * self.h.get(n, at))

    def _lstm(self, d: int, t: Any, panel: Any, samples: Sequence[Any]) -> None:
        self._gate_sums(d, t, panel, samples, range(4), self.h)
        for m, n in enumerate(samples):
            self._lstm_cell(d, n, m, panel)

    def _lstm_cell(self, d: int, n: Any, m: int, panel: Any) -> None:
        i, o, f, g = range(4)
        at, s = self._units(panel), self.s
        self._put(m, i, self._act(d, 0, self._get(m, i) + self._peephole(d, n, panel, 0)))
        forget = self._act(d, 0, self._get(m, f) + self._peephole(d, n, panel, 2))
        self._put(m, f, splat(1.0, s.block) - self._get(m, i) if s.input_forget else forget)
        self._put(m, g, self._act(d, 1, self._get(m, g)))
        value = self._get(m, f) * self.c.get(n, at) + self._get(m, i) * self._get(m, g)
        self.c.put(n, at, value)
        self._put(m, o, self._act(d, 0, self._get(m, o) + self._peephole(d, n, panel, 1)))
        self._put(m, g, self._act(d, 2, self.c.get(n, at), clipped=False))
        self.next_h.put(n, at, self._get(m, o) * self._get(m, g))

    def _peephole(self, d: int, n: Any, panel: Any, row: int) -> Any:
        """P * c for row i, o or f; zero without peepholes."""
        v = self.s.block
        if not self.s.has_peepholes:
            return splat(0.0, v)
        return self.weights["p"][d, panel, vector(row * v, v)] * self.c.get(n, self._units(panel))

    # ------------------------------------------------------------------ weights that are not constant
    def _pack(self, d: int) -> None:
        """`pack_recurrent` of direction d in the kernel, element by element."""
        s, count = self.s, self.s.directions
        w = view(self.pointers["w"], (count, s.gates, s.hidden, s.inputs))
        r = view(self.pointers["r"], (count, s.gates, s.hidden, s.hidden))
        self._pack_one(d, "w", s.gates, s.inputs, lambda g, u, k: w[d, g, u, k])
        self._pack_one(d, "r", s.gates, s.hidden, lambda g, u, k: r[d, g, u, k])
        self._pack_one(d, "b", s.bias_rows, 1, self._bias_element(d))
        if s.has_peepholes:
            p = view(self.pointers["p"], (count, 3, s.hidden))
            self._pack_one(d, "p", 3, 1, lambda g, u, k: p[d, g, u])

    def _bias_element(self, d: int) -> Callable[..., Any]:
        s = self.s
        if not s.has_bias:
            return lambda g, u, k: tirx.FloatImm("float32", 0.0)
        b = view(self.pointers["b"], (s.directions, 2, s.gates, s.hidden))

        def element(g: int, u: Any, k: Any) -> Any:
            if s.linear_before_reset and g >= 2:
                return b[d, g - 2, 2, u]
            return b[d, 0, g, u] + b[d, 1, g, u]

        return element

    def _pack_one(self, d: int, name: str, rows: int, depth: int, element: Callable[..., Any]) -> None:
        s, target = self.s, self.weights[name]
        with T.serial(s.panels) as panel, T.serial(depth) as k, T.serial(s.block) as lane:
            unit = panel * s.block + lane
            for g in range(rows):
                value = tirx.if_then_else(unit < s.hidden, element(g, unit, k), tirx.FloatImm("float32", 0.0))
                at = g * s.block + lane
                T.buffer_store(target, value, [d, panel, k, at] if name in "wr" else [d, panel, at])


def _width(at: Any) -> int:
    """Lanes of an index."""
    return int(at.lanes) if isinstance(at, tirx.Ramp) else 1
