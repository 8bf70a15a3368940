"""A portfolio of variants from one sparse network: how much smaller and faster they are than the network they come
from, what obtaining them takes against training each, and what one library of all takes against variants apart.

The measures are those of DNNShifter (Eccles et al., FGCS 152, 2024, arXiv 2309.06973), which prunes single weights
by magnitude and then deletes channels that are empty. The network is pruned so (benchmarks/gradual.py); `sparse
model` is the result with its shapes as they were. Variants are levels made without training: channels that are
constant go (exact), what is left is stored in blocks, and empty blocks are not stored (exact too, so that level 0
computes what the sparse model computes); every further level leaves out a few of these blocks more, the smallest of
each layer, and has biases corrected by unlabelled inputs.

`dnnshifter_size`: bytes of the sparse model's weights over those of level 0 by itself, positions included;
`dnnshifter_latency`: its time over that of level 0. Both are the least over the sparse model as onnxruntime has it
and as we compile it. `training_ratio`: processor time of training every variant as the sparse model was trained,
the dense network not counted, over that of all passes that make the levels. Needs the extras `train` and `images`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar import INTERFACE, TASK, Effort, load_cifar, trained
from benchmarks.compare import Contender, Problem, bundle, compare, reference
from benchmarks.gradual import Steps, Trained, gradual
from benchmarks.host import machine_lock, pinned
from benchmarks.merging.families import SHARED, Data
from benchmarks.nested_measuring import compiled, through_engine
from benchmarks.ours import PASSES, through
from benchmarks.peers import PEERS
from benchmarks.resident import Resident, resident
from benchmarks.results import failed, keep, record_of
from benchmarks.rows import Row
from benchmarks.settings import Settings, no_data, parser, say
from benchmarks.switching import RESOLUTION_US, ROUNDS, Subject, built, switch_seconds, variants
from compiler import Graph, load, open_bundle, parse_pass, save
from compiler.ir.levels import at_level
from compiler.ir.text import digest
from compiler.passes.base import Resources

NETWORK = "vgg-cifar10"
SEED = 0
LEVELS = 8
DENSE, STEPS = Effort(epochs=5, seed=SEED), Steps((1 / 4, 1 / 16, 1 / 48, 1 / 64), (1, 1, 2, 1), SEED)
SHORT = Effort(epochs=1, seed=SEED), Steps((1 / 4, 1 / 48), (1, 1), SEED)
TRAINED = 20_000
"""Images that the sparse model is trained on."""
QUICK = 640
"""Images of every part in a quick run."""
SAMPLES = 4
"""Inputs that are timed with."""
SPARSE_OURS, SPARSE_ORT = "ours, sparse model", "onnxruntime, sparse model"
PATTERN = "block8x1"
STEP = 1 / 25
"""Share of the stored blocks that a level has less than the one before it."""
CALIBRATION = 64
"""Inputs that biases are corrected by."""
SAME_SHAPES = tuple(p for p in PASSES if p != "dead-channels")
"""Passes that leave every channel where it is."""
PUBLISHED = {
    "source": "DNNShifter: Eccles et al., FGCS 152, 2024, arXiv 2309.06973; VGG-16 and ResNet-50, other hardware",
    "dnnshifter_size": 5.14,
    "dnnshifter_latency": 1.67,
    "training_ratio": 93.0,
    "load_over_switch": 11.9,
    "memory_ratio": 3.8,
}


@dataclass(frozen=True)
class Made:
    """The sparse model as it was trained, and its levels; `seconds` of a processor that making these took."""

    sparse: Graph
    levels: Graph
    seconds: float


def made(file: Path, calibration: np.ndarray) -> Made:
    """Levels from the file of a sparse model; `calibration`: unlabelled inputs [samples, *shape]."""
    sparse = load(file, task=TASK)
    use = Resources(calibration={INTERFACE.input: calibration})
    start = time.process_time()
    narrow = through(sparse, PASSES)
    held = stored(narrow)
    levels = "+".join(f"{1 - held * (1 - STEP * k):.6f}" for k in range(LEVELS))
    nest = parse_pass(f"nest{{levels={levels},pattern={PATTERN},biases=corrected,samples={CALIBRATION}}}")
    nested = nest(narrow, use)
    return Made(through(sparse, SAME_SHAPES), nested, time.process_time() - start)


def stored(graph: Graph) -> float:
    """The largest share of its blocks that a layer has to store, of those between the first and the last."""
    height, shares = int(PATTERN[5:-2]), []
    for site in graph.sites():
        if site.node.op.name in ("Conv", "Gemm"):
            rows = site.operands[1].constant
            rows = rows.reshape(len(rows), -1) != 0
            shares.append(np.logical_or.reduceat(rows, np.arange(0, len(rows), height), axis=0).mean())
    return float(max(shares[1:-1]))


# ---------------------------------------------------------------------- the parts of a study
def timed(found: Made, folder: Path, alone: Path, feeds: Mapping[str, np.ndarray], settings: Settings) -> list[Row]:
    """Level 0 as a library of its own against the sparse model as we compile it, and both in onnxruntime."""
    files = {"sparse model": folder / "sparse.onnx", "level 0": folder / "level0.onnx"}
    save(found.sparse, files["sparse model"])
    save(at_level(found.levels, 0, alone=True), files["level 0"])
    peers = [bundle(built(found.sparse, settings, identity(found.sparse)), SPARSE_OURS)]
    peers += [Contender(f"onnxruntime, {name}", PEERS["onnxruntime"], file) for name, file in files.items()]
    problem = Problem("portfolio", dict(feeds), reference(files["sparse model"], feeds, settings))
    return compare(problem, bundle(alone), peers, settings)


def sizes(found: Made, alone: Path, settings: Settings) -> dict[str, int]:
    """Bytes of weights: of the sparse model as onnxruntime has it and in our pool, and of level 0 by itself."""
    ours = built(found.sparse, settings, identity(found.sparse))
    dense = sum(v.constant.nbytes for v in found.sparse.parameters())
    return {"onnxruntime": dense, "ours": pool_bytes(ours), "level 0": pool_bytes(alone)}


def identity(graph: Graph) -> str:
    """What the bundle of a graph is kept as."""
    return f"portfolio-{digest(graph)[:12]}"


def pool_bytes(folder: Path) -> int:
    """Bytes of the weights of a library, positions included."""
    return int(open_bundle(folder).bundle.manifest["pool"]["bytes"])


def measured(sparse: Trained, data: Data, settings: Settings) -> dict[str, Any]:
    """All numbers of the portfolio."""
    found = made(sparse.file, data.train.inputs[:CALIBRATION])
    samples = [{INTERFACE.input: x[None]} for x in data.selection.inputs[:SAMPLES]]
    name = identity(found.levels)
    subject = Subject(found.levels, built(found.levels, settings, name), samples, {}, 0, 0)
    apart = variants(subject, settings, name)
    net, core = open_bundle(subject.folder), settings.cores[0]
    say("portfolio: time")
    with machine_lock(settings.lock), pinned(core):
        added, levels = switch_seconds(net, samples[0], ROUNDS)
        one, many = resident([subject.folder], samples[0], core), resident(apart, samples[0], core)
    rows = timed(found, settings.kept, apart[0], samples[0], settings)
    say("portfolio: accuracy")
    parts = {"selection": data.selection, "report": data.report}
    return {
        "load_average": os.getloadavg(),
        **against_sparse(rows, sizes(found, apart[0], settings)),
        **against_apart(added * 1e6, one, many),
        "training_ratio": LEVELS * sparse.seconds / found.seconds,
        "seconds": {"training of one": sparse.seconds, "passes": found.seconds},
        "density": list(net.levels),
        "level_us": [s * 1e6 for s in levels],
        "pool_bytes": {"levels": pool_bytes(subject.folder), "apart": [pool_bytes(p) for p in apart]},
        "accuracy": {
            "sparse model": {n: through_engine(found.sparse, p) for n, p in parts.items()},
            "levels": [{n: compiled(net, p, k) for n, p in parts.items()} for k in range(LEVELS)],
        },
        "rows": [row.record() for row in rows],
        "published": PUBLISHED,
    }


def against_sparse(rows: Sequence[Row], held: Mapping[str, int]) -> dict[str, Any]:
    """What level 0 is against the sparse model, in size and time, by the baseline that does best."""
    smaller = {name: size / held["level 0"] for name, size in held.items() if name != "level 0"}
    faster = {row.peer: row.ratio for row in rows if row.peer in (SPARSE_OURS, SPARSE_ORT)}
    return {
        "dnnshifter_size": min(smaller.values()),
        "dnnshifter_latency": min(faster.values(), key=lambda ratio: ratio or 0.0),
        "smaller": smaller,
        "faster": faster,
        "weight_bytes": dict(held),
    }


def against_apart(switch_us: float, one: Resident, many: Resident) -> dict[str, Any]:
    """What one library of all levels is against a library for each: switching and memory."""
    load_us = float(np.median(many.load_us))
    return {
        "switch_us": switch_us,
        "load_us": load_us,
        "load_over_switch": load_us / max(switch_us, RESOLUTION_US),
        "memory_ratio": many.bytes / one.bytes,
        "resident_bytes": {"levels": one.bytes, "variants": many.bytes},
    }


# ---------------------------------------------------------------------- the study
def main(arguments: list[str]) -> int:
    """0 unless our side failed; 2 where the data are not here."""
    options = parser("portfolio", __doc__, without=("only", "prepare"))
    options.add_argument("--data", type=Path, default=SHARED, help="folder with cifar10_jpg/")
    given = options.parse_args(arguments)
    settings = Settings.of(given)
    try:
        data = load_cifar(given.data, settings.kept)
    except FileNotFoundError as error:
        return no_data(error)
    effort, steps, images = (*SHORT, QUICK) if given.quick else (DENSE, STEPS, TRAINED)
    if given.quick:
        data = Data(*(part.first(QUICK) for part in (data.train, data.selection, data.report)))
    dense = trained(NETWORK, data.train, effort, settings.kept)
    sparse = gradual(NETWORK, dense, data.train.first(images), steps, settings.kept)
    seeds = {"networks, data and training": SEED}
    record = record_of("portfolio", arguments, NETWORK, seeds, measured(sparse, data, settings))
    if given.save:
        keep(given.save, f"pruning-portfolio-{NETWORK}", record)
    print(json.dumps(record, indent=1) if given.json else text(record))
    return failed(record)


def text(record: Mapping[str, Any]) -> str:
    """The numbers for a terminal, beside the published ones."""
    names = ("dnnshifter_size", "dnnshifter_latency", "training_ratio", "load_over_switch", "memory_ratio")
    rows = [f"{record['network']}"]
    for name in names:
        here = "–" if record[name] is None else f"{record[name]:.2f}"
        rows.append(f"  {name:20}{here:>10}   published {record['published'][name]}")
    rows.append(f"  sparse model: {_accuracies(record['accuracy']['sparse model'])}")
    for k, level in enumerate(record["accuracy"]["levels"]):
        size = record["pool_bytes"]["apart"][k]
        rows.append(f"  level {k}: {size:8} bytes, {record['level_us'][k]:6.1f} us, {_accuracies(level)}")
    return "\n".join(rows)


def _accuracies(found: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {share:.4f}" for part, share in found.items())
