"""Shared vocabulary of the kernel templates: raw-pointer functions, vector accumulators, epilogues.

Templates emit TIR with the IR builder, never text. A Python loop unrolls; `T.serial` makes a loop. Every
accumulator vector is a buffer of its own: small enough for the stack, from where LLVM lifts it to a register.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


class KernelBuilder:
    """Collects one PrimFunc; `func` is set when the `with kernel(...)` block ends."""

    func: Any = None
    pointers: dict[str, Any]
    begin: Any = None
    end: Any = None
    """Units of work this call does, where the kernel is divided into parts."""
    active: Any = None
    """Bit i is set where the call computes member i, where the kernel has members."""

    def each_part(self) -> Any:
        """The loop over the units of this call: `with made.each_part() as part:`."""
        return T.serial(self.begin, self.end)

    def portion(self, first: int, count: int, **pointers: Any) -> KernelBuilder:
        """A view of the same function in which its units from `first` on are units 0 to `count`, for templates that
        consist of several loops; `pointers` are known there by these names as well."""
        part = self.renamed(**pointers)
        part.begin, part.end = T.max(self.begin - first, 0), T.min(self.end - first, count)
        return part

    def renamed(self, **pointers: Any) -> KernelBuilder:
        """A view of the same function in which `pointers` are known by these names as well."""
        part = KernelBuilder()
        part.pointers = {**self.pointers, **pointers}
        part.begin, part.end, part.active = self.begin, self.end, self.active
        return part

    @contextmanager
    def wanted(self, members: Iterable[int]) -> Iterator[None]:
        """The body runs if the call computes one of these members."""
        if self.active is None:
            yield
            return
        with T.If(tirx.NE(tirx.bitwise_and(self.active, sum(1 << m for m in members)), 0)), T.Then():
            yield


@contextmanager
def kernel(
    parameters: Sequence[str],
    dtypes: dict[str, str] | None = None,
    *,
    divided: bool = False,
    members: bool = False,
) -> Iterator[KernelBuilder]:
    """A PrimFunc whose parameters are raw pointers (float32 unless `dtypes` says otherwise).

    `members`: one more parameter says which of several results a call computes. `divided`: two more parameters say
    which of the kernel's independent units of work it does.
    """
    made = KernelBuilder()
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        types = dtypes or {}
        made.pointers = {p: T.arg(p, T.handle(types.get(p, "float32"))) for p in parameters}
        if members:
            made.active = T.arg("active", T.int32())
        if divided:
            made.begin, made.end = (T.arg(n, T.int32()) for n in ("begin", "end"))
        yield made
    made.func = builder.get()


def view(pointer: Any, shape: Sequence[int], dtype: str = "float32") -> Any:
    """A buffer of `shape` over a pointer parameter; a local buffer in its place must have that shape."""
    if tirx.buffer.is_buffer_var(pointer):
        assert tuple(map(int, pointer.shape)) == tuple(shape), (pointer.shape, shape)
        return pointer
    return T.decl_buffer(tuple(shape), dtype, data=pointer)


def vector(base: Any, width: int) -> Any:
    """The index of `width` consecutive elements from `base` (a plain index for width 1)."""
    start = tirx.IntImm("int32", base) if isinstance(base, int) else base
    return start if width == 1 else tirx.Ramp(start, 1, width)


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """The body runs where the condition holds; True: it always does."""
    if condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


def splat(value: Any, width: int) -> Any:
    """A scalar in every lane."""
    scalar = tirx.FloatImm("float32", float(value)) if isinstance(value, int | float) else value
    return scalar if width == 1 else tirx.Broadcast(scalar, width)


def prefetch(buffer: Any, at: Sequence[Any], *, write: bool = False, near: bool = True) -> None:
    """Ask for the cache line of an element that will be read (or written) soon; never faults. Not `near`: into the
    second-level cache."""
    line = T.address_of(buffer[tuple(at)])
    kind, keep, data = (tirx.IntImm("int32", n) for n in (int(write), 3 if near else 2, 1))
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", line, kind, keep, data))


class Registers:
    """Accumulator vectors."""

    def __init__(self, count: int, width: int) -> None:
        self.width = width
        self._buffers = [T.alloc_buffer((width,), "float32") for _ in range(count)]
        self._at = vector(0, width)

    def get(self, k: int) -> Any:
        """The value of accumulator k."""
        return self._buffers[k][self._at]

    def lane(self, k: int, lane: int) -> Any:
        """One lane of accumulator k."""
        return self._buffers[k][lane]

    def part(self, k: int, start: int, width: int) -> Any:
        """`width` lanes of accumulator k from `start`."""
        return self._buffers[k][vector(start, width)]

    def put(self, k: int, value: Any) -> None:
        """Assign accumulator k."""
        T.buffer_store(self._buffers[k], value, [self._at])


def blocks_at_once(blocks: int, lanes: int) -> int:
    """How many blocks of channels a turn of a loop takes: several where `lanes` > 1 channels are multiplied by
    element (ARM), as loop control would be a sixth of a single one."""
    return next(n for n in (4, 3, 2, 1) if blocks % n == 0) if lanes > 1 else 1


def chunks(extent: int, size: int) -> tuple[tuple[int, int, int], ...]:
    """(start, count, repeats) of the full tiles of `size` in `extent`, then of the remainder."""
    full, rest = divmod(extent, size)
    found = [(0, size, full)] if full else []
    return (*found, (full * size, rest, 1)) if rest else tuple(found)
