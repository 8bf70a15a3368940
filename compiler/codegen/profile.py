"""Time of every kernel call inside the whole network: a bundle's own driver, rebuilt with a clock around each call.

Layers are measured where they run, with the caches as the layers before them left them. Host only.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
import weakref
from _ctypes import dlclose
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.codegen import driver, link
from compiler.codegen.bundle import Bundle, read_plain, read_plan
from compiler.codegen.foreign import aligned
from compiler.codegen.interface import MESSAGES, Interface, interface
from compiler.codegen.program import Library, Port
from compiler.codegen.target import Target
from compiler.codegen.variants import level_of
from compiler.errors import BundleError, TargetError
from compiler.ir.types import DType, TensorType

ROUNDS = 7
"""Least number of timed runs; the lower quartile of each call counts: what disturbs a run only adds to it."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """One call of the full program: what it computes, how, and its seconds."""

    nodes: tuple[str, ...]
    choice: str
    kernel: str
    seconds: float


class TimedProgram:
    """All tasks of a library, on this machine, with a clock around every kernel call.

    `write` puts the library's sources into a folder, in the places they have in a bundle; `steps` is what its plan
    says of every call. `feeds` are the inputs by name (default: seeded normal values). ValueError for an input of
    another shape, TargetError where this machine cannot run `target` or has no C compiler.
    """

    def __init__(
        self,
        name: str,
        ports: tuple[Sequence[Port], Sequence[Port]],
        steps: Sequence[Mapping[str, Any]],
        target: Target,
        write: Callable[[Path], None],
        feeds: Mapping[str, np.ndarray] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.steps = steps
        """What the plan says of every call, in their order."""
        self._order = _order(steps)
        inputs, self._ports = ports
        # Held here: the library reads them by address in every run.
        self._inputs = [
            _random(rng, p.type.shape, p.type.dtype.numpy) if feeds is None else _exactly(feeds[p.name], p)
            for p in inputs
        ]
        self._outputs = [np.zeros(p.type.shape, p.type.dtype.numpy) for p in self._ports]
        with tempfile.TemporaryDirectory(prefix="taskgraft-profile-") as work:
            folder = Path(work)
            write(folder)
            (folder / "src/profile.c").write_text(_profile_text(name, len(self._order)), encoding="ascii")
            loaded = _load(target, folder)
        # A search makes one after the other: each maps all weights, from a file that takes space until then.
        weakref.finalize(self, dlclose, loaded._handle).atexit = False
        self._run = _entry(loaded, self._inputs, self._outputs)
        times = loaded.taskgraft_profile_times
        times.restype = ctypes.POINTER(ctypes.c_uint64)
        self._entries = np.ctypeslib.as_array(times(), (max(1, len(self._order)),))
        overhead = loaded.taskgraft_profile_overhead
        overhead.restype = ctypes.c_uint64
        self._overhead = np.uint64(overhead())

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """The arrays every run writes, by their names in the source model."""
        return {p.label: a for p, a in zip(self._ports, self._outputs, strict=True)}

    def run(self) -> np.ndarray:
        """Compute all tasks once, by every network of a portfolio; nanoseconds of every call, uint64, without those
        of the clock."""
        made = self._run()
        if made != len(self._order):
            raise BundleError(
                f"the driver timed {made} calls and the plan lists {len(self._order)}: they are of two builds, or "
                "of another version; compile the bundle again"
            )
        found = self._entries[:made]
        times = np.zeros(len(self.steps), np.uint64)
        times[self._order] = found - np.minimum(found, self._overhead)
        return times


class TimedLibrary(TimedProgram):
    """A generated library as a `TimedProgram`."""

    def __init__(
        self,
        library: Library,
        target: Target,
        feeds: Mapping[str, np.ndarray] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        face = interface(library, threads=False)
        ports = library.inputs, [p for t in library.tasks for p in t.outputs]
        steps: Any = library.plan["steps"]

        def write(folder: Path) -> None:
            _write_sources(library, face, target, folder)

        super().__init__(face.name, ports, steps, target, write, feeds, seed=seed)


class TimedBundle(TimedProgram):
    """The sources and kernels of a bundle as a `TimedProgram`. BundleError where its plan is damaged."""

    def __init__(
        self, bundle: Bundle, target: Target, feeds: Mapping[str, np.ndarray] | None = None, *, seed: int = 0
    ) -> None:
        ports = bundle.manifest["io"]
        inputs, outputs = ([_port(p) for p in ports[kind]] for kind in ("inputs", "outputs"))

        def write(folder: Path) -> None:
            (folder / "src").mkdir()
            driver_file = f"src/{bundle.name}_driver.c"
            for file in (f"{bundle.name}.h", driver_file, "src/weights.S", "src/kernels.a", "weights.bin"):
                (folder / file).write_bytes(read_plain(bundle.path, file))

        steps = read_plan(bundle)["steps"]
        super().__init__(bundle.name, (inputs, outputs), steps, target, write, feeds, seed=seed)


def _order(steps: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps as a run calls them: one after the other, those of a portfolio level by level."""
    levels = [sorted({level_of(task) for task in step["tasks"]}) or [0] for step in steps]
    return [
        i for k in range(1 + max((of[-1] for of in levels), default=0)) for i, of in enumerate(levels) if k in of
    ]


def _port(record: Mapping[str, Any]) -> Port:
    kind = TensorType(DType(record["dtype"]), tuple(record["shape"]))
    return Port(record["name"], kind, record["label"])


