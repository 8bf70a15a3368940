"""From a dense network to trained levels, by passes of the product alone; nothing here needs a tensor compiler.

Channels are pruned, what is left is trained towards the dense network, levels are nested by magnitude, and trained
from the sparsest up. Passes see training images shifted and mirrored, and their labels. What comes out is kept in a
folder under the network, the study and the number of images, so that levels can be trained on one machine and
measured on another.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cifar import INTERFACE, TASK, Effort, accuracy, trained
from benchmarks.host import cpu_model
from benchmarks.merging.families import Data, Part
from benchmarks.settings import say
from compiler import Graph, Resources, cost_report, load, parse_pass, save
from compiler.files import replace_whole
from compiler.ir.levels import at_level, level_count
from compiler.passes.distil import Distil
from compiler.passes.extract_level import ExtractLevel
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.nest import Nest
from compiler.settings import DEFAULT_PASSES
from compiler.training.distilling import chosen_device
from compiler.training.loop import predict
from compiler.training.module import TorchNet
from models.training.fit import shift_and_flip, shifted_windows

SEED = 0
METHOD = "4"
"""Number of how levels are trained, to be changed with it: what another one made is not taken for its own."""
MOST_LEFT_OUT, SPARSER = 0.99, 0.995
"""The largest share that a level may leave out; and what the level behind it leaves out while one is looked for."""
STEPS = 12
"""Most steps of the search for the least share that a level leaves out."""
CLOSE = 0.002
"""Share of a size aimed at that the search may leave unused."""
ROUNDED = 1e-6
"""Share of the FLOPs aimed at that is left to rounding."""
STORED = 5.0
"""Bytes of a weight in a block of four, with its part of the block's position."""
FITTINGS = 6
"""Most times that sizes of levels are tried."""
JUDGED = 500
"""Images that are judged at a time."""
DESCENDED = 1
"""Epochs of every level after blocks have left, where they are trained to the end only then."""
ENDING = 20.0
"""Seconds that what follows the last training may take."""


@dataclass(frozen=True)
class Aim:
    """What a level may have of the dense network's weights and FLOPs, and may lose of its accuracy: a share,
    and `points` of 1 besides.
    """

    weights: float
    flops: float
    relative: float = 0.0
    points: float = 0.003

    def excess(self, graph: Graph, dense: Graph) -> float:
        """How much more a graph has, as a share of what it may have; at most 0 where it has no more."""
        weights, flops = fractions(graph, dense)
        return max(weights / self.weights, flops / self.flops) - 1

    def met(self, size: tuple[float, float], accuracy: float, dense: float) -> bool:
        """Whether a level of such weights and FLOPs, as shares, keeps to it."""
        small = size[0] <= self.weights and size[1] <= self.flops
        return small and accuracy >= dense * (1 - self.relative) - self.points


AIMS = (Aim(0.134, 0.15), Aim(0.054, 0.045, relative=0.0325, points=0.0))
"""Published sizes and losses: see `nested_measuring`."""
PRUNED = Aim(1.0, 1.0)
"""All that is left after pruning: blocks leave from there."""


