"""Open a bundle in Python: numpy in, numpy out, one foreign call. Needs numpy only."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NoReturn, cast

import numpy as np

from compiler.codegen.budgets import Levels, LevelTimes, Reached, checked_budget, checked_times, times_type
from compiler.codegen.bundle import Bundle, checked_bundle, read_index, read_plain, settled
from compiler.codegen.deadline import MOST_ROUNDS
from compiler.codegen.foreign import Call, Functions, Outputs, Port, addresses, aligned
from compiler.codegen.interface import ABI
from compiler.codegen.manifest import VARIANT, parse_manifest
from compiler.codegen.target import machine_arch
from compiler.errors import BundleError

Within = Callable[[LevelTimes, int], bool]
"""Times and a budget in microseconds -> whether the call was late."""
_LOADED: dict[str, ctypes.CDLL] = {}  # by digest: one content is mapped once per process
_POOLS: weakref.WeakSet[ThreadPool] = weakref.WeakSet()


def open_bundle(path: str | os.PathLike[str], target: str | None = None) -> Network:
    """Load the bundle in `path`, a bundle directory or the folder of several targets.

    Without `target` the richest one this processor runs is taken. Digests are checked before the library is
    loaded. BundleError if the bundle is damaged, not linked, or needs another processor; it says what each
    candidate lacks. ConfigError if it is not there or does not hold `target`.
    """
    return settled(Path(path), lambda: _opened(Path(path), target))


def _opened(root: Path, target: str | None) -> Network:
    names = [target] if target or not (root / "index.json").exists() else _ranked(root)
    reasons = []
    for name in names:
        bundle = checked_bundle(root, name)
        reason, library = _load(bundle)
        if library is not None:
            return Network(bundle, library)
        reasons.append(f"{bundle.target}: {reason}")
    raise BundleError(f"{root} holds nothing that runs here:\n  " + "\n  ".join(reasons))


class Network:
    """An opened bundle. Python threads may call `run` at once; each has its own workspace."""

    def __init__(self, bundle: Bundle, library: ctypes.CDLL) -> None:
        self.bundle = bundle
        self._inputs = tuple(Port.read(r) for r in bundle.manifest["io"]["inputs"])
        self._outputs = tuple(Port.read(r) for r in bundle.manifest["io"]["outputs"])
        self._tasks = {record["name"]: record for record in bundle.manifest["tasks"]}
        self._functions = Functions(library, bundle.name)
        self._levels = Levels(len(self.levels), self.portfolio)
        self._local = threading.local()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in the order of their bits."""
        return tuple(self._tasks)

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Input name -> element type and shape."""
        return {port.name: (str(port.dtype), port.shape) for port in self._inputs}

    @property
    def levels(self) -> tuple[float, ...]:
        """Share of its weights that each level stores: sparsity levels, the densest first, or the networks of a
        portfolio."""
        return tuple(float(record["density"]) for record in self.bundle.manifest["levels"])

    @property
    def portfolio(self) -> bool:
        """Whether levels are networks of their own, so that a call can ask for the `CHEAPEST`."""
        return any(record.get("kind") == VARIANT for record in self.bundle.manifest["levels"])

    @cached_property
    def _build(self) -> str:
        """What this bundle is told from others by."""
        return hashlib.sha256(json.dumps(self.bundle.manifest, sort_keys=True).encode()).hexdigest()

    def workspace_bytes(self, tasks: Iterable[str] | None = None, level: int = 0) -> int:
        """Bytes of workspace one call with these tasks uses."""
        return self._functions.workspace(self._mask(tasks), self._levels.number(level))

    def pool(self, threads: int) -> ThreadPool:
        """A pool of `threads` threads, the calling one included, that calls can be given. Close it when done.

        ValueError for a number out of range, BundleError where the bundle was built without threads or the system
        gives none.
        """
        return ThreadPool(self._functions, threads)

    def run(
        self,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        *,
        tasks: Iterable[str] | None = None,
        level: int = 0,
        strict: bool = False,
        pool: ThreadPool | None = None,
    ) -> Outputs:
        """Outputs of `tasks` (default: all) at `level`; the same bits with any `pool` and without.

        Of a portfolio `level` may be CHEAPEST: the one at which these tasks need the fewest FLOPs.

        `inputs` is one array, or a dict by input name. Arrays of the right type and C order are passed by address;
        others are converted, or refused with ValueError where `strict`. Shapes must match exactly.
        """
        names, level = self._task_names(tasks), self._levels.number(level)
        mask, arrays, results = self._arrays(names, inputs, strict)
        call = Call.make(self._workspace(self._functions.workspace(mask, level)), self._handle(pool), level)
        self._functions.check(self._functions.bound(mask, addresses(arrays), addresses(results), call)())
        return self._by_task(names, results)

    def measure(
        self,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        *,
        tasks: Iterable[str] | None = None,
        rounds: int = 7,
        pool: ThreadPool | None = None,
    ) -> LevelTimes:
        """Times of every level of `tasks`, as medians of 1 to 31 `rounds` on these inputs and with this `pool`:
        what `run_within` needs.

        ValueError for other rounds, or where the bundle has one level only.
        """
        if len(self.levels) == 1 or self.portfolio:
            raise ValueError(_no_falling(self))
        if not 1 <= rounds <= MOST_ROUNDS:
            raise ValueError(f"times are medians of 1 to {MOST_ROUNDS} rounds, not of {rounds}")
        names = self._task_names(tasks)
        mask, arrays, results = self._arrays(names, inputs, strict=False)
        table = times_type(len(self.levels), len(self.bundle.manifest["switch_points"]))()
        call = Call.make(self._workspace(self._functions.workspace(mask, 0)), self._handle(pool), 0)
        self._functions.measure(mask, addresses(arrays), addresses(results), call, rounds, table)
        return LevelTimes(names, table, self._build)

    def run_within(
        self,
        inputs: np.ndarray | Mapping[str, np.ndarray],
        budget_us: int,
        times: LevelTimes,
        *,
        level: int = 0,
        sparsest: int | None = None,
        strict: bool = False,
        pool: ThreadPool | None = None,
    ) -> Reached:
        """Outputs of the tasks that `times` are of, within about `budget_us` microseconds.

        The call starts at `level`, and falls to sparser levels, `sparsest` at most (default: any), where the rest
        would take longer than is left. ValueError as for `run`, and where `sparsest` is denser than `level` or
        leaves nothing to fall to, or `times` are of another bundle. BundleError where they were measured with
        another number of threads.
        """
        if self.portfolio:
            raise ValueError(_no_falling(self))
        names = checked_times(times).tasks
        level, sparsest = checked_budget(budget_us, level, sparsest, self._levels)
        mask, arrays, results = self._arrays(names, inputs, strict)
        workspace = self._workspace(self._functions.workspace(mask, level))
        call = Call.make(workspace, self._handle(pool), level, sparsest)
        late = self._within(mask, arrays, results, call)(times, budget_us)
        return Reached(self._by_task(names, results), int(call.level_used), late)

    def bind(
        self,
        tasks: Iterable[str],
        arrays: np.ndarray | Mapping[str, np.ndarray] | None = None,
        /,
        *,
        pool: ThreadPool | None = None,
        **named: np.ndarray,
    ) -> BoundCall:
        """Check once, pin the addresses, call many times.

        `arrays` is the only input, or the inputs by name, and optionally output arrays by task name (`task/label`
        where a task has several outputs, or is called like an input); outputs that are not given are made. All must
        have the right type, shape and C order, and no output may overlap another array. Arrays may be given as
        arguments instead, but for one that is called `pool`.
        `pool` serves every call until it is closed.
        """
        names, handle = self._task_names(tasks), self._handle(pool)
        given = _once({} if arrays is None else self._by_name(arrays), named)
        wanted = {i: self._output_key(i) for name in names for i in self._tasks[name]["outputs"]}
        _refuse_unknown(given, [*(p.name for p in self._inputs), *wanted.values()], "array")
        inputs = [self._input(port, given, strict=True) for port in self._inputs]
        results: list[np.ndarray | None] = [None] * len(self._outputs)
        for i, key in wanted.items():
            port = self._outputs[i]
            array = given.get(key)
            results[i] = np.empty(port.shape, port.dtype) if array is None else port.exact(array, key, write=True)
        _refuse_overlap({p.name: a for p, a in zip(self._inputs, inputs, strict=True)}, given, wanted.values())
        mask = self._mask(names)
        workspace = aligned(self._functions.workspace(mask, 0))
        call = Call.make(workspace, handle, 0)
        outputs = self._by_task(names, results)
        falls = self._levels.count > 1 and not self.portfolio
        within = self._within(mask, inputs, results, call) if falls else _no_budget
        made = BoundCall(
            self._functions, mask, inputs, results, call, outputs, (workspace, pool), self._levels, within
        )
        if pool is not None:
            pool.serves(made)
        return made

    def _within(self, mask: int, inputs: list[np.ndarray], results: list[np.ndarray | None], call: Call) -> Within:
        """A call with a budget, its other arguments converted once; BundleError where the library has none."""
        run = self._functions.within(mask, addresses(inputs), addresses(results), call)
        build, name = self._build, self.bundle.name
        return lambda times, budget_us: run(checked_times(times).table_for(build, name), budget_us)

    def _arrays(
        self, names: tuple[str, ...], inputs: np.ndarray | Mapping[str, np.ndarray], strict: bool
    ) -> tuple[int, list[np.ndarray], list[np.ndarray | None]]:
        """Mask of the tasks, their inputs as the library takes them, and room for the outputs they have."""
        given = self._by_name(inputs)
        arrays = [self._input(port, given, strict) for port in self._inputs]
        _refuse_unknown(given, [port.name for port in self._inputs], "input")
        wanted = {i for name in names for i in self._tasks[name]["outputs"]}
        results = [np.empty(p.shape, p.dtype) if i in wanted else None for i, p in enumerate(self._outputs)]
        return self._mask(names), arrays, results

    def _handle(self, pool: ThreadPool | None) -> int | None:
        """The library's pool; ValueError unless it is an open one of this network."""
        if pool is None:
            return None
        if not isinstance(pool, ThreadPool):
            raise ValueError(
                f"pool is a {type(pool).__name__}; give what pool() made. An array of that name goes into a dict: "
                "bind(tasks, {'pool': array})"
            )
        return pool.handle(self._functions)

    def _task_names(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        chosen = tuple(self._tasks if tasks is None else [tasks] if isinstance(tasks, str) else tasks)
        unknown = sorted(set(chosen) - set(self._tasks))
        if unknown or not chosen:
            raise ValueError(f"tasks {list(chosen)}: choose from {', '.join(self._tasks)}")
        return chosen

    def _mask(self, tasks: Iterable[str] | None) -> int:
        return sum(1 << self._tasks[name]["bit"] for name in set(self._task_names(tasks)))

    def _by_name(self, arrays: np.ndarray | Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Arrays by name, of which the only input needs none."""
        if isinstance(arrays, Mapping):
            return arrays
        if len(self._inputs) != 1:
            raise ValueError(f"pass a dict with the inputs {', '.join(p.name for p in self._inputs)}")
        return {self._inputs[0].name: arrays}

    @staticmethod
    def _input(port: Port, given: Mapping[str, np.ndarray], strict: bool) -> np.ndarray:
        if port.name not in given:
            raise ValueError(f"input '{port.name}' is missing")
        return port.exact(given[port.name], port.name) if strict else port.converted(given[port.name])

    def _output_key(self, index: int) -> str:
        """What `bind` calls an output: an array that is given as an input is never written to."""
        port = self._outputs[index]
        alone = len(self._tasks[port.task]["outputs"]) == 1
        return port.task if alone and port.task not in self.inputs else f"{port.task}/{port.label}"

    def _by_task(self, names: tuple[str, ...], results: list[np.ndarray | None]) -> Outputs:
        found: Outputs = {}
        for name in names:
            indices = self._tasks[name]["outputs"]
            labelled = {self._outputs[i].label: results[i] for i in indices}
            found[name] = labelled if len(indices) > 1 else results[indices[0]]
        return found

    def _workspace(self, size: int) -> np.ndarray:
        """This thread's workspace of at least `size` bytes."""
        held = getattr(self._local, "workspace", None)
        if held is None or held.nbytes < size:
            held = self._local.workspace = aligned(size)
        return cast("np.ndarray", held)


class BoundCall:
    """A subset with its arrays, checked and pinned; calling it is one foreign call. For one thread at a time.

    `outputs` holds the result arrays, rewritten by every call.
    """

    __slots__ = ("__weakref__", "_call", "_functions", "_keep", "_level", "_levels", "_run", "_within", "outputs")

    def __init__(
        self,
        functions: Functions,
        mask: int,
        inputs: list[np.ndarray],
        results: list[np.ndarray | None],
        call: Call,
        outputs: Outputs,
        held: tuple[object, ...],
        levels: Levels,
        within: Within,
    ) -> None:
        self.outputs, self._within = outputs, within
        self._functions, self._call, self._level, self._levels = functions, call, 0, levels
        self._keep = (inputs, results, held)  # the library has their addresses alone
        self._run = functions.bound(mask, addresses(inputs), addresses(results), call)

    def __call__(self, level: int = 0) -> Outputs:
        if level != self._level:
            self._call.level = self._level = self._levels.number(level)
        code = self._run()
        if code:
            self._functions.check(code)
        return self.outputs

    def within(self, budget_us: int, times: LevelTimes, *, level: int = 0, sparsest: int | None = None) -> Reached:
        """A call with a budget, as `Network.run_within` has it; `times` are of the same tasks and threads."""
        level, sparsest = checked_budget(budget_us, level, sparsest, self._levels)
        self._call.level, self._call.sparsest = level, sparsest
        self._level = level
        late = self._within(times, budget_us)
        return Reached(self.outputs, int(self._call.level_used), late)

    def expire(self, refuse: Callable[..., NoReturn]) -> None:
        """Later calls raise ValueError: the pool that served them is not there any more."""
        self._run = self._within = refuse


class ThreadPool:
    """Threads of one opened network that share the work of a call; made by `Network.pool`.

    A context manager: leaving it, or `close`, ends the threads. One call at a time uses a pool; BundleError where
    another one does. A pool that is dropped is closed when it is collected. In a child of `os.fork` there are no
    threads of it: calls with it raise ValueError.
    """

    def __init__(self, functions: Functions, threads: int) -> None:
        self.threads = threads
        self._functions = functions
        self._handle: int | None = functions.make_pool(threads)
        self._end = weakref.finalize(self, functions.end_pool, self._handle)
        self._bound: weakref.WeakSet[BoundCall] = weakref.WeakSet()
        self._refuse: Callable[..., NoReturn] = _closed
        _POOLS.add(self)

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; calls that were bound to the pool raise ValueError from now on. Not during a call."""
        self._expire(_closed)
        self._end()

    def lose(self) -> None:
        """In a child of `os.fork`: the threads are the parent's, so that whoever waits for one waits for ever."""
        self._expire(_forked)
        self._end.detach()

    def _expire(self, refuse: Callable[..., NoReturn]) -> None:
        if self._handle is not None:
            self._handle, self._refuse = None, refuse
        for call in self._bound:
            call.expire(self._refuse)

    def handle(self, functions: Functions) -> int:
        """Address of the library's pool; ValueError where this one is closed or another network's."""
        if functions is not self._functions:
            raise ValueError("the pool belongs to another network; make one by its own pool()")
        return self._refuse() if self._handle is None else self._handle

    def serves(self, call: BoundCall) -> None:
        """Note a call that cannot outlive the pool."""
        self._bound.add(call)


def _no_falling(network: Network) -> str:
    what = "levels that are networks of their own" if network.portfolio else "one level"
    return f"'{network.bundle.name}' has {what}: a call cannot become faster on its way"


def _closed(*_: object) -> NoReturn:
    raise ValueError("the pool is closed")


def _forked(*_: object) -> NoReturn:
    raise ValueError("the pool was made before this process was forked, without its threads; make one here")


def _lose_pools() -> None:
    for pool in list(_POOLS):
        pool.lose()


os.register_at_fork(after_in_child=_lose_pools)


def _no_budget(*_: object) -> NoReturn:
    raise ValueError("the library has no level to fall to: a call cannot become faster on its way")


def _once(arrays: Mapping[str, np.ndarray], named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of a dict and those of arguments; ValueError where one is given as both."""
    if twice := sorted(set(arrays) & set(named)):
        raise ValueError(f"{', '.join(map(repr, twice))}: given by position and as an argument; give it once")
    return {**arrays, **named}


def _refuse_unknown(given: Mapping[str, object], known: list[str], what: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")


def _refuse_overlap(
    inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], outputs: Iterable[str]
) -> None:
    """ValueError where a given output shares bytes with an input or with another output."""
    taken = dict(inputs)
    for key in (k for k in outputs if k in arrays):
        shared = [name for name, other in taken.items() if np.may_share_memory(arrays[key], other)]
        if shared:
            raise ValueError(f"output '{key}' shares memory with '{shared[0]}'; give it an array of its own")
        taken[key] = arrays[key]


def _ranked(root: Path) -> list[str]:
    """Targets of an index, most demanding first: wider vectors, then more features, then by name."""

    def demand(name: str) -> tuple[int, int, str]:
        manifest = parse_manifest(read_plain(root / name, "manifest.json"), f"{root / name}/manifest.json")
        return -manifest["target"]["lanes"], -len(manifest["target"]["features"]), name

    return sorted(read_index(root)["targets"], key=demand)


def _load(bundle: Bundle) -> tuple[str, ctypes.CDLL | None]:
    """The library, or why it cannot run here."""
    if not bundle.linked:
        return "not linked; LINK.txt says how", None
    arch = bundle.manifest["target"]["arch"]
    if arch != machine_arch():
        return f"for {arch}, this machine is {machine_arch()}", None
    library = _open_checked(bundle)
    abi, missing = library[f"{bundle.name}_abi"], library[f"{bundle.name}_cpu_missing"]
    missing.restype = ctypes.c_uint64
    if abi() != ABI:
        return f"has ABI {abi()}, this version of taskgraft knows {ABI}", None
    lacking = missing()
    if lacking:
        names = [f for i, f in enumerate(bundle.manifest["target"]["features"]) if lacking >> i & 1]
        return f"this processor lacks {', '.join(names)}", None
    return "", library


def _open_checked(bundle: Bundle) -> ctypes.CDLL:
    """Load the library from the very file whose bytes were hashed, so that it cannot be swapped in between."""
    digest = bundle.manifest["files"][bundle.library.name]["sha256"]
    if digest in _LOADED:
        return _LOADED[digest]
    kept = -1
    try:
        descriptor = os.open(bundle.library, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise BundleError(f"{bundle.library} changed while it was opened")
            kept = _kept(descriptor)
        _LOADED[digest] = ctypes.CDLL(_by_descriptor(kept))
    except OSError as error:
        if kept >= 0:
            os.close(kept)
        raise BundleError(f"cannot load {bundle.library}: {error}") from error
    return _LOADED[digest]


def _by_descriptor(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _kept(descriptor: int) -> int:
    """A descriptor of the same file, to stay open, with a number that no loaded library has.

    The loader knows libraries by the path they were loaded from, and gives the old one for a path it knows. Numbers
    come back all the same where somebody closes descriptors that are not theirs, as daemons do.
    """
    known, passed = {library._name for library in _LOADED.values()}, []
    while _by_descriptor(found := os.dup(descriptor)) in known:
        passed.append(found)
    for number in passed:
        os.close(number)
    return found
