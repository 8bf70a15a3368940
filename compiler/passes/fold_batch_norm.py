"""fold-batch-norm: scale and shift per channel disappear into the weights of a neighbouring linear layer.

An *affine* node computes `x * scale + shift` along one axis with constants: BatchNormalization, and Add, Sub, Mul
or Div with a constant operand; so do the adapters in front of a network. With y = W x + b, what follows gives
W' = scale W and b' = scale b + shift; what precedes gives W' = W scale and b' = b + W shift. The second is exact
only where no zero padding is read, because the padding was not shifted. A permutation of input channels (a Gather
in front of the layer) is folded in the same way. Arithmetic is in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.dead import sweep
from compiler.ir.graph import Graph, Node, Site, Value
from compiler.ir.types import splat_value
from compiler.passes.base import NewNames, Pass, Refusal, Resources
from compiler.passes.linear import Affine, Layer, layer_of, only_reader


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold affine nodes into the layer before them, or into every layer that reads them."""

    name: ClassVar[str] = "fold-batch-norm"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        while _fold_after(graph) or _fold_before(graph):
            sweep(graph)
        return tuple(_left_over(graph))

    def ensures(self, before: Graph, after: Graph) -> None:
        trial = after.copy()
        if _fold_after(trial) or _fold_before(trial):
            raise VerifyError("after fold-batch-norm: an affine node can still be folded")


def affine_of(site: Site, axis: int) -> tuple[Value, Affine] | None:
    """(what the node reads, scale and shift of length C) where it is affine along `axis` of its result."""
    result = site.results[0]
    if result.rank <= axis or not result.size:
        return None
    if site.node.op.name == "BatchNormalization":
        if axis != 1 or len(site.results) > 1 or any(v.data is None for v in site.operands[1:]):
            return None
        scale, bias, mean, variance = (v.constant.astype(np.float64) for v in site.operands[1:])
        factor = scale / np.sqrt(variance + site.float("epsilon"))
        return site.operands[0], Affine(factor, bias - mean * factor)
    if site.node.op.name not in ("Add", "Sub", "Mul", "Div") or not result.dtype.is_float:
        return None
    constants = [i for i in (0, 1) if site.operands[i].data is not None]
    if len(constants) != 1:
        return None
    x, vector = site.operands[1 - constants[0]], along(site.operands[constants[0]], result, axis)
    if vector is None or x.shape != result.shape:
        return None
    affine = _arithmetic(site.node.op.name, vector, first=constants[0] == 0)
    return None if affine is None else (x, affine)


def along(constant: Value, result: Value, axis: int) -> np.ndarray | None:
    """A constant operand as a float64 vector over `axis` of the result, if it varies only there."""
    lead = (1,) * (result.rank - constant.rank)
    shape = lead + constant.shape
    if any(n > 1 for d, n in enumerate(shape) if d != axis):
        if splat_value(constant.constant) is None:
            return None
        return np.full(result.shape[axis], constant.constant.flat[0], np.float64)
    return np.broadcast_to(constant.constant.reshape(-1).astype(np.float64), (result.shape[axis],))


def _arithmetic(op: str, c: np.ndarray, first: bool) -> Affine | None:
    zero, one = np.zeros_like(c), np.ones_like(c)
    if op == "Add":
        return Affine(one, c)
    if op == "Sub":
        return Affine(-one, c) if first else Affine(one, -c)
    if op == "Mul":
        return Affine(c, zero)
    return None if first or not c.all() else Affine(1.0 / c, zero)


# ---------------------------------------------------------------------- what follows a layer
def _fold_after(graph: Graph) -> bool:
    changed = False
    for node in graph.nodes():
        layer = layer_of(graph, node) if node.ref in graph else None
        if layer is None:
            continue
        chain, total = _chain(graph, layer)
        if chain and layer.gains(total, len(chain)):
            last = graph.results(chain[-1])[0]
            layer.absorb_after(graph, total, last)
            changed = True
    return changed


def _chain(graph: Graph, layer: Layer) -> tuple[list[Node], Affine]:
    """The affine nodes behind a layer, each the only reader of the one before, and their composition."""
    value, axis = layer.result, layer.output_axis
    chain: list[Node] = []
    total = Affine.identity(value.shape[axis])
    while (reader := only_reader(graph, value.ref)) is not None:
        found = affine_of(graph.site(reader), axis)
        if found is None or found[0].ref != value.ref:
            break
        chain.append(reader)
        total = total.then(found[1])
        value = graph.results(reader)[0]
    return chain, total


# ---------------------------------------------------------------------- what precedes layers
def _fold_before(graph: Graph) -> bool:
    changed = False
    for node in reversed(graph.nodes()):
        if node.ref not in graph or graph.is_output(graph.results(node)[0].ref):
            continue
        readers = _reading_layers(graph, node)
        if readers is None:
            continue
        site = graph.site(node)
        order = _permutation(site, readers)
        found = None if order is not None else _shared_affine(site, readers)
        if order is not None:
            for layer in readers:
                layer.absorb_order(graph, order, site.operands[0])
        elif found is not None:
            for layer in readers:
                layer.absorb_before(graph, found[1], found[0])
        changed = changed or order is not None or found is not None
    return changed


def _reading_layers(graph: Graph, node: Node) -> list[Layer] | None:
    """The layers that read the node's result as data, if nothing else does."""
    uses = graph.uses(graph.results(node)[0].ref)
    layers = [layer_of(graph, reader) if index == 0 else None for reader, index in uses]
    found = [layer for layer in layers if layer is not None]
    return found if found and len(found) == len(layers) else None


def _shared_affine(site: Site, readers: list[Layer]) -> tuple[Value, Affine] | None:
    axes = {layer.input_axis for layer in readers}
    found = affine_of(site, axes.pop()) if len(axes) == 1 else None
    if found is None or not all(layer.takes_before(found[1]) for layer in readers):
        return None
    return found


def _permutation(site: Site, readers: list[Layer]) -> np.ndarray | None:
    """Channel order of a Gather that reorders all channels of its operand in front of layers without groups."""
    if site.node.op.name != "Gather" or site.operands[1].data is None:
        return None
    axis, x = site.int("axis") % site.operands[0].rank, site.operands[0]
    index = site.operands[1].constant
    size = x.shape[axis]
    order = np.asarray(index) % size if index.ndim == 1 else None
    if order is None or not np.array_equal(np.sort(order), np.arange(size)):
        return None
    return order if all(layer.takes_order(axis) for layer in readers) else None


# ---------------------------------------------------------------------- reporting
def _left_over(graph: Graph) -> Iterator[Refusal]:
    for site in graph.sites():
        if site.node.op.name == "BatchNormalization":
            yield Refusal(f"BatchNormalization '{site.node.ref}'", _why(graph, site))


def _why(graph: Graph, site: Site) -> str:
    if any(v.data is None for v in site.operands[1:]):
        return "its parameters are not constant"
    maker = graph.producer(site.operands[0].ref)
    if maker is not None and layer_of(graph, maker) is not None:
        return f"{maker.op.name} '{maker.ref}' in front of it has other readers or is a task output"
    readers = _reading_layers(graph, site.node)
    if readers is None:
        return "neither what it reads nor everything that reads it is a linear layer with constant weights"
    return f"'{readers[0].site.node.ref}' behind it pads with zeros, which are not shifted"
