"""Break a tie rule in a known way, prune at random: some check must notice, every time.

Sizes alone are not enough: a Flatten tied tile by tile instead of repeated fits everywhere and means something
else. Types are inferred anew, ties compared in size, and the outputs with the masked original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from compiler.errors import CompilerError, VerifyError
from compiler.ir.graph import Graph, Site
from compiler.ir.op import Op, Tie
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, ValueRef
from compiler.ir.verify import verify
from compiler.passes.base import ROUNDING
from compiler.passes.prune.surgery import Removal, masked_difference, remove
from tests.mutation import networks

Ties = list[Tie]
Broken = Callable[[Site, Ties], Ties]


def with_index(tie: Tie, index: np.ndarray) -> Tie:
    return Tie(tie.a, tie.b, np.asarray(index, np.int64), tie.kind)


def parameter(site: Site, axis: Axis) -> bool:
    values = {v.ref: v for _, v in site.operands.present()}
    return isinstance(axis.owner, ValueRef) and axis.owner in values and values[axis.owner].data is not None


def edit(chosen: Callable[[Site, Tie], bool], index: Callable[[Site, Tie], np.ndarray]) -> Broken:
    """Give the chosen ties another index."""

    def broken(site: Site, ties: Ties) -> Ties:
        return [with_index(t, index(site, t)) if len(t.index) > 1 and chosen(site, t) else t for t in ties]

    return broken


def channel_axis(site: Site, tie: Tie) -> bool:
    return tie.b.dim == 1


def rolled(site: Site, tie: Tie) -> np.ndarray:
    return np.roll(tie.index, 1)


def reversed_(site: Site, tie: Tie) -> np.ndarray:
    return tie.index[::-1]


def tiled(site: Site, tie: Tie) -> np.ndarray:
    """j // n where j % n belongs, and the other way round."""
    count = int(tie.index.max()) + 1
    j, repeats = np.arange(len(tie.index)), len(tie.index) // count
    return j // repeats if np.array_equal(tie.index, j % count) else j % count


def weights(site: Site, tie: Tie) -> bool:
    return parameter(site, tie.a) or parameter(site, tie.b)


def many_to_one(site: Site, tie: Tie) -> bool:
    used = tie.index[tie.index >= 0]
    return len(np.unique(used)) < len(used)


def first_result(site: Site, tie: Tie) -> bool:
    return site.results[0].ref in (tie.a.owner, tie.b.owner)


def swapped_axes(site: Site, ties: Ties) -> Ties:
    """Transpose: axis 1 of the operand to axis 1 of the result, whatever the permutation says."""
    x, y = site.operands[0], site.results[0]
    return [with_index(Tie(x.axis(d), y.axis(d), t.index), np.arange(x.shape[d])) for d, t in enumerate(ties)]


MUTANTS: dict[str, tuple[str, Callable[[], Graph], Broken]] = {
    "conv: bias shifted": (
        "Conv",
        networks.conv_chain,
        edit(lambda s, t: parameter(s, t.b) and t.b.dim == 0 and t.b.owner == s.operands[2].ref, rolled),
    ),
    "conv: output rows reversed": ("Conv", networks.conv_chain, edit(first_result, reversed_)),
    "conv: input columns reversed": (
        "Conv",
        networks.conv_chain,
        edit(lambda s, t: s.operands[0].axis(1) in (t.a, t.b), reversed_),
    ),
    "batch norm: scale shifted": (
        "BatchNormalization",
        networks.batch_norm,
        edit(lambda s, t: t.a.owner == s.operands[1].ref, rolled),
    ),
    "batch norm: all parameters shifted": ("BatchNormalization", networks.batch_norm, edit(weights, rolled)),
    "relu: shifted": ("Relu", networks.conv_chain, edit(channel_axis, rolled)),
    "add: one operand shifted": ("Add", networks.residual, edit(lambda s, t: t.a == s.operands[0].axis(1), rolled)),
    "mul: vector reversed": ("Mul", networks.residual, edit(weights, reversed_)),
    "flatten: tiled instead of repeated": ("Flatten", networks.flatten, edit(many_to_one, tiled)),
    "gemm: rows reversed": ("Gemm", networks.flatten, edit(lambda s, t: t.a == s.operands[0].axis(1), reversed_)),
    "concat: second offset wrong": (
        "Concat",
        networks.concat,
        edit(lambda s, t: t.a == s.operands[1].axis(1), rolled),
    ),
    "concat: operands swapped": ("Concat", networks.concat, edit(channel_axis, lambda s, t: np.roll(t.index, 6))),
    "split: halves swapped": ("Split", networks.split, edit(channel_axis, lambda s, t: (t.index + 6) % 12)),
    "slice: offset forgotten": ("Slice", networks.sliced, edit(channel_axis, lambda s, t: t.index - t.index.min())),
    "grouped conv: division for modulo": ("Conv", networks.grouped, edit(many_to_one, tiled)),
    "depthwise: modulo for division": ("Conv", networks.depthwise, edit(many_to_one, tiled)),
    "conv transpose: weight rows reversed": (
        "ConvTranspose",
        networks.transposed_conv,
        edit(lambda s, t: parameter(s, t.b) and t.b.dim == 0, reversed_),
    ),
    "conv transpose: weight columns reversed": (
        "ConvTranspose",
        networks.transposed_conv,
        edit(lambda s, t: s.operands[1].axis(1) in (t.a, t.b), reversed_),
    ),
    "reshape: factors swapped": ("Reshape", networks.shuffle, edit(many_to_one, tiled)),
    "transpose: permutation ignored": ("Transpose", networks.shuffle, swapped_axes),
    "depth to space: order of blocks": ("DepthToSpace", networks.to_space, edit(many_to_one, tiled)),
    "matmul: depth reversed": ("MatMul", networks.attention, edit(weights, reversed_)),
    "heads: factors swapped": ("Reshape", networks.attention, edit(many_to_one, tiled)),
    "lstm: gates interleaved": ("LSTM", lambda: networks.recurrent("LSTM", 4), edit(many_to_one, tiled)),
    "lstm: recurrent columns reversed": (
        "LSTM",
        lambda: networks.recurrent("LSTM", 4),
        edit(lambda s, t: t.b == s.operands[2].axis(2), reversed_),
    ),
    "gru: gates interleaved": ("GRU", lambda: networks.recurrent("GRU", 3), edit(many_to_one, tiled)),
}
"""What is broken -> operator, network, how."""


