"""Contenders of the speed studies: one engine per file, each served by a worker process of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.client import ROOT, Launch, PeerError

VENVS = "TASKGRAFT_PEERS"
"""Environment variable with the folder of the peers' virtual environments; default `.peers` in the repository."""


@dataclass(frozen=True)
class Peer:
    """An engine to be compared with. `requirements` are pip's; none means that it runs in our own environment."""

    name: str
    requirements: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    patience: float = 600.0
    """Seconds to wait for one answer, loading included."""

    @property
    def module(self) -> str:
        """Module of the engine."""
        return f"benchmarks.peers.{self.name.replace('-', '_')}_engine"

    def python(self, venvs: Path) -> Path:
        """The interpreter it runs in."""
        return venvs / self.name / "bin" / "python" if self.requirements else Path(sys.executable)

    def launch(self, venvs: Path) -> Launch:
        """How to start it; PeerError where its environment is missing."""
        python = self.python(venvs)
        if not python.exists():
            raise PeerError(f"not installed: no {python}; run python -m benchmarks setup-peers {self.name}")
        return Launch(self.name, python, self.module, self.environment)


OURS = Peer("bundle")
PEAK = Peer("peak")

PEERS = {p.name: p for p in (Peer("onnxruntime"),)}
"""Name on the command line -> peer. The versions are those of the extra `bench`."""


def default_venvs() -> Path:
    """Folder of the virtual environments."""
    return Path(os.environ.get(VENVS, ROOT / ".peers")).absolute()
