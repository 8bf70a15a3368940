"""What a strategy is: one way to compute a family of groups: its choices, their predicted cost, and its kernel.

The planner asks every strategy of a group's family for candidates, picks one (by rule, from a tuning database or
from a recorded plan), and later has the same strategy build the kernel. Nothing below this decides anything.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from compiler.codegen.families import Family
from compiler.codegen.groups import Group
from compiler.codegen.kernels import Builder, Built
from compiler.codegen.layout import Border
from compiler.codegen.layouts import block_width
from compiler.codegen.target import Target
from compiler.ir.encoding import Dense
from compiler.ir.graph import Value
from compiler.ir.types import ValueRef


@dataclass(frozen=True, slots=True)
class Choice:
    """How one group is computed: algorithm, and the numbers that its kernel is generated with."""

    algorithm: str
    tile: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.algorithm + (f" {'x'.join(map(str, self.tile))}" if self.tile else "")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice with its predicted time in seconds, and what is worth recording about it."""

    choice: Choice
    seconds: float
    note: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Situation:
    """What candidates may depend on besides their group: the target and facts of the whole network."""

    target: Target
    padded: frozenset[ValueRef]
    """Activations that some convolution reads with padding, so that their buffers have halos."""
    weight_bytes: int
    """Bytes of all weights: what has to pass the caches between two calls."""
    widths: Mapping[int, int] = field(default_factory=dict)
    """Lanes per block by number of channels, where they are not those of `block_width`."""

    def block(self, channels: int) -> int:
        """Lanes per block of an activation with so many channels."""
        return self.widths.get(channels) or block_width(channels, self.target.machine)


class Strategy(abc.ABC):
    """One algorithm."""

    name: str
    """Name in plans and reports."""
    version: ClassVar[int] = 1
    """Counted up whenever the generated code changes, so that stale measurements die."""
    arm_version: ClassVar[int] = 2
    """Counted up whenever it changes for ARM alone, so that measurements on x86 live on."""
    families: tuple[Family, ...]
    """Groups it can run."""
    levels: ClassVar[bool] = False
    """Whether it can run constants with sparsity levels."""
    skips_zeros: ClassVar[bool] = False
    """Whether it leaves out what the encoding of the weights does not store."""

    def code_version(self, preset: str) -> int:
        """Number of the code generated for a target's preset."""
        return self.version + (self.arm_version if preset.startswith(("aarch64", "armv7")) else 0)

    def multiplies_zeros(self, choice: Choice, operand: int) -> bool:
        """Whether, with this choice, zeros of the sparse weight at this position are multiplied all the same."""
        return not self.skips_zeros

    @abc.abstractmethod
    def candidates(self, group: Group, situation: Situation) -> Iterable[Candidate]:
        """Every way to run `group`, best predicted first; none where the algorithm does not apply.

        Plans from files are held to this list: what is not in it is never built.
        """

    def borders(self, group: Group, choice: Choice) -> Mapping[ValueRef, Border]:
        """Zero borders that the kernel reads, by input; inputs that are missing are read without one."""
        return {}

    @abc.abstractmethod
    def build(self, builder: Builder, group: Group, choice: Choice, stored: Sequence[Value]) -> Built:
        """The kernel, its packed constants and its arguments; it must store the values `stored`."""


def weight_form(weight: Value) -> str:
    """How a weight is stored, and the share of it, in steps of a sixty-fourth: times depend on both."""
    encoding = weight.type.encoding
    if encoding == Dense() or not weight.size:
        return "dense"
    stored = encoding.stored(weight.shape, weight.data) / weight.size
    kind = str(encoding).partition("+")[0].partition("*")[0].partition("/")[0]
    return f"{kind}@{round(64 * stored)}/64"
