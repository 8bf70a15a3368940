"""Output folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from compiler.codegen.bundle import INDEX_SCHEMA, read_index
from compiler.codegen.manifest import canonical
from compiler.errors import DISK_FULL, ConfigError, unwritable
from compiler.files import (
    fresh_folder,
    holds,
    locked,
    missing,
    remove_empty,
    replace_whole,
    takes_files,
    undo_moves,
)


@contextlib.contextmanager
def staged(root: Path, targets: Sequence[str], force: bool, name: str) -> Iterator[Path]:
    """A fresh folder, whose contents are moved into `root` when the block ends well; removed when it does not.

    Checks before any work is done: ConfigError where another process writes `root`, where a target's bundle exists
    and `force` is not set, where something else is in its place, where bundles of another library than `name` would
    stay beside the new ones, or where nothing can be written. TargetError where the disk is full in the end.
    """
    check_folder(root)
    real = Path(os.path.realpath(root))
    place = real if real.is_dir() else real.parent  # what is there may be another file system than its parent
    made = missing(place)
    try:
        with _reserved(root, place) as folder:
            _refuse_existing(root, targets, force)
            _refuse_strangers(root, targets, name)
            yield folder
            _publish(folder, real)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise unwritable(error.filename or root, error, "choose another output folder") from error
    finally:
        remove_empty(made)  # not those that hold the bundle


@contextlib.contextmanager
def _reserved(root: Path, place: Path) -> Iterator[Path]:
    """A fresh folder in `place`, for this process alone; ConfigError where there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(place / f".{root.name}.lock"))
            prefix = f".{root.name}.staging-"
            for left in place.glob(f"{glob.escape(prefix)}*"):  # by a build that was killed: others are locked out
                shutil.rmtree(left, ignore_errors=True)
            folder = fresh_folder(prefix, place)
        except BlockingIOError:
            raise ConfigError(
                f"{root}: another process writes a bundle there; let it finish, or choose another output folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{root}: cannot be created: {error.strerror}; choose another output folder"
            ) from None
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _refuse_existing(root: Path, targets: Sequence[str], force: bool) -> None:
    existing = [t for t in targets if (root / t).exists()]
    if existing and not force:
        raise ConfigError(
            f"{root} already holds {', '.join(existing)}; --force, in Python force=True, replaces what is there"
        )
    if mine := [str(root / t) for t in existing if _is_of_others(root / t)]:
        raise ConfigError(
            f"{', '.join(mine)}: no bundle, and would be lost; move it away, or choose another output folder"
        )


def _is_of_others(place: Path) -> bool:
    """Whether something is at the place of a bundle that no build has written."""
    return not place.is_dir() or (any(place.iterdir()) and not (place / "manifest.json").exists())


def check_folder(root: Path) -> None:
    """ConfigError where something is at `root` that is no folder, or nothing can be written there."""
    if not takes_files(root):
        raise ConfigError(f"{root}: not a folder that can be written to; choose another output folder")


def _refuse_strangers(root: Path, targets: Sequence[str], name: str) -> None:
    """Whoever opens the folder gets the best target of it: they have to be of one library, each a folder in it."""
    if (root / "manifest.json").exists():
        raise ConfigError(
            f"{root} is the bundle of one target; name the folder above it, which holds one per target"
        )
    if not (root / "index.json").exists():
        return
    known = read_index(root)
    others = sorted(t for t in set(known["targets"]) - set(targets) if (root / t).is_dir())
    if known["name"] != name and others:
        raise ConfigError(
            f"{root} holds '{known['name']}' for {', '.join(others)}, which '{name}' does not replace; choose "
            "another output folder"
        )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all; folders on the way are made. ConfigError where it cannot,
    TargetError where the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, data)
    except OSError as error:
        raise unwritable(path, error) from None


def _publish(folder: Path, root: Path) -> None:
    """Move everything in `folder` into `root`, replacing bundles of the same targets; whatever stops that, `root`
    holds what it held, or all of the new ones.
    """
    if not root.exists():
        folder.rename(root)
        return
    index = read_index(folder)
    known = read_index(root)["targets"] if (root / "index.json").exists() else {}
    merged = {k: v for k, v in known.items() if (root / k).is_dir()} | index["targets"]
    text = canonical({"schema": INDEX_SCHEMA, "name": index["name"], "targets": merged})
    old = folder / ".old"
    old.mkdir()
    try:
        for target in index["targets"]:
            if (root / target).exists():
                (root / target).rename(old / target)
            (folder / target).rename(root / target)
        write_whole(root / "index.json", text)
    except BaseException:  # an interrupt between any two of these
        waiting = any((folder / target).exists() for target in index["targets"])
        if waiting or not holds(root / "index.json", text):  # that of a rebuild has the same bytes
            for target in index["targets"]:
                undo_moves(folder / target, root / target, old / target)
        raise
