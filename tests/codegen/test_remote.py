"""Timing over ssh, with local stand-ins for ssh and scp."""

import json
from pathlib import Path

import pytest

from compiler.codegen.remote import bench_remote
from compiler.codegen.target import find_target
from compiler.errors import ConfigError, LoweringError
from tests.codegen.handmade import compile_kernels, tiny_bundle, tiny_library

HOST = find_target("host")

SSH = """#!/bin/sh
echo "$2" >> {log}
exec sh -c "$2"
"""
SCP = """#!/bin/sh
shift
for last; do :; done
while [ $# -gt 1 ]; do cp "$1" "${last#*:}"; shift; done
"""


def stand_in(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_copies_runs_and_cleans_up(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), HOST, tmp_path / "dist")
    log = tmp_path / "log"
    ssh = stand_in(tmp_path / "ssh", SSH.replace("{log}", str(log)))
    scp = stand_in(tmp_path / "scp", SCP)
    record = json.loads(bench_remote(bundle, HOST, "user@board", seconds=0.02, ssh=ssh, scp=scp))
    assert record["name"] == "tiny"
    assert len(record["subsets"]) == 3
    folder = log.read_text().splitlines()[-1].removeprefix("rm -rf ")
    assert folder.startswith("/")
    assert not Path(folder).exists()


def test_remote_failure_carries_its_words_and_cleans_up(tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path, exit_code=1)), HOST, tmp_path / "dist")
    log = tmp_path / "log"
    ssh = stand_in(tmp_path / "ssh", SSH.replace("{log}", str(log)))
    with pytest.raises(LoweringError, match="kernel failure"):
        bench_remote(bundle, HOST, "board", seconds=0.02, ssh=ssh, scp=stand_in(tmp_path / "scp", SCP))
    assert not Path(log.read_text().splitlines()[-1].removeprefix("rm -rf ")).exists()


@pytest.mark.parametrize("destination", ["-oProxyCommand=x", "a b", "host;rm", ""])
def test_destination_must_be_a_host(tmp_path: Path, destination: str) -> None:
    bundle = tiny_bundle(tiny_library(compile_kernels(HOST, tmp_path)), HOST, tmp_path / "dist")
    with pytest.raises(ConfigError, match="is not a host"):
        bench_remote(bundle, HOST, destination)
