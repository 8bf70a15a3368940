"""Contenders and settings for tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.compare import Contender
from benchmarks.host import timed_cores
from benchmarks.outputs import Expected
from benchmarks.peers import Peer
from benchmarks.peers.client import Launch
from benchmarks.rounds import Effort
from benchmarks.settings import Settings

MODULE = "tests.benchmarks.fake_engine"
LAUNCH = Launch("fake", Path(sys.executable), MODULE)
FEEDS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
EXPECTED = Expected.of({"y": 2 * FEEDS["x"]}, {"y": 2 * FEEDS["x"]})


class FakePeer(Peer):
    """Runs the fake engine in this interpreter."""

    @property
    def module(self):
        return MODULE


def contender(label, does="double", patience=20.0, **options):
    return Contender(label, FakePeer(label, patience=patience), Path("none"), {"does": does, **options})


def settings(tmp_path, **changes):
    given = {
        "effort": Effort(2, 0.005),
        "cores": timed_cores(1),
        "venvs": tmp_path / "no-venvs",
        "kept": tmp_path,
        "lock": None,
        "target": "host",
        "cold": False,
    }
    return Settings(**{**given, **changes})
