"""Nested sparsity levels that are trained: how accurate a tenth and a twentieth of a network are in one pool.

A dense network is trained first. Then, by passes of the product alone: channels are pruned, what is left is
trained towards the dense network, levels are nested by magnitude, and trained from the sparsest up. Passes see
training images shifted and mirrored, and their labels. Selection data are there for choosing between recipes;
report data are looked at for the table alone. Every level is measured as compiled. Published figures (Qin et
al., ICTAI 2022, arXiv 2112.10930) are averages over other networks and data. Needs the extras `train` and
`images`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cifar import INTERFACE, NETWORKS, TASK, Effort, accuracy, load_cifar, trained
from benchmarks.merging import families
from benchmarks.merging.families import Data, Part
from benchmarks.ours import PASSES, through
from benchmarks.results import keep, record_of
from benchmarks.settings import Settings, chosen, parser, say
from compiler import Graph, Resources, build, cost_report, load, open_bundle
from compiler.calibration.engine import Engine
from compiler.codegen.runtime import Network
from compiler.ir.levels import at_level, level_count
from compiler.passes.distil import Distil
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.nest import Nest
from models.training.fit import shift_and_flip

SEED = 0
QUICK = 1280
"""Images of every part in a quick run."""
COMPARED = 200
"""Images on which a level is compared with its library of its own, bit for bit."""
HALVINGS = 12
"""Steps of the search for the least share that a level leaves out."""
MARGIN = 0.003
"""Accuracy that counts as that of the dense network."""
PUBLISHED = {
    "source": "Qin et al., ICTAI 2022, arXiv 2112.10930; means over ResNet-50, PointNet++, GNMT, graph attention",
    "weights_fraction": [0.1338, 0.0538],
    "flops_fraction": [0.1497, 0.0447],
    "relative_loss": [0.0, 0.0325],
}


@dataclass(frozen=True)
class Aim:
    """What a level may have of the dense network's weights and FLOPs."""

    weights: float
    flops: float

    def holds(self, graph: Graph, dense: Graph) -> bool:
        """Whether a graph has no more."""
        weights, flops = fractions(graph, dense)
        return weights <= self.weights and flops <= self.flops


@dataclass(frozen=True)
class Recipe:
    """How levels come out of a dense network. `channels`: the share of its multiply-adds before blocks leave;
    `narrowed`, `settle`, `level`: epochs after channels are pruned, of every round, and of every level; `rates`: of
    the first training, and of the others.
    """

    channels: float
    narrowed: int
    rounds: int
    settle: int
    level: int
    rates: tuple[float, float] = (1e-3, 3e-3)
    labels: float = 0.5
    aims: tuple[Aim, ...] = (Aim(0.134, 0.15), Aim(0.054, 0.045))

    def first(self) -> Distil:
        """Training after channels are pruned, towards the dense network's answers and the labels."""
        return Distil(epochs=self.narrowed, rate=self.rates[0], loss="kl", labels=self.labels)

    def levels(self) -> Distil:
        """Training of levels."""
        return replace(self.first(), epochs=self.level, rate=self.rates[1], rounds=self.rounds, settle=self.settle)


@dataclass(frozen=True)
class Made:
    """The dense network with folded normalisations, and levels before and after they were trained."""

    dense: Graph
    untrained: Graph
    levels: Graph
    minutes: float


DENSE = Effort(epochs=5, seed=SEED)
RECIPE = Recipe(channels=0.3, narrowed=3, rounds=3, settle=1, level=4)
SHORT = Effort(epochs=1, seed=SEED), Recipe(channels=0.4, narrowed=1, rounds=1, settle=1, level=1)


# ---------------------------------------------------------------------- from the dense network to levels
def fractions(graph: Graph, dense: Graph) -> tuple[float, float]:
    """(weights, FLOPs) of a graph, at its densest level, over those of the dense network."""
    own, whole = (cost_report(g).combinations[0].cost for g in (graph, dense))
    return own.parameters / whole.parameters, own.flops / whole.flops


def shares(graph: Graph, dense: Graph, aims: Sequence[Aim]) -> tuple[float, ...]:
    """The least share of its blocks that each level must leave out for its aim, by halving."""
    return tuple(_share(graph, dense, aim) for aim in aims)


