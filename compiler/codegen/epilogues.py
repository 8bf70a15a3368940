"""What a template does to a sum before it stores it: the element-wise nodes that follow a product.

A product's reader may join its kernel when nothing else needs the value in between. The nodes form a small graph
between two values (`x * sigmoid(x)` reads the product twice), so the search grows a region of element-wise nodes
and keeps the largest one that only its last result leaves. Pure Python, no TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.types import DType, NodeRef, ValueRef, splat_value

MAX_FUNCTIONS = 3
"""Functions of functions in one kernel: TVM and LLVM write the value of every name out where they look at
another that is made of it, so that each function more takes twenty times as long to compile."""

FUNCTIONS = {
    **dict.fromkeys("Celu Elu Erf Exp Gelu Log Pow Selu Sigmoid Softmax Swish Tanh".split(), 1),
    **dict.fromkeys(("LogSoftmax", "Softplus"), 2),
    "Mish": 3,
}
"""Operator -> how many functions of functions its expression has."""

MAX_NODES = 12
"""Nodes of one epilogue: enough for a Gelu in its exported form with tanh, a residual and a bias."""

UNARY = frozenset(
    "Relu LeakyRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign Gelu Mish ThresholdedRelu "
    "Clip PRelu Neg Abs Exp Sqrt Erf".split()
)
"""Operators of one activation; what else they read is constant. All are finite at 0, the content of empty lanes."""

BINARY = frozenset("Add Sub Mul Min Max".split())
"""Operators that may also read the residual."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Nodes in topological order, with what they read besides the product and numbers.

    `bias`: a constant per column, added to the product by the first node. `residual`: an activation of the result's
    type, read by one node.
    """

    sites: tuple[Site, ...] = ()
    bias: Value | None = None
    residual: Value | None = None


def find_epilogue(
    graph: Graph, site: Site, order: Mapping[NodeRef, int], joins: Callable[[Node], bool], *, bias: bool = False
) -> Epilogue:
    """The largest epilogue of a product site with one result.

    `order` gives each node's place in a topological order, `joins` says which nodes may be taken at all. `bias`:
    the first node may add a constant along the last axis.
    """
    region, best = _Region(graph, site.results[0], bias), Epilogue()
    for candidate in region.grow(order, joins):
        region.add(candidate)
        if region.closed():
            best = region.epilogue()
    return best


class _Region:
    """Values computed from one product, and the nodes that compute them."""

    def __init__(self, graph: Graph, product: Value, bias: bool) -> None:
        self._graph, self._product, self._takes_bias = graph, product, bias
        self._known: dict[ValueRef, Value] = {product.ref: product}
        self._sites: list[Site] = []
        self._bias: Value | None = None
        self._residual: Value | None = None

    def epilogue(self) -> Epilogue:
        return Epilogue(tuple(self._sites), self._bias, self._residual)

    def grow(self, order: Mapping[NodeRef, int], joins: Callable[[Node], bool]) -> Iterator[Site]:
        """Nodes that fit, for the caller to add; first to last, so each comes after all it reads of the region."""
        seen: set[NodeRef] = set()
        while len(self._sites) < MAX_NODES:
            waiting = [n for v in self._known for n, _ in self._graph.uses(v) if n.ref not in seen]
            if not waiting:
                return
            node = min(waiting, key=lambda n: order[n.ref])
            seen.add(node.ref)
            site = self._graph.site(node)
            if joins(node) and self._fits(site) and functions([*self._sites, site]) <= MAX_FUNCTIONS:
                yield site

    def add(self, site: Site) -> None:
        """Take a node into the region."""
        if self._adds_bias(site):
            self._bias = self._others(site)[0]
        else:
            self._residual = next((v for v in self._others(site) if v.data is None), self._residual)
        self._sites.append(site)
        self._known[site.results[0].ref] = site.results[0]

    def closed(self) -> bool:
        """Whether only the last result is read outside."""
        inside = {s.node.ref for s in self._sites}
        inner = [ref for ref in self._known if ref != self._sites[-1].results[0].ref]
        read = {n.ref for ref in inner for n, _ in self._graph.uses(ref)}
        return read <= inside and not any(self._graph.is_output(ref) for ref in inner)

    def _others(self, site: Site) -> list[Value]:
        """What a site reads from outside."""
        return [v for _, v in site.operands.present() if v.ref not in self._known]

    def _fits(self, site: Site) -> bool:
        name, results = site.node.op.name, site.results
        if len(results) != 1 or results[0].type != self._product.type or results[0].dtype is not DType.FLOAT32:
            return False
        others = self._others(site)
        numbers = [v for v in others if is_number(v)]
        if name in UNARY or (name == "Div" and self._divides_by_number(site)) or _small_power(site):
            return len(numbers) == len(others)
        if name not in BINARY or len(site.operands) != 2:
            return False
        if self._adds_bias(site):
            return True
        residuals = [v for v in others if v.data is None and v.type == self._product.type]
        free = self._residual is None or not residuals
        return free and len(numbers) + len(residuals) == len(others)

    def _adds_bias(self, site: Site) -> bool:
        others = self._others(site)
        free = self._takes_bias and not self._sites
        if not free or site.node.op.name != "Add" or len(others) != 1 or others[0].data is None:
            return False
        value = others[0]
        return value.size > 1 and value.size == value.shape[-1] == self._product.shape[-1]

    def _divides_by_number(self, site: Site) -> bool:
        divisor = site.operands[1]
        return is_number(divisor) and number(divisor) != 0


def functions(sites: Iterable[Site]) -> int:
    """The most functions that are applied to each other in a group."""
    found: dict[ValueRef, int] = {}
    for site in sites:
        before = max((found.get(v.ref, 0) for _, v in site.operands.present()), default=0)
        found |= dict.fromkeys((v.ref for v in site.results), before + FUNCTIONS.get(site.node.op.name, 0))
    return max(found.values())


def is_number(value: Value) -> bool:
    """A constant whose elements are all the same."""
    return value.data is not None and value.size > 0 and (value.size == 1 or splat_value(value.data) is not None)


def number(value: Value) -> float:
    """The element of a constant of equal elements."""
    return float(np.asarray(value.constant).reshape(-1)[0])


def _small_power(site: Site) -> bool:
    """A power that is a product of two or three factors."""
    if site.node.op.name != "Pow":
        return False
    exponent = site.operands[1]
    return exponent.dtype is DType.FLOAT32 and is_number(exponent) and number(exponent) in (2.0, 3.0)
