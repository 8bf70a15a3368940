"""What a pass is: a named rewrite of a graph whose options are its fields.

Functional outside, imperative inside: the caller's graph is never touched, `rewrite` edits a private copy, and the
result is verified and frozen before anybody sees it.
"""

from __future__ import annotations

import abc
import difflib
import enum
import importlib
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, final

import numpy as np

from compiler.errors import ConfigError, PassError, TargetError, VerifyError
from compiler.ir.decisions import outputs_and_ties, settled
from compiler.ir.graph import Graph, Site
from compiler.ir.levels import level_count
from compiler.ir.reference import UNITS, difference, evaluate, random_feeds
from compiler.ir.types import NodeRef, TaskSet
from compiler.ir.verify import verify
from compiler.passes.spec import as_read, render
from compiler.progress import Say, heard_by, silent

Batch = Mapping[str, np.ndarray]
"""Graph input name -> array of exactly that input's shape."""

Calibration = Callable[[], Iterable[Batch]]
"""A factory: every call starts the same sequence of feeds again."""


Judge = Callable[[Graph], Mapping[str, float]]
"""A graph -> how much worse every task with labels is than the original, in its metric.

A judge may have an attribute `most_drop`, the most that any of its metrics can drop.
"""


class Timer(Protocol):
    """Predicted times on one target."""

    @property
    def lanes(self) -> int:
        """Channels that take the same time as one."""

    def graph(self, graph: Graph) -> Mapping[NodeRef, float]:
        """Seconds of every kernel of the graph's plan, by its first node."""

    def site(self, site: Site, constants: frozenset[int]) -> float:
        """Seconds of one node on its own, operands at the positions `constants` being weights."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something a pass left alone: `where` names the node or axis, `reason` says why in one sentence."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Note(Refusal):
    """Something a pass did that is worth telling, in the same form."""


ROUNDING = 1e-5
"""Largest difference that an exact pass may make in float32, relative to the tensor: sums in another order."""


def rounding(graph: Graph) -> float:
    """The same for the types of a graph: ROUNDING, and UNITS in the last place where float16 needs more."""
    units = [float(np.finfo(v.dtype.value).eps) for v in graph.values() if v.dtype.is_float]
    return max(ROUNDING, UNITS * max(units, default=0.0))


def check_outputs(name: str, before: Graph, after: Graph) -> None:
    """VerifyError where the exact pass `name` changed an output on random inputs by more than rounding does."""
    if [id(v) for v in before.values()] == [id(v) for v in after.values()]:
        return  # payloads are replaced, never mutated: nothing happened
    feeds = random_feeds(before, np.random.default_rng(0))
    expected, ties = outputs_and_ties(before, feeds)
    found, limit = evaluate(after, feeds), rounding(before)
    for old, new in zip(before.outputs, after.outputs, strict=True):
        was = expected[old.ref.name]
        worst = difference(settled(found[new.ref.name], was, ties.get(old.ref.name)), was)
        if not worst <= limit:
            raise VerifyError(f"{name}: '{old.ref}' differs by {worst:.1e} of scale (limit {limit:.0e})")


def torch_module(name: str, wants: str) -> Any:
    """Module `name` of compiler.training, loaded for the pass `wants`; TargetError where torch is not installed."""
    try:
        return importlib.import_module(f"compiler.training.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise TargetError(f"{wants}: needs torch, which is not installed; pip install 'taskgraft[train]'") from None


OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""Parts of what torch says where memory runs out; on a CPU it has no class of error for that."""


CPU_ONLY = "the CPU: set CUDA_VISIBLE_DEVICES= in the environment"
"""How a pass without the option `device` leaves a GPU."""


