"""From steps to programs: the calls of a subset of tasks, with workspace offsets of its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compiler.codegen.kernels import Slot
from compiler.codegen.memory import Interval, place
from compiler.codegen.program import Argument, Call, Kernel, Program
from compiler.codegen.steps import Step, Steps, Symbols


@dataclass(frozen=True)
class Programs:
    """Makes programs of the steps of the full graph."""

    steps: Steps
    symbols: Symbols
    scratch: Mapping[str, int]
    """Bytes of working memory that a kernel wants as an extra last pointer, by symbol; 0: no pointer."""

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The distinct kernels of all steps."""
        return tuple(
            Kernel(
                symbol,
                len(built.slots) + bool(self.scratch.get(symbol)),
                built.template,
                built.parts,
                built.members,
            )
            for built, symbol in self.symbols.values()
        )

    def program(self, mask: int) -> Program:
        """The steps that the tasks of `mask` need."""
        steps = [s for s in self.steps.calls if s.mask & mask]
        placement = place(self._intervals(steps, mask))
        calls = [self._call(number, step, placement.offsets, mask) for number, step in enumerate(steps)]
        return Program(mask, tuple(calls), placement.bytes, placement.lower_bound)

    def _call(self, number: int, step: Step, offsets: Mapping[str, int], mask: int) -> Call:
        symbol = self.symbols[step.built.key][1]
        arguments = [
            _argument(self.steps.home(s), offsets) if needed else Argument("none", 0)
            for s, needed in zip(step.built.slots, step.needs(mask), strict=True)
        ]
        if self._scratch(step):
            arguments.append(Argument("scratch", offsets[_scratch_name(number)]))
        shared = self.steps.shared(step)
        return Call(symbol, tuple(arguments), step.mask, step.nodes, step.built.parts, shared, step.members)

    def _scratch(self, step: Step) -> int:
        return self.scratch.get(self.symbols[step.built.key][1], 0)

    def _intervals(self, steps: Sequence[Step], mask: int) -> list[Interval]:
        """Lifetimes of every workspace buffer over these steps for the tasks of `mask`, scratch memory included."""
        found: dict[str, Interval] = {}
        for number, step in enumerate(steps):
            for slot in itertools.compress(step.built.slots, step.needs(mask)):
                home = self.steps.home(slot)
                if home.kind not in ("value", "plain"):
                    continue
                name = _buffer_name(home)
                known = found.get(name, Interval(name, self.steps.bytes(home), number, number))
                found[name] = replace(known, last=number)
            if size := self._scratch(step):
                name = _scratch_name(number)
                found[name] = Interval(name, size, number, number)
        return list(found.values())


def _argument(home: Slot, offsets: Mapping[str, int]) -> Argument:
    if home.kind in ("value", "plain"):
        return Argument("workspace", offsets[_buffer_name(home)])
    kind = home.kind
    assert kind in ("input", "output", "pool")
    return Argument(kind, home.at, home.stride)


def _buffer_name(home: Slot) -> str:
    """Name of the buffer of a value in one of its two forms; the kind comes first, since a value may be called
    anything."""
    return f"{home.kind} {home.ref}"


def _scratch_name(number: int) -> str:
    """Name of the working memory of a step."""
    return f"scratch {number:06d}"
