"""Innermost loops of compiled kernels, by their disassembly: what they multiply, and what they spill.

The disassembler is the one of the binutils of the target, which come with the compiler that links for it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.codegen.target import Arch

OBJDUMP = {
    "x86_64": ("x86_64-linux-gnu-objdump", "objdump"),
    "aarch64": ("aarch64-linux-gnu-objdump",),
    "armv7": ("arm-linux-gnueabihf-objdump",),
}
"""Programs to look for, by architecture."""


@dataclass(frozen=True, slots=True)
class Isa:
    """How an instruction set writes what is counted. Patterns are searched in `NAME OPERANDS`."""

    multiply_add: re.Pattern[str]
    by_element: re.Pattern[str]
    """Of multiply-adds: those that take one operand as an element of a vector."""
    arithmetic: re.Pattern[str]
    """Vector arithmetic of any kind, multiply-adds among it."""
    lanes: tuple[tuple[re.Pattern[str], int], ...]
    """Products of a multiply-add by its operands; the first pattern found counts."""
    stack: str
    """Register names of the stack pointer."""
    frame: str
    """Register name of the frame pointer, where a function has one."""
    memory: re.Pattern[str]
    """A memory operand; its last group is the base register."""
    last_is_target: bool
    """Whether the destination is written last (AT&T syntax)."""


def _isa(
    multiply_add: str,
    by_element: str,
    arithmetic: str,
    lanes: Sequence[tuple[str, int]],
    stack: str,
    frame: str,
    memory: str,
    *,
    last_is_target: bool = False,
) -> Isa:
    compiled = [re.compile(p) for p in (multiply_add, by_element, arithmetic)]
    widths = tuple((re.compile(p), n) for p, n in lanes)
    return Isa(*compiled, widths, stack, frame, re.compile(memory), last_is_target)


ISAS: dict[Arch, Isa] = {
    "aarch64": _isa(
        r"^fml[as] v\d+\.[24]s",
        r"\.s\[\d\]",
        r"^f\w+ v\d+\.[24]s",
        [(r"\.4s", 4), (r"\.2s", 2)],
        "sp",
        "x29",
        r"\[([a-z]\w*)",
    ),
    "armv7": _isa(
        r"^v(?:fm|ml)[as]\.f32 [qd]",
        r"d\d+\[\d\]",
        r"^v(?!ld|st|mov|dup|cmp|mrs|push|pop)\w+\.f32 [qd]",
        [(r" q", 4), (r" d", 2)],
        "sp",
        "fp",
        r"\[([a-z]\w*)|^([a-z]\w*)!?, \{",
    ),
    "x86_64": _isa(
        r"^vfn?m(?:add|sub)\d+ps ",
        r"\{1to\d+\}",
        r"^v(?!mov|broadcast|perm|extract|insert|unpck|shuf|gather|scatter|pmov|cvt)\w+ps ",
        [(r"%zmm", 16), (r"%ymm", 8), (r"%xmm", 4)],
        "%rsp",
        "%rbp",
        r"\((%\w+)",
        last_is_target=True,
    ),
}
"""By architecture of a target; x86 in AT&T syntax, where broadcasts from memory take the part of elements."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `target` is the address a branch within the function goes to."""

    address: int
    name: str
    operands: str
    target: int | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.operands}".rstrip()


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop without loops inside; the last instruction branches back to the first."""

    isa: Isa
    body: tuple[Instruction, ...]
    spilled: int
    """Loads from and stores to the stack."""

    @property
    def multiply_adds(self) -> int:
        """Vector multiply-adds."""
        return self._count(self.isa.multiply_add)

    @property
    def by_element(self) -> int:
        """Of these, those with an operand that is an element."""
        return sum(bool(self.isa.by_element.search(str(i))) for i in self._multiplying())

    @property
    def accumulators(self) -> int:
        """Registers whose first use is a multiply-add onto them: sums that go through all turns."""
        seen: set[str] = set()
        found = 0
        for instruction in self.body:
            registers = _REGISTER.findall(instruction.operands)
            if not registers:
                continue
            target = registers[-1 if self.isa.last_is_target else 0]
            adds = self.isa.multiply_add.search(str(instruction)) and "213" not in instruction.name
            found += bool(adds) and target not in seen
            seen.add(target)
        return found

    @property
    def arithmetic(self) -> int:
        """Vector arithmetic of any kind."""
        return self._count(self.isa.arithmetic)

    @property
    def divides(self) -> bool:
        """Whether it divides: loops of activations do, products do not."""
        return any("div" in i.name for i in self.body)

    @property
    def products(self) -> int:
        """Multiply-adds of single elements."""
        widths = (
            next((n for p, n in self.isa.lanes if p.search(f" {i.operands}")), 1) for i in self._multiplying()
        )
        return sum(widths)

    def _count(self, pattern: re.Pattern[str]) -> int:
        return sum(bool(pattern.search(str(i))) for i in self.body)

    def _multiplying(self) -> Iterator[Instruction]:
        return (i for i in self.body if self.isa.multiply_add.search(str(i)))


def disassembler(arch: Arch) -> str | None:
    """The program on this machine, None where there is none."""
    return next((found for name in OBJDUMP[arch] if (found := shutil.which(name))), None)


def loops_of(code: bytes, arch: Arch) -> list[Loop]:
    """The innermost loops of an object file, in the order of addresses. FileNotFoundError without disassembler."""
    program = disassembler(arch)
    if program is None:
        raise FileNotFoundError(f"no disassembler for {arch}: looked for {', '.join(OBJDUMP[arch])}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.o")
        path.write_bytes(code)
        command = [program, "-d", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [loop for function in functions(text) for loop in inner_loops(function, ISAS[arch])]


_LINE = re.compile(r"^\s*([0-9a-f]+):\t(\S+)\s*(.*)$")
_BRANCH = re.compile(r"\b(?:0x)?([0-9a-f]+) <")
_COMMENT = re.compile(r"\s*(?://|;|#(?= )|@).*$")


def functions(text: str) -> list[list[Instruction]]:
    """The instructions of every function in what objdump prints: addresses begin anew in every section."""
    found: list[list[Instruction]] = []
    for line in text.splitlines():
        if line.endswith(">:"):
            found.append([])
        elif found and (match := _LINE.match(line)):
            address, name, rest = match.groups()
            target = _BRANCH.search(rest)
            operands = " ".join(_COMMENT.sub("", rest.partition("<")[0] if target else rest).split())
            found[-1].append(Instruction(int(address, 16), name, operands, int(target[1], 16) if target else None))
    return found


def inner_loops(function: Sequence[Instruction], isa: Isa) -> list[Loop]:
    """Stretches that end with a branch to their start and hold no other such stretch."""
    at = {instruction.address: number for number, instruction in enumerate(function)}
    ranges = []
    for number, instruction in enumerate(function):
        start = at.get(instruction.target, number + 1) if instruction.target is not None else number + 1
        if start <= number:
            ranges.append((start, number))
    inner = [(a, b) for a, b in ranges if not any((c, d) != (a, b) and a <= c and d <= b for c, d in ranges)]
    on_stack = _stack_accesses(function, isa)
    return [Loop(isa, tuple(function[a : b + 1]), sum(on_stack[a : b + 1])) for a, b in sorted(inner)]


def _stack_accesses(function: Sequence[Instruction], isa: Isa) -> list[bool]:
    """By instruction, whether it reads or writes the stack, also by a register computed from the pointer to it."""
    pointers, found = {isa.stack}, []
    for instruction in function:
        found.append(_base(instruction, isa) in pointers and not instruction.name.startswith("lea"))
        target = _written(instruction, isa)
        if target and _from_stack_pointer(instruction, isa, pointers):
            pointers.add(target)
        elif target not in (None, isa.stack, isa.frame):
            pointers.discard(target)
    return found


def _base(instruction: Instruction, isa: Isa) -> str | None:
    """The base register of a memory operand."""
    match = isa.memory.search(instruction.operands)
    return None if match is None else str(match[match.lastindex or 0])


_READS_ONLY = re.compile(r"(?:v?st|cm[pn]|tst|test|b|bl|b\.?[a-z]{2}|j|[ct]bn?z|push|pref|prfm|pld)")


def _written(instruction: Instruction, isa: Isa) -> str | None:
    """The register an instruction writes; None for stores, comparisons and branches."""
    operands = instruction.operands
    to_memory = isa.last_is_target and operands.endswith(")")
    if to_memory or (_READS_ONLY.match(instruction.name) and not _WRITES.match(instruction.name)):
        return None
    registers = _REGISTER.findall(operands)
    return str(registers[-1 if isa.last_is_target else 0]) if registers else None


_WRITES = re.compile(r"bic|bf|bsl|bit|bif")
_REGISTER = re.compile(r"%?[a-z]\w*")


def _from_stack_pointer(instruction: Instruction, isa: Isa, pointers: set[str]) -> bool:
    """Whether it copies a stack pointer, or adds a constant to it."""
    name, operands = instruction.name, instruction.operands
    if name.startswith("lea"):
        return _base(instruction, isa) in pointers
    if name not in ("mov", "add", "sub", "and", "orr") or isa.memory.search(operands):
        return False
    registers = _REGISTER.findall(operands)
    return any(r in pointers for r in (registers[:-1] if isa.last_is_target else registers[1:]))
