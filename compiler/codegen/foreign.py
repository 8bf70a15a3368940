"""The C functions of a loaded library through ctypes: ports, the call structure, addresses. Needs numpy only."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from compiler.codegen.interface import ALIGNMENT, LATE, MOST_THREADS
from compiler.errors import BundleError

Outputs = dict[str, Any]
"""Task name -> array; for a task with several outputs, -> dict from label to array."""


@dataclass(frozen=True, slots=True)
class Port:
    """Name, type and shape of an input or output."""

    name: str
    label: str
    task: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Port:
        dtype = np.dtype(record["dtype"])
        return cls(record["name"], record["label"], record.get("task", ""), dtype, tuple(record["shape"]))

    def exact(self, array: np.ndarray, name: str, write: bool = False) -> np.ndarray:
        """`array` itself; ValueError unless it can be passed by address (and written to)."""
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise ValueError(f"'{name}' is a {kind}, which has no address to pass; needed is an array, {self}")
        flaws = [", not in C order"] * (not array.flags.c_contiguous)
        flaws += [", misaligned"] * (not array.flags.aligned)
        flaws += [", read-only"] * (write and not array.flags.writeable)
        if array.dtype != self.dtype or array.shape != self.shape or flaws:
            raise ValueError(f"'{name}' is {array.dtype}{list(array.shape)}{''.join(flaws)}; needed is {self}")
        return array

    def converted(self, array: np.ndarray) -> np.ndarray:
        """`array` in this type and C order, aligned; ValueError if the shape differs, if it holds no real numbers,
        or if integers are needed and its values are none of that type.
        """
        given = np.asarray(array)
        if given.shape != self.shape:
            raise ValueError(f"input '{self.name}' has shape {list(given.shape)}; needed is {self}")
        if given.dtype.kind not in "biuf":
            raise ValueError(f"input '{self.name}' holds {given.dtype} and no real numbers; needed is {self}")
        if self.dtype.kind == "f" or np.can_cast(given.dtype, self.dtype):
            return np.require(given, self.dtype, ("C", "A"))
        with np.errstate(invalid="ignore"):
            made = np.require(given, self.dtype, ("C", "A"))
        if not np.array_equal(made, given):
            raise ValueError(f"input '{self.name}' has values that {self.dtype} does not have; needed is {self}")
        return made

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Call(ctypes.Structure):
    """`<name>_call` of the header."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("level", ctypes.c_uint32),
        ("level_used", ctypes.c_uint32),
        ("pool", ctypes.c_void_p),
        ("sparsest", ctypes.c_uint32),
    )
    level: int
    level_used: int
    sparsest: int

    @classmethod
    def make(cls, workspace: np.ndarray, pool: int | None, level: int, sparsest: int = 0) -> Call:
        return cls(ctypes.sizeof(cls), workspace.ctypes.data, workspace.nbytes, level, 0, pool, sparsest)


class Functions:
    """The C functions of one library, typed."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library, self._name = library, name
        self._run = library[f"{name}_run"]
        self._workspace = library[f"{name}_workspace"]
        self._workspace.argtypes, self._workspace.restype = (ctypes.c_uint64, ctypes.c_uint32), ctypes.c_size_t
        self._strerror = library[f"{name}_strerror"]
        self._strerror.restype = ctypes.c_char_p

    def workspace(self, mask: int, level: int) -> int:
        """Bytes at a level that the bundle has."""
        return int(self._workspace(mask, level))

    def bound(self, mask: int, inputs: Any, outputs: Any, call: Call) -> Callable[[], int]:
        """A call with its arguments converted once; it returns the library's code."""
        made = functools.partial(self._run, ctypes.c_uint64(mask), *_addresses(inputs, outputs, call))
        made.keep = (inputs, outputs, call)  # type: ignore[attr-defined]
        return made

    def measure(self, mask: int, inputs: Any, outputs: Any, call: Call, rounds: int, times: Any) -> None:
        """Fill a table of times; BundleError where a call failed."""
        arguments = (*_addresses(inputs, outputs, call), ctypes.c_uint(rounds), ctypes.byref(times))
        self.check(self._library[f"{self._name}_measure"](ctypes.c_uint64(mask), *arguments))

    def within(self, mask: int, inputs: Any, outputs: Any, call: Call) -> Callable[[Any, int], bool]:
        """A call with its arguments converted once, but for the table of times and the budget in microseconds; it
        returns whether it was late. BundleError where it failed, or where the library has no budgets."""
        try:
            run = self._library[f"{self._name}_run_within"]
        except AttributeError:
            raise BundleError(f"'{self._name}' has one level: no call has a budget") from None
        fixed = functools.partial(run, ctypes.c_uint64(mask), *_addresses(inputs, outputs, call))

        def made(times: Any, budget_us: int) -> bool:
            code = fixed(ctypes.byref(times), ctypes.c_uint32(budget_us))
            if code != LATE:
                self.check(code)
            return bool(code == LATE)

        made.keep = (inputs, outputs, call)  # type: ignore[attr-defined]
        return made

    def check(self, code: int) -> None:
        """BundleError with the library's words where a call failed."""
        if code:
            raise BundleError(f"the library returned {code}: {self._strerror(code).decode()}")

    def make_pool(self, threads: int) -> int:
        """A pool's address; ValueError and BundleError as `Network.pool` says."""
        if not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"a pool has 1 to {MOST_THREADS} threads, not {threads}")
        try:
            create = self._library[f"{self._name}_pool_create"]
        except AttributeError:
            raise BundleError(f"'{self._name}' was built without threads: every call is of one thread") from None
        pool = ctypes.c_void_p()
        self.check(create(ctypes.byref(pool), ctypes.c_uint(threads)))
        return cast("int", pool.value)

    def end_pool(self, pool: int) -> None:
        """Give a pool back."""
        destroy = self._library[f"{self._name}_pool_destroy"]
        destroy.argtypes, destroy.restype = (ctypes.c_void_p,), None
        destroy(pool)


def _addresses(*things: Any) -> Iterator[ctypes.c_void_p]:
    return (ctypes.c_void_p(ctypes.addressof(thing)) for thing in things)


def addresses(arrays: Iterable[np.ndarray | None]) -> Any:
    """A C array of pointers; null where there is no array."""
    pointers = [None if array is None else array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * max(1, len(pointers)))(*pointers)


def aligned(size: int) -> np.ndarray:
    """Uninitialised bytes at an aligned address."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
