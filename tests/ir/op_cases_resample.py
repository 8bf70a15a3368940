"""Cases of Resize and GridSample."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ir.op_case import OpCase
from tests.ir.op_values import floats, longs, real, whole, within

REFUSED: list[tuple[OpCase, str]] = []
DISAGREEMENTS: dict[str, str] = {}
NOT_INFERRED: dict[str, str] = {}
CASES: list[OpCase] = []

IMAGE = real(1, 2, 5, 7)
FRAMES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
PLANES = "i0.1 o0.1"


def resize(id_: str, x: np.ndarray, roi=None, scales=None, sizes=None, **more: Any) -> OpCase:
    """A case of Resize; keywords are attributes, but for `free` and `flops`."""
    fields = {k: more.pop(k) for k in ("free", "flops", "tolerance") if k in more}
    operands = [x, roi, scales, sizes]
    while operands[-1] is None:
        operands.pop()
    return OpCase("Resize", id_, operands, more, **fields)


for mode in ("nearest", "linear", "cubic"):
    for frame in FRAMES:
        attrs = {"mode": mode, "coordinate_transformation_mode": frame, "free": PLANES}
        taps = {"nearest": 0, "linear": 2, "cubic": 4}[mode]
        name = f"{mode}-{frame}"
        CASES += [
            resize(f"{name}-double", IMAGE, scales=floats(1, 1, 2, 2), **attrs, flops=2 * taps * 2 * 10 * (7 + 14)),
            resize(f"{name}-both", IMAGE, sizes=longs(1, 2, 8, 4), **attrs),
            resize(f"{name}-one", IMAGE, sizes=longs(1, 2, 1, 1), **attrs),
        ]
    CASES += [
        resize(f"{mode}-axes", IMAGE, sizes=longs(10, 3), mode=mode, axes=[3, 2]),
        resize(f"{mode}-odd-scale", IMAGE, scales=floats(1, 1, 0.6, 1.3), mode=mode),
        resize(f"{mode}-crop", real(1, 1, 4, 4), floats(0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7), None, longs(1, 1, 3, 3),
               mode=mode, coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0),
        resize(f"{mode}-crop-axes", real(1, 1, 4, 4), floats(0.6, 0.4, 0.8, 0.6), None, longs(3, 3), axes=[3, 2],
               mode=mode, coordinate_transformation_mode="tf_crop_and_resize"),
    ]  # fmt: skip
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    CASES.append(
        resize(f"nearest-{rounding}", IMAGE, sizes=longs(1, 2, 8, 4), mode="nearest", nearest_mode=rounding)
    )
for mode in ("linear", "cubic"):
    for outside in (0, 1):
        attrs = {"mode": mode, "antialias": 1, "exclude_outside": outside}
        CASES += [
            resize(f"{mode}-antialias-down{outside}", real(1, 1, 9, 14), scales=floats(1, 1, 0.3, 0.45), **attrs),
            resize(f"{mode}-antialias-up{outside}", real(1, 1, 4, 5), sizes=longs(1, 1, 6, 3), **attrs),
        ]
for policy in ("not_larger", "not_smaller"):
    more = {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
    for mode in ("nearest", "linear"):
        CASES.append(resize(f"{mode}-{policy}", real(1, 1, 4, 6), sizes=longs(7, 8), mode=mode, **more))
CASES += [
    resize("cubic-coefficient", real(1, 1, 4, 4), scales=floats(1, 1, 2, 0.8), mode="cubic", cubic_coeff_a=-0.5),
    resize("cubic-outside", real(1, 1, 4, 4), scales=floats(1, 1, 2, 0.8), mode="cubic", exclude_outside=1),
    resize("linear-3d", real(1, 2, 3, 4, 5), scales=floats(1, 1, 2, 2, 2), mode="linear"),
    resize("nearest-3d", real(1, 2, 3, 4, 5), scales=floats(1, 1, 2, 2, 2), mode="nearest"),
    resize("linear-uint8", whole(1, 1, 4, 4, dtype=np.uint8, low=0, high=255), scales=floats(1, 1, 2, 2),
           mode="linear"),
    resize("nearest-int32", whole(1, 1, 4, 4, dtype=np.int32), scales=floats(1, 1, 2, 2), mode="nearest"),
    resize("nothing", IMAGE, scales=floats(1, 1, 1, 1), mode="linear", flops=0,
           free="i0.1 i0.2 i0.3 o0.1 o0.2 o0.3"),
]  # fmt: skip

# ---------------------------------------------------------------------- GridSample
GRID = within(-1.4, 1.4, 2, 3, 6, 2)
SAMPLE_FREE = "i0.0 i0.1 i1.0 i1.1 i1.2 o0.0 o0.1 o0.2 o0.3"
TAPS = {"nearest": 0, "linear": 4, "cubic": 16}
for mode, taps in TAPS.items():
    for padding in ("zeros", "border", "reflection"):
        for aligned in (0, 1):
            attrs = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
            CASES.append(
                OpCase("GridSample", f"{mode}-{padding}-{aligned}", [real(2, 3, 4, 5), GRID], attrs,
                       flops=2 * taps * 2 * 3 * 18, free=SAMPLE_FREE, tolerance=1e-4)
            )  # fmt: skip
for mode in TAPS:
    operands = [real(1, 2, 1, 3), GRID[:1]]
    attrs = {"mode": mode, "padding_mode": "reflection", "align_corners": 1}
    CASES.append(OpCase("GridSample", f"{mode}-one-row", operands, attrs, tolerance=1e-4))
for mode in ("nearest", "linear"):
    operands = [real(1, 2, 3, 4, 5), within(-1.2, 1.2, 1, 3, 2, 6, 3)]
    CASES.append(OpCase("GridSample", f"{mode}-volume", operands, {"mode": mode}))

REFUSED += [
    (OpCase("Resize", "computed-sizes", [IMAGE, None, None, np.array([1, 2, 8, 4])]), "Resize 'sizes' constant"),
    (resize("mode", IMAGE, scales=floats(1, 1, 2, 2), mode="lanczos"), "Resize 'lanczos' cubic"),
    (
        resize("no-region", IMAGE, scales=floats(1, 1, 2, 2), coordinate_transformation_mode="tf_crop_and_resize"),
        "region",
    ),
    (resize("zero", IMAGE, sizes=longs(1, 2, 0, 4)), "Resize positive"),
    (resize("empty", real(1, 2, 0, 4), sizes=longs(1, 2, 3, 4)), "Resize empty"),
    (OpCase("GridSample", "mode", [IMAGE, GRID[:1]], {"mode": "lanczos"}), "GridSample 'lanczos'"),
    (
        OpCase("GridSample", "cubic-volume", [real(1, 2, 3, 4, 5), real(1, 2, 2, 2, 3)], {"mode": "cubic"}),
        "cubic images",
    ),
]