def _share(graph: Graph, dense: Graph, aim: Aim) -> float:
    low, high = 0.0, 0.99
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        held = aim.holds(nesting(middle, 0.995)(graph), dense)
        low, high = (low, middle) if held else (middle, high)
    return round(high, 4)


def nesting(*shares: float) -> Nest:
    """Levels in all layers but the last; low blocks, so that the first layer keeps some of its few inputs."""
    return Nest(levels=shares, pattern="block4x1", dense=("last",), min_inputs=1)


def shifted(part: Part, seed: int) -> np.ndarray:
    """The images moved by up to two pixels, half of them mirrored."""
    return shift_and_flip(part.inputs.copy(), np.random.default_rng(seed))


def made(dense: Graph, part: Part, recipe: Recipe, kept: Path) -> Made:
    """Channels, then levels. Every training sees another draw of shifted images; interrupted ones go on."""
    start = time.monotonic()
    narrowed = _narrowed(dense, recipe, _use(dense, part, kept, 1))
    untrained = nesting(*shares(narrowed, dense, recipe.aims))(narrowed)
    levels = recipe.levels()(untrained, _use(dense, part, kept, 2))
    return Made(dense, untrained, levels, (time.monotonic() - start) / 60)


def _narrowed(dense: Graph, recipe: Recipe, use: Resources) -> Graph:
    channels = PruneChannels(flops=recipe.channels, score="obs", multiple=16, recover="least-squares", samples=512)
    return recipe.first()(channels(dense, use), use)


def _use(dense: Graph, part: Part, kept: Path, stage: int) -> Resources:
    return Resources(
        calibration={INTERFACE.input: shifted(part, SEED + stage)},
        labels={TASK: part.labels[TASK]},
        teacher=dense,
        seed=SEED + stage,
        cache=kept,
        say=say,
    )


# ---------------------------------------------------------------------- measuring
def through_engine(graph: Graph, part: Part) -> float:
    """Accuracy of a graph in onnxruntime."""
    engine = Engine.of(graph)
    (output,) = engine.outputs
    return accuracy(np.stack([engine.run({INTERFACE.input: x[None]})[output] for x in part.inputs]), part)


def compiled(net: Network, part: Part, level: int) -> float:
    """Accuracy of a compiled network at a level."""
    return accuracy(np.stack([net.run(x[None], level=level)[TASK] for x in part.inputs]), part)


