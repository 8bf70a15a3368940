"""Storage forms of a tensor.

An encoding belongs to a tensor type, not to an operator: a `Gemm` with a sparse weight is still a `Gemm`, and
only cost and code generation look at how the weight is stored. Data stays dense in the IR with its zeros written
out, so slicing, solving and the reference evaluator never care.

Sparse forms see a weight as *rows* (one axis: the outputs) times *inputs* (all other axes; the taps of a kernel
count as inputs). Their text, `str(encoding)`, is what graphs print and ONNX files carry; `parse` reads it back.
"""

from __future__ import annotations

import abc
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INDEX_BYTES = 4
"""Bytes of a stored offset or list end."""

CODE_BYTES = 1
"""Bytes of the position of a survivor within its run."""

SMALLEST_RUN = 4
"""Runs shorter than this are not made when data no longer fit: they save nothing over a dense kernel."""

WORTH_STORING = 0.5
"""Largest share of elements that a sparse form grows to when data change; beyond it the tensor is dense."""


class Encoding(abc.ABC):
    """How the elements of a tensor are stored."""

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        """Raise ValueError if `data` (dense, or None for activations) cannot be stored this way."""

    def check_level(self, denser: np.ndarray, sparser: np.ndarray) -> None:
        """Raise ValueError unless `sparser` can be the level behind `denser`: both fit, and are stored once."""
        raise ValueError(f"weights stored as {self} have no levels; blocks and dense vectors do")

    @abc.abstractmethod
    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        """Number of stored elements (padding and indices excluded)."""

    @abc.abstractmethod
    def index_bytes(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        """Bytes of the positions stored beside the elements."""

    @abc.abstractmethod
    def take(self, data: np.ndarray, axis: int, kept: np.ndarray) -> tuple[Encoding, np.ndarray]:
        """Keep the entries `kept` (ascending positions) of `axis`; returns the encoding and data that remain.

        Where the remaining data do not fit the encoding, it changes by the rule of `adapted`.
        """

    @abc.abstractmethod
    def adapted(self, before: np.ndarray, after: np.ndarray) -> Encoding:
        """The encoding for data `after` that replace `before`, which fits.

        Itself where `after` fits and no larger share is stored than before, or at most WORTH_STORING; else the
        nearest form for which that holds, at last Dense.
        """


@dataclass(frozen=True, slots=True)
class Dense(Encoding):
    """Every element is stored, row-major."""

    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        if data is not None and tuple(data.shape) != shape:
            raise ValueError(f"data has shape {tuple(data.shape)}, the type says {shape}")

    def check_level(self, denser: np.ndarray, sparser: np.ndarray) -> None:
        """A vector (a bias, a scale) has values of its own at every level; more would be a second copy."""
        if np.count_nonzero(np.asarray(denser.shape) > 1) > 1:
            raise ValueError(f"a dense tensor of shape {denser.shape} has no levels; vectors and blocks do")

    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        return int(np.prod(shape, dtype=np.int64))

    def index_bytes(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        return 0

    def take(self, data: np.ndarray, axis: int, kept: np.ndarray) -> tuple[Encoding, np.ndarray]:
        return self, np.take(data, kept, axis=axis)

    def adapted(self, before: np.ndarray, after: np.ndarray) -> Encoding:
        return self

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True, slots=True)
class Sparse(Encoding):
    """A form that leaves zeros out. `rows` is the axis of the outputs."""

    rows: int = 0

    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        if data is None:
            raise ValueError(f"{self} is a form of constants; a computed value is dense")
        Dense().check(shape, data)
        if not 0 <= self.rows < len(shape) or len(shape) < 2:
            raise ValueError(f"{self} needs rows on axis {self.rows} and inputs on others; the shape is {shape}")

    def take(self, data: np.ndarray, axis: int, kept: np.ndarray) -> tuple[Encoding, np.ndarray]:
        left = np.take(data, kept, axis=axis)
        if not left.size:
            return Dense(), left
        narrowed = self._of_rows(kept) if axis == self.rows else self
        share = float(np.take(self._stored_elements(data), kept, axis=axis).mean())
        return narrowed._settled(share, left), left

    def adapted(self, before: np.ndarray, after: np.ndarray) -> Encoding:
        return self._settled(self._share(before), after)

    def _of_rows(self, kept: np.ndarray) -> Sparse:
        """The same form for the rows `kept` alone."""
        return self

    def _stored_elements(self, data: np.ndarray) -> np.ndarray:
        """bool, as `data`: the elements that are stored and may not be zero."""
        return np.asarray(data != 0)

    def _nearest(self, data: np.ndarray) -> Sparse | None:
        """The form nearest to this one that `data` fits; None for none."""
        return self

    def _settled(self, share: float, data: np.ndarray) -> Encoding:
        found = self._nearest(data)
        worth = found is not None and found._share(data) <= max(share, WORTH_STORING)
        return found if found is not None and worth else Dense()

    def _share(self, data: np.ndarray) -> float:
        return self.stored(tuple(data.shape), data) / max(data.size, 1)

    def _matrix(self, data: np.ndarray) -> np.ndarray:
        """[rows, inputs]."""
        return np.moveaxis(data, self.rows, 0).reshape(data.shape[self.rows], -1)


@dataclass(frozen=True, slots=True)
class BlockSparse(Sparse):
    """Blocks of R consecutive rows at one input are stored unless they are all zero; the last may be lower.

    The same R outputs share an input, so a kernel loads one vector of weights for it. Any data fit.
    """

    block: tuple[int, int] = (16, 1)

    def __post_init__(self) -> None:
        if len(self.block) != 2 or self.block[0] < 2 or self.block[1] != 1:
            raise ValueError(f"a block is at least 2 rows of one input, (R, 1), not {self.block}")

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.block[0]

    def alive(self, data: np.ndarray) -> np.ndarray:
        """bool [ceil(rows / R), inputs]: the blocks that are stored; inputs in row-major order of their axes."""
        matrix = self._matrix(data) != 0
        return np.asarray(np.logical_or.reduceat(matrix, np.arange(0, len(matrix), self.height), axis=0))

    def norms(self, data: np.ndarray) -> np.ndarray:
        """L2 norm of every block, float64 [ceil(rows / R), inputs]."""
        squares = self._matrix(data).astype(np.float64) ** 2
        sums = np.add.reduceat(squares, np.arange(0, len(squares), self.height), axis=0)
        return np.asarray(np.sqrt(sums))

    def check_level(self, denser: np.ndarray, sparser: np.ndarray) -> None:
        """Whole blocks leave, as positive zeros, and those that stay keep their bits."""
        kept = np.repeat(self.alive(sparser), self.height, axis=0)[: denser.shape[self.rows]]
        before, after = (np.ascontiguousarray(self._matrix(a)).view(f"u{a.itemsize}") for a in (denser, sparser))
        wrong = np.argwhere(after != np.where(kept, before, 0))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"{len(wrong)} weights are neither those of a block of the level before it nor positive zeros of "
                f"one that leaves; the first is in output {row}, input {column}"
            )

    def ranks(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [ceil(rows / R), inputs]: how many of `levels` (nested, densest first) store each block."""
        counts: np.ndarray = sum((self.alive(d).astype(np.uint8) for d in levels), np.uint8(0))  # type: ignore[arg-type]
        return counts

    def of_rank(self, data: np.ndarray, ranks: np.ndarray, least: int) -> np.ndarray:
        """`data` with every block of a rank below `least` set to zero."""
        each = np.repeat(ranks >= least, self.height, axis=0)[: data.shape[self.rows]]
        moved = np.moveaxis(data, self.rows, 0)
        kept = np.where(each.reshape(moved.shape), moved, np.zeros((), data.dtype))
        return np.ascontiguousarray(np.moveaxis(kept, 0, self.rows))

    def _stored_elements(self, data: np.ndarray) -> np.ndarray:
        shape = (data.shape[self.rows], *np.delete(data.shape, self.rows))
        each = np.repeat(self.alive(data), self.height, axis=0)[: shape[0]].reshape(shape)
        return np.moveaxis(each, 0, self.rows)

    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        assert data is not None
        if not data.size:
            return 0
        counts = np.count_nonzero(self.alive(data), axis=1)
        heights = np.minimum(self.height, shape[self.rows] - np.arange(len(counts)) * self.height)
        return int(counts @ heights)

    def index_bytes(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        assert data is not None
        if not data.size:
            return 0
        alive = self.alive(data)
        return INDEX_BYTES * (int(np.count_nonzero(alive)) + 2 * len(alive))

    def __str__(self) -> str:
        return f"block{self.block[0]}x{self.block[1]}/{self.rows}"


@dataclass(frozen=True, slots=True)
class RegularBlock(Sparse):
    """At most one element in every run of b consecutive inputs of a row is not zero, and one is stored per run.

    Ren et al., DARB, AAAI 2020 (arXiv 1911.08020). Runs lie along the axis `inputs`, start at its first entry and
    do not cross the other axes (taps); the last one may be shorter. `sizes`: b of every row, or one for all rows.
    """

    inputs: int = 1
    sizes: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2 or self.rows == self.inputs:
            raise ValueError(f"runs have at least 2 inputs, on another axis than the rows: {self.sizes}")
        if len(set(self.sizes)) == 1:
            object.__setattr__(self, "sizes", self.sizes[:1])

    def row_sizes(self, rows: int) -> np.ndarray:
        """int64 [rows]: b of every row."""
        return np.broadcast_to(np.asarray(self.sizes, np.int64), (rows,))

    def runs(self, data: np.ndarray) -> np.ndarray:
        """[rows, taps, inputs]: runs lie along the last axis."""
        moved = np.moveaxis(data, (self.rows, self.inputs), (0, -1))
        return moved.reshape(len(moved), -1, moved.shape[-1])

    def check(self, shape: tuple[int, ...], data: np.ndarray | None) -> None:
        Sparse.check(self, shape, data)
        assert data is not None
        if not 0 <= self.inputs < len(shape):
            raise ValueError(f"{self} has runs along axis {self.inputs}; the shape is {shape}")
        if len(self.sizes) not in (1, shape[self.rows]):
            raise ValueError(f"{self} gives sizes for {len(self.sizes)} rows; there are {shape[self.rows]}")
        if not data.size:
            return
        runs, sizes = self.runs(data), self.row_sizes(shape[self.rows])
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            crowded = np.argwhere(_survivors(runs[rows], int(size)) > 1)
            if len(crowded):
                row, tap, run = crowded[0]
                first = int(run) * int(size)
                raise ValueError(
                    f"{self}: row {rows[row]} has more than one non-zero element among inputs {first} to "
                    f"{min(first + int(size), shape[self.inputs]) - 1} of tap {tap}"
                )

    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        taps = int(np.prod(shape, dtype=np.int64)) // max(shape[self.rows] * shape[self.inputs], 1)
        per_row = -(-shape[self.inputs] // self.row_sizes(shape[self.rows]))
        return int(per_row.sum()) * taps

    def index_bytes(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        return CODE_BYTES * self.stored(shape, data)

    def _of_rows(self, kept: np.ndarray) -> RegularBlock:
        sizes = self.sizes if len(self.sizes) == 1 else tuple(self.sizes[i] for i in kept)
        return RegularBlock(self.rows, self.inputs, sizes)

    def _nearest(self, data: np.ndarray) -> Sparse | None:
        """Row by row the size itself or the first half, quarter ... of it that fits; else Unstructured."""
        if not data.size:
            return self
        runs, sizes = self.runs(data), self.row_sizes(data.shape[self.rows]).copy()
        open_ = np.ones(len(sizes), bool)
        while open_.any():
            for size in np.unique(sizes[open_]):
                rows = np.flatnonzero(open_ & (sizes == size))
                fits = (_survivors(runs[rows], int(size)) <= 1).all(axis=(1, 2))
                open_[rows[fits]] = False
                sizes[rows[~fits]] //= 2
            if (sizes[open_] < SMALLEST_RUN).any():
                return Unstructured(self.rows)
        return RegularBlock(self.rows, self.inputs, tuple(map(int, sizes)))

    def __str__(self) -> str:
        classes = ((size, len(list(same))) for size, same in itertools.groupby(self.sizes))
        sizes = "+".join(f"{size}*{count}" if count > 1 else str(size) for size, count in classes)
        return f"regular{sizes}/{self.rows},{self.inputs}"


@dataclass(frozen=True, slots=True)
class Unstructured(Sparse):
    """Every element that is not zero is stored with its position: a baseline. Any data fit."""

    def stored(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        assert data is not None
        return int(np.count_nonzero(data))

    def index_bytes(self, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        return INDEX_BYTES * (self.stored(shape, data) + shape[self.rows] + 1)

    def __str__(self) -> str:
        return f"unstructured/{self.rows}"


def _survivors(runs: np.ndarray, size: int) -> np.ndarray:
    """Non-zero elements per run: [rows, taps, inputs] to [rows, taps, ceil(inputs / size)]."""
    starts = np.arange(0, runs.shape[-1], size)
    return np.asarray(np.add.reduceat(runs != 0, starts, axis=-1, dtype=np.int64))


# ---------------------------------------------------------------------- text
_BLOCK = re.compile(r"block(\d{1,4})x(\d{1,4})/(\d)")
_REGULAR = re.compile(r"regular(\d{1,4}(?:\*\d{1,7})?(?:\+\d{1,4}(?:\*\d{1,7})?)*)/(\d),(\d)")
_UNSTRUCTURED = re.compile(r"unstructured/(\d)")

MOST_ROWS = 1 << 20
"""Rows that a text may give sizes for: texts come from files."""


def parse(text: str) -> Encoding:
    """The encoding whose text this is, `parse(str(e)) == e`; ValueError for anything else."""
    if text == "dense":
        return Dense()
    if match := _BLOCK.fullmatch(text):
        return BlockSparse(int(match[3]), (int(match[1]), int(match[2])))
    if match := _UNSTRUCTURED.fullmatch(text):
        return Unstructured(int(match[1]))
    if match := _REGULAR.fullmatch(text):
        return RegularBlock(int(match[2]), int(match[3]), _sizes(match[1]))
    raise ValueError(f"'{text[:80]}' is not an encoding; the forms are {FORMS}")


FORMS = "dense, block16x1/ROWS, regular16/ROWS,INPUTS, regular4*ROWS+8*ROWS/ROWS,INPUTS, unstructured/ROWS"
"""The texts `parse` reads, by example; ROWS and INPUTS behind the slash are axes."""


def _sizes(text: str) -> tuple[int, ...]:
    parts = [p.partition("*") for p in text.split("+")]
    counts = [(int(size), int(count or 1)) for size, _, count in parts]
    if sum(count for _, count in counts) > MOST_ROWS:
        raise ValueError(f"sizes for more than {MOST_ROWS} rows")
    return tuple(itertools.chain.from_iterable(itertools.repeat(s, n) for s, n in counts))
