"""Recurrent layers on torch tensors, step by step: the meaning is that of `compiler.ir.ops.recurrent`."""

from __future__ import annotations

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
    """One direction: w [G*H, I], r [G*H, H], both biases [G*H], peepholes [3*H]."""

    w: Tensor
    r: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    peepholes: Tensor
    functions: tuple[str, ...]
    clip: float

    def act(self, which: int, x: Tensor) -> Tensor:
        return self.squash(which, x.clamp(-self.clip, self.clip))

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
    rows, hidden = r.shape[1:]
    bias = w.new_zeros(2 * rows) if b is None else b[d]
    n = len(site.node.op.defaults)
    peepholes = w.new_zeros(3 * hidden) if p is None else p[d]
    functions = site.attrs["activations"][d * n : (d + 1) * n]
    clip = float(site.attrs.get("clip", float("inf")))
    return _Half(w[d], r[d], bias[:rows], bias[rows:], peepholes, functions, clip)


def _run(
    site: Site, half: _Half, x: Tensor, lengths: Tensor | None, states: States, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of one direction: y [S, N, H] (zero past a sequence's end), last states [N, H]."""
    steps, samples = x.shape[:2]
    ends = x.new_full((samples,), steps, dtype=torch.int64) if lengths is None else lengths.long()
    cell = _CELLS[site.node.op.name]
    h, c = (torch.where((ends > 0)[:, None], s, torch.zeros_like(s)) for s in states)
    pre = x @ half.w.T + half.input_bias
    rows = torch.arange(steps, device=x.device)
    made: list[Tensor] = []
    for step in range(steps):
        # a sequence shorter than the longest one is run backwards from its own end: rows differ by sample
        at = (ends - 1 - step).clamp(min=0) if backward else torch.full_like(ends, step)
        chosen = (rows[:, None] == at).to(x.dtype)
        now = pre[step] if not backward else torch.einsum("sn,sng->ng", chosen, pre)
        active = (step < ends)[:, None]
        new_h, new_c = cell(site, half, now, h, c)
        h, c = torch.where(active, new_h, h), torch.where(active, new_c, c)
        made.append(torch.where(active, h, torch.zeros_like(h)))
    y = torch.stack(made)
    if backward:
        # step s of a sequence of length L belongs at L - 1 - s
        to = ends - 1 - rows[:, None]
        place = (to[:, None, :] == rows[None, :, None]).to(x.dtype)
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
    i, o, f, candidate = (pre + h @ half.r.T + half.recurrent_bias).chunk(4, 1)
    peep_i, peep_o, peep_f = half.peepholes.chunk(3)
    i = half.act(0, i + peep_i * c)
    f = 1 - i if site.int("input_forget") else half.act(0, f + peep_f * c)
    c = f * c + i * half.act(1, candidate)
    o = half.act(0, o + peep_o * c)
    return o * half.squash(2, c), c


_CELLS = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
