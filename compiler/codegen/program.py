"""What code generation hands on: kernels, calls, programs, pool. Plain data, no TVM.

A `Program` is the straight-line list of kernel calls for one task subset; a `Library` is everything the driver,
the linker and the bundle writer need for one target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compiler.ir.types import TensorType

PLAN_SCHEMA = 1
"""Form of `Library.plan`; plans of another one are refused."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One pointer passed to a kernel.

    `input` / `output`: `at` is the index into the network's inputs / the outputs of all tasks in order.
    `pool` / `workspace`: `at` is the byte offset, plus `stride` for each sparsity level. `scratch`: memory that
    holds nothing between calls; `at` is its byte offset in the workspace, and threads of a pool that share the call
    have memory of their own instead. `none`: a null pointer, where the call leaves out what would use it.
    """

    kind: Literal["input", "output", "pool", "workspace", "scratch", "none"]
    at: int
    stride: int = 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled function `int32_t symbol(void *a0, ..., void *aN)`; returns 0.

    With `members` > 0 one more argument `int32_t active` follows, whose bit i says whether to compute member i, a
    result of its own; the others are not touched. With `parts` > 0 two more, `int32_t begin, int32_t end`: the call
    does the units begin to end - 1 of `parts` independent ones, so that threads share a call and the result does
    not depend on how they do.
    """

    symbol: str
    parameters: int
    template: str
    parts: int = 0
    members: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. `mask` has bit i set where task i needs it; `nodes` are the graph nodes it computes."""

    kernel: str
    arguments: tuple[Argument, ...]
    mask: int
    nodes: tuple[str, ...]
    parts: int = 0
    """As of the kernel: units of work that may run in any grouping."""
    shared: bool = False
    """Whether threads divide the units; False where there is too little work to repay their meeting."""
    members: tuple[int, ...] = ()
    """Of a kernel with members: the tasks that need each of them, as in `mask`."""

    def active(self, tasks: int) -> int:
        """The members that a set of tasks needs: bit i for member i."""
        return sum(1 << i for i, mask in enumerate(self.members) if mask & tasks)

    @property
    def levelled(self) -> bool:
        """Whether it does another amount of work at another sparsity level."""
        return any(a.stride for a in self.arguments)


@dataclass(frozen=True, slots=True)
class Program:
    """The calls for one subset of tasks (bit mask over the library's task order), in execution order."""

    mask: int
    calls: tuple[Call, ...]
    workspace_bytes: int
    lower_bound: int = 0
    """Largest number of live bytes at any step: no plan can need less."""


@dataclass(frozen=True, slots=True)
class Port:
    """A network input, or one output of a task. `label` is its name in the source model."""

    name: str
    type: TensorType
    label: str


@dataclass(frozen=True, slots=True)
class TaskIO:
    """A task and its outputs."""

    name: str
    outputs: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """A packed constant in the weight pool."""

    name: str
    offset: int
    bytes: int
    layout: str


@dataclass(frozen=True, slots=True)
class Level:
    """A sparsity level: elements of all floating-point constants, those stored, bytes with their positions."""

    elements: int = 0
    stored: int = 0
    weight_bytes: int = 0

    @property
    def density(self) -> float:
        """Share of the elements that is stored; 1 for a network without any."""
        return self.stored / self.elements if self.elements else 1.0


@dataclass(frozen=True)
class Library:
    """Everything generated for one target."""

    name: str
    inputs: tuple[Port, ...]
    tasks: tuple[TaskIO, ...]
    kernels: tuple[Kernel, ...]
    full: Program
    """All tasks; its calls with their masks are also the table of the dispatcher for unlisted subsets."""
    programs: tuple[Program, ...]
    """The listed subsets, by mask; includes the full one when it is listed."""
    pool: bytes
    pool_table: tuple[PoolEntry, ...]
    objects: tuple[bytes, ...]
    """Relocatable objects that hold the kernels."""
    levels: tuple[Level, ...] = (Level(),)
    """Sparsity levels, the densest first, or the networks of a portfolio."""
    variants: tuple[tuple[Program, ...], ...] = ()
    """Of a portfolio: the listed subsets at levels 1, 2 ... Then bit k * tasks + i of every mask in programs and
    calls is task i at level k, and `full` is all of it."""
    cheapest: tuple[int, ...] = ()
    """Of a portfolio: by mask of tasks, the level that needs the fewest FLOPs."""
    scratch_bytes: int = 0
    """What every thread of a pool needs for itself: the largest scratch of a shared call."""
    plan: Mapping[str, object] = field(default_factory=dict)
    """JSON-ready record of every choice (algorithm, tile, layout per group)."""