@dataclass(frozen=True)
class Recipe:
    """How levels come out of a dense network.

    `channels`: the share of its FLOPs before blocks leave, by `score` and `recover` of prune-channels, and
    `parameters` the share of its weights that is there at most, in widths of a `multiple`; `narrowed`, `settle`,
    `level`: epochs after channels are pruned, of every round, and of every level; `rates`: of the first training,
    and of the others, `climb` times as much of levels above the sparsest; `draws`: how often every image is there
    in an epoch, shifted by up to `reach` pixels; `whole`: layers with one level; `mixed` and `normalise`: see
    `Distil`; `gradual`: blocks leave in rounds from all that pruning left, not from those of the first aim.
    """

    channels: float
    narrowed: int
    rounds: int
    settle: int
    level: int
    rates: tuple[float, float] = (1e-3, 3e-3)
    labels: float = 0.5
    aims: tuple[Aim, ...] = AIMS
    batch: int = 64
    draws: int = 1
    reach: int = 2
    score: str = "obs"
    recover: str = "least-squares"
    whole: tuple[str, ...] = ("last",)
    parameters: float = 1.0
    multiple: int = 16
    mixed: bool = False
    normalise: bool = False
    gradual: bool = False
    climb: float = 1.0
    measured: int | None = None

    def pruned(self, dense: Graph, use: Resources) -> Graph:
        """Fewer channels: as many as leave the share of FLOPs, and then of weights where these are still more."""
        cut = PruneChannels(score=self.score, multiple=self.multiple, recover=self.recover, samples=512)
        narrow = replace(cut, flops=self.channels)(dense, use)
        weights, _ = fractions(narrow, dense)
        if weights <= self.parameters:
            return narrow
        return replace(cut, parameters=self.parameters / weights)(narrow, use)

    def first(self) -> Distil:
        """Training after channels are pruned, towards the dense network's answers and the labels."""
        return Distil(
            epochs=self.narrowed,
            rate=self.rates[0],
            batch=self.batch,
            loss="kl",
            labels=self.labels,
            mixed=self.mixed,
            normalise=self.normalise,
        )

    def descent(self) -> Distil:
        """Training in which blocks leave; of levels to the end only where no level is there just to leave from."""
        epochs = DESCENDED if self.gradual else self.level
        return replace(
            self.first(),
            epochs=epochs,
            rate=self.rates[1],
            rounds=self.rounds,
            settle=self.settle,
            climb=self.climb,
        )

    def nested(self, graph: Graph, sizes: Sizes, use: Resources) -> Graph:
        """Levels of such sizes."""
        nest = nesting(sizes.left_out, self.whole)
        if self.measured is None:
            return nest(graph)
        by_costs = replace(nest, flops=sizes.flops, weight_bytes=sizes.weight_bytes)
        if not self.measured:
            return by_costs(graph, replace(use, calibration=None))
        return replace(by_costs, samples=self.measured)(graph, use)

    def levels(self, narrowed: Graph, sizes: Sizes, use: Resources) -> Graph:
        """Such levels, trained."""
        if not self.gradual:
            return self.descent()(self.nested(narrowed, sizes, use), use)
        descended = self.descent()(self.nested(narrowed, sizes.from_all_of(narrowed), use), use)
        chosen = ExtractLevel(level=1)(descended)
        return replace(self.descent(), epochs=self.level, rounds=0)(chosen, use)

    def scaled(self, factor: float) -> Recipe:
        """With so many times the rounds, and the epochs of all else; each at least once."""
        return replace(
            self,
            narrowed=_times(self.narrowed, factor),
            rounds=_times(self.rounds, factor),
            level=_times(self.level, factor),
        )

    @property
    def epochs_of_levels(self) -> int:
        """Epochs of all trainings after the first."""
        descended = DESCENDED * (len(self.aims) + 1) if self.gradual else 0
        return self.rounds * self.settle + descended + self.level * len(self.aims)

    def within(self, seconds: float, epoch: float) -> Recipe:
        """The longest training of levels that takes no more than `seconds`, where an epoch takes `epoch` seconds;
        the least there is where even that takes more. Rounds are given up last: blocks that leave at once are the
        wrong ones.
        """
        shorter = [replace(self, level=level) for level in range(self.level, 0, -1)]
        fewer = [replace(shorter[-1], rounds=rounds) for rounds in range(self.rounds - 1, 0, -1)]
        parts = [*shorter, *fewer]
        return next((r for r in parts if r.epochs_of_levels * epoch <= seconds), parts[-1])


def _times(count: int, factor: float) -> int:
    return max(1, round(count * factor))


@dataclass(frozen=True)
class Study:
    """How one network is studied."""

    effort: Effort
    recipe: Recipe

    def scaled(self, factor: float) -> Study:
        """With so many times the epochs."""
        return Study(replace(self.effort, epochs=_times(self.effort.epochs, factor)), self.recipe.scaled(factor))

    def quick(self) -> Study:
        """The same in one epoch of everything."""
        recipe = replace(self.recipe, narrowed=1, rounds=1, settle=1, level=1)
        return Study(replace(self.effort, epochs=1), recipe)