def measured(found: Made, data: Data, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Sizes, and accuracy of every level as compiled, beside the dense network and levels by magnitude alone."""
    net = open_bundle(build(found.levels, "host", folder / "levels", name="net").path)
    count = level_count(found.levels)
    parts = {"selection": data.selection, "report": data.report}
    sizes = [fractions(at_level(found.levels, k, alone=True), found.dense) for k in range(count)]
    densest = build(
        at_level(found.levels, 0, alone=True), "host", folder / "densest", name="net", plan=net.bundle.path
    )
    pools = {n: b.manifest["pool"]["bytes"] for n, b in (("levels", net.bundle), ("densest", densest))}
    say("nesting: accuracy")
    dense = {n: through_engine(found.dense, p) for n, p in parts.items()}
    trained_ = [{n: compiled(net, p, k) for n, p in parts.items()} for k in range(count)]
    magnitude = [
        {n: through_engine(at_level(found.untrained, k, alone=True), p) for n, p in parts.items()}
        for k in range(count)
    ]
    loss = [1 - level["report"] / dense["report"] for level in trained_]
    return {
        "weights_fraction": [weights for weights, _ in sizes],
        "flops_fraction": [flops for _, flops in sizes],
        "accuracy": {"dense": dense, "levels": trained_, "by magnitude": magnitude},
        "relative_loss": loss,
        "pool_bytes": pools | {"over_densest": pools["levels"] / pools["densest"]},
        "wrong_bits": wrong_bits(net, found.levels, data.report.first(COMPARED), folder),
        "met": met(sizes, dense, trained_, recipe.aims),
        "published": PUBLISHED,
        "recipe": asdict(recipe),
        "minutes": found.minutes,
    }


def met(
    sizes: Sequence[tuple[float, float]],
    dense: Mapping[str, float],
    levels: Sequence[Mapping[str, float]],
    aims: Sequence[Aim],
) -> list[bool]:
    """Whether each level has the size of its aim, and the accuracy: that of the dense network at level 0, the
    published relative loss behind it. On report data.
    """
    small = [w <= aim.weights and f <= aim.flops for (w, f), aim in zip(sizes, aims, strict=True)]
    whole = dense["report"]
    least = [whole - MARGIN, *(whole * (1 - PUBLISHED["relative_loss"][1]) for _ in aims[1:])]
    return [s and level["report"] >= x for s, level, x in zip(small, levels, least, strict=True)]


def wrong_bits(net: Network, graph: Graph, part: Part, folder: Path) -> list[int]:
    """Per level, on how many images its outputs are not those of a library of that level by the same plan."""
    found = []
    for level in range(level_count(graph)):
        own = build(at_level(graph, level), "host", folder / f"level{level}", name="net", plan=net.bundle.path)
        alone = open_bundle(own.path)
        pairs = ((net.run(x[None], level=level)[TASK], alone.run(x[None])[TASK]) for x in part.inputs)
        found.append(sum(a.tobytes() != b.tobytes() for a, b in pairs))
    return found


# ---------------------------------------------------------------------- the study
def reduced(data: Data) -> Data:
    """The first images of every part."""
    return Data(*(part.first(QUICK) for part in (data.train, data.selection, data.report)))


def line(record: Mapping[str, Any]) -> str:
    """A table of the levels of one network."""
    held = record["accuracy"]
    dense = held["dense"]
    rows = [f"{record['network']}: dense {dense['selection']:.4f} selection, {dense['report']:.4f} report"]
    for k, (level, plain) in enumerate(zip(held["levels"], held["by magnitude"], strict=True)):
        size = f"{record['weights_fraction'][k]:.2%} of weights, {record['flops_fraction'][k]:.2%} of FLOPs"
        loss = f"relative loss {record['relative_loss'][k]:.2%}; untrained {plain['report']:.4f}"
        rows.append(f"  level {k}: {size}: {level['selection']:.4f}, {level['report']:.4f}, {loss}")
    rows.append(f"  pool {record['pool_bytes']['over_densest']:.4f} x that of the densest level")
    rows.append(f"  images with other bits than a library of the level alone: {record['wrong_bits']}")
    return "\n".join(rows)


def study(name: str, data: Data, quick: bool, kept: Path) -> dict[str, Any]:
    """All numbers of one network."""
    effort, recipe = SHORT if quick else (DENSE, RECIPE)
    say(f"{name}: dense network")
    file = trained(name, data.train, effort, kept)
    dense = through(load(file, task=TASK), PASSES)
    found = made(dense, data.train, recipe, kept)
    with tempfile.TemporaryDirectory(dir=kept) as folder:
        return measured(found, data, recipe, Path(folder)) | {"dense_epochs": effort.epochs}


def main(arguments: list[str]) -> int:
    """0 unless bits differed or the pool is larger than it may be; 2 where the data are not here."""
    options = parser("nesting", __doc__)
    options.add_argument("--data", type=Path, default=families.SHARED, help="folder with cifar10_jpg/")
    given = options.parse_args(arguments)
    settings, wrong = Settings.of(given), False
    names = chosen(given.only, NETWORKS)
    try:
        data = load_cifar(given.data, settings.kept)
    except FileNotFoundError as error:
        say(f"{error.filename} is not here: data sets are no part of the repository; name their folder with --data")
        return 2
    torch.set_num_threads(1)
    results = {}
    for name in names:
        numbers = study(name, reduced(data) if given.quick else data, given.quick, settings.kept)
        record = record_of("nesting", arguments, name, {"network, data and training": SEED}, numbers)
        record = dict(record) | {"versions": {**record["versions"], "torch": torch.__version__}}
        results[name] = record
        wrong |= any(record["wrong_bits"]) or record["pool_bytes"]["over_densest"] > 1.05
        if given.save:
            keep(given.save, f"nesting-{name}", record)
        if not given.json:
            print(line(record), flush=True)
    if given.json:
        print(json.dumps(results, indent=1))
    return int(wrong)
