"""Nine seconds of speech at a time, clean to drowned in noise, as DNSMOS hears them (Reddy et al. 2021,
arXiv 2010.15258): spoken digits of the Free Spoken Digit Dataset, one speaker a clip.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.merging.people import People, Seen, split
from models.training.spoken_data import SPEAKERS, read_wave

RATE, SECONDS = 16_000, 9
WINDOW, HOP = 320, 160
FRAMES, BINS = 1 + RATE * SECONDS // HOP, 1 + WINDOW // 2
QUIETEST = 1e-12
"""Power below which nothing is told apart."""

FITTED, CHOSEN, REPORTED = 48, 48, 64
"""Clips that networks are fitted on, that choose, and that report."""

PAUSES = (0.1, 0.6)
"""Seconds between two digits."""

LEVELS = (-35.0, -15.0)
"""Decibels of the speech below full scale."""

NOISES = (-5.0, 45.0)
"""Decibels of the speech above the noise."""

SLOPES = (0.0, 1.0, 2.0)
"""How fast the power of a noise falls with frequency: white, pink, brown."""


def load_speech(folder: Path, seed: int) -> People:
    """Clips [n, FRAMES, BINS] of speakers of `fsdd/fsdd.zip`, nobody of whom is in two parts."""
    said: dict[str, list[np.ndarray]] = {speaker: [] for speaker in SPEAKERS}
    with zipfile.ZipFile(folder / "fsdd" / "fsdd.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".wav")):
            speaker = PurePosixPath(name).stem.split("_")[1]
            said[speaker].append(doubled(read_wave(archive.read(name)) / 2**15))
    rng = np.random.default_rng(seed)
    parts = []
    for speakers, count in zip(split(np.arange(len(SPEAKERS)), seed), (FITTED, CHOSEN, REPORTED), strict=True):
        names = [SPEAKERS[i] for i in sorted(speakers)]
        parts.append(np.stack([heard(clip(said[names[i % len(names)]], rng)) for i in range(count)]))
    fitted, chosen, reported = parts
    return People(fitted, Seen(chosen, {}), Seen(reported, {}))


def doubled(samples: np.ndarray) -> np.ndarray:
    """A recording [n] at twice its rate, with nothing in the upper half of the spectrum."""
    return 2 * np.fft.irfft(np.fft.rfft(samples), 2 * len(samples))


def clip(said: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Some recordings with pauses between them, at a level, in a noise: [RATE * SECONDS] in -1..1."""
    speech, at = np.zeros(RATE * SECONDS), 0
    while at < len(speech):
        word = said[rng.integers(len(said))][: len(speech) - at]
        speech[at : at + len(word)] = word
        at += len(word) + round(RATE * rng.uniform(*PAUSES))
    speech *= _gain(speech, rng.uniform(*LEVELS))
    noise = noise_of(len(speech), rng.choice(SLOPES), rng)
    loudness = 10 * np.log10(np.mean(speech**2)) - rng.uniform(*NOISES)
    return np.clip(speech + _gain(noise, loudness) * noise, -1, 1)


def noise_of(length: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency to the power of `slope`."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    return np.fft.irfft(spectrum / np.maximum(np.arange(len(spectrum)), 1) ** (slope / 2), length)


def _gain(samples: np.ndarray, decibels: float) -> float:
    return float(np.sqrt(10 ** (decibels / 10) / np.mean(samples**2)))


def heard(samples: np.ndarray) -> np.ndarray:
    """Logarithms of power by frame and frequency, float32 [FRAMES, BINS], of [RATE * SECONDS] samples."""
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log10(np.maximum(power, QUIETEST)).astype(np.float32)
