"""Graphs that NNSmith wrote (nnsmith_corpus.py) as cases: a network with its own inputs, and exact passes."""

from __future__ import annotations

from pathlib import Path

import onnx

from benchmarks.fuzz.case import Case, Member
from benchmarks.fuzz.families import EXACT
from benchmarks.fuzz.grown import Pick


def graph_case(path: Path) -> Case:
    """The case of one ONNX file; its name seeds what is left to chance."""
    seed = int("".join(c for c in path.stem if c.isdigit()) or "0")
    pick = Pick(seed, 8)
    passes = EXACT if pick.chance(0.7) else (*EXACT, "prune-channels{parameters=0.6}")
    return Case(path.stem, seed, {"net": Member(onnx.load(path))}, {}, passes, pick.one(("host", "x86-64-v3")))
