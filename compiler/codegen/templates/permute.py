"""Permutation of a vector by a vector of positions, per instruction set: `result[l] = sources[code[l]]`.

Codes name a lane among the lanes of all sources. How they lie in memory is part of the permutation: two codes of
four bits in a byte (the code of an even vector low, that of the odd one behind it high), one code per byte, or the
positions of all four bytes of a lane, which is what ARM's table look-up wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.target import Arch

Form = Literal["nibble", "byte", "table"]

_X86 = {
    (16, 1): "llvm.x86.avx512.permvar.sf.512",
    (16, 2): "llvm.x86.avx512.vpermi2var.ps.512",
    (8, 1): "llvm.x86.avx2.permps",
    (4, 1): "llvm.x86.avx.vpermilvar.ps",
}
"""Lanes and sources to the instruction; it looks at the low bits of a code only."""

_ARM64 = {1: "llvm.aarch64.neon.tbl1.v16i8", 2: "llvm.aarch64.neon.tbl2.v16i8", 4: "llvm.aarch64.neon.tbl4.v16i8"}

_ARM32 = {1: "llvm.arm.neon.vtbl2", 2: "llvm.arm.neon.vtbl4", 4: "llvm.arm.neon.vtbl4"}
"""Eight bytes at a time, from at most 32."""

_ARM32_BEYOND = "llvm.arm.neon.vtbx4"
"""The same for what lies behind the first 32 bytes: bytes whose position is not in the table stay as they are."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """How vectors of `lanes` are permuted, from one source or several (whole runs longer than a vector)."""

    arch: Arch
    lanes: int
    sources: int

    @property
    def supported(self) -> bool:
        """Whether there is an instruction for it."""
        if self.by_table:
            return self.lanes == 4 and self.sources in _ARM64
        return (self.lanes, 1) in _X86 and self.sources in (1, 2, 4)

    @property
    def by_table(self) -> bool:
        """Whether bytes are looked up in a table (ARM)."""
        return self.arch != "x86_64"

    @property
    def single(self) -> bool:
        """Whether no halves are permuted and selected from."""
        return self.by_table or (self.lanes, self.sources) in _X86

    def form(self, panels: int) -> Form:
        """How the codes of `panels` vectors that share their sources lie in memory."""
        if self.by_table:
            return "table"
        return "nibble" if panels % 2 == 0 and self.lanes * self.sources <= 16 else "byte"

    def __call__(self, sources: Sequence[Any], code: Any) -> Any:
        """The permuted vector; `code` as `codes` gives it."""
        assert len(sources) == self.sources
        if self.arch == "aarch64":
            return self._table(sources, code)
        if self.arch == "armv7":
            return self._half_tables(sources, code)
        if not self.single:
            return self._selected(sources, code)
        name = _X86[self.lanes, self.sources]
        if self.sources == 2:
            return T.call_llvm_pure_intrin(f"float32x{self.lanes}", name, sources[0], code, sources[1])
        return T.call_llvm_pure_intrin(f"float32x{self.lanes}", name, sources[0], code)

    def _selected(self, sources: Sequence[Any], code: Any) -> Any:
        """Half of the sources each, then by the bit of the code that tells the halves apart."""
        half = Permutation(self.arch, self.lanes, self.sources // 2)
        low, high = half(sources[: half.sources], code), half(sources[half.sources :], code)
        bit = tirx.IntImm("int32", self.lanes * half.sources)
        chosen = tirx.bitwise_and(code, tirx.Broadcast(bit, self.lanes))
        return tirx.Select(tirx.NE(chosen, tirx.Broadcast(tirx.IntImm("int32", 0), self.lanes)), high, low)

    def _table(self, sources: Sequence[Any], code: Any) -> Any:
        tables = [T.reinterpret("int8x16", s) for s in sources]
        found = T.call_llvm_pure_intrin("int8x16", _ARM64[self.sources], *tables, code)
        return T.reinterpret("float32x4", found)

    def _half_tables(self, sources: Sequence[Any], code: Any) -> Any:
        """Tables are of registers of eight bytes there, and so is what is found."""
        wholes = [T.reinterpret("uint8x16", s) for s in sources]
        parts = [half("uint8x8", w) for w in wholes for half in (T.vectorlow, T.vectorhigh)]
        found = [self._found(parts, half("uint8x8", code)) for half in (T.vectorlow, T.vectorhigh)]
        return T.reinterpret("float32x4", T.vectorcombine("uint8x16", *found))

    def _found(self, parts: Sequence[Any], code: Any) -> Any:
        first, beyond = parts[:4], parts[4:]
        found = T.call_llvm_pure_intrin("uint8x8", _ARM32[self.sources], *first, code)
        if not beyond:
            return found
        moved = code - tirx.Broadcast(tirx.IntImm("uint8", 8 * len(first)), 8)
        return T.call_llvm_pure_intrin("uint8x8", _ARM32_BEYOND, found, *beyond, moved)

    def codes(self, form: Form, stored: Any, panel: int) -> Any:
        """What the instruction takes, for one of the panels that a stored vector serves."""
        if form == "table":
            return stored
        wide = tirx.Cast(f"int32x{self.lanes}", stored)
        if form == "nibble" and panel % 2:
            return tirx.shift_right(wide, tirx.Broadcast(tirx.IntImm("int32", 4), self.lanes))
        return wide

    def stored_lanes(self, form: Form) -> int:
        """Bytes of one stored vector of codes."""
        return 4 * self.lanes if form == "table" else self.lanes

    def pack(self, form: Form, codes: np.ndarray) -> np.ndarray:
        """uint8 [..., panels, lanes] of lane numbers to what is stored: [..., vectors, stored lanes]."""
        if form == "byte":
            return codes
        if form == "nibble":
            return np.asarray(codes[..., 0::2, :] | codes[..., 1::2, :] << 4, np.uint8)
        bytes_ = codes[..., None] * np.uint8(4) + np.arange(4, dtype=np.uint8)
        return np.ascontiguousarray(bytes_.reshape(*codes.shape[:-1], 4 * self.lanes))
