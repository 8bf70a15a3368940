"""Products of two computed operands: which nodes have the form, ways to read and pack, plans, other targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.contractions import Contraction, Loop, contraction
from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, describe, make_groups
from compiler.codegen.manifest import canonical
from compiler.codegen.planner import candidates, situation
from compiler.codegen.plans import parse_plan
from compiler.codegen.program import Library
from compiler.codegen.target import Target, find_target
from compiler.codegen.tuning import TuningDatabase, layer_key
from compiler.ir.graph import Graph
from compiler.ir.types import DType, ValueRef
from tests.codegen.emulated import check_emulated, linkable
from tests.codegen.test_generate import check
from tests.graphs import Builder

Shape = tuple[int, ...]


def product(a: Shape, b: Shape, op: str = "MatMul", **attrs: object) -> Graph:
    """One node of two inputs."""
    made = Builder()
    made.task("t", made.apply(op, made.input("x", *a), made.input("y", *b), **attrs))
    return made.done()


def attention(made: Builder, x: ValueRef, heads: int) -> ValueRef:
    """Self-attention of [1, tokens, width] without weights, each head read and written through transpositions."""
    _, tokens, width = made.graph.value(x).shape
    rows = made.apply("Reshape", x, made.const(np.array([1, tokens, heads, width // heads], np.int64)))
    q, v = (made.apply("Transpose", made.apply(op, rows), perm=(0, 2, 1, 3)) for op in ("Neg", "Tanh"))
    scores = made.apply("MatMul", q, made.apply("Transpose", made.apply("Sin", rows), perm=(0, 2, 3, 1)))
    scaled = made.apply("Mul", scores, made.const(np.float32(0.3)))
    mixed = made.apply("MatMul", made.apply("Softmax", scaled, axis=-1), v)
    flat = made.const(np.array([1, tokens, width], np.int64))
    return made.apply("Reshape", made.apply("Transpose", mixed, perm=(0, 2, 1, 3)), flat)


def attending(tokens: int, heads: int, width: int) -> Graph:
    """Attention as a graph."""
    made = Builder()
    made.task("t", attention(made, made.input("x", 1, tokens, width), heads))
    return made.done()


def test_a_node_whose_second_operand_is_left_out_is_no_product() -> None:
    made = Builder()
    made.task("t", made.apply("Clip", made.input("x", 8, 8), None, made.const(np.float32(0.5))))
    (group,) = make_groups(made.done())
    assert group.family != "contraction"


def products_of(graph: Graph) -> list[Group]:
    return [g for g in make_groups(graph) if g.family == "contraction"]


def loops(graph: Graph) -> Contraction | None:
    """The form of the only node."""
    (site,) = graph.sites()
    return contraction(site)


# ---------------------------------------------------------------------- the form
def test_rows_columns_and_sum_of_a_batched_product() -> None:
    assert loops(product((2, 3, 5, 7), (2, 3, 7, 11))) == Contraction(
        (Loop(6, 35, 77, 55),), row=Loop(5, 7, 0, 11), inner=Loop(7, 1, 11, 0), column=Loop(11, 0, 1, 1)
    )


def test_rows_of_all_samples_are_rows_where_they_share_the_other_operand() -> None:
    found = loops(product((2, 3, 5, 7), (7, 11)))
    assert found is not None and found.batch == () and found.row == Loop(30, 7, 0, 11)


def test_axes_that_do_not_follow_each_other_are_loops_of_the_batch() -> None:
    found = loops(product((2, 1, 5, 7), (3, 7, 11)))
    assert found is not None and found.batch == (Loop(2, 35, 0, 165), Loop(3, 0, 77, 55))


def test_an_einsum_whose_columns_are_in_the_first_operand_is_turned() -> None:
    found = loops(product((6, 8), (5, 8), "Einsum", equation="ab,cb->ca"))
    assert found == Contraction((), Loop(5, 8, 0, 6), Loop(8, 1, 1, 0), Loop(6, 0, 8, 1), left=1)


@pytest.mark.parametrize(
    ("a", "b", "equation"),
    [
        ((6, 6), (6, 8), "ii,ij->j"),
        ((4, 5, 6), (7, 6, 5), "abc,dcb->ad"),  # two sums that do not follow each other
        ((5, 6), (5, 6), "ab,ab->a"),
        ((5, 6), (5, 7), "ab,cd->ac"),  # summed in one operand each
        ((5, 6), (7, 8), "ab,cd->abcd"),
        ((5, 6, 7), (5, 6, 8), "abc,abd->cda"),  # the last axis of the result is one of the batch
    ],
)
def test_einsums_without_the_form_are_left_to_the_generic_route(a: Shape, b: Shape, equation: str) -> None:
    graph = product(a, b, "Einsum", equation=equation)
    assert loops(graph) is None
    assert [g.family for g in make_groups(graph)] == ["generic"]


@pytest.mark.parametrize(
    ("a", "b"), [((7,), (3, 7, 8)), ((3, 8, 7), (7,)), ((3, 1, 7), (3, 7, 8)), ((3, 8, 7), (3, 7, 3))]
)
def test_vectors_and_few_columns_are_left_to_the_generic_route(a: Shape, b: Shape) -> None:
    assert [g.family for g in make_groups(product(a, b))] == ["generic"]


def test_integers_equal_constants_and_addends_are_left_to_the_generic_route() -> None:
    made = Builder()
    x, y = (made.input(n, 3, 8, 8, dtype=DType.INT32) for n in "xy")
    made.task("integers", made.apply("MatMul", x, y))
    z, w = made.input("z", 8, 8), made.input("w", 8, 8)
    made.task("equal", made.apply("MatMul", made.const(np.broadcast_to(np.float32(1), (8, 8))), z))
    made.task("addend", made.apply("Gemm", z, w, made.input("c", 8)))
    assert {g.family for g in make_groups(made.done())} == {"generic"}


# ---------------------------------------------------------------------- numbers
def random_product(rng: np.random.Generator) -> Graph:
    """A product of random extents: batched and broadcast, constant operands, each read through a transposition or
    not, an epilogue with a residual, results stored by a transposition."""
    made = Builder(seed=int(rng.integers(100)))
    rows, inner, columns = (int(n) for n in rng.integers((2, 2, 4), 40))
    lead = [int(n) for n in rng.integers(1, 4, 2)]

    def operand(name: str, shape: tuple[int, int]) -> ValueRef:
        own = [n if rng.random() < 0.7 else 1 for n in lead][int(rng.integers(3)) :]
        whole = (*own, *shape)
        if rng.random() < 0.15:
            return made.const(rng.normal(size=whole).astype(np.float32))
        perm = tuple(int(p) for p in rng.permutation(len(whole))) if rng.random() < 0.6 else range(len(whole))
        given = made.input(name, *(whole[tuple(perm).index(d)] for d in range(len(whole))))
        return made.apply("Transpose", given, perm=tuple(perm))

    y = made.apply("MatMul", operand("x", (rows, inner)), made.apply("Identity", operand("y", (inner, columns))))
    rank = made.graph.value(y).rank
    if rng.random() < 0.5:
        y = made.apply("Relu", made.apply("Add", y, made.input("r", *made.graph.value(y).shape)))
    if rank > 2 and rng.random() < 0.5:
        y = made.apply("Transpose", made.apply("Tanh", y), perm=(*rng.permutation(rank - 1).tolist(), rank - 1))
    made.task("t", y)
    return made.done()


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
@pytest.mark.parametrize("seed", range(10))
def test_random_products(target: str, seed: int, tmp_path: Path) -> None:
    graph = random_product(np.random.default_rng(seed))
    assert "contraction" in check(graph, tmp_path, target=target, algorithm="contraction", rank=5 * seed)


@pytest.mark.parametrize("inner", [2, 3, 4, 7, 8, 9, 17, 64])
def test_squares_of_every_size_turn_the_panel(inner: int, tmp_path: Path) -> None:
    """Sums shorter and longer than a square, columns that fill no vector and no panel."""
    graph = product((2, 9, inner), (2, 37, inner), "Einsum", equation="bik,bjk->bij")
    assert check(graph, tmp_path) == {"contraction"}


@pytest.mark.parametrize(
    ("a", "b", "op", "attrs"),
    [
        ((9, 13), (13, 21), "Gemm", {"alpha": 0.5}),
        ((13, 9), (21, 13), "Gemm", {"transA": 1, "transB": 1}),
        ((2, 6, 3, 8), (2, 5, 3, 8), "Einsum", {"equation": "bthd,bshd->bhts"}),
        ((2, 3, 5, 8), (2, 7, 8), "Einsum", {"equation": "nchw,nvw->ncvh"}),
        ((5, 4, 6), (7, 4, 6), "Einsum", {"equation": "abc,dbc->ad"}),
        ((2, 1, 5, 6), (1, 3, 6, 8), "Einsum", {"equation": "...ik,...kj->...ij"}),
        ((5, 8), (8, 16), "MatMul", {}),  # one panel that is read where it lies
        ((33, 16), (16, 32), "MatMul", {}),
    ],
)
def test_every_operator(a: Shape, b: Shape, op: str, attrs: dict[str, object], tmp_path: Path) -> None:
    assert check(product(a, b, op, **attrs), tmp_path) == {"contraction"}


def test_attention_has_no_kernels_that_only_move_elements(tmp_path: Path) -> None:
    graph = attending(13, 3, 30)
    first, second = products_of(graph)
    assert [s.node.op.name for s in first.sites] == ["Transpose", "Transpose", "MatMul", "Mul"]
    assert [s.node.op.name for s in second.sites] == ["Transpose", "MatMul", "Transpose"]
    assert describe(second)[0] == second.anchor.node.ref.name
    assert check(graph, tmp_path) == {"contraction", "generic", "copy"}  # a view reaches the caller by a copy


@pytest.mark.parametrize("kept", ["read twice", "output", "batch last"])
def test_transpositions_that_others_need_are_made(kept: str, tmp_path: Path) -> None:
    made = Builder()
    turned = made.apply("Transpose", made.input("x", 2, 9, 6), perm=(0, 2, 1))
    y = made.apply("MatMul", made.input("y", 2, 5, 6), turned)
    if kept == "batch last":
        made.task("t", made.apply("Transpose", y, perm=(1, 2, 0)))
    else:
        made.task("t", y)
        made.task("u", turned if kept == "output" else made.apply("Exp", turned))
    graph = made.done()
    (group,) = products_of(graph)
    assert [s.node.op.name for s in group.sites] == (
        ["Transpose", "MatMul"] if kept == "batch last" else ["MatMul"]
    )
    assert {"contraction", "generic"} <= check(graph, tmp_path)


def test_operands_and_results_of_convolutions(tmp_path: Path) -> None:
    """Blocked values are read and wanted; the product itself works on plain ones."""
    made = Builder()
    q, k = (made.conv(made.input(n, 2, 12, 5, 7), 12, 1) for n in "xy")
    made.task("t", made.conv(made.apply("MatMul", q, made.apply("Transpose", k, perm=(0, 1, 3, 2))), 6, 1))
    assert "contraction" in check(made.done(), tmp_path)


# ---------------------------------------------------------------------- plans
def built(graph: Graph, target: Target) -> Library:
    return generate(graph, target, name="net")


def test_a_rebuild_from_its_own_plan_is_the_same_library() -> None:
    graph, target = attending(13, 3, 30), find_target("host")
    first = built(graph, target)
    record = json.loads(canonical(first.plan))
    steps = [s for s in record["steps"] if s.get("algorithm") == "contraction"]
    assert [len(s["nodes"]) for s in steps] == [4, 3] and all(s["predicted_ns"] for s in steps)
    assert generate(graph, target, name="net", sources=parse_plan(record).sources) == first


def test_another_tile_is_taken_from_a_database() -> None:
    graph, target = attending(64, 2, 64), find_target("x86-64-v4")
    groups = make_groups(graph)
    known, database = situation(graph, groups, target), TuningDatabase()
    group = products_of(graph)[0]
    slow = candidates(group, known)[-1].choice
    key = layer_key(group, target)
    assert key is not None and "2(32,32,4096)@64(64,0,64)" in key and key.endswith("|dense|Mul")
    database.add(key, slow, 1e-6)
    assert database.times(group, target) == {slow: 1000}


def test_the_rule_knows_what_turning_a_panel_takes() -> None:
    target = find_target("x86-64-v4")

    def predicted(graph: Graph) -> float:
        return candidates(make_groups(graph)[0], situation(graph, make_groups(graph), target))[0].seconds

    plain = predicted(product((4, 16, 64), (4, 64, 64)))
    turned = predicted(product((4, 16, 64), (4, 64, 64), "Einsum", equation="bik,bjk->bij"))
    scattered = predicted(product((4, 16, 64), (64, 64, 4), "Einsum", equation="bik,kjb->bij"))
    assert plain < turned < scattered
    peak = 4 * 2 * 16 * 64 * 64 / target.machine.peak_flops
    assert peak < plain < 1.5 * peak


def test_large_results_far_apart_are_written_in_wide_panels() -> None:
    """Measured, 512 x 512 scores of AVX-512 are a sixth faster by tiles of 4 x 6 vectors than of 13 x 2."""
    target = find_target("x86-64-v4")

    def vectors(graph: Graph) -> int:
        groups = make_groups(graph)
        return candidates(groups[0], situation(graph, groups, target))[0].choice.tile[1]

    wide = vectors(product((4, 512, 64), (4, 512, 64), "Einsum", equation="bik,bjk->bij"))
    assert wide > vectors(product((4, 64, 64), (4, 64, 64), "Einsum", equation="bik,bjk->bij"))


# ---------------------------------------------------------------------- other targets
@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a76", "armv7-neon"])
def test_under_emulation(name: str, tmp_path: Path) -> None:
    """Attention of odd extents, a batch that is broadcast, rows that are summed along their longer stride."""
    made = Builder()
    made.task("t", attention(made, made.input("x", 1, 13, 30), 3))
    made.task("u", made.apply("MatMul", made.input("y", 2, 1, 9, 8), made.input("z", 3, 8, 16)))
    made.task("v", made.apply("Gemm", made.input("c", 7, 11), made.input("d", 7, 6), transA=1, alpha=2.0))
    target, graph = linkable(name), made.done()
    library = generate(graph, target)
    assert [k.template for k in library.kernels].count("contraction") == 4
    check_emulated(library, graph, target, tmp_path)
