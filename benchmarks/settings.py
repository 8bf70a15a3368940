"""Options that the speed studies share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.host import timed_cores
from benchmarks.peers import PEERS, VENVS, default_venvs
from benchmarks.peers.client import ROOT
from benchmarks.rounds import FULL, QUICK, Effort
from compiler.codegen.target import find_target

KEPT = "TASKGRAFT_BENCH"
"""Environment variable with the folder of models and bundles; default `.bench` in the repository."""


@dataclass(frozen=True)
class Settings:
    """How a study measures. `kept`: folder of models and bundles, made once and used again."""

    effort: Effort
    cores: tuple[int, ...]
    venvs: Path
    kept: Path
    lock: Path | None
    target: str
    cold: bool = True

    @classmethod
    def of(cls, options: argparse.Namespace, cores: int = 1) -> Settings:
        """From the command line; creates the folder `kept`. SystemExit where there are too few cores, TargetError
        for a target that does not exist."""
        find_target(options.target)
        options.kept.mkdir(parents=True, exist_ok=True)
        return cls(
            effort=QUICK if options.quick else FULL,
            cores=timed_cores(cores, options.core),
            venvs=options.venvs.absolute(),
            kept=options.kept.absolute(),
            lock=options.lock,
            target=options.target,
            cold=not options.hot,
        )


def say(text: str) -> None:
    """Progress and reasons, on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def parser(
    study: str,
    about: str | None,
    peers: Sequence[str] = (),
    own: Sequence[str] = (),
    without: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """The common options; `peers` are the default ones of a study, `own` those of its own, `without` names the
    common options that would do nothing in it, and that it refuses.
    """
    made = argparse.ArgumentParser(prog=f"python -m benchmarks {study}", description=about)
    for name, how in _common().items():
        if name in without:
            made.set_defaults(**{name: how.get("default", False if how.get("action") else None)})
        else:
            made.add_argument(f"--{name}", **how)
    if peers:
        known = ", ".join([*PEERS, *own])
        made.add_argument("--peers", type=words, default=tuple(peers), metavar="PEER,...", help=f"of {known}")
    return made


def _common() -> dict[str, dict[str, Any]]:
    """Name of each common option, without dashes -> how argparse takes it."""
    return {
        "json": {"action": "store_true", "help": "print the results as JSON and nothing else"},
        "quick": {
            "action": "store_true",
            "help": "less of everything; 2 rounds of 0.05 s, not 5 of 0.2 s",
        },
        "only": {"type": words, "default": (), "metavar": "CASE,...", "help": "cases; * and ? match"},
        "target": {"default": "host", "help": "target that our bundles are built for"},
        "core": {"type": int, "help": "processor to time on (default: the last usable one)"},
        "hot": {"action": "store_true", "help": "leave out the runs with flushed caches"},
        "lock": {"type": Path, "metavar": "FILE", "help": "hold this lock while timing: runs take turns"},
        "save": {"type": Path, "metavar": "FOLDER", "help": "add the results to the study's file in this folder"},
        "prepare": {"action": "store_true", "help": "only write models and bundles"},
        "kept": {
            "type": Path,
            "default": Path(os.environ.get(KEPT, ROOT / ".bench")),
            "metavar": "FOLDER",
            "help": f"models and bundles (default: {KEPT}, or .bench)",
        },
        "venvs": {
            "type": Path,
            "default": default_venvs(),
            "metavar": "FOLDER",
            "help": f"environments of the peers (default: {VENVS}, or .peers)",
        },
    }


def no_data(error: FileNotFoundError) -> int:
    """Say which file of a data set is missing; the exit status of a study that cannot run."""
    say(f"{error.filename} is not here: data sets are no part of the repository; name their folder with --data")
    return 2


def positive(text: str) -> int:
    """A whole number of at least 1. ValueError and ArgumentTypeError for any other text."""
    found = int(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return found


def words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(word for word in text.split(",") if word)


def chosen(patterns: Sequence[str], names: Iterable[str], what: str = "case") -> list[str]:
    """The names that a pattern matches (all, without patterns), in their own order.

    SystemExit with the names there are, where a pattern matches nothing.
    """
    known = list(names)
    lost = [p for p in patterns if not any(fnmatchcase(n, p) for n in known)]
    if lost:
        raise SystemExit(f"no {what} {', '.join(lost)}; there are {', '.join(known)}")
    return [n for n in known if not patterns or any(fnmatchcase(n, p) for p in patterns)]
