"""Contenders of the speed studies: one engine per file, each served by a worker process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.peers.client import ROOT, Launch, PeerError

VENVS = "TASKGRAFT_PEERS"
"""Environment variable with the folder of the peers' virtual environments; default `.peers` in the repository."""


@dataclass(frozen=True)
class Peer:
    """An engine to be compared with. `requirements` are pip's, the engine itself first; none: it is always here."""

    name: str
    requirements: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 600.0
    """Seconds to wait for one answer, loading included."""

    @property
    def module(self) -> str:
        """Module of the engine."""
        return f"benchmarks.peers.{self.name.replace('-', '_')}_engine"

    def folder(self, venvs: Path) -> Path:
        """Its virtual environment."""
        return venvs / self.name

    def python(self, venvs: Path) -> Path:
        """The interpreter it runs in: its own environment's, or ours where the engine is installed beside us.

        PeerError where it is in neither.
        """
        python = self.folder(venvs) / "bin" / "python"
        if python.exists():
            return python
        if not self.requirements or _installed(self.requirements[0]):
            return Path(sys.executable)
        raise PeerError(f"not installed: no {python}; run python -m benchmarks setup-peers {self.name}")

    def launch(self, venvs: Path) -> Launch:
        """How to start it; PeerError where it is not installed."""
        return Launch(self.name, self.python(venvs), self.module, self.environment)


def _installed(requirement: str) -> bool:
    """Whether this environment has the distribution of a requirement with an exact version."""
    name = re.split(r"[\[=]", requirement)[0]
    try:
        return metadata.version(name) == requirement.rpartition("==")[2]
    except metadata.PackageNotFoundError:
        return False


OURS = Peer("bundle")
BUILD = Peer("build", patience=1200.0)
C_CALLS = Peer("c-calls")
KERNELS = Peer("kernels")
PEAK = Peer("peak")
READING = Peer("reading")
IREE = "3.13.0"
_ALL = (
    Peer("onnxruntime"),
    Peer("openvino", ("openvino==2026.4.1",), {"OPENVINO_TELEMETRY_OPTOUT": "1"}),
    Peer("iree", (f"iree-base-compiler[onnx]=={IREE}", f"iree-base-runtime=={IREE}")),
    Peer("deepsparse", ("deepsparse==1.8.0",), {"NM_DISABLE_ANALYTICS": "1"}),
    Peer("tvm-stock"),
)
PEERS = {peer.name: peer for peer in _ALL}
"""Name on the command line -> peer. deepsparse needs an older numpy than we do, so an environment of its own."""


def default_venvs() -> Path:
    """Folder of the virtual environments."""
    return Path(os.environ.get(VENVS, ROOT / ".peers")).absolute()
