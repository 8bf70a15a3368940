"""docs/cost.md names every operator."""

from __future__ import annotations

import re
from pathlib import Path

import compiler.ir.ops  # noqa: F401  (fills the registry)
from compiler.ir.op import Op


def test_every_operator_is_listed():
    text = Path(__file__).parents[2].joinpath("docs", "cost.md").read_text("utf-8")
    listed = set(re.findall(r"\w+", text))
    missing = sorted(set(Op.registry) - listed)
    assert not missing, f"operators whose cost docs/cost.md does not say: {', '.join(missing)}"