LARGE = Recipe(
    channels=0.4,
    narrowed=5,
    rounds=8,
    settle=1,
    level=40,
    rates=(2e-3, 3e-3),
    climb=0.25,
    batch=512,
    draws=8,
    reach=4,
    score="fisher",
    recover="none",
    whole=("first", "last"),
    parameters=0.4,
    mixed=True,
    normalise=True,
    gradual=True,
    measured=0,
)
STUDIES: Mapping[str, Study] = {
    "vgg-cifar10": Study(
        Effort(epochs=5, seed=SEED),
        Recipe(
            channels=0.3,
            narrowed=3,
            rounds=8,
            settle=1,
            level=12,
            aims=(PRUNED, *AIMS),
            draws=3,
            mixed=True,
            measured=256,
        ),
    ),
    "vgg16-cifar10": Study(Effort(epochs=40, seed=SEED, batch=512, peak_rate=0.2, reach=4), LARGE),
    "resnet18-cifar10": Study(Effort(epochs=36, seed=SEED, batch=512, peak_rate=0.4, reach=4), LARGE),
    "resnet20-cifar10": Study(
        Effort(epochs=60, seed=SEED, batch=512, peak_rate=0.4, reach=4),
        replace(LARGE, channels=0.6, parameters=1.0, multiple=4, rates=(6e-4, 1e-3), whole=("last",)),
    ),
}
"""Network -> how it is studied; all but the first are meant for a GPU."""


@dataclass(frozen=True)
class Made:
    """Levels before and after they were trained, by the recipe that was followed."""

    untrained: Graph
    levels: Graph
    recipe: Recipe
    minutes: float


@dataclass(frozen=True)
class Kept:
    """Trained levels, and what was recorded of their training."""

    levels: Graph
    record: Mapping[str, Any]


# ---------------------------------------------------------------------- from the dense network to levels
def fractions(graph: Graph, dense: Graph) -> tuple[float, float]:
    """(weights, FLOPs) of a graph, at its densest level, over those of the dense network."""
    own, whole = (cost_report(g).combinations[0].cost for g in (graph, dense))
    return own.parameters / whole.parameters, own.flops / whole.flops


@dataclass(frozen=True)
class Sizes:
    """How large levels are, the densest first: by the share of its blocks that every layer leaves out, or by what a
    level may cost: shares of a graph's FLOPs, bytes of its weights or both.
    """

    left_out: tuple[float, ...] = ()
    flops: tuple[float, ...] = ()
    weight_bytes: tuple[float, ...] = ()

    def from_all_of(self, graph: Graph) -> Sizes:
        """The same behind a level of all blocks of `graph`."""
        first = 2.0 * cost_report(graph).combinations[0].cost.weight_bytes  # with positions it is less than that
        return Sizes(
            (0.0, *self.left_out) if self.left_out else (),
            (1.0, *self.flops) if self.flops else (),
            (first, *self.weight_bytes) if self.weight_bytes else (),
        )


def sizes(graph: Graph, dense: Graph, recipe: Recipe, use: Resources) -> Sizes:
    """The sizes of levels that are aimed at. ValueError or PassError where an aim cannot be had, as layers of
    `whole` are more.
    """
    if recipe.measured is None:
        return Sizes(shares(graph, dense, recipe))
    return by_costs(graph, dense, recipe, use)


def by_costs(graph: Graph, dense: Graph, recipe: Recipe, use: Resources) -> Sizes:
    """The FLOPs that aims allow; and the bytes, where levels of these FLOPs have too many weights."""
    _, own = fractions(graph, dense)
    found = Sizes(flops=tuple(min(1.0, (1 - ROUNDED) * aim.flops / own) for aim in recipe.aims))
    parameters = cost_report(dense).combinations[0].cost.parameters
    allowed = [STORED * aim.weights * parameters for aim in recipe.aims]
    for _ in range(FITTINGS):
        levels = recipe.nested(graph, found, use)
        over = [aim.excess(at_level(levels, k, alone=True), dense) for k, aim in enumerate(recipe.aims)]
        if max(over) <= 0:
            return found
        if found.weight_bytes:
            allowed = [a * (1 - CLOSE) / (1 + max(0.0, more)) for a, more in zip(allowed, over, strict=True)]
        found = replace(found, weight_bytes=tuple(allowed))
    raise ValueError(f"{recipe.aims} cannot be had: levels have up to {max(over):.0%} more")


def shares(graph: Graph, dense: Graph, recipe: Recipe) -> tuple[float, ...]:
    """The least share of its blocks that each level must leave out for its aim."""
    return tuple(_share(graph, dense, aim, recipe.whole) for aim in recipe.aims)


