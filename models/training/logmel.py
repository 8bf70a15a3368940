"""Log-mel frames of short recordings, computed with numpy and scipy alone.

Parameters: 8 kHz mono, scaled to a peak of 1; Hann window of 256 samples (32 ms) with a hop of 128 (16 ms);
power spectrum; 40 triangular mel bands (HTK formula) from 60 Hz to 4 kHz; natural logarithm of the power plus
1e-7. Every recording is then shifted and scaled to zero mean and unit deviation, clipped to -8..8, rounded to
multiples of 1/64, and centred in 48 frames (0.77 s; longer ones lose both ends) that are zero elsewhere.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import signal

Frames = npt.NDArray[np.float32]

RATE = 8000
WINDOW = 256
HOP = 128
BANDS = 40
FRAMES = 48
LOWEST_HZ = 60.0
FLOOR = 1e-7
LIMIT = 8.0
STEPS = 64


def log_mel(wave: npt.NDArray[np.int16]) -> Frames:
    """Turn one recording [samples] into log-mel frames [BANDS, FRAMES]."""
    scaled = wave / max(1.0, float(np.abs(wave.astype(np.float64)).max()))
    samples = np.pad(scaled, WINDOW // 2)
    _, _, spectrum = signal.stft(samples, RATE, "hann", WINDOW, WINDOW - HOP, boundary=None, padded=True)
    logs = np.log(mel_filters() @ np.abs(spectrum) ** 2 + FLOOR)
    normal = (logs - logs.mean()) / max(float(logs.std()), FLOOR)
    rounded = np.round(np.clip(normal, -LIMIT, LIMIT) * STEPS) / STEPS
    return _centre(rounded.astype(np.float32))


@cache
def mel_filters() -> npt.NDArray[np.float64]:
    """Return the triangular filters [BANDS, WINDOW / 2 + 1]."""
    edges = _to_hz(np.linspace(_to_mel(LOWEST_HZ), _to_mel(RATE / 2), BANDS + 2))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)[None]
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _centre(frames: Frames) -> Frames:
    """Cut or zero-pad [BANDS, n] to [BANDS, FRAMES], the same amount on both sides."""
    surplus = frames.shape[1] - FRAMES
    if surplus >= 0:
        return frames[:, surplus // 2 : surplus // 2 + FRAMES]
    left = -surplus // 2
    return np.pad(frames, ((0, 0), (left, -surplus - left)))


def _to_mel(hertz: float) -> float:
    """Convert a frequency to mel."""
    return float(2595 * np.log10(1 + hertz / 700))


def _to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert mel [n] to frequencies [n]."""
    return 700 * (10 ** (mel / 2595) - 1)
