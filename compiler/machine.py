"""Performance facts of a processor core, for predicted times. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """One core and the memory it sees.

    The numbers are nominal (data sheets, or a typical part of the family), good for ranking alternatives; a
    reported time is measured on the device.
    """

    name: str
    lanes: int
    """float32 elements in one vector register."""
    vector_registers: int
    clock: float
    """Sustained clock in Hz under vector load."""
    fma_per_cycle: float
    """Vector multiply-adds a core completes per cycle."""
    l1: int
    l2: int
    l3: int
    """Data cache sizes in bytes as seen by one core; 0 = none."""
    bandwidth: float
    """Bytes per second one core reads from main memory."""
    loads_per_cycle: float = 1.0
    """Vector loads a core completes per cycle."""
    fma_latency: float = 4.0
    """Cycles from a multiply-add's operands to its result."""
    narrow: int = 1
    """Vectors of at most half the width that a core handles in the time of a full one: 2 where a full vector passes
    the units in two halves, or takes two of them."""

    def rate(self, width: int) -> int:
        """Vectors of `width` elements handled in the time of a full one."""
        return self.narrow if 2 * width <= self.lanes else 1

    @property
    def cache_bandwidth(self) -> float:
        """Bytes per second one core reads from its largest cache: nominally, three times what memory gives."""
        return 3.0 * self.bandwidth

    @property
    def peak_flops(self) -> float:
        """Largest float32 rate of one core; a multiply-add counts as two."""
        return 2.0 * self.lanes * self.fma_per_cycle * self.clock

    @property
    def last_level_cache(self) -> int:
        """Bytes of the largest cache."""
        return max(self.l1, self.l2, self.l3)


_K, _M = 1024, 1024 * 1024

X86_64 = Machine("x86-64", 4, 16, 3.0e9, 1.0, 32 * _K, 256 * _K, 8 * _M, 12e9)
X86_64_V3 = Machine("x86-64-v3", 8, 16, 3.3e9, 2.0, 32 * _K, 512 * _K, 16 * _M, 25e9, 1.7)
X86_64_V4 = Machine("x86-64-v4", 16, 32, 3.5e9, 1.0, 32 * _K, 1 * _M, 32 * _M, 28e9, 1.0, narrow=2)
CORTEX_A53 = Machine("cortex-a53", 4, 32, 1.4e9, 0.5, 32 * _K, 512 * _K, 0, 2e9)
CORTEX_A72 = Machine("cortex-a72", 4, 32, 1.8e9, 1.0, 32 * _K, 1 * _M, 0, 4e9)
CORTEX_A76 = Machine("cortex-a76", 4, 32, 2.4e9, 2.0, 64 * _K, 512 * _K, 2 * _M, 10e9, 2.0)
CORTEX_A7 = Machine("cortex-a7", 4, 16, 1.0e9, 0.25, 32 * _K, 256 * _K, 0, 1.5e9)
