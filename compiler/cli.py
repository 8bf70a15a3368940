"""The command line: one command run, its `Result` shown. The only module that writes to stdout.

stdout carries results only; progress and errors go to stderr. Exit status: 0 done, 1 a gate or comparison failed,
2 usage or configuration, 3 model not supported, 4 input refused, 5 back end, 70 internal error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import codecs
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.arguments import parser
from compiler.errors import DISK_FULL, CompilerError, TargetError
from compiler.progress import silent

if TYPE_CHECKING:
    from compiler.commands import Result

INTERNAL, INTERRUPTED = 70, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argparse exits by itself (2) on wrong usage."""
    args = parser().parse_args(arguments)
    came: list[int] = []  # foreign code under us may make another error of a KeyboardInterrupt

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt  # so that half-written output is removed

    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, interrupt) for n in numbers}
    try:
        return _run(args)
    except (Exception, KeyboardInterrupt) as error:
        if came or isinstance(error, KeyboardInterrupt):
            told = ["interrupted; nothing half-written remains, the same command starts over"]
            return _told(error, INTERRUPTED, told, args)
        return _failed(error, args)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run() -> None:
    """The program `taskgraft`: `main` as an exit status."""
    ended = [0]
    atexit.register(_leave, ended)
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("taskgraft", _escaped)
        sys.stdout.reconfigure(errors="taskgraft")
    ended[0] = main()
    sys.exit(ended[0])


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that the encoding of stdout lacks, as JSON writes them: right in tables and in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _leave(ended: Sequence[int]) -> None:
    """Exit with the status of an interrupt: CPython dies of the signal, although it was handled, where it came
    within `exec`, as imports use it."""
    if ended[0] == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    _check_release(args)
    module, _, function = args.function.partition(":")
    command: Callable[[argparse.Namespace, Callable[[str], None]], Result]
    command = getattr(importlib.import_module(module), function)
    tables: Any = importlib.import_module("compiler.tables") if not (args.json and args.quiet) else None
    say: Any = silent if args.quiet or args.progress == "none" else tables.progress(args.progress)
    if say is not silent:
        say.start()
    try:
        result = command(args, say)
    finally:
        if say is not silent:
            say.close()
    try:
        if args.json:
            sys.stdout.write(importlib.import_module("compiler.report").to_json(result.record))
        else:
            tables.show(result.grids, sys.stdout)
            for line in result.lines:
                print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout has left; what the command found stands
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return result.code


def _check_release(args: argparse.Namespace) -> None:
    """Refuse a broken release file before its command loads the tensor compiler, which takes seconds."""
    path = getattr(args, "path", None)
    only_releases = "input" not in args  # which models have
    if "set" in args and isinstance(path, str) and (only_releases or path.endswith(".toml")):
        importlib.import_module("compiler.config").load_config(path, args.set)


def _status(error: Exception) -> int:
    if isinstance(error, MemoryError):
        error.add_note("the memory of this machine is too small for this; take less data or smaller networks")
        return TargetError.exit_code
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        error.add_note("make room where the output goes, and for temporary files (in the folder TMPDIR)")
        return TargetError.exit_code
    return error.exit_code if isinstance(error, CompilerError) else INTERNAL


def _failed(error: Exception, args: argparse.Namespace) -> int:
    status, kind = _status(error), type(error).__name__
    if args.debug:
        traceback.print_exception(error, file=sys.stderr)
    if status != INTERNAL:
        return _told(error, status, [f"error: {error or kind}"], args)
    defect = "this is a defect of taskgraft; --debug prints the traceback to report"
    return _told(error, status, [f"internal error ({kind}): {error}", defect], args)


def _told(error: BaseException, status: int, lines: Sequence[str], args: argparse.Namespace) -> int:
    """Tell how a command ended, with what those who saw the error pass added to it; the status."""
    notes = getattr(error, "__notes__", ())
    if args.progress == "json":
        record = {"event": "error", "status": status, "message": "\n".join(lines), "notes": list(notes)}
        print(json.dumps(record), file=sys.stderr)
        return status
    for line in (*lines, *(f"  {note}" for note in notes)):
        print(line, file=sys.stderr)
    return status
