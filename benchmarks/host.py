"""The machine a study runs on: processor, caches, versions, and the core that is timed."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_FALLBACK_CACHE = 32 << 20


def cpu_model() -> str:
    """The processor's name as the system states it, with family and model where these say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    name = facts.get("model name") or facts.get("Hardware") or platform.machine()
    family = [f"{k} {facts[k]}" for k in ("cpu family", "model") if k in facts]
    return f"{name} ({', '.join(family)})" if family else name


def vector_isa() -> str:
    """The widest vector instructions the processor offers."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "unknown"
    known = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON"), ("neon", "NEON"))
    return next((name for flag, name in known if flag in flags), "none")


def caches() -> dict[str, int]:
    """Level ("L1d", "L2", "L3") -> bytes, as far as the system tells."""
    found = {}
    for index in sorted(_CPU.glob("cpu0/cache/index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            name = f"L{level}" + ("d" if kind == "Data" and level == "1" else "")
            found[name] = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
    return found


def flush_bytes() -> int:
    """Twice the last-level cache: rewriting that much leaves nothing else in it."""
    return 2 * max(caches().values(), default=_FALLBACK_CACHE)


def timed_cores(count: int, first: int | None = None) -> tuple[int, ...]:
    """Processors for the workers: from `first` on, whatever this process may use, or the last `count` it may use.

    SystemExit where there are too few.
    """
    usable = sorted(os.sched_getaffinity(0)) if first is None else list(range(os.cpu_count() or 1))[first:]
    chosen = usable[-count:] if first is None else usable[:count]
    if len(chosen) < count:
        which = "" if first is None else f" from {first} on"
        raise SystemExit(f"{count} cores wanted{which}; usable are {', '.join(map(str, usable)) or 'none'}")
    return tuple(chosen)


@contextmanager
def machine_lock(path: Path | None) -> Iterator[None]:
    """Hold an advisory lock on a file while timing, so that runs on one machine take turns."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process on one processor, then where it was allowed before."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def first_in_line(wanted: bool = True) -> Iterator[None]:
    """This thread before all processes of usual priority on its core (SCHED_FIFO), then as before; nothing where it
    is not `wanted`.

    PermissionError where the system does not allow it: that takes root, CAP_SYS_NICE, or a limit RLIMIT_RTPRIO.
    """
    if not wanted:
        yield
        return
    policy, usual = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, usual)


def stolen_seconds(core: int) -> float:
    """For how long the host of this virtual machine has kept a core to itself so far, in steps of 10 ms; 0 where
    the system does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    fields = next((line.split() for line in lines if line.startswith(f"cpu{core} ")), [])
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def versions(names: Sequence[str]) -> dict[str, str]:
    """Distribution -> installed version in this environment; those that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts() -> dict[str, object]:
    """What a table of results states about the machine."""
    names = ("taskgraft", "apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "onnxruntime")
    return {"cpu": cpu_model(), "isa": vector_isa(), "caches": caches(), "versions": versions(names)}


def processor_seconds(process: int) -> float:
    """Time that all threads of a process have had on a core so far; 0 where it is gone.

    /proc counts in steps of 10 ms. The clock here is the one that clock_getcpuclockid names on Linux.
    """
    try:
        return time.clock_gettime(~process << 3 | 2)
    except OSError:
        return 0.0
