"""Results by key in a folder that any number of processes share."""

from __future__ import annotations

import hashlib
from pathlib import Path

from compiler.errors import ConfigError, unwritable
from compiler.files import missing, remove_empty, replace_whole, takes_files

_DIGEST = hashlib.sha256().digest_size


class Store:
    """Bytes by key in a folder; without a folder nothing is kept.

    A file is written aside and renamed, and holds the digest of its content: what is half-written or damaged counts
    as absent and is written anew. Keys are names that depend on everything their content depends on, so nothing is
    ever out of date, and several writers of a key write the same.
    """

    def __init__(self, folder: Path | None) -> None:
        """ConfigError where nothing can be kept in `folder`."""
        if folder is not None and not takes_files(folder):
            raise ConfigError(f"cache {folder}: not a folder that can be written to; name another")
        self._folder = folder

    def load(self, key: str) -> bytes | None:
        """The bytes under `key`, or None."""
        if self._folder is None:
            return None
        try:
            data = (self._folder / key).read_bytes()
        except OSError:
            return None
        content = data[_DIGEST:]
        return content if hashlib.sha256(content).digest() == data[:_DIGEST] else None

    def save(self, key: str, content: bytes) -> None:
        """Keep bytes under `key`; ConfigError where the folder cannot be written to."""
        if self._folder is None:
            return
        made = missing(self._folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_whole(self._folder / key, hashlib.sha256(content).digest() + content)
        except OSError as error:
            remove_empty(made)
            file = self._folder / key
            if file.is_dir():
                raise unwritable(f"cache {file}", error, "remove this folder, or name another") from None
            raise unwritable(f"cache {self._folder}", error, "name another") from None
