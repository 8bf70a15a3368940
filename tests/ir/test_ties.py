"""Closure of ties: atoms, groups, joint constraints, and the reasons for what stays."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.networks import NETWORKS
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.ties import Closure
from compiler.ir.types import Axis, ValueRef
from tests.graphs import Builder


def widths(closure: Closure) -> list[int]:
    return sorted(len(g.atoms) for g in closure.groups)


def residual() -> Graph:
    b = Builder()
    x = b.input("x", 1, 3, 8, 8)
    h = b.apply("Relu", b.conv(x, 8, 3, pads=(1, 1, 1, 1)))
    y = b.conv(b.apply("Relu", b.conv(h, 6, 1)), 8, 1)
    b.task("t", b.apply("Gemm", b.apply("Flatten", b.apply("Add", h, y)), b.weight(8 * 64, 10), b.weight(10)))
    return b.done()


def test_a_residual_stream_is_one_group() -> None:
    closure = Closure(residual())
    assert widths(closure) == [6, 8]
    stream = next(g for g in closure.groups if len(g.atoms) == 8)
    axes = {str(a) for a in stream.axes}
    assert {"'relu:0' axis 1", "'add:0' axis 1", "'conv.2:0' axis 1", "'w.4' axis 0"} <= axes


def test_flatten_repeats_a_channel() -> None:
    closure = Closure(residual())
    atom = closure.atom_of(Axis(ValueRef("add:0"), 1), 3)
    assert atom is not None
    np.testing.assert_array_equal(atom.entries[Axis(ValueRef("flatten:0"), 1)], np.arange(3 * 64, 4 * 64))


def test_pins_name_their_path() -> None:
    b = Builder()
    x = b.input("x", 1, 4, 8, 8)
    y = b.conv(b.apply("Relu", b.conv(x, 8, 1)), 8, 1)
    b.task("age", b.apply("Add", y, b.const(np.ones((8, 1, 1), np.float32))))
    closure = Closure(b.done())
    assert closure.why(Axis(ValueRef("conv.1:0"), 1), 7) == (
        "cannot remove channel 7 of 'conv.1:0': 'conv.1:0' -> Add 'add' -> 'add:0' axis 1 is a task output"
    )
    assert closure.why(Axis(ValueRef("x"), 1), 0) == ("cannot remove channel 0 of 'x': 'x' axis 1 is a graph input")
    assert sum(a.frozen for a in closure.atoms) == 4 + 8


def test_an_axis_without_a_tie_is_pinned() -> None:
    b = Builder()
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 6, 1))
    b.task("t", b.apply("Reshape", h, b.const(np.array([1, 8, 12]))))
    closure = Closure(b.done())
    assert not closure.groups
    assert "'relu:0' axis 1 is not tied by Reshape 'reshape'" in closure.why(Axis(ValueRef("conv:0"), 1), 0)


def test_the_only_entry_of_an_axis_stays() -> None:
    b = Builder()
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 1, 1))
    b.task("t", b.conv(h, 4, 1))
    closure = Closure(b.done())
    assert closure.why(Axis(ValueRef("relu:0"), 1), 0).endswith("'relu:0' axis 1 has only one entry")
    assert widths(closure) == []


def test_names_can_be_excluded() -> None:
    closure = Closure(residual(), exclude=lambda name: name == "conv.1")
    assert widths(closure) == [8]
    assert "is made by a node excluded by name" in closure.why(Axis(ValueRef("relu.1:0"), 1), 0)


def attention(heads: int, width: int) -> Graph:
    b = Builder()
    x = b.input("x", 1, 5, 12)

    def split(perm: tuple[int, ...]) -> ValueRef:
        flat = b.apply("Add", b.apply("MatMul", x, b.weight(12, heads * width)), b.weight(heads * width))
        return b.apply("Transpose", b.apply("Reshape", flat, b.const(np.array([1, 5, heads, width]))), perm=perm)

    q, k, v = split((0, 2, 1, 3)), split((0, 2, 3, 1)), split((0, 2, 1, 3))
    mixed = b.apply("MatMul", b.apply("Softmax", b.apply("MatMul", q, k), axis=-1), v)
    flat = b.apply(
        "Reshape", b.apply("Transpose", mixed, perm=(0, 2, 1, 3)), b.const(np.array([1, 5, heads * width]))
    )
    b.task("t", b.apply("MatMul", flat, b.weight(heads * width, 3)))
    return b.done()


def test_heads_and_widths_are_atoms_and_flat_entries_are_not() -> None:
    closure = Closure(attention(4, 6))
    assert widths(closure) == [4, 6, 6]
    flat = Axis(ValueRef("add:0"), 2)
    heads = next(g for g in closure.groups if len(g.atoms) == 4)
    np.testing.assert_array_equal(heads.atoms[1].entries[flat], np.arange(6, 12))
    assert all(len(a.entries[flat]) > 1 for g in closure.groups for a in g.atoms if flat in a.entries)


def test_one_head_does_not_glue_its_width() -> None:
    assert widths(Closure(attention(1, 6))) == [6, 6]


def test_softmax_axis_is_mixed() -> None:
    b = Builder()
    x = b.input("x", 1, 4)
    h = b.apply("Softmax", b.apply("Gemm", x, b.weight(4, 6), b.weight(6)), axis=-1)
    b.task("t", b.apply("Gemm", h, b.weight(6, 2), b.weight(2)))
    graph = b.done()
    assert not Closure(graph).groups
    assert "is mixed by Softmax 'softmax'" in Closure(graph).why(Axis(ValueRef("gemm:0"), 1), 2)
    (group,) = Closure(graph, allow_mixed=True).groups
    assert len(group.atoms) == 6 and all(a.mixed for a in group.atoms)


def test_recurrent_units_join_gates_and_directions() -> None:
    closure = Closure(load(NETWORKS["lstm"]()))
    first = max(closure.groups, key=lambda g: len(g.atoms))
    unit = first.atoms[5].entries
    rows = [e for a, e in unit.items() if a.dim == 1 and len(e) == 4]
    assert len(first.atoms) == 64
    assert any(np.array_equal(e, 5 + 64 * np.arange(4)) for e in rows)
    assert any(np.array_equal(e, [5, 69]) for e in unit.values()), "both directions, side by side"


@pytest.mark.parametrize("name", list(NETWORKS))
def test_atoms_of_real_shapes_are_disjoint_or_joint(name: str) -> None:
    """Entries that several removable atoms hold only occur below joint constraints."""
    closure = Closure(load(NETWORKS[name]()))
    holders: dict[tuple[Axis, int], int] = {}
    for group in closure.groups:
        for atom in group.atoms:
            for axis, entries in atom.entries.items():
                for entry in entries.tolist():
                    holders[axis, entry] = holders.get((axis, entry), 0) + 1
    shared = sum(n > 1 for n in holders.values())
    assert bool(shared) == (name in ("shufflenet", "transformer"))


@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth"])
def test_parts_of_a_single_channel_stay_together(op: str) -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 3, 6, 6), 4 if op == "DepthToSpace" else 1, 3)
    y = b.apply(op, x, blocksize=2, **({"mode": "DCR"} if op == "DepthToSpace" else {}))
    b.task("t", b.conv(y, 2, 1))
    parts = {Axis(x, 1), Axis(y, 1)}
    assert all(a.frozen or parts.isdisjoint(a.entries) for a in Closure(b.done()).atoms)
