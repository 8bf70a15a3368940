"""The C interface of a library: names, types, entries. Everything that the driver, the header, the selftest, the
manifest and the Python runtime must agree on is decided here, once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler.codegen.program import Argument, Call, Library, Port, Program
from compiler.errors import ConfigError
from compiler.ir.names import RULE, is_c_name
from compiler.ir.types import DType

ABI = 3
ALIGNMENT = 64
"""Bytes; of the pool, the workspace, and every buffer in them."""
MOST_TASKS = 64
MOST_THREADS = 256
"""Threads of one pool."""
SPECIALISED_CALLS = 6_000
"""Above this many calls over all listed subsets they share the table: 140 KB of code, seconds of the C compiler."""

CHEAPEST = 0xFFFFFFFF
"""Asked of a portfolio, this level is the one at which the tasks of the call need the fewest FLOPs."""

MESSAGES = (
    "done",
    "null or misaligned pointer",
    "workspace too small",
    "subset not in this bundle",
    "level not in this bundle",
    "CPU lacks a required feature",
    "other ABI: size of the call structure",
    "kernel failure",
    "pool is in use by another call",
    "pool cannot be created",
    "outputs are complete, but later than the budget",
    "the times were measured with other tasks or threads",
    "the asked level is sparser than the sparsest that the call allows",
)
"""Meaning of return code i."""
LATE = 10
"""The code of a call that took longer than its budget."""

_C_TYPES = {
    DType.FLOAT16: "uint16_t",
    DType.FLOAT32: "float",
    DType.FLOAT64: "double",
    DType.INT8: "int8_t",
    DType.INT16: "int16_t",
    DType.INT32: "int32_t",
    DType.INT64: "int64_t",
    DType.UINT8: "uint8_t",
    DType.UINT16: "uint16_t",
    DType.UINT32: "uint32_t",
    DType.UINT64: "uint64_t",
    DType.BOOL: "uint8_t",
}

# Words a parameter cannot be called: of C, of C++, macros of common compilers and headers, types that prototypes
# and entries name, and what the driver calls its own.
_RESERVED = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break call case catch char char8_t char16_t char32_t
    class co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue
    decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto if
    inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast struct
    switch template this thread_local throw true try typedef typeid typename typeof union unsigned using virtual
    void volatile wchar_t while xor xor_eq
    I complex imaginary noreturn EOF INFINITY NAN
    code errno in linux out unix check cheapest with_pool HIDDEN CALL_T ALWAYS ARGUMENTS NULL offsetof size_t
    """.split()
) | frozenset(_C_TYPES.values())
_RESERVED_PREFIXES = ("program_", "team_", "sa_", "si_")
"""Functions of the driver; macros of signal.h."""
_LIMIT = re.compile(r"[A-Z0-9_]+_(MAX|MIN|WIDTH|C)")
"""Macros of stdint.h and limits.h."""

_HEADERS = frozenset(
    """
    assert complex cpuid ctype errno fenv float inttypes iso646 limits locale math pthread sched setjmp signal
    stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar unistd
    wchar wctype
    """.split()
)
"""Headers of C and POSIX: a compiler looks for them in the folder of the library first."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input or output of the library: its port, owner, and name in C prototypes."""

    port: Port
    task: str
    """Empty for inputs."""
    identifier: str
    mask: int
    """Tasks that need it: the readers of an input, the owner of an output."""

    @property
    def c_type(self) -> str:
        """Element type in C; 16-bit floats travel as their bit pattern, booleans as bytes."""
        return _C_TYPES[self.port.type.dtype]


@dataclass(frozen=True, slots=True)
class Entry:
    """A listed subset: its C function, macro suffix, and workspace in bytes (a multiple of 64, never 0)."""

    mask: int
    tasks: tuple[str, ...]
    symbol: str
    workspace_macro: str
    workspace_bytes: int
    specialised: bool
    """False where the subset runs through the table of the full program."""
    programs: tuple[Program, ...]
    """What it calls: of a portfolio a program for every level, else one for all levels."""
    shares: bool
    """Whether threads of a pool have something to share; else the calling thread does not even wake them."""


