"""Where engines are looked for and how they get there."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import setup_peers
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.bundle_engine import large_pages
from benchmarks.peers.client import PeerError
from tests.shared import ROOT


def test_the_names_others_rely_on():
    assert list(PEERS) == ["onnxruntime", "openvino", "iree", "deepsparse", "tvm-stock"]


def test_every_engine_has_its_module():
    for peer in PEERS.values():
        assert ROOT.joinpath(*peer.module.split(".")).with_suffix(".py").exists()


def test_the_extra_installs_the_same_versions():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    for name in ("openvino", "iree"):
        assert set(PEERS[name].requirements) <= set(extra)
    assert PEERS["deepsparse"].requirements == ("deepsparse==1.8.0",)


def test_an_engine_runs_in_its_own_environment_then_in_ours(tmp_path):
    assert Peer("a").python(tmp_path) == Path(sys.executable)
    beside = Peer("b", ("numpy==" + __import__("numpy").__version__,))
    assert beside.python(tmp_path) == Path(sys.executable)
    own = tmp_path / "b" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert beside.python(tmp_path) == own


@pytest.mark.parametrize("requirement", ["numpy==0.0.1", "no-such-engine[x]==1.0"])
def test_another_version_is_not_taken(requirement, tmp_path):
    with pytest.raises(PeerError, match="setup-peers c"):
        Peer("c", (requirement,)).python(tmp_path)


def test_a_failed_installation_is_told(tmp_path, capsys, monkeypatch):
    broken = {"x": Peer("x", ("./no-such-file.whl",))}
    monkeypatch.setattr(setup_peers, "PEERS", broken)
    assert setup_peers.main(["--venvs", str(tmp_path), "--python", "/bin/false"]) == 1
    assert "x: failed: status 1" in capsys.readouterr().out


def test_peers_without_requirements_need_nothing(tmp_path, capsys):
    assert setup_peers.main(["onnxruntime", "--venvs", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())


def test_pages_of_a_library_are_counted_by_its_own_mappings(tmp_path):
    library = tmp_path / "libnet.so"
    mappings = [(library, 4, 0), (library, 9996, 8192), (tmp_path / "libc.so", 90000, 90000)]
    text = "".join(
        f"1000-2000 r--p 00000000 fe:00 17    {path}\nSize:  {size} kB\nRss:  4 kB\nFilePmdMapped:  {large} kB\n"
        for path, size, large in mappings
    )
    maps = tmp_path / "smaps"
    maps.write_text(text)
    assert large_pages(library, maps) == "82% in large pages"
    assert large_pages(tmp_path / "libsmall.so", maps) == ""
    assert large_pages(library, tmp_path / "none") == ""
