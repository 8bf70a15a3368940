"""Free Spoken Digit Dataset: loading, features and the split by take."""

from __future__ import annotations

import io
import wave
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from models.training.logmel import RATE, log_mel
from models.training.tasks import Labels

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
HELD_OUT_TAKES = 5

DATA_CARD = {
    "name": "Free Spoken Digit Dataset (FSDD)",
    "source": "https://github.com/Jakobovski/free-spoken-digit-dataset",
    "licence": "CC BY-SA 4.0, see LICENSE-DATA",
    "train": "the 2,700 recordings with take 5 to 49",
    "test": "the 300 recordings with take 0 to 4, the data set's own test split; the six speakers occur in both",
}


@dataclass(frozen=True)
class Recordings:
    """Log-mel frames [n, 1, BANDS, FRAMES] with the digit and the speaker [n] of each recording."""

    frames: npt.NDArray[np.float32]
    digits: Labels
    speakers: Labels

    def chosen(self, keep: npt.NDArray[np.bool_]) -> Recordings:
        """Return the recordings for which ``keep`` [n] is true."""
        return Recordings(self.frames[keep], self.digits[keep], self.speakers[keep])


def load_fsdd(data: Path) -> tuple[Recordings, Recordings]:
    """Load ``fsdd/fsdd.zip`` below the folder ``data``; return the training and the test recordings."""
    with zipfile.ZipFile(data / "fsdd" / "fsdd.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        frames = np.stack([log_mel(read_wave(archive.read(name))) for name in names])[:, None]
    parts = [PurePosixPath(name).stem.split("_") for name in names]  # DIGIT_SPEAKER_TAKE
    digits = np.array([int(digit) for digit, _, _ in parts], np.int64)
    speakers = np.array([SPEAKERS.index(speaker) for _, speaker, _ in parts], np.int64)
    held_out = np.array([int(take) < HELD_OUT_TAKES for _, _, take in parts])
    everything = Recordings(frames, digits, speakers)
    return everything.chosen(~held_out), everything.chosen(held_out)


def read_wave(content: bytes) -> npt.NDArray[np.int16]:
    """Return the samples [n] of a 16-bit mono WAV file at 8 kHz."""
    with wave.open(io.BytesIO(content)) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (RATE, 2, 1):
            raise ValueError("expected 16-bit mono recordings at 8 kHz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
