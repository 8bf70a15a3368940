"""Reading little-endian ELF files, and the two edits a library build needs: hiding symbols, writing archives.

The ELF gates (exports, imports, executable stack, run path) must hold for foreign architectures too, so they do not
depend on installed tools. Layouts are those of the System V ABI, chapters 4 and 5, and the GNU version sections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.errors import LoweringError

_SHT_SYMTAB, _SHT_DYNAMIC, _SHT_DYNSYM, _SHT_VERNEED = 2, 6, 11, 0x6FFFFFFE
_DT_NEEDED, _DT_RPATH, _DT_TEXTREL, _DT_RUNPATH = 1, 15, 22, 29
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_STB_LOCAL, _STB_WEAK, _STV_HIDDEN = 0, 2, 2


@dataclass(frozen=True, slots=True)
class Symbol:
    """An entry of a symbol table."""

    name: str
    defined: bool
    weak: bool
    local: bool


@dataclass(frozen=True, slots=True)
class _Section:
    header: int
    """Offset of its entry in the table of sections."""
    type: int
    offset: int
    size: int
    link: int
    entry_size: int


class Elf:
    """An object, executable or shared library. LoweringError if the bytes are something else."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"\x7fELF" or data[5:6] != b"\x01":
            raise LoweringError("expected a little-endian ELF file")
        self._data = data
        self._wide = data[4] == 2
        self._sections = tuple(self._read_sections())

    def symbols(self, dynamic: bool = False) -> tuple[Symbol, ...]:
        """Symbols of the dynamic or the static table, in file order."""
        return tuple(symbol for _, symbol in self._symbols(_SHT_DYNSYM if dynamic else _SHT_SYMTAB))

    def needed(self) -> tuple[str, ...]:
        """Libraries the loader must find."""
        return tuple(text for tag, text in self._dynamic() if tag == _DT_NEEDED)

    def versions(self) -> tuple[str, ...]:
        """Symbol versions asked of other libraries, such as `GLIBC_2.17`, sorted."""
        return tuple(
            sorted({name for s in self._sections if s.type == _SHT_VERNEED for name in self._version_names(s)})
        )

    def problems(self) -> tuple[str, ...]:
        """What a loader or a security check would object to."""
        tags = {tag for tag, _ in self._dynamic()}
        found = ["text relocations"] * (_DT_TEXTREL in tags)
        found += ["a run path"] * bool(tags & {_DT_RPATH, _DT_RUNPATH})
        stack = [flags for kind, flags, _ in self._segments() if kind == _PT_GNU_STACK]
        found += ["an executable stack"] * (not stack or bool(stack[0] & 1))
        return tuple(found)

    def page_size(self) -> int:
        """Largest alignment of a loaded segment, in bytes."""
        return max((align for kind, _, align in self._segments() if kind == _PT_LOAD), default=0)

    def hide(self) -> bytes:
        """The same object with hidden visibility on every global symbol it defines."""
        edited = bytearray(self._data)
        for at, symbol in self._symbols(_SHT_SYMTAB):
            if symbol.defined and not symbol.local:
                other = at + (5 if self._wide else 13)
                edited[other] = edited[other] & ~3 | _STV_HIDDEN
        return bytes(edited)

    def renamed(self, old: str, new: str) -> bytes:
        """The same object with another name for the symbol `old`. LoweringError where there is none.

        The new name goes behind a copy of the string table at the end of the file: nothing else moves.
        """
        edited = bytearray(self._data)
        found = [
            (at, s)
            for s in self._sections
            if s.type == _SHT_SYMTAB
            for at, symbol in self._in(s)
            if symbol.name == old
        ]
        if len(found) != 1:
            raise LoweringError(f"an object has {len(found)} symbols '{old}'; 1 expected")
        ((at, table),) = found
        names = self._sections[table.link]
        struct.pack_into("<I", edited, at, names.size)
        kind, field = ("<QQ", 24) if self._wide else ("<II", 16)
        text = self._data[names.offset : names.offset + names.size] + new.encode("ascii") + b"\0"
        struct.pack_into(kind, edited, names.header + field, len(edited), len(text))
        return bytes(edited + text)

    def _unpack(self, narrow: str, wide: str, at: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + (wide if self._wide else narrow), self._data, at)

    def _read_sections(self) -> Iterator[_Section]:
        (start,) = self._unpack("I", "Q", 40 if self._wide else 32)
        size, count = struct.unpack_from("<HH", self._data, 58 if self._wide else 46)
        for i in range(count):
            _, kind, _, _, offset, length, link, _, _, entry = self._unpack("10I", "IIQQQQIIQQ", start + i * size)
            yield _Section(start + i * size, kind, offset, length, link, entry)

    def _segments(self) -> Iterator[tuple[int, int, int]]:
        """Type, flags and alignment of each program header."""
        (start,) = self._unpack("I", "Q", 32 if self._wide else 28)
        size, count = struct.unpack_from("<HH", self._data, 54 if self._wide else 42)
        for i in range(count):
            fields = self._unpack("8I", "IIQQQQQQ", start + i * size)
            yield fields[0], fields[1 if self._wide else 6], fields[7]

    def _symbols(self, kind: int) -> Iterator[tuple[int, Symbol]]:
        """File offset and content of each named symbol."""
        for section in (s for s in self._sections if s.type == kind):
            yield from self._in(section)

    def _in(self, section: _Section) -> Iterator[tuple[int, Symbol]]:
        """The same of one table."""
        for at in range(section.offset, section.offset + section.size, section.entry_size):
            if self._wide:
                name, info, _, index = struct.unpack_from("<IBBH", self._data, at)
            else:
                name, _, _, info, _, index = struct.unpack_from("<IIIBBH", self._data, at)
            bind = info >> 4
            if name:
                text = self._string(section.link, name)
                yield at, Symbol(text, index != 0, bind == _STB_WEAK, bind == _STB_LOCAL)

    def _dynamic(self) -> Iterator[tuple[int, str]]:
        """Tag and text of each dynamic entry; the text is empty for entries that are not names."""
        for section in (s for s in self._sections if s.type == _SHT_DYNAMIC):
            for at in range(section.offset, section.offset + section.size, section.entry_size):
                tag, value = self._unpack("II", "QQ", at)
                named = tag in (_DT_NEEDED, _DT_RPATH, _DT_RUNPATH)
                yield tag, self._string(section.link, value) if named else ""

    def _version_names(self, section: _Section) -> Iterator[str]:
        at = section.offset
        while True:
            _, _, _, first, following = struct.unpack_from("<HHIII", self._data, at)
            entry = at + first
            while True:
                _, _, _, name, step = struct.unpack_from("<IHHII", self._data, entry)
                yield self._string(section.link, name)
                if not step:
                    break
                entry += step
            if not following:
                return
            at += following

    def _string(self, table: int, offset: int) -> str:
        start = self._sections[table].offset + offset
        return self._data[start : self._data.index(b"\0", start)].decode("ascii", errors="replace")


def archive(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A static library (GNU `ar`, with symbol index) without times or owners; names up to 15 characters."""
    symbols = [
        (symbol.name, i)
        for i, (_, data) in enumerate(members)
        for symbol in Elf(data).symbols()
        if symbol.defined and not symbol.local
    ]
    names = b"".join(name.encode() + b"\0" for name, _ in symbols)
    index_size = 4 + 4 * len(symbols) + len(names)
    position = 8 + 60 + index_size + index_size % 2
    offsets = []
    for _, data in members:
        offsets.append(position)
        position += 60 + len(data) + len(data) % 2
    index = struct.pack(f">{len(symbols) + 1}I", len(symbols), *(offsets[i] for _, i in symbols)) + names
    made = [b"!<arch>\n"]
    for name, data in [("/", index), *((f"{name}/", data) for name, data in members)]:
        made += [f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(data):<10}`\n".encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(made)