def _share(graph: Graph, dense: Graph, aim: Aim, whole: Sequence[str]) -> float:
    """By false position: sizes are nearly linear in the share, and levels of large networks take time to make.

    ValueError where layers that stay whole are more than the aim.
    """

    def excess(share: float) -> float:
        return aim.excess(nesting((share, SPARSER), whole)(graph), dense)

    low, high = 0.0, MOST_LEFT_OUT
    above, below = excess(low), excess(high)
    if above <= 0:
        return low
    if below > 0:
        raise ValueError(
            f"{aim} cannot be had: with {high:.0%} of its blocks left out the network has {below:.0%} more, as "
            f"layers of `whole` ({', '.join(whole)}) stay; allow more, or name fewer layers there"
        )
    for _ in range(STEPS):
        if below > -CLOSE:
            break
        middle = low + (high - low) * (above + CLOSE / 2) / (above - below)
        found = excess(middle)
        if found <= 0:
            high, below = middle, found
        else:
            low, above = middle, found
    return math.ceil(high * 1e4) / 1e4


def nesting(shares: Sequence[float], whole: Sequence[str] = ("last",)) -> Nest:
    """Levels in all layers but the `whole`; low blocks, so that the first layer keeps some of its few inputs."""
    return Nest(levels=tuple(shares), pattern="block4x1", dense=tuple(whole), min_inputs=1)


def augmented(part: Part, draws: int, reach: int, seed: int) -> Part:
    """Every image `draws` times, moved by up to `reach` pixels, half of them mirrored.

    Every draw after the first is in an order of its own: of the samples a training judges by every so many, and an
    image that is left out for that is trained on in other draws.
    """
    rng, count = np.random.default_rng(seed), len(part.inputs)
    orders = [rng.permutation(count) if draw else np.arange(count) for draw in range(draws)]
    moved = _moved_on_gpu if torch.cuda.is_available() else _moved
    images = np.empty((draws * count, *part.inputs.shape[1:]), part.inputs.dtype)
    for draw, found in enumerate(moved(part.inputs, orders, reach, rng)):
        images[draw * count : (draw + 1) * count] = found
    return Part(images, {task: labels[np.concatenate(orders)] for task, labels in part.labels.items()})


