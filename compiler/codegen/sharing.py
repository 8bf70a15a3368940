"""Which kernel calls threads share: those with enough work to repay a meeting of the threads.

Decided when the library is compiled, from what the planner predicts or from counted work, never from a clock.
"""

from __future__ import annotations

from compiler.machine import Machine

LEAST_SECONDS = 4e-6
"""Work of one thread from which a call is shared. A meeting costs 0.3 to 1 us, and the data that the other threads
then have in their caches is paid for by the next reader."""

GENERIC_SHARE = 1 / 8
"""Part of the multiply-add peak that kernels without a prediction are assumed to reach."""


def worth_sharing(units: int, predicted: float | None, flops: int, moved: int, machine: Machine) -> bool:
    """Whether a call of `units` independent units is shared.

    `predicted` are seconds of one thread by the planner (None or 0: unknown); then `flops` and the bytes `moved`
    are counted instead.
    """
    counted = max(flops / (GENERIC_SHARE * machine.peak_flops), moved / machine.cache_bandwidth)
    return units > 1 and (predicted or counted) >= LEAST_SECONDS