@contextmanager
def memory_for(wants: str, less: str, off_gpu: str) -> Iterator[None]:
    """TargetError where torch runs out of memory in it. `less`: what the user takes less of; `off_gpu`: how the
    pass `wants` leaves a GPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError) or any(part in text for part in OUT_OF_MEMORY)):
            raise
        # CUDA, CUBLAS or CUDNN says so
        where, advice = ("the GPU", f"{less}, or {off_gpu}") if "CU" in text else ("this machine", less)
        told = text.partition("\n")[0][:200]
        raise TargetError(f"{wants}: the memory of {where} is too small: {told}\nTake {advice}") from error


class NewNames(enum.IntEnum):
    """What values and nodes that a pass adds are called."""

    NONE = 0
    """It adds none."""
    DERIVED = 1
    """The name of one that was there, one of SEPARATORS, and whatever."""
    ANY = 2


SEPARATORS = "._/"


def names_of(graph: Graph) -> set[str]:
    """Of all values and nodes."""
    return {v.ref.name for v in graph.values()} | {n.ref.name for n in graph.nodes()}


def check_patterns(graph: Graph, patterns: Iterable[str], where: str) -> None:
    """ConfigError with every pattern (fnmatch) that names no value and no node of `graph`, and the nearest names.

    What such a pattern was to keep would be changed. `where` is what holds the patterns, such as an option.
    """
    if lost := lost_patterns(graph, patterns):
        raise ConfigError("\n".join((*(f"{where} {problem}" for problem in lost), PATTERNS)))


PATTERNS = "`taskgraft inspect --text` lists the names, and * stands for any characters"
"""What helps who wrote a pattern that names nothing."""


def lost_patterns(graph: Graph, patterns: Iterable[str], new: NewNames = NewNames.NONE) -> list[str]:
    """Every pattern (fnmatch) that names no value and no node of `graph`, nor any that could have been added behind
    it, with the nearest names.
    """
    names = names_of(graph) if new < NewNames.ANY else set[str]()
    return [
        f"{p}: no value and no node of '{graph.name}' has such a name{_near(p, names)}"
        for p in patterns
        if new < NewNames.ANY
        and not any(named(name, p) for name in names)
        and not (new is NewNames.DERIVED and any(_could_name(p, name) for name in names))
    ]


def named(name: str, pattern: str) -> bool:
    """Whether a pattern means a name: as it is, since names that passes make have brackets, or by its wildcards."""
    return name == pattern or fnmatchcase(name, pattern)


def _could_name(pattern: str, name: str) -> bool:
    """Whether a pattern may name something derived from `name`; True where that would take more than a look."""
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    if len(literal) > len(name):
        return literal.startswith(name) and literal[len(name)] in SEPARATORS
    return len(literal) < len(pattern) and name.startswith(literal)


def is_derived(name: str, names: Collection[str]) -> bool:
    """Whether a name is one of `names`, or derived from one."""
    return name in names or any(name[:i] in names for i, letter in enumerate(name) if letter in SEPARATORS)


def _near(pattern: str, names: Iterable[str]) -> str:
    """Names, and what is between their slashes, close to the longest literal piece of a pattern."""
    literal = max(re.split(r"[*?\[\]]", pattern), key=len).strip("/")
    known = sorted({known for name in names for known in (name, *name.split("/"))})
    near = difflib.get_close_matches(literal, known, n=3)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


@dataclass(frozen=True)
class Resources:
    """What a spec string cannot carry, passed by hand.

    `calibration`: unlabelled inputs, either input name -> array of shape [samples, *input shape without its
    leading batch axis], or a factory of feeds. `machine`: facts about the target, for passes that round to vector
    widths. `workload`: expected share of calls per task subset (empty: all tasks together). `exclude`: patterns
    (fnmatch) of value and node names that no pass may shrink. `cache`: a folder where statistics of calibration
    data and checkpoints are kept under the digest of network and data (None: nowhere). `teacher`: the original
    networks as one graph, for passes that train. `labels`: task -> class numbers [samples, ...] of the calibration
    data, where it has any. `say`: told about the progress of long passes. `clock`: name of a target -> predicted
    times there. `judge`: accuracy on evaluation data."""

    calibration: Mapping[str, np.ndarray] | Calibration | None = None
    machine: Any = None
    seed: int = 0
    workload: Mapping[TaskSet, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    cache: Path | None = None
    teacher: Graph | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    say: Say = silent
    clock: Callable[[str], Timer] | None = None
    judge: Judge | None = None

    def timer(self, target: str) -> Timer:
        """Predicted times on a target; PassError where there are none."""
        if self.clock is None:
            raise PassError(f"times on '{target}' are not known here; pass Resources(clock=...)")
        return self.clock(target)

    def rng(self, pass_: Pass) -> np.random.Generator:
        """A generator that depends on the seed and the pass only, so other passes do not change its numbers."""
        return np.random.default_rng([self.seed, zlib.crc32(pass_.name.encode())])

    def excluded(self, name: str, also: Sequence[str] = ()) -> bool:
        """Whether a pattern of `exclude`, or one that a pass has `also`, names this value or node."""
        return any(named(name, pattern) for pattern in (*self.exclude, *also))

    def batches(self, graph: Graph, most: int = 0) -> Iterator[Batch]:
        """The calibration inputs as feeds of `graph`, at most so many (0: all); PassError where there are none or
        shapes do not fit.
        """
        if self.calibration is None:
            raise PassError("no calibration data was given; pass Resources(calibration={input: array, ...})")
        feeds = self.calibration() if callable(self.calibration) else _split(graph, self.calibration)
        for feed in islice(feeds, min(most, sys.maxsize) or None):
            yield {v.ref.name: _fitted(feed, v.ref.name, v.shape, v.dtype.numpy) for v in graph.inputs}


def _split(graph: Graph, arrays: Mapping[str, np.ndarray]) -> Iterator[Batch]:
    """Consecutive batches of the graph's own batch size; a last incomplete one is left out."""
    shapes = {v.ref.name: v.shape for v in graph.inputs}
    missing = sorted(set(shapes) - set(arrays))
    if missing:
        raise PassError(f"the calibration data lacks input {', '.join(map(repr, missing))}")
    single = sorted(n for n in shapes if not arrays[n].ndim)
    if single:
        raise PassError(f"the calibration data of input {', '.join(map(repr, single))} has no axis of samples")
    strange = [n for n, s in shapes.items() if arrays[n].shape[1:] not in (s, s[1:])]
    if strange:
        found, wanted = list(arrays[strange[0]].shape), ", ".join(map(str, shapes[strange[0]][1:]))
        raise PassError(
            f"the calibration data of input '{strange[0]}' has shape {found}, expected [samples, {wanted}]"
        )
    steps = {n: s[0] if s and len(arrays[n].shape) == len(s) else 1 for n, s in shapes.items()}
    count = min((len(arrays[n]) // steps[n] for n in shapes), default=0)
    for i in range(count):
        yield {n: arrays[n][i * k : (i + 1) * k].reshape(shapes[n]) for n, k in steps.items()}


def _fitted(feed: Batch, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if name not in feed:
        raise PassError(f"the calibration data lacks input '{name}'")
    if tuple(feed[name].shape) != shape:
        raise PassError(f"calibration input '{name}' has shape {tuple(feed[name].shape)}, expected {shape}")
    return np.asarray(feed[name], dtype)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rewritten graph (frozen), what was left alone, and what the pass has to tell besides."""

    graph: Graph
    refusals: tuple[Refusal, ...]
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Pass(abc.ABC):
    """A named rewrite. Options are fields. The graph is valid before and after, not in between."""

    name: ClassVar[str]
    """kebab-case, as on the command line."""

    exact: ClassVar[bool]
    """Whether outputs stay the same up to rounding."""

    new_names: ClassVar[NewNames] = NewNames.ANY
    """What it calls the values and nodes that it adds. From this a pipeline knows that a pattern of a later pass
    names nothing before it gets there.
    """

    keeps_levels: ClassVar[bool] = False
    """Whether a graph with levels may be given to it: what it promises must hold at every level."""

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, as_read(getattr(self, option.name)))

    def levels_problem(self, count: int) -> str:
        """Why the pass cannot start on a graph with `count` levels; empty where it can."""
        if count <= 1 or self.keeps_levels:
            return ""
        return (
            f"there are {count} levels here, which this pass would not keep; run it before nest, on each network "
            "of a portfolio, leave it out for a network that comes with levels, or take one level "
            "(extract-level{level=0,alone=true}) first"
        )

    def levels_after(self, count: int) -> int:
        """How many levels there are behind the pass where there are `count` in front of it."""
        return count

    def wrong(self, graph: Graph, use: Resources) -> list[str]:
        """What keeps the pass from starting whatever passes in front of it make of the network.

        Asked before the first pass of a pipeline runs: of `graph` only tasks, inputs and outputs may be read.
        TargetError where a package is missing.
        """
        return []

    def requires(self, graph: Graph, use: Resources) -> None:
        """Raise PassError or ConfigError, with the reason, where the pass cannot start."""
        return

    @abc.abstractmethod
    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        """Edit `graph`, a private mutable copy; yield or return what was left alone and why, and notes."""

    def ensures(self, before: Graph, after: Graph) -> None:
        """Raise VerifyError where the result does not have what the pass promises."""
        return

    @final
    def run(self, graph: Graph, use: Resources | None = None) -> Outcome:
        """wrong, requires -> copy -> rewrite -> verify -> ensures -> freeze.

        ConfigError where something is wrong, where levels would not be kept, and where a pattern of the
        option `exclude`, which some passes have, names nothing in `graph`.
        """
        use = Resources() if use is None else use
        if problem := self.levels_problem(level_count(graph)):
            raise ConfigError(f"{self.name}: {problem}")
        check_patterns(graph, getattr(self, "exclude", ()), f"{self.name}: exclude")
        if problems := self.wrong(graph, use):
            raise ConfigError(f"{self.name}: {'; '.join(problems)}")
        self.requires(graph, use)
        after = graph.copy()
        with heard_by(use.say):
            told = tuple(self.rewrite(after, use))
        verify(after, stage=self.name)
        self._check_names(graph, after)
        self.ensures(graph, after)
        notes = tuple(t for t in told if isinstance(t, Note))
        return Outcome(after.freeze(), tuple(t for t in told if not isinstance(t, Note)), notes)

    def _check_names(self, before: Graph, after: Graph) -> None:
        if self.new_names is NewNames.ANY:
            return
        known = names_of(before)
        added = sorted(names_of(after) - known)
        if self.new_names is NewNames.DERIVED:
            added = [name for name in added if not is_derived(name, known)]
        if added:
            raise VerifyError(f"after {self.name}: '{added[0]}' is a name that its new_names rules out")

    def __str__(self) -> str:
        """The spec string, `name{option=value}`; `compiler.pipeline.parse` reads it back."""
        return render(self.name, self)

    @final
    def __call__(self, graph: Graph, use: Resources | None = None) -> Graph:
        """The rewritten graph; see `run`."""
        return self.run(graph, use).graph