@dataclass(frozen=True)
class Interface:
    """The C interface of one library."""

    name: str
    tasks: tuple[str, ...]
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    entries: tuple[Entry, ...]
    table_workspace: int
    """Bytes a subset without an entry of its own needs."""
    needs_table: bool
    """True where some non-empty subset has no specialised function."""
    threads: bool
    """Whether the interface has pools of threads."""
    shares: bool
    """Whether any of its calls is worth sharing among threads; else pools are empty and need no pthread."""
    scratch_bytes: int
    """Memory of its own that every thread of a pool needs."""
    levels: int = 1
    """Levels; of sparsity levels 0 is the densest."""
    cheapest: tuple[int, ...] = ()
    """Of a portfolio, whose levels are networks of their own: by mask of tasks, the level with the fewest FLOPs."""
    switch_points: tuple[tuple[str, ...], ...] = ()
    """Nodes of the calls that take another time at another level, in order of the full program: before each of them
    a call with a budget may fall to a sparser level."""

    @property
    def upper(self) -> str:
        """Prefix of every macro."""
        return self.name.upper()

    @property
    def all_mask(self) -> int:
        return (1 << len(self.tasks)) - 1

    @property
    def workspace_max(self) -> int:
        """Bytes that are enough for every subset."""
        return max([e.workspace_bytes for e in self.entries] + [self.table_workspace] * self.needs_table)

    @property
    def portfolio(self) -> bool:
        """Whether levels are networks of their own."""
        return bool(self.cheapest)

    @property
    def budgets(self) -> bool:
        """Whether a call can fall to another level on its way."""
        return self.levels > 1 and not self.portfolio

    def workspace(self, mask: int) -> int:
        """Bytes the subset `mask` needs."""
        return next((e.workspace_bytes for e in self.entries if e.mask == mask), self.table_workspace)

    def task_macro(self, task: str) -> str:
        return f"{self.upper}_{task.upper()}"

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every function the library exports, sorted."""
        fixed = ["abi", "build_id", "cpu_missing", "run", "strerror", "workspace"]
        fixed += ["pool_create", "pool_destroy"] * self.threads
        fixed += ["measure", "run_within"] * self.budgets
        return tuple(sorted([*(f"{self.name}_{f}" for f in fixed), *(e.symbol for e in self.entries)]))

    @property
    def points(self) -> int:
        """Number of switch points."""
        return len(self.switch_points)

    @property
    def pool_symbol(self) -> str:
        return f"w_{self.name}_pool"


def task_names(tasks: tuple[str, ...], mask: int) -> tuple[str, ...]:
    """The tasks whose bit is set in `mask`, in task order."""
    return tuple(t for i, t in enumerate(tasks) if mask >> i & 1)


def interface(library: Library, *, threads: bool = True) -> Interface:
    """Decide every name; `threads`: with pools of threads.

    Raises ConfigError that lists all names that are invalid or would clash.
    """
    tasks = tuple(t.name for t in library.tasks)
    check_names(library.name, tasks)
    inputs, outputs = _parameters(library)
    every = itertools.chain(library.programs, *library.variants)
    specialised = sum(len(p.calls) for p in every) <= SPECIALISED_CALLS
    table_workspace = _round_up(library.full.workspace_bytes)
    ladders = zip(library.programs, *library.variants, strict=True)
    entries = tuple(
        _entry(library, tasks, ladder, table_workspace, specialised, threads)
        for ladder in sorted(ladders, key=lambda ladder: ladder[0].mask)
    )
    needs_table = not specialised or len(entries) < (1 << len(tasks)) - 1
    face = Interface(
        library.name,
        tasks,
        inputs,
        outputs,
        entries,
        table_workspace,
        needs_table,
        threads,
        threads and _shares(library.full.calls),
        library.scratch_bytes,
        len(library.levels),
        library.cheapest,
        tuple(call.nodes for call in library.full.calls if call.levelled),
    )
    _check_header(face)
    return face


def _entry(
    library: Library,
    tasks: tuple[str, ...],
    ladder: tuple[Program, ...],
    table_workspace: int,
    specialised: bool,
    threads: bool,
) -> Entry:
    name, mask = library.name, ladder[0].mask
    chosen = task_names(tasks, mask)
    joined, calls = "__".join(chosen), itertools.chain.from_iterable(p.calls for p in ladder)
    return Entry(
        mask=mask,
        tasks=chosen,
        symbol=f"{name}_run_{joined}",
        workspace_macro=f"{name.upper()}_WORKSPACE_{joined.upper()}",
        workspace_bytes=_round_up(max(p.workspace_bytes for p in ladder)) if specialised else table_workspace,
        specialised=specialised,
        programs=ladder,
        shares=threads and _shares(calls if specialised else library.full.calls),
    )


def _shares(calls: Iterable[Call]) -> bool:
    return any(call.shared for call in calls)


def _round_up(size: int) -> int:
    """A multiple of the alignment; at least one unit, since 0 means "not in this bundle"."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


def _parameters(library: Library) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
    taken = {f"{library.name}_{kind}" for kind in ("call", "pool", "times")}
    macros = f"{library.name.upper()}_"
    readers = [0] * len(library.inputs)
    for call in library.full.calls:
        for argument in call.arguments:
            if argument.kind == "input":
                readers[argument.at] |= _tasks_of(call.mask, len(library.tasks))
    inputs = tuple(
        Parameter(port, "", _identifier(port.name, taken, macros), mask)
        for port, mask in zip(library.inputs, readers, strict=True)
    )
    outputs = tuple(
        Parameter(
            port, task.name, _identifier(_output_name(task.name, port, len(task.outputs)), taken, macros), 1 << i
        )
        for i, task in enumerate(library.tasks)
        for port in task.outputs
    )
    return inputs, outputs


