"""A graph as a differentiable function on torch tensors, with its weights as parameters.

Graphs have static shapes, mostly of one sample. A batch is the same function mapped over a new leading axis
(`torch.func.vmap`), so nothing in the graph has to be rewritten and no operator knows about batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from compiler.errors import VerifyError
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Site, Value
from compiler.ir.op import MacOp, Op
from compiler.ir.ops.recurrent import C0, H0, LENS, Recurrent
from compiler.ir.reference import difference, evaluate
from compiler.ir.types import ValueRef
from compiler.training.emitter import Field, TorchEmitter
from compiler.training.functions import FUNCTIONS
from compiler.training.normal import Normals, Phase

AGREES = 1e-4
"""Largest difference of the torch function from the reference, relative to the tensor: sums in another order."""

NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
"""Operators whose scale and shift (operands 1 and 2) are learnt."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose operands a `mixed` network rounds."""
FOLLOWING = ("Add", "AveragePool", "Concat", "MaxPool", "Relu")
"""Operators that read rounded numbers as they are; every other one gets float32."""

Gates = Mapping[ValueRef, tuple[int, Tensor]]
"""Value -> the axis whose entries are multiplied, and by what: [batch, entries]."""


def weights(graph: Graph) -> tuple[Value, ...]:
    """The parameters that training may change, sorted by name.

    Constant float operands of product operators (initial states apart), what is added to the result of one, scale
    and shift of normalisations, and tables that are looked up. Everything else, such as what an input adapter
    multiplies with, is fixed.
    """
    found = {v.ref: v for site in graph.sites() for v in _learnt(graph, site) if v.data is not None}
    return tuple(found[r] for r in sorted(found) if found[r].dtype.is_float)


def _learnt(graph: Graph, site: Site) -> Iterator[Value]:
    op = site.node.op
    if isinstance(op, MacOp):
        states = (LENS, H0, C0) if isinstance(op, Recurrent) else ()
        yield from (v for i, v in site.operands.present() if i not in states)
    elif op.name in NORMS:
        yield from (v for i, v in site.operands.present() if i in (1, 2))
    elif op.name == "Gather" and site.operands[1].data is None:
        yield site.operands[0]
    elif op.name == "Add":
        makers = [graph.producer(v.ref) for _, v in site.operands.present()]
        if any(m is not None and isinstance(m.op, MacOp) for m in makers):
            yield from (v for _, v in site.operands.present())


def terms(graph: Graph) -> dict[ValueRef, float]:
    """Matrix of a product operator -> products that one of its results adds up; the most, where several read it."""
    found: dict[ValueRef, float] = {}
    for site in graph.sites():
        if isinstance(site.node.op, MacOp):
            each = site.node.op.macs(site) / max(site.results[0].size, 1)
            for value in _learnt(graph, site):
                if value.data is not None and sum(n > 1 for n in value.shape) > 1:
                    found[value.ref] = max(each, found.get(value.ref, 0.0))
    return found


