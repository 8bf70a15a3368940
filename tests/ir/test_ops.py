"""Every operator of the registry on small cases: shapes, values, cost, ties and lowering.

An operator is tested in full by adding cases to `op_cases_a.py` or `op_cases_b.py`; one without cases fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from compiler.errors import CompilerError, VerifyError
from compiler.ir.graph import Site
from compiler.ir.op import Kind, Op, infer_by_onnx
from compiler.ir.types import Axis, NodeRef
from tests.ir import op_cases_a, op_cases_b
from tests.ir.op_case import OpCase, site_of
from tests.ir.oracles import by_onnx_reference, by_onnxruntime
from tests.ir.removal import kept_of, removable, slice_array, smaller_site, zeroed

CASES = [*op_cases_a.CASES, *op_cases_b.CASES]
REFUSED = [*op_cases_a.REFUSED, *op_cases_b.REFUSED]
DISAGREEMENTS = {**op_cases_a.DISAGREEMENTS, **op_cases_b.DISAGREEMENTS}
"""Case id -> why onnxruntime cannot be the oracle there; onnx.reference is compared instead unless the case
names its own oracle."""
NOT_INFERRED = {**op_cases_a.NOT_INFERRED, **getattr(op_cases_b, "NOT_INFERRED", {})}
"""Case id -> why ONNX cannot infer the types, or infers others than onnxruntime computes."""

LOWERING = 1e-5  # float32 sums in another order, relative to the largest element


def case_id(case: OpCase) -> str:
    return f"{case.op}-{case.id}"


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)


def test_every_operator_has_cases():
    missing = sorted(set(Op.registry) - {c.op for c in CASES})
    assert not missing, f"operators without cases in tests/ir/op_cases_*.py: {', '.join(missing)}"


def test_every_operator_has_a_cost_formula_in_some_case():
    missing = sorted(set(Op.registry) - {c.op for c in CASES if c.macs or c.flops is not None})
    assert not missing, f"operators whose cost no case checks: {', '.join(missing)}"


def test_ids_are_unique():
    ids = [case_id(c) for c in CASES]
    assert len(set(ids)) == len(ids), sorted({i for i in ids if ids.count(i) > 1})


def test_listed_exceptions_name_cases():
    assert set(DISAGREEMENTS) | set(NOT_INFERRED) <= {case_id(c) for c in CASES}


# ---------------------------------------------------------------------- oracles
def expected(case: OpCase, site: Site) -> Sequence[np.ndarray]:
    """What an implementation other than ours computes."""
    if callable(case.oracle):
        return case.oracle(site, *case.arrays())
    feeds = {f"i{i}": case.arrays()[i] for i, v in site.operands.present() if v.data is None}
    if case.oracle == "reference" or case_id(case) in DISAGREEMENTS:
        return by_onnx_reference(site, feeds)
    return by_onnxruntime(site, feeds)


def assert_close(got: np.ndarray, want: np.ndarray, limit: float, where: str) -> None:
    """Equal type, shape and values, relative to the largest finite element; NaN and infinity at the same places."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{where}: shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"{where}: type {got.dtype}, expected {want.dtype}"
    if got.dtype.kind != "f":
        assert np.array_equal(got, want), f"{where}: {got}, expected {want}"
        return
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite), f"{where}: not finite at other places"
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), f"{where}: other infinities"
    scale = max(float(np.abs(want[finite]).max(initial=0)), 1e-30)
    worst = float(np.abs(got[finite].astype(np.float64) - want[finite]).max(initial=0)) / scale
    assert worst <= limit, f"{where}: differs by {worst:.1e} of scale (limit {limit:.0e})"


# ---------------------------------------------------------------------- shapes, values, cost
@every_case
def test_inferred_types_are_those_of_onnx(case: OpCase):
    site = site_of(case)
    recorded = tuple(v.type for v in site.results)
    if case_id(case) not in NOT_INFERRED:
        assert infer_by_onnx(site.node, site.operands, case.results) == recorded
        return
    try:
        inferred = infer_by_onnx(site.node, site.operands, case.results)
    except VerifyError:
        return
    assert inferred != recorded, "ONNX infers these types now: take the case off the list"


