"""What we compile for: frozen records with the instruction set, its checks, tools and performance facts.

Adding a target means adding one record to `_PRESETS`. `host` is resolved from the running processor and carries the
name of the preset it was resolved to, so that a bundle records what it really contains.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compiler.errors import ConfigError, TargetError
from compiler.machine import (
    CORTEX_A7,
    CORTEX_A53,
    CORTEX_A72,
    CORTEX_A76,
    X86_64,
    X86_64_V3,
    X86_64_V4,
    Machine,
)

Arch = Literal["x86_64", "aarch64", "armv7"]


@dataclass(frozen=True, slots=True)
class Feature:
    """A CPU feature the kernels use, and where the driver finds it.

    `source` is a word the driver reads: `leaf1_ecx`, `leaf7_ebx`, `ext1_ecx` (cpuid), `xcr0` (xgetbv, what the
    operating system saves) or `hwcap` (getauxval). All bits of `mask` must be set. `proc` is the feature's name in
    /proc/cpuinfo, empty where that file does not list it.
    """

    name: str
    source: Literal["leaf1_ecx", "leaf7_ebx", "ext1_ecx", "xcr0", "hwcap"]
    mask: int
    proc: str


@dataclass(frozen=True, slots=True)
class Emulator:
    """User-mode emulator; `cpu` is exact, so that it refuses instructions the target lacks."""

    programs: tuple[str, ...]
    cpu: str
    sysroot: str


@dataclass(frozen=True, slots=True)
class Target:
    """An instruction set with its tools. Compare and hash by value."""

    name: str
    preset: str
    """The preset the record came from; differs from `name` for `host` only."""
    arch: Arch
    mtriple: str
    mcpu: str
    mattr: tuple[str, ...]
    float_abi: str
    """`hard` on armv7, else empty."""
    lanes: int
    """float32 elements in one vector register."""
    vector_registers: int
    features: tuple[Feature, ...]
    driver_flags: tuple[str, ...]
    """C compiler flags of the driver: the baseline of the architecture, so that its CPU check runs anywhere."""
    compilers: tuple[str, ...]
    """C compilers to look for on PATH, best first; one counts only if it compiles for `arch`."""
    zig: str
    """Target of `zig cc`; its suffix is the oldest glibc the library runs on."""
    machine: Machine
    emulator: Emulator | None

    @property
    def tvm(self) -> dict[str, object]:
        """The target dictionary of the tensor compiler."""
        record: dict[str, object] = {"kind": "llvm", "mtriple": self.mtriple, "mcpu": self.mcpu}
        if self.mattr:
            record["mattr"] = list(self.mattr)
        if self.float_abi:
            record["mfloat-abi"] = self.float_abi
        return record

    @property
    def most_bytes(self) -> int:
        """Bytes that have an address."""
        return 2**32 - 1 if self.arch == "armv7" else 2**64 - 1

    @property
    def input_lanes(self) -> int:
        """Consecutive inputs worth reading as one vector, to be multiplied by element; 1: broadcast each.

        64-bit ARM multiplies by an element for free; elsewhere a load that broadcasts costs no more than a load.
        """
        return 4 if self.arch == "aarch64" else 1

    @property
    def native(self) -> bool:
        """True where this machine's architecture and system are the target's."""
        return sys.platform == "linux" and machine_arch() == self.arch


_V3 = (
    Feature("FMA", "leaf1_ecx", 1 << 12, "fma"),
    Feature("MOVBE", "leaf1_ecx", 1 << 22, "movbe"),
    Feature("F16C", "leaf1_ecx", 1 << 29, "f16c"),
    Feature("AVX", "leaf1_ecx", 1 << 27 | 1 << 28, "avx"),
    Feature("AVX2", "leaf7_ebx", 1 << 5, "avx2"),
    Feature("BMI", "leaf7_ebx", 1 << 3 | 1 << 8, "bmi2"),
    Feature("LZCNT", "ext1_ecx", 1 << 5, "abm"),
    Feature("OS_YMM", "xcr0", 0x06, ""),
)
_V4 = (
    *_V3,
    Feature("AVX512F", "leaf7_ebx", 1 << 16, "avx512f"),
    Feature("AVX512DQ", "leaf7_ebx", 1 << 17, "avx512dq"),
    Feature("AVX512CD", "leaf7_ebx", 1 << 28, "avx512cd"),
    Feature("AVX512BW", "leaf7_ebx", 1 << 30, "avx512bw"),
    Feature("AVX512VL", "leaf7_ebx", 1 << 31, "avx512vl"),
    Feature("OS_ZMM", "xcr0", 0xE6, ""),
)
_ASIMD = (Feature("ASIMD", "hwcap", 1 << 1, "asimd"),)
_ARMV82 = (
    *_ASIMD,
    Feature("LSE", "hwcap", 1 << 8, "atomics"),
    Feature("FP16", "hwcap", 1 << 9 | 1 << 10, "asimdhp"),
    Feature("RDM", "hwcap", 1 << 12, "asimdrdm"),
    Feature("ASIMDDP", "hwcap", 1 << 20, "asimddp"),
)
_ARMV7 = (
    Feature("NEON", "hwcap", 1 << 12, "neon"),
    Feature("VFPV4", "hwcap", 1 << 16, "vfpv4"),
    Feature("IDIV", "hwcap", 1 << 17 | 1 << 18, "idiva"),
)


def _x86(
    name: str, mcpu: str, features: tuple[Feature, ...], machine: Machine, mattr: tuple[str, ...] = ()
) -> Target:
    return Target(
        name=name,
        preset=name,
        arch="x86_64",
        mtriple="x86_64-linux-gnu",
        mcpu=mcpu,
        mattr=mattr,
        float_abi="",
        lanes=machine.lanes,
        vector_registers=machine.vector_registers,
        features=features,
        driver_flags=("-march=x86-64",),
        compilers=("x86_64-linux-gnu-gcc", "gcc", "cc"),
        zig="x86_64-linux-gnu.2.28",
        machine=machine,
        emulator=None,
    )


def _aarch64(name: str, mcpu: str, features: tuple[Feature, ...], machine: Machine, emulated: str) -> Target:
    return Target(
        name=name,
        preset=name,
        arch="aarch64",
        mtriple="aarch64-linux-gnu",
        mcpu=mcpu,
        mattr=(),
        float_abi="",
        lanes=machine.lanes,
        vector_registers=machine.vector_registers,
        features=features,
        driver_flags=("-march=armv8-a", "-mno-outline-atomics"),
        compilers=("aarch64-linux-gnu-gcc", "gcc", "cc"),
        zig="aarch64-linux-gnu.2.28",
        machine=machine,
        emulator=Emulator(("qemu-aarch64-static", "qemu-aarch64"), emulated, "/usr/aarch64-linux-gnu"),
    )


# The triple names a vendor: without one LLVM takes "linux" for it, sees no EABI, and calls the functions of libgcc
# for 64-bit integers with results in other registers than they use.
# For this core LLVM would write a multiply-add as two instructions with a register in between; the last two
# attributes make it one.
_ARMV7_NEON = Target(
    name="armv7-neon",
    preset="armv7-neon",
    arch="armv7",
    mtriple="armv7a-unknown-linux-gnueabihf",
    mcpu="cortex-a7",
    mattr=("+neon", "+vfp4", "-slowfpvfmx", "-vmlx-hazards"),
    float_abi="hard",
    lanes=4,
    vector_registers=16,
    features=_ARMV7,
    driver_flags=("-march=armv7-a", "-mfpu=vfpv3-d16", "-mfloat-abi=hard"),
    compilers=("arm-linux-gnueabihf-gcc", "gcc", "cc"),
    zig="arm-linux-gnueabihf.2.28",
    machine=CORTEX_A7,
    emulator=Emulator(("qemu-arm-static", "qemu-arm"), "cortex-a7", "/usr/arm-linux-gnueabihf"),
)

# The generic model of x86-64-v4 asks for 256-bit vectors; the attribute lifts that.
_X86_64_V4 = _x86("x86-64-v4", "x86-64-v4", _V4, X86_64_V4, ("-prefer-256-bit",))
_X86_64_V3 = _x86("x86-64-v3", "x86-64-v3", _V3, X86_64_V3)
_AARCH64 = (
    _aarch64("aarch64-cortex-a53", "cortex-a53", _ASIMD, CORTEX_A53, "cortex-a53"),
    _aarch64("aarch64-cortex-a72", "cortex-a72", _ASIMD, CORTEX_A72, "cortex-a72"),
    _aarch64("aarch64-cortex-a76", "cortex-a76", _ARMV82, CORTEX_A76, "cortex-a76"),
)
_PRESETS = {t.name: t for t in (_X86_64_V3, _X86_64_V4, *_AARCH64, _ARMV7_NEON)}

# What `host` may resolve to, best first; the last one of an architecture has no requirement beyond its baseline.
_HOST_CANDIDATES = (
    _X86_64_V4,
    _X86_64_V3,
    _x86("x86-64", "x86-64", (), X86_64),
    _AARCH64[2],
    _AARCH64[1],
    _ARMV7_NEON,
)


REACH = 1024
"""Bytes from a base that loads of two vectors reach on 64-bit ARM: beyond, each needs an address of its own."""


def by_element_fits(rows: int, vectors: int, registers: int, chains: int = 1, stride: int = REACH) -> bool:
    """Whether a tile that multiplies by element stays in registers: sums, a vector of inputs per row and those read
    ahead, and weights; LLVM keeps one register for itself.

    It reads ahead for half of the rows, or for all that one base reaches where they begin `stride` bytes apart.
    """
    ahead = max(rows // 2, min(rows, 1 + (REACH - 32) // stride))
    return rows * vectors * chains + rows + ahead + vectors < registers


def machine_arch() -> str:
    """Architecture of the running machine in the vocabulary of `Target.arch`."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}.get(name, name)


