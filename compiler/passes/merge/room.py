"""What fits into memory: how many samples at a time, and whether what is kept of all of them does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from compiler.calibration.tape import Feed, Tape
from compiler.errors import TargetError
from compiler.ir.graph import Graph, NodeRef
from compiler.passes.merge.rows import CHUNK

HELD = 2 << 30
"""Bytes of values of all samples that are kept while layers are fitted; what is beyond is computed again when it is
read.
"""

WALKED = 256 << 20
"""Bytes of values of some samples that go through the original networks together, where one sample takes less."""


def bounded_tape(graph: Graph, feeds: Sequence[Feed]) -> Tape:
    """A tape that keeps no more values than there is room for."""
    return Tape(graph, feeds, HELD)


def samples_at_once(size: int) -> int:
    """Samples of `size` bytes that are measured together: whole chunks, or as many as make one up in turns."""
    count = max(WALKED // max(size, 1), 1)
    return count // CHUNK * CHUNK if count >= CHUNK else 1 << count.bit_length() - 1


def widest(graph: Graph, steps: Iterable[Sequence[NodeRef]]) -> int:
    """Most bytes of one sample's values that are there at once, going through the nodes step by step."""
    left = {v.ref: len(graph.uses(v.ref)) for v in graph.values()}
    most = now = sum(v.type.bytes for v in graph.inputs)
    for refs in steps:
        nodes = [graph.node(r) for r in refs]
        read = [v for n in nodes for _, v in graph.operands(n).present() if v.data is None]
        made = [v for n in nodes for v in graph.results(n)]
        now += sum(v.type.bytes for v in made)
        most = max(most, now)
        for value in read:
            left[value.ref] -= 1
        over = {v.ref: v for v in (*read, *made) if not left[v.ref]}
        now -= sum(v.type.bytes for v in over.values())
    return most


MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that programs can still take, of the machine and of the control group; None where that is not known."""
    free = _number(MEMORY, "MemAvailable:")
    found = [] if free is None else [free * 1024]
    most, taken = _number(GROUP / "memory.max", ""), _number(GROUP / "memory.stat", "anon ")
    if most is not None and taken is not None:
        found.append(max(most - taken, 0))
    return min(found, default=None)


def _number(file: Path, name: str) -> int | None:
    """The number behind a name at the beginning of a line."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    words = next((line[len(name) :].split() for line in lines if line.startswith(name)), [])
    return int(words[0]) if words and words[0].isdecimal() else None


def check_room(what: str, samples: int, each: int) -> None:
    """TargetError where so many samples, of which at least `each` bytes are kept, cannot fit into memory."""
    free = free_memory()
    if free is not None and samples * each > free:
        fitting = max(free // (2 * each), 1)
        raise TargetError(
            f"{what}: what is kept of {samples} calibration inputs, results of layers at some positions and all "
            f"outputs, takes {samples * each / 1e9:.1f} GB; {free / 1e9:.1f} GB of memory are free. Give fewer "
            f"inputs (samples={fitting}), or merge fewer networks at a time"
        )
