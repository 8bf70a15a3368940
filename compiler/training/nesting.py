"""Training of a network with sparsity levels, from the sparsest up.

On the way down blocks leave in rounds with training between, from those of level 0 to those of the last level, the
sparsest; what has left keeps the values it had. On the way up the last level is trained and stays as it is from
then on; every denser level trains what it adds around that core, and biases of its own (the order of Qin et al.,
ICTAI 2022, arXiv 2112.10930; gradual removal by magnitude: Zhu and Gupta 2017, arXiv 1710.01878). So values are the
same at all levels that store them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.errors import VerifyError
from compiler.ir.encoding import BlockSparse, Dense
from compiler.ir.graph import Graph, Value
from compiler.ir.levels import at_level, level_count
from compiler.ir.types import ValueRef
from compiler.training.distilling import CHECKED, Material, Wanted, chosen_device, divided, prepared
from compiler.training.ladder import Ladder
from compiler.training.loop import History, Recipe, Say, Training, held_out_loss
from compiler.training.module import TorchNet, check_agrees

Arrays = Mapping[ValueRef, np.ndarray]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How levels are trained: blocks leave in `rounds`, each after `settle` epochs (0 rounds: levels keep their
    blocks); levels above the sparsest take steps of `climb` times the rate.
    """

    rounds: int
    settle: int
    climb: float


@dataclass(frozen=True, slots=True)
class Stage:
    """One training on the way: what it was of, and how it went; of a level, the held-out loss it came with."""

    name: str
    history: History
    came: float | None = None

    @property
    def worse(self) -> bool:
        """Whether a level came with less than it has now: what it shares with sparser ones has moved."""
        return self.came is not None and self.came < self.history.losses[self.history.best]


def distil_levels(
    graph: Graph,
    material: Material,
    wanted: Wanted,
    recipe: Recipe,
    schedule: Schedule,
    device: str = "auto",
    checkpoint: Path | None = None,
    say: Say = lambda line: None,
) -> list[Stage]:
    """Train every level of `graph`, which is mutable and has levels, towards the teacher's outputs.

    Every weight keeps the number of blocks that each level stores of it; with rounds, which blocks these are is
    decided anew. `recipe.epochs` are those of a level. `checkpoint`: every stage writes a file beside it.
    VerifyError where the torch function and the reference disagree, before or after. ConfigError where labels do
    not fit the outputs.
    """
    where = chosen_device(device)
    net = TorchNet(at_level(graph, 0, alone=True), where)
    check_agrees(net, material.feeds[:CHECKED])
    data, objective = prepared(net, material, wanted, recipe.batch)
    train, held_out = divided(data)

    def trained(name: str, recipe: Recipe) -> Stage:
        file = None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-{name.replace(' ', '-')}")
        told = Training(net, objective, recipe, train, held_out, file, lambda line: say(f"{name}: {line}"))
        return Stage(name, told.run())

    def judged(net: TorchNet = net) -> float:
        net.mixed = recipe.mixed  # as in training, with whose losses these are compared
        return held_out_loss(net, objective, held_out, recipe.batch)

    came = [judged(TorchNet(at_level(graph, k, alone=True), where)) for k in range(level_count(graph))]
    climb = _Climb(graph, net, recipe, schedule, trained, judged)
    found = [*climb.down(), *climb.up()]
    levels = zip(found[-len(came) :], reversed(came), strict=True)
    stages = [*found[: -len(came)], *(replace(stage, came=loss) for stage, loss in levels)]
    climb.store()
    for level in range(level_count(graph)):
        check_agrees(TorchNet(at_level(graph, level, alone=True), where), material.feeds[:CHECKED])
    return stages


def own_vectors(graph: Graph) -> frozenset[ValueRef]:
    """What differs by level besides which blocks are stored: vectors that do so already, and the biases that only
    layers with levels read.
    """
    nested = {s.node.ref for s in graph.sites() if any(v.sparser for _, v in s.operands.present())}
    return frozenset(
        v.ref
        for v in graph.parameters()
        if isinstance(v.type.encoding, Dense)
        and np.count_nonzero(np.asarray(v.shape) > 1) <= 1
        and not graph.is_output(v.ref)
        and (v.sparser or all(node.ref in nested and position == 2 for node, position in graph.uses(v.ref)))
    )


