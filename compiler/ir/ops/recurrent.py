"""Recurrent layers over a whole sequence: LSTM, GRU and the plain RNN, in one or both directions.

X is [S, N, I]: steps, samples, inputs. W [D, G * H, I] and R [D, G * H, H] hold G gates of H hidden units for each
of D directions, gate-major: row g * H + j belongs to unit j.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.errors import UnsupportedModelError
from compiler.ir.graph import Attrs, Operands, Site
from compiler.ir.op import Emitter, Kept, MacOp, Rebuilt, Tensor, Tie, entrywise, identity
from compiler.ir.types import Axis

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
}
"""Gate activations taskgraft computes, by ONNX name."""

X, W, R, B, LENS, H0, C0, P = range(8)
"""Formal operand positions."""


@dataclass(frozen=True, slots=True)
class Direction:
    """The parameters of one direction in numpy: w [G*H, I], r [G*H, H], both biases [G*H], peepholes [3*H]."""

    w: np.ndarray
    r: np.ndarray
    input_bias: np.ndarray
    recurrent_bias: np.ndarray
    peepholes: np.ndarray
    functions: tuple[str, ...]
    clip: float

    def act(self, which: int, x: np.ndarray) -> np.ndarray:
        """Activation number `which` of a clipped gate."""
        return self.squash(which, np.clip(x, -self.clip, self.clip))

    def squash(self, which: int, x: np.ndarray) -> np.ndarray:
        """Activation number `which` of x as it is."""
        return ACTIVATIONS[self.functions[which]](x)


class Recurrent(MacOp):
    """What the recurrent operators share."""

    gates: ClassVar[int]
    defaults: ClassVar[tuple[str, ...]]
    """Activations of one direction, in ONNX order f, g, h."""

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        if not operands[X].shape[attrs.get("layout", 0)] or not operands[R].shape[2]:
            raise UnsupportedModelError(
                f"{self.name}: a layer without steps or hidden units has no last state; bind the length of its "
                "sequence to one or more"
            )
        directions = 2 if attrs.get("direction") == "bidirectional" else 1
        count = len(self.defaults) * directions
        # the schema's default for RNN lists one for each of two directions, also where there is one
        chosen = tuple(_text(a) for a in attrs.get("activations") or self.defaults * directions)[:count]
        names = {a.lower(): a for a in ACTIVATIONS}
        unknown = sorted({a for a in chosen if a.lower() not in names})
        if unknown or len(chosen) != count:
            raise UnsupportedModelError(
                f"{self.name}: activations {', '.join(chosen)} are not supported; taskgraft computes "
                f"{len(self.defaults)} per direction out of {', '.join(ACTIVATIONS)}"
            )
        dropped = ("activation_alpha", "activation_beta")  # none of the activations has a parameter
        rest = {k: v for k, v in attrs.items() if k not in dropped}
        return {
            "direction": "forward",
            "layout": 0,
            **rest,
            "activations": tuple(names[a.lower()] for a in chosen),
            "hidden_size": operands[R].shape[2],
        }

    def macs(self, site: Site) -> int:
        steps, samples, inputs = site.operands[X].shape
        directions, rows, hidden = site.operands[R].shape
        return steps * samples * directions * rows * (inputs + hidden)

    def products(self, site: Site, index: int) -> int:
        steps, samples, _ = site.operands[X].shape
        return steps * samples if index in (W, R) else 0

    def ties(self, site: Site) -> Iterator[Tie]:
        x, w, r = site.operands[X], site.operands[W], site.operands[R]
        batch = site.int("layout") ^ 1
        hidden, unit = r.shape[2], Axis(site.node.ref, "hidden")
        yield identity(w, 2, x, 2)
        yield entrywise(unit, r.axis(2), np.arange(hidden))
        # both directions share the hidden units, gates are blocks of H rows
        for position, dim in ((W, 1), (R, 1), (B, 1), (P, 1), (H0, 2), (C0, 2)):
            value = site.operands.optional(position)
            if value is not None:
                yield entrywise(unit, value.axis(dim), np.arange(value.shape[dim]) % hidden)
        for result in site.results:
            yield entrywise(unit, result.axis(-1), np.arange(hidden))
        yield from self._sample_ties(site, batch)

    def _sample_ties(self, site: Site, batch: int) -> Iterator[Tie]:
        x, state_batch = site.operands[X], 1 if batch else 0
        lengths = site.operands.optional(LENS)
        if lengths is not None:
            yield identity(x, batch, lengths, 0)
        for position in (H0, C0):
            state = site.operands.optional(position)
            if state is not None:
                yield identity(x, batch, state, state_batch)
        for i, result in enumerate(site.results):
            dim = (2 if batch else 0) if i == 0 else state_batch
            yield identity(x, batch, result, dim)

    def rebuild(self, site: Site, kept: Kept) -> Rebuilt:
        hidden = len(kept.virtual(site.node.ref, "hidden", site.int("hidden_size")))
        return Rebuilt({**site.attrs, "hidden_size": hidden})

    def lower(self, emit: Emitter, site: Site, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return emit.recurrent(site, tensors)

    # ------------------------------------------------------------------ values
    def evaluate(self, site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        given = [*arrays, *[None] * (8 - len(arrays))]
        x, r = given[X], given[R]
        assert x is not None and r is not None
        flip = bool(site.int("layout"))
        x = x.swapaxes(0, 1) if flip else x
        (steps, samples, _), (directions, _, hidden) = x.shape, r.shape
        lengths = given[LENS]
        lengths = np.full(samples, steps) if lengths is None else lengths
        y = np.zeros((steps, directions, samples, hidden), x.dtype)
        states = [self._initial(given[p], directions, samples, hidden, x.dtype, flip) for p in (H0, C0)]
        for d in range(directions):
            reverse = d == 1 or site.str("direction") == "reverse"
            half = self._direction(site, given, d)
            y[:, d], states[0][d], states[1][d] = self._run(
                site, half, x, lengths, states[0][d], states[1][d], reverse
            )
        if flip:
            y, states = y.transpose(2, 0, 1, 3), [s.swapaxes(0, 1) for s in states]
        return (y, *states)[: len(site.results)]

    @staticmethod
    def _initial(
        state: np.ndarray | None,
        directions: int,
        samples: int,
        hidden: int,
        dtype: np.dtype[np.generic],
        flip: bool,
    ) -> np.ndarray:
        if state is None:
            return np.zeros((directions, samples, hidden), dtype)
        return state.swapaxes(0, 1).copy() if flip else state.copy()

    def _direction(self, site: Site, given: Sequence[np.ndarray | None], d: int) -> Direction:
        w, r, b, p = given[W], given[R], given[B], given[P]
        assert w is not None and r is not None
        rows, hidden = r.shape[1:]
        bias = np.zeros(2 * rows, w.dtype) if b is None else b[d]
        n = len(self.defaults)
        return Direction(
            w[d],
            r[d],
            bias[:rows],
            bias[rows:],
            np.zeros(3 * hidden, w.dtype) if p is None else p[d],
            site.attrs["activations"][d * n : (d + 1) * n],
            float(site.attrs.get("clip", np.inf)),
        )

    def _run(
        self,
        site: Site,
        half: Direction,
        x: np.ndarray,
        lengths: np.ndarray,
        h: np.ndarray,
        c: np.ndarray,
        reverse: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All steps of one direction: y [S, N, H] (zero past a sequence's end) and the last states [N, H]."""
        # an empty sequence ends in zero, not in its initial state (onnxruntime)
        h, c = (np.where(lengths[:, None] > 0, state, np.zeros_like(state)) for state in (h, c))
        y, everyone = np.zeros((*x.shape[:2], h.shape[1]), x.dtype), np.arange(x.shape[1])
        for step in range(x.shape[0]):
            active = step < lengths
            at = np.where(active, lengths - 1 - step if reverse else step, 0)
            pre = x[at, everyone] @ half.w.T + half.input_bias
            new_h, new_c = self.cell(site, half, pre, h, c)
            h, c = np.where(active[:, None], new_h, h), np.where(active[:, None], new_c, c)
            y[at[active], everyone[active]] = h[active]
        return y, h, c

    @abc.abstractmethod
    def cell(
        self, site: Site, half: Direction, pre: np.ndarray, h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One step: next states from the input part of the gates [N, G * H] and the states [N, H]."""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class RNN(Recurrent):
    """H' = f(X W + H R + bias); operands X, W, R, B, sequence_lens, initial_h; results Y, Y_h."""

    name = "RNN"
    gates = 1
    defaults = ("Tanh",)

    def cell(
        self, site: Site, half: Direction, pre: np.ndarray, h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return half.act(0, pre + h @ half.r.T + half.recurrent_bias), c


class GRU(Recurrent):
    """Gates z, r, h: H' = (1 - z) * h + z * H; operands X, W, R, B, sequence_lens, initial_h; results Y, Y_h.

    The reset gate r multiplies H before the recurrent product, or after it with linear_before_reset.
    """

    name = "GRU"
    gates = 3
    defaults = ("Sigmoid", "Tanh")

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"linear_before_reset": 0, **super().normalise(attrs, operands)}

    def cell(
        self, site: Site, half: Direction, pre: np.ndarray, h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n = h.shape[1]
        r, bias = half.r, half.recurrent_bias
        gates = half.act(0, pre[:, : 2 * n] + h @ r[: 2 * n].T + bias[: 2 * n])
        update, reset = gates[:, :n], gates[:, n:]
        if site.int("linear_before_reset"):
            recurrent = reset * (h @ r[2 * n :].T + bias[2 * n :])
        else:
            recurrent = (reset * h) @ r[2 * n :].T + bias[2 * n :]
        candidate = half.act(1, pre[:, 2 * n :] + recurrent)
        return (1 - update) * candidate + update * h, c


class LSTM(Recurrent):
    """Gates i, o, f, c: C' = f * C + i * c, H' = o * h(C'); peepholes add P * C to i and f, P * C' to o.

    Operands X, W, R, B, sequence_lens, initial_h, initial_c, P (order i, o, f); results Y, Y_h, Y_c.
    """

    name = "LSTM"
    gates = 4
    defaults = ("Sigmoid", "Tanh", "Tanh")

    def normalise(self, attrs: Attrs, operands: Operands) -> Attrs:
        return {"input_forget": 0, **super().normalise(attrs, operands)}

    def cell(
        self, site: Site, half: Direction, pre: np.ndarray, h: np.ndarray, c: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        i, o, f, candidate = np.split(pre + h @ half.r.T + half.recurrent_bias, 4, axis=1)
        peep_i, peep_o, peep_f = np.split(half.peepholes, 3)
        i = half.act(0, i + peep_i * c)
        f = 1 - i if site.int("input_forget") else half.act(0, f + peep_f * c)
        c = f * c + i * half.act(1, candidate)
        o = half.act(0, o + peep_o * c)
        return o * half.squash(2, c), c  # onnxruntime clips the gates, not the cell
