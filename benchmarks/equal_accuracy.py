"""Is what was pruned faster at equal accuracy? A sparse network compiled here, against the dense one and one that
lost whole channels, both in onnxruntime, and against the same sparse network in deepsparse.

The network (`--network`: a perceptron or a convolutional one, on MNIST), its data and its training are those of
benchmarks/masked_training.py. The sparse one lost hidden units or channels and has what remains in blocks or whole,
or has blocks alone; the narrow one is what onnxsim's structured pruning makes,
uniformly in all hidden layers, with the same rounds, epochs and rates in between. One rule chooses both: fewer and
fewer weights, until the development part loses more than half a point against the dense network; the last that does
not is taken. The accuracies to be compared are those of the test part, which chose nothing; that of ours also as
compiled. Needs the extras `train` and `bench`, and the peers' environments.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from torch import Tensor

from benchmarks.compare import Contender, Problem, bundle, compare, reference
from benchmarks.darb import ALLOWED
from benchmarks.gradual import weights
from benchmarks.host import versions
from benchmarks.masked_training import (
    CASES,
    CHANNELS,
    NARROW_BLOCKS,
    Case,
    Convolutional,
    Trained,
    Wide,
    dense,
    in_rounds,
    once,
    pruned,
)
from benchmarks.merging.families import SHARED
from benchmarks.ours import compiled, through
from benchmarks.peers import PEERS
from benchmarks.portfolio import SAME_SHAPES
from benchmarks.results import failed, keep, record_of
from benchmarks.rows import Row
from benchmarks.settings import Settings, no_data, parser, say
from benchmarks.sparse_cases import portable
from compiler import Graph, load, open_bundle, to_onnx
from compiler.errors import PassError
from compiler.ir.encoding import BlockSparse
from compiler.ir.text import digest
from compiler.passes.sparsify.layers import Limits, candidates
from compiler.workers.store import Store
from models.training.export import Interface, export_onnx
from models.training.masked import PATTERNS, Masks

NETWORKS = ("mlp-mnist", "cnn-mnist")
INPUT, OUTPUT = "image", "digit"
SEED = 0
PATTERNS_OF_OURS, HEIGHT = (NARROW_BLOCKS, "block16x1", CHANNELS), 16
"""What ours may be made by: blocks in what remains of fewer hidden units, blocks alone, or fewer units alone."""
DENSITIES = (1 / 8, 1 / 10, 1 / 13, 1 / 16, 1 / 20, 1 / 25)
"""Shares of the weights that are tried, one after another."""
WIDTHS = (1 / 4, 0.18, 1 / 8, 0.09, 1 / 16)
"""Shares of the hidden units that are tried."""
DENSE, NARROW, SAME = "onnxruntime, dense", "onnxruntime, onnxsim's channels", "deepsparse"
AIMS: Mapping[str, float] = {DENSE: 1.0, NARROW: 1.5, SAME: 2.0}
"""Peer -> the ratio that is to be reached against it."""


Net = TypeVar("Net", Wide, Convolutional)


@dataclass(frozen=True)
class Chosen:
    """The smallest network within the limit; `tried`: share -> accuracy on the development part."""

    share: float
    trained: Trained
    tried: Mapping[float, float]


def smallest(
    shares: Sequence[float], make: Callable[[float], Trained], start: Trained, allowed: float = ALLOWED
) -> Chosen:
    """The last of ever smaller networks before one that loses more than `allowed` on the development part.

    PassError where the first does already.
    """
    tried: dict[float, float] = {}
    best = None
    for share in shares:
        found = make(share)
        tried[share] = found.dev
        say(f"{share:.4f}: {found.dev:.4f}, {found.dev - start.dev:+.4f} on the development part")
        if start.dev - found.dev > allowed:
            break
        best = share, found
    if best is None:
        raise PassError(f"a share of {shares[0]} loses more than {allowed}; begin with a larger one")
    return Chosen(*best, tried)


# ---------------------------------------------------------------------- channels, by onnxsim
def narrowed(case: Case, start: Trained, share: float, seed: int, store: Store) -> Trained:
    """The dense network with a share of its hidden units, taken away by onnxsim, trained in the same rounds."""

    def make() -> tuple[Any, Masks]:
        net, held = network(case, start), 1.0

        def smaller(step: float) -> tuple[Any, Masks]:
            nonlocal net, held
            net, held = without_channels(net, 1 - step / held), step
            return net, Masks(net.matrices(), PATTERNS["block16x1"])

        return in_rounds(case, share, seed, smaller)

    return once(case, make, seed, store, "onnxsim", repr(share))


def without_channels(net: Net, sparsity: float) -> Net:
    """The network without a share of its hidden units or channels, those that onnxsim takes. ImportError without
    onnxsim."""
    onnxsim = importlib.import_module("onnxsim")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        export_onnx(net, file, interface(net), keep_batch_norm=False)
        smaller = onnxsim.apply_structured_pruning(onnx.load(file), sparsity=sparsity)
    held = weights(load(smaller))
    return filled(type(net)([len(w) for w, _ in held[:-1]]), [v for pair in held for v in pair])


def interface(net: Net) -> Interface:
    """Of its file."""
    return Interface(INPUT, OUTPUT, net.shape)


def network(case: Case, trained: Trained) -> Any:
    """The network of these values, without hidden units or channels that have no weights and no readers."""
    held = [(v, trained.state[n.replace("weight", "bias")]) for n, v in trained.state.items() if v.dim() > 1]
    there = [_used(own) | _used(readers.movedim(1, 0)) for (own, _), (readers, _) in pairwise(held)]
    net = case.make([int(mask.sum()) for mask in there])
    rows = [*there, torch.ones(len(held[-1][0]), dtype=torch.bool)]
    columns = [torch.ones(held[0][0].shape[1], dtype=torch.bool), *there]
    kept = [part for (w, b), r, c in zip(held, rows, columns, strict=True) for part in (w[r][:, c], b[r])]
    return filled(net, kept)


def _used(weight: Tensor) -> Tensor:
    """Which entries of the first axis have a weight that is not zero."""
    return weight.ne(0).flatten(1).any(dim=1)


def filled(net: Net, values: Iterable[Tensor]) -> Net:
    """The network with these weights and biases, in order."""
    with torch.no_grad():
        for p, value in zip(net.parameters(), values, strict=True):
            p.copy_(value)
    return net.eval()


def exported(case: Case, trained: Trained, file: Path) -> Path:
    """The file with the network of these values."""
    net = network(case, trained)
    export_onnx(net, file, interface(net), keep_batch_norm=False)
    return file


# ---------------------------------------------------------------------- ours
def blocked(graph: Graph) -> Graph:
    """The graph with its matrices in blocks; what is not stored is zero already. With fewer rows than a block has
    a matrix stays dense."""
    made = graph.copy()
    for found in candidates(made, Limits((), 1, HEIGHT, lambda name: False))[0]:
        form = BlockSparse(found.rows, (HEIGHT, 1))
        made.update(found.weight.ref, type=replace(found.weight.type, encoding=form), data=found.weight.constant)
    return made.freeze()


def accuracy(folder: Path, case: Case) -> float:
    """Share of the test part that a bundle gets right."""
    net, (inputs, labels) = open_bundle(folder), (a.numpy() for a in case.test)
    found = [net.run(x[None])[OUTPUT].argmax() for x in inputs]
    return float(np.mean(np.asarray(found) == labels))


# ---------------------------------------------------------------------- the study
def study(
    case: Case,
    settings: Settings,
    pattern: str,
    densities: Sequence[float],
    widths: Sequence[float],
    allowed: float,
) -> dict[str, Any]:
    """All numbers: what was chosen, accuracies, and the times of all contenders in turns."""
    store = Store(settings.kept)
    start = dense(case, SEED, store)
    say(f"{case.name}: dense {start.dev:.4f} on the development part")
    sparse = smallest(densities, lambda d: pruned(case, start, pattern, d, SEED, store), start, allowed)
    narrow = smallest(widths, lambda s: narrowed(case, start, s, SEED, store), start, allowed)
    file = exported(case, sparse.trained, settings.kept / "equal-accuracy-blocks.onnx")
    graph = through(load(file, task=OUTPUT), SAME_SHAPES)
    graph = graph if pattern == CHANNELS else blocked(graph)
    folder = compiled(graph, digest(graph), settings.kept, passes=(), target=settings.target).folder
    rows = timed(case, graph, folder, {DENSE: start, NARROW: narrow.trained}, settings)
    say("accuracy")
    parts = {"dense": start, "sparse": sparse.trained, "narrow": narrow.trained}
    scores = {name: {"dev": t.dev, "test": t.test} for name, t in parts.items()}
    ratios = {row.peer: row.ratio for row in rows}
    return {
        "allowed_loss": allowed,
        "sparse": told(case, sparse) | {"pattern": pattern, "ratio": sparse.trained.stored.ratio},
        "narrow": told(case, narrow),
        "accuracy": {**scores, "sparse": {**scores["sparse"], "test as compiled": accuracy(folder, case)}},
        "aims": dict(AIMS),
        "met": {peer: None if ratios[peer] is None else ratios[peer] >= aim for peer, aim in AIMS.items()},
        "rows": [row.record() for row in rows],
    }


def told(case: Case, chosen: Chosen) -> dict[str, Any]:
    """What a record says about a choice."""
    hidden = network(case, chosen.trained).hidden
    return {
        "share": chosen.share,
        "hidden": hidden,
        "dev_of_share": {f"{s:.4f}": dev for s, dev in chosen.tried.items()},
    }


def timed(case: Case, graph: Graph, folder: Path, others: Mapping[str, Trained], settings: Settings) -> list[Row]:
    """Our bundle against deepsparse on its file and onnxruntime on the files of other networks, in turns."""
    feeds = {INPUT: case.dev[0][:1].numpy()}
    same = settings.kept / "equal-accuracy-sparse.onnx"
    onnx.save(portable(to_onnx(graph)), same)
    peers = []
    for label, trained in others.items():
        file = exported(case, trained, settings.kept / f"equal-accuracy-{len(peers)}.onnx")
        expected = reference(file, feeds, settings)
        peers.append(Contender(label, PEERS["onnxruntime"], file, expected=expected))
    peers.append(Contender(SAME, PEERS["deepsparse"], same))
    return compare(Problem(case.name, feeds, reference(same, feeds, settings)), bundle(folder), peers, settings)


def main(arguments: list[str]) -> int:
    """0 unless our side failed; 2 where data or onnxsim are not here."""
    options = parser("equal-accuracy", __doc__, without=("only", "prepare"))
    options.add_argument("--data", type=Path, default=SHARED, help="folder with mnist/")
    options.add_argument("--network", default=NETWORKS[0], choices=NETWORKS)
    options.add_argument("--pattern", default=NARROW_BLOCKS, choices=PATTERNS_OF_OURS, help="of our network")
    options.add_argument(
        "--density", nargs="+", type=float, default=list(DENSITIES), help="shares of weights to try"
    )
    options.add_argument("--width", nargs="+", type=float, default=list(WIDTHS), help="shares of units to try")
    given = options.parse_args(arguments)
    settings = Settings.of(given)
    torch.set_num_threads(1)
    try:
        importlib.import_module("onnxsim")
        case = CASES[given.network](given.data, given.quick)
    except ImportError as error:
        say(f"{error}: install the extra `bench`")
        return 2
    except FileNotFoundError as error:
        return no_data(error)
    few, allowed = (1, 1.0) if given.quick else (None, ALLOWED)
    numbers = study(case, settings, given.pattern, given.density[:few], given.width[:few], allowed)
    seeds = {"network, data and training": SEED}
    record = dict(record_of("equal-accuracy", arguments, case.name, seeds, numbers))
    record["versions"] = {**record["versions"], **versions(["torch", "onnxsim"])}
    if given.save:
        keep(given.save, f"pruning-equal-accuracy-{case.name}", record)
    print(json.dumps(record, indent=1) if given.json else text(record))
    return failed(record)


def text(record: Mapping[str, Any]) -> str:
    """The numbers for a terminal."""
    scores = record["accuracy"]
    lines = [
        f"{name:8}" + ", ".join(f"{part} {share:.4f}" for part, share in held.items())
        for name, held in scores.items()
    ]
    widths = " and ".join(f"{record[name]['hidden']} ({name})" for name in ("sparse", "narrow"))
    lines.append(f"weights: {record['sparse']['ratio']:.1f}x fewer; hidden units: {widths}")
    lines.append(f"{'':32}{'ours us':>10}{'its us':>10}{'ratio':>8}{'aim':>6}")
    for row in record["rows"]:
        if row["ratio"] is None:
            lines.append(f"{row['peer']:32}{row['error']}")
        else:
            times = f"{row['ours_ms'] * 1e3:10.2f}{row['peer_ms'] * 1e3:10.2f}{row['ratio']:8.2f}"
            lines.append(f"{row['peer']:32}{times}{record['aims'][row['peer']]:6.1f}")
    return "\n".join(lines)