def _tasks_of(mask: int, tasks: int) -> int:
    """The tasks whose bit is set in `mask`, at whatever level of a portfolio."""
    found = 0
    while mask:
        found |= mask & ((1 << tasks) - 1)
        mask >>= tasks
    return found


def _output_name(task: str, port: Port, count: int) -> str:
    return task if count == 1 else f"{task}_{port.label}"


def _identifier(text: str, taken: set[str], macros: str) -> str:
    """A C and C++ parameter name like `text` that is not in `taken`, which it joins; the library's own macros begin
    with `macros`."""
    word = re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_") or "x"
    word = f"x{word}" if word[0].isdigit() else word
    while word in taken or _reserved(word) or (word.startswith(macros) and not word.endswith("_")):
        word += "_"
    taken.add(word)
    return word


def _reserved(word: str) -> bool:
    """Whether C, a header, or the driver gives the word a meaning; no word that ends in an underscore has one."""
    if word.endswith("_"):
        return False
    return word in _RESERVED or word.startswith(_RESERVED_PREFIXES) or bool(_LIMIT.fullmatch(word))


def check_names(name: str, tasks: Sequence[str]) -> None:
    """ConfigError that lists what a library and its tasks cannot be called, and why."""
    problems = [f"name '{name}': {RULE}"] * (not is_c_name(name))
    problems += [f"name '{name}': programs would read {name}.h instead of the one of C"] * (name in _HEADERS)
    problems += [f"task '{task}': {RULE}" for task in tasks if not is_c_name(task)]
    problems += [f"task '{t}' appears twice" for t in _duplicates(tasks)]
    if not 0 < len(tasks) <= MOST_TASKS:
        problems.append(f"{len(tasks)} tasks; a library holds 1 to {MOST_TASKS}")
    if problems:
        raise ConfigError("names that cannot become C names:\n  " + "\n  ".join(problems))


_FIXED = ("ABI", "ALL", "H", "INPUTS", "LEVELS", "OUTPUTS", "THREADS_MAX", "WORKSPACE_MAX")
"""Macros that every header has, behind the name of the library."""


def is_macro(task: str) -> bool:
    """Whether the macro of a task would be one that a header has for something else."""
    return task.upper() in _FIXED or task.startswith("cpu_")


def check_macros(
    tasks: Sequence[str], subsets: Iterable[frozenset[str]] | None = None, portfolio: bool = False
) -> None:
    """ConfigError, before there is a library, for tasks whose macros its header would have for something else.

    `subsets`: those that are listed; None: every task alone, at least.
    """
    listed = {frozenset((t,)) for t in tasks} if subsets is None else set(subsets)
    taken = {f"workspace_{t}" for t in tasks if frozenset((t,)) in listed} | ({"cheapest"} if portfolio else set())
    if clashes := [t for t in tasks if is_macro(t) or t in taken]:
        raise ConfigError(
            f"the header has macros for something else that are called like the tasks {', '.join(clashes)}; rename "
            "them"
        )


def _check_header(face: Interface) -> None:
    """ConfigError where two macros or two functions of the header would have one name."""
    macros = [f"{face.upper}_{m}" for m in (*_FIXED, *(["CHEAPEST"] if face.portfolio else []))]
    macros += [face.task_macro(t) for t in face.tasks] + [e.workspace_macro for e in face.entries]
    clashes = _duplicates(macros) + [face.task_macro(t) for t in face.tasks if t.startswith("cpu_")]
    clashes += _duplicates(face.symbols)
    if clashes:
        raise ConfigError(
            f"task names make these names of the header ambiguous: {', '.join(clashes)}; rename the task"
        )


def _duplicates(items: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({i for i in items if i in seen or seen.add(i)})  # type: ignore[func-returns-value]


def c_comment(text: str) -> str:
    """`text` made safe inside a C comment: names from models are data."""
    return re.sub(r"[^ -~]|\\", "?", text).replace("*/", "*?").replace("/*", "?*")


def describe(parameter: Parameter) -> str:
    """One line for comments: name, type, shape."""
    owner = f"task {parameter.task}, " if parameter.task else ""
    return c_comment(f"{owner}{parameter.port.label}: {parameter.port.type}")


def argument_text(argument: Argument, shared: bool) -> str:
    """An argument of a kernel as the driver writes it. Scratch of a call that threads do not share lies in the
    workspace: what each of them has is no larger than shared calls need.
    """
    if argument.kind == "scratch" and not shared:
        return f"{_MACROS['workspace']}({argument.at})"
    if argument.kind == "none":
        return "0"
    if argument.stride:
        return f"LEVELLED({argument.at}, {argument.stride})"
    return f"{_MACROS[argument.kind]}({argument.at})"


_MACROS = {"input": "IN", "output": "OUT", "pool": "WEIGHTS", "workspace": "WS", "scratch": "SCRATCH"}
