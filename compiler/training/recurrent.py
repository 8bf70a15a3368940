"""Recurrent layers on torch tensors, step by step: the meaning is that of `compiler.ir.ops.recurrent`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.ir.graph import Site
from compiler.ir.ops.recurrent import C0, H0, LENS, B, P, R, Recurrent, W, X

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
}

States = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Half:
    """One direction: w [G*H, I], r [G*H, H], both biases [G*H], peepholes [3*H] where there are any."""

    w: Tensor
    r: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    peepholes: Tensor | None
    functions: tuple[str, ...]
    clip: float

    def act(self, which: int, x: Tensor) -> Tensor:
        return self.squash(which, x if self.clip == math.inf else x.clamp(-self.clip, self.clip))

    def squash(self, which: int, x: Tensor) -> Tensor:
        return _FUNCTIONS[self.functions[which]](x)


def recurrent(site: Site, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The results of an LSTM, GRU or RNN site, by formal operand position; shapes as in `Emitter.recurrent`."""
    given = [*tensors, *[None] * (8 - len(tensors))]
    x, r = given[X], given[R]
    assert x is not None and r is not None
    flip = bool(site.int("layout"))
    x = x.swapaxes(0, 1) if flip else x
    made = []
    for d in range(r.shape[0]):
        states = _initial(given, d, x, r.shape[2], flip)
        backward = d == 1 or site.str("direction") == "reverse"
        made.append(_run(site, _half(site, given, d), x, given[LENS], states, backward))
    y = torch.stack([m[0] for m in made], 1)
    last = [torch.stack([m[k] for m in made]) for k in (1, 2)]
    if flip:
        y, last = y.permute(2, 0, 1, 3), [s.swapaxes(0, 1) for s in last]
    return (y, *last)[: len(site.results)]


def _initial(given: Sequence[Tensor | None], d: int, x: Tensor, hidden: int, flip: bool) -> States:
    def state(held: Tensor | None) -> Tensor:
        if held is None:
            return x.new_zeros((x.shape[1], hidden))
        return held[:, d] if flip else held[d]

    return state(given[H0]), state(given[C0])


def _half(site: Site, given: Sequence[Tensor | None], d: int) -> _Half:
    w, r, b, p = given[W], given[R], given[B], given[P]
    assert w is not None and r is not None and isinstance(site.node.op, Recurrent)
    rows = r.shape[1]
    bias = w.new_zeros(2 * rows) if b is None else b[d]
    n = len(site.node.op.defaults)
    functions = site.attrs["activations"][d * n : (d + 1) * n]
    clip = float(site.attrs.get("clip", math.inf))
    return _Half(w[d], r[d], bias[:rows], bias[rows:], None if p is None else p[d], functions, clip)


def _run(
    site: Site, half: _Half, x: Tensor, lengths: Tensor | None, states: States, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of one direction: y [S, N, H] (zero past a sequence's end), last states [N, H]."""
    pre = x @ half.w.T + half.input_bias
    if lengths is not None:
        return _run_ragged(site, half, pre, lengths.long(), states, backward)
    cell = _CELLS[site.node.op.name]
    h, c = states
    made: list[Tensor] = []
    order = pre.unbind()  # at once: the gradient of an indexed step is as large as all steps
    for now in reversed(order) if backward else order:
        h, c = cell(site, half, now, h, c)
        made.append(h)
    return torch.stack(made[::-1] if backward else made), h, c


def _run_ragged(
    site: Site, half: _Half, pre: Tensor, ends: Tensor, states: States, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`_run` over sequences that end at [N] steps: one shorter than the longest runs backwards from its own end."""
    cell = _CELLS[site.node.op.name]
    h, c = (torch.where((ends > 0)[:, None], s, torch.zeros_like(s)) for s in states)
    rows = torch.arange(len(pre), device=ends.device)
    made: list[Tensor] = []
    for step, now in enumerate(pre.unbind()):
        if backward:
            at = ends - 1 - step  # below 0, past a sequence's end, it is no row
            now = torch.einsum("sn,sng->ng", (rows[:, None] == at).to(now.dtype), pre)
        active = (step < ends)[:, None]
        new_h, new_c = cell(site, half, now, h, c)
        h, c = torch.where(active, new_h, h), torch.where(active, new_c, c)
        made.append(torch.where(active, h, torch.zeros_like(h)))
    y = torch.stack(made)
    if backward:
        # step s of a sequence of length L belongs at L - 1 - s
        to = ends - 1 - rows[:, None]
        place = (to[:, None, :] == rows[None, :, None]).to(y.dtype)
        y = torch.einsum("son,snh->onh", place, y)
    return y, h, c


def _rnn(site: Site, half: _Half, pre: Tensor, h: Tensor, c: Tensor) -> States:
    return half.act(0, pre + h @ half.r.T + half.recurrent_bias), c


def _gru(site: Site, half: _Half, pre: Tensor, h: Tensor, c: Tensor) -> States:
    n = h.shape[1]
    r, bias = half.r, half.recurrent_bias
    gates = half.act(0, pre[:, : 2 * n] + h @ r[: 2 * n].T + bias[: 2 * n])
    update, reset = gates[:, :n], gates[:, n:]
    if site.int("linear_before_reset"):
        part = reset * (h @ r[2 * n :].T + bias[2 * n :])
    else:
        part = (reset * h) @ r[2 * n :].T + bias[2 * n :]
    candidate = half.act(1, pre[:, 2 * n :] + part)
    return (1 - update) * candidate + update * h, c


def _lstm(site: Site, half: _Half, pre: Tensor, h: Tensor, c: Tensor) -> States:
    peepholes = (None,) * 3 if half.peepholes is None else half.peepholes.chunk(3)

    def gate(x: Tensor, peep: Tensor | None, seen: Tensor) -> Tensor:
        return half.act(0, x if peep is None else x + peep * seen)

    i, o, f, candidate = (pre + h @ half.r.T + half.recurrent_bias).chunk(4, 1)
    i = gate(i, peepholes[0], c)
    f = 1 - i if site.int("input_forget") else gate(f, peepholes[2], c)
    c = f * c + i * half.act(1, candidate)
    return gate(o, peepholes[1], c) * half.squash(2, c), c


_CELLS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