class TorchNet:
    """`graph` on `device`. `weights`: what can be trained, by name; `terms`: how many products its results add up.
    Zeros that a sparse encoding or `keep` leaves out stay zero (`keep_zeros`). `mixed`: products are of bfloat16
    numbers, which GPUs and some processors make several times as fast; weights and outputs stay as they are.
    """

    def __init__(self, graph: Graph, device: str | torch.device = "cpu") -> None:
        self.graph = graph
        self.device = torch.device(device)
        self._mixed = False
        self._emit = TorchEmitter(self.device)
        self._sites = tuple(graph.sites())
        self.weights: dict[ValueRef, torch.nn.Parameter] = {}
        self.terms = terms(graph)
        self._masks: dict[ValueRef, Tensor] = {}
        for value in weights(graph):
            data = self._innermost(self._tensor(value.constant))
            self.weights[value.ref] = torch.nn.Parameter(data)
            if not isinstance(value.type.encoding, Dense):
                self._masks[value.ref] = data != 0
        self._stored = dict(self._masks)
        self._fixed = {v.ref: self._tensor(v.constant) for v in graph.parameters() if v.ref not in self.weights}
        self._normals: Normals | None = None

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, order="C")).to(self.device)

    @property
    def mixed(self) -> bool:
        """Whether products are of bfloat16 numbers."""
        return self._mixed

    @mixed.setter
    def mixed(self, mixed: bool) -> None:
        self._mixed = mixed
        for weight in self.weights.values():
            weight.data = self._innermost(weight.data)

    def _innermost(self, weight: Tensor) -> Tensor:
        """Channels of kernels lie innermost where convolutions are faster so: on a GPU, and on a CPU with `mixed`
        products. Results follow.
        """
        if weight.dim() != 4 or not (self.mixed or self.device.type == "cuda"):
            return weight
        return weight.contiguous(memory_format=torch.channels_last)

    def feeds(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Arrays [samples, *input shape] of every input, on the device."""
        return {v.ref.name: self._tensor(arrays[v.ref.name]) for v in self.graph.inputs}

    def run(self, feeds: Mapping[str, Tensor], gates: Gates | None = None) -> dict[ValueRef, Tensor]:
        """Every task output [batch, *shape] on feeds [batch, *input shape].

        `gates` multiply entries of values after they are made, for every sample on its own.
        """
        outputs = tuple(dict.fromkeys(r for t in self.graph.tasks.values() for r in t.outputs))
        names = tuple(v.ref.name for v in self.graph.inputs)
        gated = dict(gates or {})
        refs = tuple(gated)

        def one(inputs: tuple[Tensor, ...], factors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            by_ref = {r: (gated[r][0], f) for r, f in zip(refs, factors, strict=True)}
            values = self._sample(dict(zip(names, inputs, strict=True)), by_ref)
            return tuple(_whole(values[r]) for r in outputs)

        batch = tuple(feeds[n] for n in names), tuple(gated[r][1] for r in refs)
        if not names:  # nothing depends on a sample
            return {r: v[None] for r, v in zip(outputs, one((), ()), strict=True)}
        return dict(zip(outputs, torch.func.vmap(one)(*batch), strict=True))

    def _sample(self, inputs: Mapping[str, Tensor], gates: Gates) -> dict[ValueRef, Tensor]:
        """Every value for one sample."""
        values: dict[ValueRef, Tensor] = {**self._fixed, **self.weights}
        for value in self.graph.inputs:
            values[value.ref] = _gated(value, inputs[value.ref.name], gates)
        for site in self._sites:
            operands = [site.operands.optional(i) for i in range(len(site.operands))]
            given = [None if v is None else values[v.ref] for v in operands]
            for value, made in zip(site.results, self._results(site, given), strict=True):
                values[value.ref] = _gated(value, made, gates)
        return values

    def _results(self, site: Site, given: Sequence[Tensor | None]) -> Sequence[Tensor]:
        op = site.node.op
        if self.mixed:
            given = [None if t is None else _as_read(t, op) for t in given]
        if op.reinterprets and given[0] is not None:
            return (given[0].reshape(site.results[0].shape),)
        if self._normals is not None and site in self._normals:
            return (self._normals.results(site, given),)
        if op.name in FUNCTIONS and len(site.results) == 1:
            found = FUNCTIONS[op.name](site, given)
            if found is not None:
                return (found,)
        values = [site.operands.optional(i) for i in range(len(site.operands))]
        fields = [
            None if t is None or v is None else self._emit.field(t, v.dtype)
            for t, v in zip(given, values, strict=True)
        ]
        made = op.lower(self._emit, site, *fields)
        return [t.data for t in made if isinstance(t, Field)]

    # ------------------------------------------------------------------ normalisation
    def normalise(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Normalise convolutions (`compiler.training.normal`) from now on until `fold`, by what is measured on
        batches of feeds: nothing changes but in `over_batches`.
        """
        self._normals = Normals(self.graph, self.weights, self._masks)
        self._normals.measure(Phase.PLAIN, self._runs(batches))

    def measure(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Normalise by the statistics of these batches of feeds, each by its own."""
        if self._normals is not None:
            self._normals.measure(Phase.BATCH, self._runs(batches))

    def _runs(self, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[Callable[[], object]]:
        return (partial(self.run, feeds) for feeds in batches)

    def over_batches(self) -> AbstractContextManager[None]:
        """Where results are normalised by the batch they are in, for training."""
        return nullcontext() if self._normals is None else self._normals.phase(Phase.BATCH)

    def fold(self) -> None:
        """Back to plain convolutions, which compute the same."""
        if self._normals is not None:
            self._normals.fold()
        self._normals = None

    def trained(self) -> Iterator[tuple[torch.nn.Parameter, float]]:
        """What training changes, and how many products results of it add up (0: of what is no matrix)."""
        yield from ((weight, self.terms.get(ref, 0.0)) for ref, weight in self.weights.items())
        if self._normals is not None:
            yield from ((scale, 0.0) for scale in self._normals.scales)

    # ------------------------------------------------------------------ weights
    def keep(self, masks: Mapping[ValueRef, np.ndarray]) -> None:
        """Leave out elements where a mask, which broadcasts to its weight, is False: they are zero now."""
        with torch.no_grad():
            for ref, mask in masks.items():
                weight = self.weights[ref]
                kept = torch.from_numpy(mask).to(self.device)
                self._masks[ref] = kept & self._masks.get(ref, torch.ones_like(kept))
                weight.mul_(self._masks[ref])

    def free(self, masks: Mapping[ValueRef, np.ndarray]) -> None:
        """Which elements change from now on: those where a mask, of its weight's shape, is True; of weights without
        one those that their encoding stores.
        """
        made = {ref: torch.from_numpy(mask).to(self.device) for ref, mask in masks.items()}
        self._masks = {**self._stored, **made}

    def keep_zeros(self) -> None:
        """Drop the gradients of elements that are left out or not free."""
        for ref, mask in self._masks.items():
            gradient = self.weights[ref].grad
            if gradient is not None:
                gradient.mul_(mask)

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights, by name, and of what `normalise` adds to them."""
        return {name: held.clone() for name, held in self._held().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights as `state` gave them."""
        for name, held in self._held().items():
            held.copy_(state[name])

    def _held(self) -> dict[str, Tensor]:
        added = {} if self._normals is None else self._normals.state()
        return {ref.name: w.detach() for ref, w in self.weights.items()} | added

    def array(self, ref: ValueRef) -> np.ndarray:
        """A copy of a weight."""
        return np.array(self.weights[ref].detach().cpu().numpy(), order="C")

    def put(self, ref: ValueRef, data: np.ndarray) -> None:
        """Give a weight other values."""
        with torch.no_grad():
            self.weights[ref].copy_(torch.from_numpy(data))

    def store(self, graph: Graph) -> None:
        """Write the weights into `graph`, which has them under the same names."""
        for ref in self.weights:
            graph.update(ref, data=self.array(ref))


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of all bits of float32 numbers on a GPU too, where convolutions take ten of the 23 unless told."""
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [s.allow_tf32 for s in settings]
    try:
        for found in settings:
            found.allow_tf32 = False
        yield
    finally:
        for found, allowed in zip(settings, before, strict=True):
            found.allow_tf32 = allowed


def check_agrees(net: TorchNet, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
    """VerifyError unless the torch function computes what the reference does on `feeds`, to AGREES."""
    arrays = {n: np.stack([f[n] for f in feeds]) for n in feeds[0]}
    with torch.no_grad(), exact_products():
        found = net.run(net.feeds(arrays))
    for i, feed in enumerate(feeds):
        expected = evaluate(net.graph, feed)
        for ref, values in found.items():
            worst = difference(values[i].cpu().numpy(), expected[ref.name])
            if worst > AGREES:
                raise VerifyError(
                    f"distil: as a torch function, output '{ref}' of graph '{net.graph.name}' differs by "
                    f"{worst:.1e} of scale from the reference (limit {AGREES:.0e}); an operator's lowering and its "
                    f"evaluation disagree"
                )


def _as_read(data: Tensor, op: Op) -> Tensor:
    """What an operator of a `mixed` network reads: half of the bits in products, all of them elsewhere, but where
    rounded numbers are only moved, compared or added.
    """
    if op.name in PRODUCTS and data.dtype == torch.float32:
        return data.to(torch.bfloat16)
    return data if op.name in (*PRODUCTS, *FOLLOWING) or op.reinterprets else _whole(data)


def _whole(data: Tensor) -> Tensor:
    return data.float() if data.dtype == torch.bfloat16 else data


def _gated(value: Value, data: Tensor, gates: Gates) -> Tensor:
    if value.ref not in gates:
        return data
    dim, factor = gates[value.ref]
    return data * factor.reshape([-1 if d == dim else 1 for d in range(value.rank)])
