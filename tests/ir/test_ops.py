"""Every operator of the registry on small cases: shapes, values, cost, ties and lowering.

An operator is tested in full by adding cases to `op_cases_*.py`; one without cases fails.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from compiler.codegen.generic.run import run_site
from compiler.errors import CompilerError, VerifyError
from compiler.ir.graph import Site
from compiler.ir.op import MacOp, Op, infer_by_onnx
from compiler.ir.ops.recurrent import R, Recurrent, W
from compiler.ir.types import NodeRef
from tests.ir.op_case import OpCase, site_of
from tests.ir.op_cases import CASES, DISAGREEMENTS, NOT_INFERRED, REFUSED
from tests.ir.oracles import assert_close, by_onnx_reference, by_onnxruntime
from tests.ir.removal import check_axes, check_removal
from tests.shared import ROOT

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


def test_every_cost_is_documented():
    text = (ROOT / "docs" / "cost.md").read_text()
    missing = [name for name in sorted(Op.registry) if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"operators without a count in docs/cost.md: {', '.join(missing)}"


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


FACTORS = [c for c in CASES if isinstance(Op.registry[c.op], MacOp) and c.macs]


@pytest.mark.parametrize("case", FACTORS, ids=case_id)
def test_what_elements_of_matrices_save_adds_up_to_the_cost(case: OpCase):
    """Of a layer's weights; a product of three matrices has none that save a part of their own."""
    site = site_of(case)
    op, values = site.node.op, dict(site.operands.present())
    weights = (W, R) if isinstance(op, Recurrent) else (1,)
    saved = {i: op.products(site, i) * v.size for i, v in values.items()}
    assert sum(saved[i] for i in weights) == (0 if op.name == "Einsum" and len(values) > 2 else case.macs)
    assert not any(n for i, n in saved.items() if i > max(weights))


# ---------------------------------------------------------------------- ties
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
    check_axes(case, site_of(case))


@every_case
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # zeroed divisors, in entries that are removed
def test_removing_entries_equals_zeroing_them(case: OpCase):
    check_removal(site_of(case), case.arrays())


# ---------------------------------------------------------------------- lowering
@every_case
def test_lowered_equals_evaluated(case: OpCase):
    if not case.lowers:
        return
    site = site_of(case)
    lowered = run_site(site, case.arrays())
    for i, (got, want) in enumerate(zip(lowered, site.node.op.evaluate(site, case.arrays()), strict=True)):
        assert_close(got, want, max(LOWERING, case.tolerance), f"result {i}")


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("case", "words"), REFUSED, ids=lambda v: case_id(v) if isinstance(v, OpCase) else "")
def test_refused_with_a_reason(case: OpCase, words: str):
    with pytest.raises(CompilerError) as caught:
        site_of(case)
    for word in words.split():
        assert word in str(caught.value)