def _moved(
    images: np.ndarray, orders: Sequence[np.ndarray], reach: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The images in every order, moved and mirrored."""
    return (shift_and_flip(images[order], rng, reach) for order in orders)


def _moved_on_gpu(
    images: np.ndarray, orders: Sequence[np.ndarray], reach: int, rng: np.random.Generator, device: str = "cuda"
) -> Iterator[np.ndarray]:
    """The same on a GPU, in a small part of the time."""
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    padded = torch.nn.functional.pad(torch.from_numpy(images).to(device), (reach,) * 4)
    for order in orders:
        moved = shifted_windows(padded, torch.from_numpy(order).to(device), reach, generator)
        yield moved.contiguous().cpu().numpy()


def made(dense: Graph, part: Part, recipe: Recipe, kept: Path, until: float | None = None) -> Made:
    """Channels, then levels. Every training sees other draws of shifted images; on a CPU interrupted ones go on.

    `until`: reading of the monotonic clock by which all is to be done: levels are trained in fewer epochs if they
    must.
    """
    start = time.monotonic()
    told = Clock()
    use = _use(dense, part, recipe, kept, 1, told)
    narrow = recipe.pruned(dense, use)
    weights, flops = fractions(narrow, dense)
    say(f"nesting: {weights:.1%} of weights, {flops:.1%} of FLOPs after {time.monotonic() - start:.0f} s")
    begun = time.monotonic()
    narrowed = recipe.first()(narrow, use)
    whole = time.monotonic() - begun
    epoch = told.epoch or whole / recipe.narrowed
    use = _use(dense, part, recipe, kept, 2, told)
    found = sizes(narrowed, dense, recipe, use)
    untrained = recipe.nested(narrowed, found, use)
    if until is not None:
        around = 2 * max(0.0, whole - epoch * recipe.narrowed)
        recipe = recipe.within(until - ENDING - around - time.monotonic(), epoch)
        say(f"nesting: {recipe.epochs_of_levels} epochs of about {epoch:.1f} s for levels")
    levels = recipe.levels(narrowed, found, use)
    return Made(untrained, levels, recipe, (time.monotonic() - start) / 60)


class Clock:
    """Says what a training tells, and knows how long an epoch of it took."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def __call__(self, line: str) -> None:
        say(line)
        if "distil: epoch" in line:
            self._ends.append(time.monotonic())

    @property
    def epoch(self) -> float:
        """Seconds from one epoch's end to the next, the median; 0 where there were fewer than two."""
        return float(np.median(np.diff(self._ends))) if len(self._ends) > 1 else 0.0


def _use(dense: Graph, part: Part, recipe: Recipe, kept: Path, stage: int, told: Clock) -> Resources:
    seen = augmented(part, recipe.draws, recipe.reach, SEED + stage)
    return Resources(
        calibration={INTERFACE.input: seen.inputs},
        labels={TASK: seen.labels[TASK]},
        teacher=dense,
        seed=SEED + stage,
        # A GPU trains for minutes: what it takes to tell data apart and to write checkpoints would be much of it.
        cache=None if torch.cuda.is_available() else kept,
        say=told,
    )


def through_torch(graph: Graph, part: Part) -> float:
    """Accuracy of a graph as a function of torch, on a GPU where torch sees one."""
    net = TorchNet(graph, chosen_device("auto"))
    (only,) = graph.inputs
    inputs = net.feeds({only.ref.name: part.inputs.reshape(-1, *only.shape)})
    (scores,) = predict(net, inputs, JUDGED).values()
    return accuracy(scores.cpu().numpy(), part)


# ---------------------------------------------------------------------- what is kept
def kept_levels(name: str, data: Data, study: Study, kept: Path, until: float | None = None) -> Kept:
    """Levels of a network and the record of their training, trained once and then read from the folder `kept`.

    `until`: see `made`; levels of a shorter training count as those of the study, and their record tells.
    """
    stem = kept / f"nesting-{name}-{_key(name, data, study)}"
    archive, told = stem.with_suffix(".zip"), stem.with_suffix(".json")
    if not (told.exists() and archive.exists()):
        levels, record = _trained(name, data, study, kept, until)
        replace_whole(archive, _zipped(levels))
        replace_whole(told, (json.dumps(record, indent=1) + "\n").encode())
    return Kept(_unzipped(archive), json.loads(told.read_text()))


def _key(name: str, data: Data, study: Study) -> str:
    counts = [len(part.inputs) for part in (data.train, data.selection, data.report)]
    parts = [METHOD, name, asdict(study), counts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _trained(
    name: str, data: Data, study: Study, kept: Path, until: float | None
) -> tuple[Graph, Mapping[str, Any]]:
    say(f"{name}: dense network")
    dense = load(trained(name, data.train, study.effort, kept), task=TASK)
    for spec in DEFAULT_PASSES:
        dense = parse_pass(spec)(dense)
    parts = {"selection": data.selection, "report": data.report}

    def judged(graph: Graph) -> dict[str, float]:
        return {n: through_torch(graph, part) for n, part in parts.items()}

    whole = judged(dense)
    say(f"{name}: {whole}")
    found = made(dense, data.train, study.recipe, kept, until)
    count = level_count(found.levels)
    sizes = [fractions(at_level(found.levels, k, alone=True), dense) for k in range(count)]
    record = {
        "weights_fraction": [weights for weights, _ in sizes],
        "flops_fraction": [flops for _, flops in sizes],
        "accuracy": {
            "dense": whole,
            "trained": _of_levels(found.levels, judged),
            "by magnitude": _of_levels(found.untrained, judged),
        },
        "training": {**asdict(study.effort), **machine()},
        "recipe": asdict(found.recipe),
        "shortened": found.recipe != study.recipe,
        "minutes": found.minutes,
    }
    return found.levels, record


def _of_levels(graph: Graph, judged: Callable[[Graph], dict[str, float]]) -> list[dict[str, float]]:
    return [judged(at_level(graph, k, alone=True)) for k in range(level_count(graph))]


def machine() -> dict[str, str]:
    """What a training runs on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()
    return {"device": device, "torch": torch.__version__}


def _zipped(graph: Graph) -> bytes:
    """The graph as ONNX in an archive; zeros of sparse weights take no room there."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "levels.onnx"), Path(folder, "levels.zip")
        save(graph, plain)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(plain, plain.name)
        return packed.read_bytes()


def _unzipped(packed: Path) -> Graph:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed) as archive:
        return load(archive.extract("levels.onnx", folder))
