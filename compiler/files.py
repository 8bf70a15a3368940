"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import get_native_id


def missing(folder: Path) -> tuple[Path, ...]:
    """`folder` and those above it that do not exist, the innermost first."""
    return tuple(p for p in (folder, *folder.parents) if not p.exists())


def takes_files(folder: Path) -> bool:
    """Whether files can be made in `folder`, which may have to be made first."""
    try:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError:  # a name that is too long
        return False
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def fresh_folder(prefix: str, place: Path) -> Path:
    """A new folder in `place`, with the permissions that the umask leaves: those of mkdtemp are private."""
    while True:
        folder = place / f"{prefix}{secrets.token_hex(4)}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, but for those that hold something."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def replace_whole(path: Path, data: bytes) -> None:
    """Write a file aside and rename it. OSError where that is not possible.

    Processes and threads may write the same file: one of them is the last. Links are followed. What is no file (a
    device, a pipe) is written to and stays what it is: a file in the place of /dev/null would take it from
    everybody.
    """
    path = Path(os.path.realpath(path))  # resolve() raises a RuntimeError for links round in a circle
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as special:
            special.write(data)
        return
    aside = path.with_name(f".{path.name[:50]}.{os.getpid()}.{get_native_id()}")  # no longer than names may be
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def holds(path: Path, data: bytes) -> bool:
    """Whether a file is there and has these contents."""
    return path.exists() and path.read_bytes() == data


def undo_moves(new: Path, place: Path, old: Path) -> None:
    """Undo the moves from `place` to `old` and from `new` to `place`, those of them that were done."""
    if not new.exists() and place.exists():
        place.rename(new)
    if old.exists():
        old.rename(place)


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """A file that one process, and one thread of it, has at a time, gone afterwards.

    BlockingIOError where somebody else has it, unless `wait`. The system ends the lock with the process, so that a
    file left by one that was killed locks nothing.
    """
    while True:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file.fileno(), path):
                continue  # whoever had it removed it between our two steps
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