class _Climb:
    """The levels of a graph in training: one network, whose values and freedom change from stage to stage.

    `trained` trains the network as it is now under a name; `judged` is its loss on held-out inputs.
    """

    def __init__(
        self,
        graph: Graph,
        net: TorchNet,
        recipe: Recipe,
        schedule: Schedule,
        trained: Callable[[str, Recipe], Stage],
        judged: Callable[[], float],
    ) -> None:
        self._graph, self._net, self._trained, self._judged = graph, net, trained, judged
        self._recipe, self._schedule = recipe, schedule
        self._vectors = own_vectors(graph) & net.weights.keys()
        self._ladders = {v.ref: Ladder(v) for v in graph.parameters() if _in_blocks(v) and v.ref in net.weights}
        self._memory = {r: net.array(r) for r in self._ladders}
        """The last value that every block of level 0 had."""
        self._found: dict[int, Arrays] = {}
        """Level -> all weights as it left them."""

    # ------------------------------------------------------------------ stages
    def down(self) -> Iterator[Stage]:
        """Rounds of training from the blocks of level 0 to those of the last level."""
        rounds, epochs = self._schedule.rounds, self._schedule.settle
        standing = {ref: ladder.counts[0] for ref, ladder in self._ladders.items()}
        for ladder in self._ladders.values() if rounds else ():
            ladder.forget()
        for number in range(1, rounds + 1):
            self._net.free({r: ladder.inside(standing[r]) for r, ladder in self._ladders.items()})
            recipe = replace(self._recipe, epochs=epochs, patience=0, seed=self._recipe.seed + number)
            yield self._trained(f"round {number} of {rounds}", recipe)
            for ref, ladder in self._ladders.items():
                self._remember(ref, standing[ref])
                standing[ref] = ladder.between(rounds, number)
                ladder.shrink(self._memory[ref], standing[ref])
                self._net.put(ref, ladder.within(standing[ref], self._memory[ref]))

    def up(self) -> Iterator[Stage]:
        """The last level and everything that all levels share, then what every denser one adds."""
        last = level_count(self._graph) - 1
        for ref, ladder in self._ladders.items():
            self._net.put(ref, ladder.within(ladder.counts[last], self._memory[ref]))
        self._net.free({r: ladder.inside(ladder.counts[last]) for r, ladder in self._ladders.items()})
        yield self._finished(last, self._recipe)
        denser = replace(self._recipe, rate=self._recipe.rate * self._schedule.climb)
        for level in reversed(range(last)):
            self._net.free(self._added(level))
            self._begin(level)
            yield self._finished(level, denser)

    def _finished(self, level: int, recipe: Recipe) -> Stage:
        stage = self._trained(f"level {level}", recipe)
        self._found[level] = {ref: self._net.array(ref) for ref in self._net.weights}
        for ref, ladder in self._ladders.items():
            self._remember(ref, ladder.counts[level])
        return stage

    def _remember(self, ref: ValueRef, count: int) -> None:
        inside = self._ladders[ref].inside(count)
        self._memory[ref] = np.where(inside, self._net.array(ref), self._memory[ref])

    def _added(self, level: int) -> dict[ValueRef, np.ndarray]:
        """What a level may change: the blocks that the level after it lacks, and its vectors."""
        free = {r: np.full(w.shape, r in self._vectors) for r, w in self._net.weights.items()}
        for ref, ladder in self._ladders.items():
            free[ref] = ladder.inside(ladder.counts[level]) & ~ladder.inside(ladder.counts[level + 1])
        return free

    def _begin(self, level: int) -> None:
        """New blocks begin with the values they had when they left, or as zeros where the core alone loses less."""
        core = {r: self._net.array(r) for r in self._ladders}
        alone = self._judged()
        for ref, ladder in self._ladders.items():
            self._net.put(ref, ladder.within(ladder.counts[level], self._memory[ref]))
        if self._judged() >= alone:
            for ref, data in core.items():
                self._net.put(ref, data)

    # ------------------------------------------------------------------ result
    def store(self) -> None:
        """Write all levels into the graph; VerifyError where what levels share did not stay as it was."""
        for ref in self._net.weights:
            of_levels = [arrays[ref] for _, arrays in sorted(self._found.items())]
            if ref in self._vectors:
                self._graph.update(ref, data=of_levels[0], sparser=of_levels[1:])
                continue
            shared = [of_levels[0] for _ in of_levels]
            if ref in self._ladders:
                shared = [self._ladders[ref].within(count, of_levels[0]) for count in self._ladders[ref].counts]
            if not all(map(np.array_equal, shared, of_levels)):
                raise VerifyError(f"distil: '{ref}' has other values at a denser level than in the core of it")
            self._graph.update(ref, data=shared[0], sparser=shared[1:] if ref in self._ladders else None)


def _in_blocks(value: Value) -> bool:
    return bool(value.sparser) and isinstance(value.type.encoding, BlockSparse)