@every_case
def test_normalised_attributes_stay(case: OpCase):
    site = site_of(case)
    assert dict(site.node.op.normalise(site.attrs, site.operands)) == dict(site.attrs)


@every_case
def test_evaluate_agrees_with_another_implementation(case: OpCase):
    site = site_of(case)
    got, want = site.node.op.evaluate(site, case.arrays()), expected(case, site)
    assert len(got) == case.results
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.shape == site.results[i].shape
        assert g.dtype == site.results[i].dtype.numpy
        assert_close(g, w, case.tolerance, f"result {i}")


@every_case
def test_cost_is_the_formula(case: OpCase):
    site = site_of(case)
    assert site.node.op.macs(site) == case.macs
    flops = site.node.op.flops(site)
    if case.macs or case.flops is not None:
        assert flops == (2 * case.macs if case.flops is None else case.flops)


# ---------------------------------------------------------------------- ties
def axis_name(axis: Axis) -> str:
    return f"{axis.owner}.{axis.dim}"


@every_case
def test_ties_fit(case: OpCase):
    site = site_of(case)
    sizes = {v.ref: v.shape for v in [*(v for _, v in site.operands.present()), *site.results]}
    for tie in site.node.op.ties(site):
        for axis in (tie.a, tie.b):
            assert axis.owner == site.node.ref or axis.owner in sizes
        assert tie.index.ndim == 1
        assert tie.index.min(initial=0) >= -1
        if not isinstance(tie.b.owner, NodeRef):
            assert len(tie.index) == sizes[tie.b.owner][int(tie.b.dim)]
        if not isinstance(tie.a.owner, NodeRef):
            assert tie.index.max(initial=-1) < sizes[tie.a.owner][int(tie.a.dim)]


@every_case
def test_axes_that_can_shrink_are_the_expected_ones(case: OpCase):
    site = site_of(case)
    if case.free is not None:
        real = {a for closures in removable(site).values() for r in closures for a in r}
        assert {axis_name(a) for a in real if not isinstance(a.owner, NodeRef)} == set(case.free.split())
    mixed = {a for t in site.node.op.ties(site) if t.kind is Kind.MIXED for a in (t.a, t.b)}
    if case.mixed is not None:
        assert {axis_name(a) for a in mixed if not isinstance(a.owner, NodeRef)} == set(case.mixed.split())


@every_case
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # zeroed divisors, in entries that are removed
def test_removing_entries_equals_zeroing_them(case: OpCase):
    site, arrays = site_of(case), case.arrays()
    op, rng = site.node.op, np.random.default_rng(3)
    for axis, closures in removable(site).items():
        removed = closures[rng.integers(len(closures))]
        kept = kept_of(site, removed)
        masked = [
            None
            if v is None
            else (arrays[i] if v.data is not None and v.dtype.is_integer else zeroed(arrays[i], v.ref, removed))
            for i, v in ((i, site.operands.optional(i)) for i in range(len(arrays)))
        ]
        whole = op.evaluate(site, masked)
        small, operands = smaller_site(site, arrays, kept)
        for got, want, value in zip(op.evaluate(small, operands), whole, site.results, strict=True):
            expected_part = slice_array(want, value.ref, kept)
            assert_close(got, expected_part, 1e-5, f"{case_id(case)} without {axis_name(axis)}: {value.ref}")


# ---------------------------------------------------------------------- lowering
@every_case
def test_lowered_equals_evaluated(case: OpCase):
    fallback = pytest.importorskip("compiler.codegen.fallback")
    if not case.lowers:
        return
    site = site_of(case)
    lowered = fallback.run_site(site, case.arrays())
    for i, (got, want) in enumerate(zip(lowered, site.node.op.evaluate(site, case.arrays()), strict=True)):
        assert_close(got, want, max(LOWERING, case.tolerance), f"result {i}")


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("case", "words"), REFUSED, ids=lambda v: case_id(v) if isinstance(v, OpCase) else "")
def test_refused_with_a_reason(case: OpCase, words: str):
    with pytest.raises(CompilerError) as caught:
        site_of(case)
    for word in words.split():
        assert word in str(caught.value)
