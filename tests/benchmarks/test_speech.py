"""Clips of speech in noise: who speaks in which part, how loud, and what a network hears of it."""

from __future__ import annotations

import io
import wave
import zipfile

import numpy as np
import pytest

from benchmarks.merging import speech
from benchmarks.merging.speech import BINS, FRAMES, RATE, SECONDS, clip, doubled, heard, load_speech, noise_of
from models.training.spoken_data import SPEAKERS

SPACING = RATE / speech.WINDOW


def tone(hertz: float, count: int, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(count) / rate)


def test_twice_the_rate_is_the_same_tone():
    found = doubled(tone(440, 4000, 8000))
    assert np.allclose(found, tone(440, 8000, RATE), atol=1e-12)


def test_what_is_heard_is_the_short_time_fourier_transform():
    torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    samples = np.random.default_rng(0).normal(size=RATE * SECONDS)
    found = torch.stft(
        torch.from_numpy(samples),
        speech.WINDOW,
        speech.HOP,
        window=torch.hann_window(speech.WINDOW, dtype=torch.float64),
        pad_mode="constant",
        return_complex=True,
    )
    assert heard(samples).shape == (FRAMES, BINS)
    assert np.allclose(heard(samples), np.log10(np.abs(found.numpy().T) ** 2), atol=1e-4)
    assert np.all(heard(np.zeros(RATE * SECONDS)) == -12)


@pytest.mark.parametrize("slope", speech.SLOPES)
def test_noise_falls_with_frequency(slope):
    power = np.abs(np.fft.rfft(noise_of(2**18, slope, np.random.default_rng(1)))) ** 2
    low, high = power[1000:3000].mean(), power[16000:48000].mean()
    assert np.log(low / high) / np.log(16) == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize("level, above", [(-20.0, 30.0), (-30.0, -5.0)])
def test_speech_and_noise_are_as_loud_as_they_were_drawn(monkeypatch, level, above):
    monkeypatch.setattr(speech, "LEVELS", (level, level))
    monkeypatch.setattr(speech, "NOISES", (above, above))
    monkeypatch.setattr(speech, "SLOPES", (0.0,))
    found = clip([tone(1000, 4000, RATE)], np.random.default_rng(2))
    power = np.abs(np.fft.rfft(found)) ** 2
    hertz = np.fft.rfftfreq(len(found), 1 / RATE)
    spoken = power[np.abs(hertz - 1000) < 40].sum()
    rest = power[np.abs(hertz - 4000) < 2000].sum() * 2
    assert 10 * np.log10(2 * spoken / len(found) ** 2) == pytest.approx(level, abs=0.6)
    assert 10 * np.log10(spoken / rest) == pytest.approx(above, abs=1.0)
    assert np.abs(found).max() <= 1


def test_nobody_speaks_in_two_parts(tmp_path, monkeypatch):
    """Everyone is one tone, by which the loudest bin tells who speaks."""
    (tmp_path / "fsdd").mkdir()
    with zipfile.ZipFile(tmp_path / "fsdd" / "fsdd.zip", "w") as archive:
        for number, speaker in enumerate(SPEAKERS):
            content = io.BytesIO()
            with wave.open(content, "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes((2**15 * tone(500 * (number + 1), 4000, 8000)).astype("<i2").tobytes())
            archive.writestr(f"recordings/3_{speaker}_0.wav", content.getvalue())
    for name, value in {"FITTED": 4, "CHOSEN": 2, "REPORTED": 3, "NOISES": (60.0, 60.0)}.items():
        monkeypatch.setattr(speech, name, value)
    people = load_speech(tmp_path, 0)
    parts = [people.unlabelled, people.selection.inputs, people.report.inputs]
    assert [p.shape for p in parts] == [(n, FRAMES, BINS) for n in (4, 2, 3)]
    speaking = [{round(b * SPACING / 500) - 1 for b in p.mean(axis=1)[:, 1:].argmax(axis=1) + 1} for p in parts]
    assert [len(s) for s in speaking] == [2, 2, 2] and set.union(*speaking) == set(range(6))
    again = load_speech(tmp_path, 0)
    assert np.array_equal(again.unlabelled, people.unlabelled)
    assert not np.array_equal(load_speech(tmp_path, 1).unlabelled, people.unlabelled)