def target_names() -> tuple[str, ...]:
    """Every name `find_target` accepts."""
    return ("host", *_PRESETS)


def find_target(name: str) -> Target:
    """The preset called `name`. ConfigError for an unknown name, TargetError where `host` has no preset."""
    if name == "host":
        return resolve_host(machine_arch(), _cpu_flags())
    if name not in _PRESETS:
        raise ConfigError(f"unknown target '{name}'; known are {', '.join(target_names())}")
    return _PRESETS[name]


def resolve_host(arch: str, flags: frozenset[str]) -> Target:
    """The best preset whose features are all in `flags` (names of /proc/cpuinfo), renamed to `host`."""
    if sys.platform != "linux":
        raise TargetError(
            f"target 'host' is supported on Linux only, this is {sys.platform}; name a preset instead"
        )
    for candidate in _HOST_CANDIDATES:
        if candidate.arch == arch and all(f.proc in flags for f in candidate.features if f.proc):
            return dataclasses.replace(candidate, name="host", emulator=None)
    raise TargetError(f"no preset fits this processor ({arch}); known targets are {', '.join(_PRESETS)}")


def runs_here(target: Target) -> bool:
    """Whether this machine runs code for `target`: its architecture, and every feature that can be looked up."""
    return target.native and all(f.proc in _cpu_flags() for f in target.features if f.proc)


def _cpu_flags() -> frozenset[str]:
    """Feature names that the kernel reports for the running processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TargetError(f"target 'host' needs /proc/cpuinfo: {error}; name a preset instead") from error
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
