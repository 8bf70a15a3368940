"""Hidden units of recurrent layers removed through their ties: the pruned network is the masked one."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.calibration.engine import Engine
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph, Site
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.magnitude import Sparsify
from tests.passes.test_sparsify_recurrent import GATES, HIDDEN, network, sequences, weights

KINDS = [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]


def layer(graph: Graph) -> Site:
    return next(s for s in graph.sites() if s.node.op.name in GATES)


def kept_units(before: Graph, after: Graph) -> np.ndarray:
    """The unit of `before` that each unit of `after` was, by the rows of the first gate of the first direction."""
    gates = GATES[layer(before).node.op.name]
    old, new = (w.constant[0, : w.shape[1] // gates] for w, _ in (weights(before), weights(after)))
    found = [np.flatnonzero((old == row).all(axis=1)) for row in new]
    assert all(len(f) == 1 for f in found)
    return np.concatenate(found)


def masked(graph: Graph, kept: np.ndarray) -> Graph:
    """Nothing reads the other units: neither any gate of either direction, nor the classifier."""
    made, gone = graph.copy(), np.setdiff1d(np.arange(HIDDEN), kept)
    r = weights(graph)[1]
    data = r.constant.copy()
    data[:, :, gone] = 0
    made.update(r.ref, data=data)
    classifier = next(s for s in graph.sites() if s.node.op.name == "MatMul").operands[1]
    rows = classifier.constant.copy()
    rows[np.concatenate([gone, gone + HIDDEN])] = 0
    made.update(classifier.ref, data=rows)
    return made.freeze()


@pytest.mark.parametrize(("op", "attrs"), KINDS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_pruned_is_masked(op: str, attrs: dict[str, object], sparse: bool) -> None:
    graph = network(op, **attrs)
    if sparse:
        graph = Sparsify(pattern="regular8", dense=())(graph)
    after = PruneChannels(parameters=0.6)(graph)
    kept = kept_units(graph, after)
    assert 0 < len(kept) < HIDDEN and layer(after).int("hidden_size") == len(kept)
    assert sparse == all(w.type.encoding != Dense() for w in weights(after))
    engines = [Engine.of(g) for g in (after, masked(graph, kept))]
    for x in sequences(3)["x"]:
        got, want = (next(iter(e.run({"x": x}).values())) for e in engines)
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_the_wrong_units_would_show() -> None:
    graph = network("GRU")
    after = PruneChannels(parameters=0.6)(graph)
    other = np.sort((kept_units(graph, after) + 1) % HIDDEN)
    x = sequences(1)["x"][0]
    got, want = (next(iter(Engine.of(g).run({"x": x}).values())) for g in (after, masked(graph, other)))
    assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()