def profile(timed: TimedProgram, seconds: float = 0.5) -> tuple[StepTime, ...]:
    """Time of every call of the full program, over about `seconds`."""
    found: list[np.ndarray] = []
    limit = time.perf_counter() + seconds
    while len(found) < ROUNDS + 2 or time.perf_counter() < limit:
        found.append(timed.run())
    times = np.quantile(np.stack(found[2:]), 0.25, axis=0) * 1e-9
    return tuple(
        StepTime(tuple(step["nodes"]), choice_text(step), step["kernel"], float(t))
        for step, t in zip(timed.steps, times, strict=True)
    )


def profile_library(
    library: Library, target: Target, *, seconds: float = 0.5, seed: int = 0
) -> tuple[StepTime, ...]:
    """Time of every call of the full program on random inputs, over about `seconds`.

    TargetError where this machine cannot run `target` or has no C compiler.
    """
    return profile(TimedLibrary(library, target, seed=seed), seconds)


def choice_text(step: Mapping[str, Any]) -> str:
    """Algorithm and tile of a step of the plan in words."""
    tile = "x".join(str(n) for n in step.get("tile", ()))
    return f"{step.get('algorithm') or step['template']} {tile}".strip()


def _write_sources(library: Library, face: Interface, target: Target, folder: Path) -> None:
    (folder / "src").mkdir()
    name = face.name
    texts = {
        f"{name}.h": driver.header_text(face, target),
        f"src/{name}_driver.c": driver.driver_text(library, face, target, "profile"),
        "src/weights.S": link.weights_source(face),
    }
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="ascii")
    (folder / "src/kernels.a").write_bytes(link.kernel_archive(library.objects))
    (folder / "weights.bin").write_bytes(library.pool)


def _profile_text(name: str, calls: int) -> str:
    """C: the driver with a clock around each kernel; the time of call number i of a run goes to entry i."""
    return f"""#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <time.h>
static uint64_t profile_ns[{calls + 1}];  /* the last: calls the plan does not list */
static unsigned profile_at;
static uint64_t profile_now(void) {{
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}}
#define FAILS(call) (__extension__ ({{ \\
    uint64_t start = profile_now(); \\
    int failed = (call) != 0; \\
    profile_ns[profile_at < {calls} ? profile_at : {calls}] = profile_now() - start; \\
    profile_at++; \\
    failed; \\
  }}))
#include "src/{name}_driver.c"
size_t taskgraft_profile_workspace(void) {{ return {name}_workspace({name.upper()}_ALL, 0); }}
int taskgraft_profile_run(const void *const *in, void *const *out, void *workspace) {{
  {name}_call call = {{.size = sizeof call, .workspace = workspace, .workspace_bytes = SIZE_MAX}};
  profile_at = 0;
#ifdef {name.upper()}_CHEAPEST
  for (; call.level + 1 < {name.upper()}_LEVELS; call.level++) {{
    int code = {name}_run({name.upper()}_ALL, in, out, &call);
    if (code) return code;
  }}
#endif
  return {name}_run({name.upper()}_ALL, in, out, &call);
}}
unsigned taskgraft_profile_count(void) {{ return profile_at; }}
const uint64_t *taskgraft_profile_times(void) {{ return profile_ns; }}
uint64_t taskgraft_profile_overhead(void) {{  /* what a clock reads of nothing */
  uint64_t least = UINT64_MAX;
  for (int i = 0; i < 1000; i++) {{
    uint64_t start = profile_now();
    uint64_t none = profile_now() - start;
    if (none < least) least = none;
  }}
  return least;
}}
"""


def _load(target: Target, folder: Path) -> ctypes.CDLL:
    toolchain = link.find_toolchain(target)
    if not target.native or toolchain is None:
        reason = "it does not run here" if not target.native else f"no C compiler for it ({target.compilers[0]})"
        raise TargetError(f"target '{target.name}' cannot be timed on this machine: {reason}")
    flags = ("-O2", "-fPIC", "-shared", "-w", "-pthread", "-I.", *toolchain.baseline)
    sources = ("src/profile.c", "src/weights.S", "src/kernels.a", "-lm")
    link.run_tool((*toolchain.cc, *flags, "-o", "profile.so", *sources), folder)
    return ctypes.CDLL(str(folder / "profile.so"))


def _entry(loaded: ctypes.CDLL, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> Any:
    """A function of no arguments that runs all tasks once and returns the number of kernel calls."""
    needed = loaded.taskgraft_profile_workspace
    needed.restype = ctypes.c_size_t
    workspace = aligned(needed())
    pointers = [
        (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays)) for arrays in (inputs, outputs)
    ]
    program = loaded.taskgraft_profile_run
    program.restype = ctypes.c_int

    def run() -> int:
        status = program(*pointers, ctypes.c_void_p(workspace.ctypes.data))
        if status != 0:
            raise TargetError(f"the profiled library ended with code {status}: {MESSAGES[status]}")
        return int(loaded.taskgraft_profile_count())

    return run


def _exactly(array: np.ndarray, port: Port) -> np.ndarray:
    """`array`, ready to be passed by address; ValueError unless it has the port's shape."""
    if array.shape != port.type.shape:
        raise ValueError(f"input '{port.name}' has shape {array.shape}, needed is {port.type.shape}")
    return np.require(array, port.type.dtype.numpy, ("C", "A"))


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return np.zeros(shape, dtype)
