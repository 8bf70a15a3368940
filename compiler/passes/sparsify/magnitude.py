"""sparsify: weights of small magnitude become zeros in a pattern that kernels are fast at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np

from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse, Encoding, RegularBlock, Unstructured
from compiler.ir.graph import Graph
from compiler.passes.base import Pass, Refusal, Resources
from compiler.passes.sparsify.checks import check_density, check_survivors
from compiler.passes.sparsify.layers import Candidate, Limits, candidates
from compiler.passes.sparsify.patterns import (
    DARB_SIZES,
    FLOOR,
    block_norms,
    darb_sizes,
    keep_blocks,
    keep_elements,
    keep_largest,
    matrix,
    ranked,
)

Pattern = Literal[
    "block16x1", "block8x1", "block4x1", "regular4", "regular8", "regular16", "regular32", "darb", "unstructured"
]
Scope = Literal["layer", "global"]
KEPT_DENSE = ("first", "last")


@dataclass(frozen=True)
class Sparsify(Pass):
    """Zero the weights of small magnitude in a pattern with fast kernels, and store what is left.

    `pattern`: blocks of R outputs at one input (block16x1, block8x1, block4x1; R is best the target's vector
    width), one weight in each run of b inputs (regular4 to regular32; darb chooses b per output), or unstructured.
    `density` or `sparsity`: the share that stays or goes, 0 < density <= 1; regular patterns have it in their name.
    `scope`: every layer alone, or all ranked together (global), where each keeps 1/64. `dense`: first, last or both
    stay dense (`()` for neither). `min_inputs`: layers with fewer inputs stay dense. `exclude`: patterns of names
    to leave alone.
    """

    name: ClassVar[str] = "sparsify"
    exact: ClassVar[bool] = False

    pattern: Pattern = "block16x1"
    density: float | None = None
    sparsity: float | None = None
    scope: Scope = "layer"
    dense: tuple[str, ...] = KEPT_DENSE
    min_inputs: int = 16
    exclude: tuple[str, ...] = ()

    def requires(self, graph: Graph, use: Resources) -> None:
        problems = []
        given = [v for v in (self.density, self.sparsity) if v is not None]
        if self.pattern.startswith("regular"):
            if given:
                problems.append(f"{self.pattern} keeps one weight in {self.pattern[7:]}; give no density")
        elif len(given) != 1:
            problems.append("give either density or sparsity, for example sparsify{pattern=block16x1,sparsity=0.9}")
        else:
            problems += self._density_problems()
        unknown = [d for d in self.dense if d not in KEPT_DENSE]
        if unknown:
            problems.append(f"dense is '{unknown[0]}'; it can be {', '.join(KEPT_DENSE)}")
        if self.min_inputs < 1:
            problems.append(f"min_inputs is {self.min_inputs}; it starts at 1")
        if problems:
            raise ConfigError(f"{self.name}: {'; '.join(problems)}")

    def _density_problems(self) -> list[str]:
        low, high = (1 / DARB_SIZES[-1], 1 / DARB_SIZES[0]) if self.pattern == "darb" else (0.0, 1.0)
        density = self.share
        if self.pattern == "darb" and not low <= density <= high:
            return [f"darb reaches densities from 1/{DARB_SIZES[-1]} to 1/{DARB_SIZES[0]}, not {density:.4g}"]
        return [] if 0 < density <= 1 else [f"the density must be above 0 and at most 1, not {density:.4g}"]

    @property
    def share(self) -> float:
        """The share of weights that stays; 1 for a regular pattern, which has its own."""
        if self.density is not None:
            return self.density
        return 1.0 if self.sparsity is None else 1.0 - self.sparsity

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        chosen, refusals = self._candidates(graph, use)
        groups = [chosen] if self.scope == "global" else [[c] for c in chosen]
        for group in groups:
            if group:
                for layer, (encoding, data) in zip(group, self._sparse(group), strict=True):
                    graph.update(layer.weight.ref, type=replace(layer.weight.type, encoding=encoding), data=data)
        return refusals

    def _candidates(self, graph: Graph, use: Resources) -> tuple[list[Candidate], list[Refusal]]:
        def excluded(name: str) -> bool:
            return use.excluded(name) or any(fnmatchcase(name, p) for p in self.exclude)

        return candidates(graph, Limits(self.dense, self.min_inputs, self._height, excluded))

    @property
    def _height(self) -> int:
        return int(self.pattern[5:-2]) if self.pattern.startswith("block") else 1

    def _sparse(self, layers: Sequence[Candidate]) -> list[tuple[Encoding, np.ndarray]]:
        """Encoding and data of layers that are ranked together."""
        data = [c.weight.constant for c in layers]
        if self.pattern.startswith("block"):
            forms = [BlockSparse(c.rows, (self._height, 1)) for c in layers]
            norms = [block_norms(d, f) for d, f in zip(data, forms, strict=True)]
            alive = ranked(norms, self.share, self._floor)
            return [(f, keep_blocks(d, f, a)) for f, d, a in zip(forms, data, alive, strict=True)]
        if self.pattern == "unstructured":
            norms = [np.abs(matrix(d, c.rows)) for d, c in zip(data, layers, strict=True)]
            alive = ranked(norms, self.share, self._floor)
            return [
                (Unstructured(c.rows), keep_elements(d, c.rows, a))
                for c, d, a in zip(layers, data, alive, strict=True)
            ]
        runs = [RegularBlock(c.rows, c.inputs, s) for c, s in zip(layers, self._sizes(layers), strict=True)]
        return [(f, keep_largest(d, f)) for f, d in zip(runs, data, strict=True)]

    def _sizes(self, layers: Sequence[Candidate]) -> list[tuple[int, ...]]:
        if self.pattern != "darb":
            return [(int(self.pattern[7:]),)] * len(layers)
        found = darb_sizes([matrix(c.weight.constant, c.rows) for c in layers], self.share)
        return [tuple(map(int, sizes)) for sizes in found]

    # ------------------------------------------------------------------ what is promised
    def ensures(self, before: Graph, after: Graph) -> None:
        """Survivors keep their bits, nothing larger was dropped, and as much stays as was asked for."""
        counts = []
        for old in before.parameters():
            new = after.value(old.ref)
            if new.data is not old.data:
                counts.append(check_survivors(old, new))
        if not self.pattern.startswith(("block", "unstructured")):
            return
        for group in [counts] if self.scope == "global" and counts else [[c] for c in counts]:
            check_density(group, self.share, self._floor)

    @property
    def _floor(self) -> float:
        return FLOOR if self.scope == "global" else 0.0