def mutate(monkeypatch: pytest.MonkeyPatch, name: str, broken: Broken) -> None:
    cls = type(Op.registry[name])
    original = cls.ties

    def ties(self: Op, site: Site) -> Iterator[Tie]:
        return iter(broken(site, list(original(self, site))))

    monkeypatch.setattr(cls, "ties", ties)


def noticed(graph: Graph, sound: Closure, seed: int) -> str | None:
    """Which check stops a random removal: "nothing" where nothing may be removed, "sound" where it happens to be
    one that the true ties allow (a mutant maps it to itself), None where a wrong removal passes."""
    closure, rng = Closure(graph), np.random.default_rng(seed)
    chosen = [g.atoms[i] for g in closure.groups for i in rng.permutation(len(g.atoms))[: len(g.atoms) // 3]]
    if not chosen:
        return "nothing"
    removal, after = closure.removal(chosen), graph.copy()
    try:
        remove(after, removal)
    except (CompilerError, ValueError, IndexError):
        return "types"
    try:
        verify(after)
    except VerifyError:
        return "verifier"
    try:
        if masked_difference(graph, after, removal, (seed,)) > ROUNDING:
            return "numbers"
    except (ValueError, IndexError):
        return "shapes"
    return "sound" if allowed(removal, sound) else None


def allowed(removal: Removal, sound: Closure) -> bool:
    """Whether the removal consists of whole atoms of the true ties (virtual axes left aside)."""
    inside = [
        a
        for a in sound.atoms
        if not a.frozen and all(set(e) <= set(removal.get(x, ())) for x, e in a.entries.items() if real(x))
    ]
    expected = {a: e.tolist() for a, e in sound.removal(inside).items() if real(a)}
    return expected == {a: np.asarray(e).tolist() for a, e in removal.items() if real(a)}


def real(axis: Axis) -> bool:
    return isinstance(axis.owner, ValueRef)


def tie_table(graph: Graph) -> list[tuple[Axis, Axis, list[int]]]:
    return [(t.a, t.b, t.index.tolist()) for s in graph.sites() for t in s.node.op.ties(s)]


@pytest.mark.parametrize("what", list(MUTANTS))
def test_a_broken_tie_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, build, broken = MUTANTS[what]
    graph = build()
    sound, before = Closure(graph), tie_table(graph)
    assert {noticed(graph, sound, s) for s in range(3)} == {"sound"}, "true ties raise no alarm"
    mutate(monkeypatch, operator, broken)
    assert tie_table(graph) != before, "the mutant differs"
    levels = [noticed(graph, sound, s) for s in range(5)]
    assert None not in levels, levels
    assert sum(level not in ("sound", "nothing") for level in levels) >= 3, levels


def test_a_tiled_flatten_is_seen_by_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, build, broken = MUTANTS["flatten: tiled instead of repeated"]
    graph = build()
    sound = Closure(graph)
    mutate(monkeypatch, operator, broken)
    verify(graph)
    assert {noticed(graph, sound, s) for s in range(5)} == {"numbers"}


NETWORKS = {
    "conv_chain": networks.conv_chain,
    "batch_norm": networks.batch_norm,
    "residual": networks.residual,
    "flatten": networks.flatten,
    "concat": networks.concat,
    "split": networks.split,
    "grouped": networks.grouped,
    "depthwise": networks.depthwise,
    "transposed_conv": networks.transposed_conv,
    "shuffle": networks.shuffle,
    "attention": networks.attention,
    "lstm": lambda: networks.recurrent("LSTM", 4),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_forgotten_tie_is_never_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of its ties an operator pins what it does not mention, or a check notices."""
    graph = NETWORKS[name]()
    sound = Closure(graph)
    silent = []
    for operator in sorted({n.op.name for n in graph.nodes()}):
        count = max(len(list(s.node.op.ties(s))) for s in graph.sites() if s.node.op.name == operator)
        for gone in range(count):
            with monkeypatch.context() as patch:
                mutate(patch, operator, lambda site, ties, gone=gone: ties[:gone] + ties[gone + 1 :])
                silent += [(operator, gone) for s in range(3) if noticed(graph, sound, s) is None]
    assert not silent
