"""The program `taskgraft`: from its first line to its last, an interrupt ends it with the status of one.

While a command runs `cli` sees to interrupts. Before, as modules are imported, and after, as the interpreter is
left, nothing is half-written, so that there is nothing to tell either.
"""

from __future__ import annotations

import importlib
import os
import signal


def run() -> None:
    """`cli.run`, and what an interrupt does before and after it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    importlib.import_module("compiler.cli").run()


def _leave(number: int, frame: object) -> None:
    os._exit(128 + signal.SIGINT)
