"""What JSON has no form for, in a form that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """`value` with None for every float that is infinite or not a number: what could not be measured has no number.

    Mappings become dicts; lists and tuples, lists; everything else stays.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value
