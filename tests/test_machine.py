"""Facts of processor cores."""

import pytest

from compiler import machine
from compiler.machine import Machine

MACHINES = [m for m in vars(machine).values() if isinstance(m, Machine)]


def test_peak_counts_a_multiply_add_as_two() -> None:
    assert Machine("m", 4, 16, 1e9, 2.0, 1, 2, 0, 1e9).peak_flops == 16e9


def test_last_level_cache_is_the_largest() -> None:
    assert Machine("m", 4, 16, 1e9, 2.0, 1, 5, 0, 1e9).last_level_cache == 5


@pytest.mark.parametrize("core", MACHINES, ids=lambda m: m.name)
def test_every_machine_is_plausible(core: Machine) -> None:
    assert core.lanes in (4, 8, 16)
    assert 1e9 < core.peak_flops < 1e12
    assert core.bandwidth < core.peak_flops
    assert 0 < core.l1 <= core.l2 <= core.last_level_cache
