"""Files that appear whole, and what is no file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from compiler.errors import ConfigError
from compiler.staging import write_whole


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"text")
    reader.join(10)
    assert read == [b"text"]
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    write_whole(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_that_leads_round_in_a_circle_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    write_whole(link, b"new")
    assert not link.is_symlink() and link.read_bytes() == b"new"


def test_threads_that_write_one_file_take_nothing_from_each_other(tmp_path: Path, monkeypatch) -> None:
    """All of them have written aside when the first one renames."""
    together, raised, texts = threading.Barrier(3, timeout=30), list[BaseException](), (b"a" * 9, b"b", b"c" * 99)
    write = Path.write_bytes

    def write_and_wait(path: Path, data: bytes) -> int:
        count = write(path, data)
        together.wait()
        return count

    def run(text: bytes) -> None:
        try:
            write_whole(tmp_path / "file", text)
        except BaseException as error:
            raised.append(error)

    monkeypatch.setattr(Path, "write_bytes", write_and_wait)
    threads = [threading.Thread(target=run, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not raised and (tmp_path / "file").read_bytes() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_names_may_be_as_long_as_the_system_takes(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"x")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"x"


def test_a_folder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder: cannot be written: Is a directory"):
        write_whole(tmp_path / "folder", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
