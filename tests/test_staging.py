"""Folders that appear whole or not at all, whatever stops the last step."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from compiler.codegen.bundle import INDEX_SCHEMA, read_index
from compiler.codegen.manifest import canonical
from compiler.errors import ConfigError, TargetError
from compiler.staging import staged


def bundle(folder: Path, text: str, name: str, targets: Sequence[str]) -> None:
    for target in targets:
        (folder / target).mkdir()
        (folder / target / "manifest.json").write_text(text)
    entry = {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest(), "linked": True}
    index = {"schema": INDEX_SCHEMA, "name": name, "targets": dict.fromkeys(targets, entry)}
    (folder / "index.json").write_bytes(canonical(index))


def made(root: Path, text: str, name: str = "net", target: str = "host", more: Sequence[str] = ()) -> None:
    with staged(root, [target, *more], force=True, name=name) as folder:
        bundle(folder, text, name, [target, *more])


def test_a_bundle_replaces_another_and_nothing_else_stays(tmp_path):
    made(tmp_path / "out", "old")
    made(tmp_path / "out", "new")
    assert (tmp_path / "out" / "host" / "manifest.json").read_text() == "new"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["host", "index.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert list(read_index(tmp_path / "out")["targets"]) == ["host"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_was_there_stays_where_the_replacement_is_stopped_halfway(tmp_path, monkeypatch, stop):
    root, rename = tmp_path / "out", Path.rename
    made(root, "old")

    def stopped(self: Path, target: Path) -> Path:
        if target == root / "host" and self.parent.name != ".old":
            raise stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(stop):
        made(root, "new")
    assert (root / "host" / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


MORE = ("arm", "x86")
"""Targets beside `host`; of the first bundle only `arm` is there too."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_all_targets_are_replaced_or_none(tmp_path, monkeypatch, stop, after):
    """Stopped at every move of a file or folder, just before and just after it."""
    steps = 0
    while True:
        root = tmp_path / str(steps)
        made(root, "old", more=MORE[:1])
        there, left = (root / "index.json").read_bytes(), [steps]

        def stopped(self, move, target, left=left):
            left[0] -= 1
            if left[0] == -1 and not after:
                raise stop
            moved = move(self, target)
            if left[0] == -1:
                raise stop
            return moved

        with monkeypatch.context() as patch:
            for name in ("rename", "replace"):
                patch.setattr(Path, name, functools.partialmethod(stopped, getattr(Path, name)))
            try:
                made(root, "new", more=MORE)
            except (stop, ConfigError):
                pass
            else:
                break
        found = {p.parent.name: p.read_text() for p in root.glob("*/manifest.json")}
        if (root / "index.json").read_bytes() == there:
            assert found == {"host": "old", "arm": "old"}
        else:
            assert after and found == dict.fromkeys(("host", *MORE), "new")
        assert sorted(p.name for p in root.iterdir()) == sorted([*found, "index.json"])
        steps += 1
    assert steps == 6, "five moves of folders, one of the index"
    assert not list(tmp_path.glob(".*"))


def test_a_rebuild_of_the_same_bytes_that_is_stopped_leaves_them(tmp_path, monkeypatch):
    """The index says the same before and after, and not whether the bundle is in its place."""
    root, rename = tmp_path / "out", Path.rename
    made(root, "same")

    def stopped(self: Path, target: Path) -> Path:
        if target == root / "host" and self.parent.name != ".old":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", stopped)
        made(root, "same")
    assert (root / "host" / "manifest.json").read_text() == "same"
    assert sorted(p.name for p in root.iterdir()) == ["host", "index.json"]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_folders_have_the_permissions_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try:
        made(tmp_path / "out", "new")
    finally:
        os.umask(before)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / "out", tmp_path / "out" / "host")] == [0o777 & ~mask] * 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_told_with_its_place(tmp_path, number):
    with (
        pytest.raises(TargetError, match=rf"out: cannot be written: {os.strerror(number)}; make room"),
        staged(tmp_path / "deep" / "out", ["host"], False, "net"),
    ):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(OSError, match="Input/output"),
        staged(tmp_path / "out", ["host"], False, "net"),
    ):  # anything else stays what it is
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_bundles_of_two_libraries_do_not_share_a_folder(tmp_path):
    root = tmp_path / "out"
    made(root, "old")
    with pytest.raises(ConfigError, match="holds 'net' for host, which 'other' does not replace"):
        made(root, "new", "other", "armv7-neon")
    made(root, "new", "other")
    assert read_index(root)["name"] == "other"


HOLD = """
import sys
from pathlib import Path
from compiler.staging import staged
with staged(Path(sys.argv[1]), ["host"], True, "net"):
    print("writing", flush=True)
    sys.stdin.read()
    raise SystemExit
"""


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_folder_is_written_by_one_process_at_a_time(tmp_path, there):
    root = tmp_path / "out"
    if there:
        made(root, "old")
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        with pytest.raises(ConfigError, match="out: another process writes a bundle there; let it finish"):
            made(root, "new")
        made(tmp_path / "beside", "new")
        other.kill()  # no chance to clean up
    made(root, "new")
    assert (root / "host" / "manifest.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob(".*")) == []


def test_what_is_no_bundle_is_not_replaced(tmp_path):
    root = tmp_path / "out"
    (root / "host").mkdir(parents=True)
    made(root, "new")  # an empty folder is nobody's
    (root / "arm").mkdir()
    (root / "arm" / "notes").write_text("mine")
    (root / "x86").write_text("mine")
    for target in ("arm", "x86"):
        with pytest.raises(ConfigError, match=f"out/{target}: no bundle, and would be lost; move it away"):
            made(root, "new", target=target)
    assert (root / "arm" / "notes").read_text() == (root / "x86").read_text() == "mine"


def test_no_bundle_is_put_into_the_bundle_of_a_target(tmp_path):
    made(tmp_path / "out", "old")
    with pytest.raises(ConfigError, match="out/host is the bundle of one target; name the folder above it"):
        made(tmp_path / "out" / "host", "new")
    assert [p.name for p in (tmp_path / "out" / "host").iterdir()] == ["manifest.json"]


def test_a_folder_may_be_a_link_to_another_file_system(tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        (tmp_path / "out").symlink_to(folder)
        made(tmp_path / "out", "old")
        made(tmp_path / "out", "new")
        assert sorted(p.name for p in Path(folder).iterdir()) == ["host", "index.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
