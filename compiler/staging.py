"""Output folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from compiler.codegen.bundle import INDEX_SCHEMA, read_index
from compiler.codegen.manifest import canonical
from compiler.errors import ConfigError
from compiler.files import DISK_FULL, missing, remove_empty, replace_whole


@contextlib.contextmanager
def staged(root: Path, targets: Sequence[str], force: bool, name: str) -> Iterator[Path]:
    """A fresh folder beside `root`, moved into it when the block ends well; removed when it does not.

    Checks before any work is done: ConfigError where a target's bundle exists and `force` is not set, where bundles
    of another library than `name` would stay beside the new ones, or where nothing can be written. ConfigError too
    where the disk is full in the end.
    """
    existing = [t for t in targets if (root / t).exists()]
    if existing and not force:
        raise ConfigError(f"{root} already holds {', '.join(existing)}; --force replaces them")
    _refuse_strangers(root, targets, name)
    made = missing(root.parent)
    folder = None
    try:
        try:
            check_folder(root)
            root.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        except OSError as error:
            raise ConfigError(f"{root}: cannot be created: {error.strerror}; choose another with -o") from None
        folder.chmod(0o755)
        yield folder
        _publish(folder, root)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = error.filename or root
        raise ConfigError(
            f"{where}: cannot be written: {error.strerror}; make room there, or choose another with -o"
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        remove_empty(made)  # not those that hold the bundle


def check_folder(root: Path) -> None:
    """ConfigError where something is at `root` that is no folder, or one that cannot be written to."""
    if root.exists() and not (root.is_dir() and os.access(root, os.W_OK)):
        raise ConfigError(f"{root}: not a folder that can be written to; choose another with -o")


def _refuse_strangers(root: Path, targets: Sequence[str], name: str) -> None:
    """Whoever opens the folder gets the best target of it: they have to be of one library."""
    if not (root / "index.json").exists():
        return
    known = read_index(root)
    others = sorted(t for t in set(known["targets"]) - set(targets) if (root / t).is_dir())
    if known["name"] != name and others:
        raise ConfigError(
            f"{root} holds '{known['name']}' for {', '.join(others)}, which '{name}' does not replace; choose "
            "another folder with -o"
        )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; folders on the way are made. ConfigError where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _publish(folder: Path, root: Path) -> None:
    """Move everything in `folder` into `root`, replacing bundles of the same targets."""
    if not root.exists():
        folder.rename(root)
        return
    index = read_index(folder)
    known = read_index(root)["targets"] if (root / "index.json").exists() else {}
    old = folder / ".old"
    old.mkdir()
    for target in index["targets"]:
        _replace(folder / target, root / target, old / target)
    merged = {k: v for k, v in known.items() if (root / k).is_dir()} | index["targets"]
    write_whole(root / "index.json", canonical({"schema": INDEX_SCHEMA, "name": index["name"], "targets": merged}))


def _replace(new: Path, place: Path, old: Path) -> None:
    """Move `new` to `place` and what is there to `old`; whatever stops that, `place` holds one of the two whole."""
    if not place.exists():
        new.rename(place)
        return
    try:
        place.rename(old)
        new.rename(place)
    except BaseException:  # an interrupt between the two
        if old.exists() and not place.exists():
            old.rename(place)
        raise
