"""One mutant and its tests in a child process that is forked from a server with the large libraries loaded.

The child works in a copy of the repository, never in the repository itself. Bytecode is checked by content there,
so that a changed file is compiled anew whatever its time stamp.
"""

from __future__ import annotations

import compileall
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any, Literal

import pytest

from benchmarks.mutation.recording import file_of

Verdict = Literal["killed", "timeout", "survived", "untested"]
PRELOADED = (
    *("numpy", "onnx", "onnx.reference", "onnxruntime", "networkx", "scipy.linalg", "scipy.optimize"),
    *("scipy.sparse", "pytest", "hypothesis", "tvm", "torch"),
)
"""Loaded once in the server. What is missing is left out; the compiler and its tests are never among them."""
MEMORY = 8 << 30
"""Address space of a child."""
PATIENCE = 30.0
"""Seconds of processor time that a child has beyond ten times what its tests took when they were recorded."""
LOADED = -1
"""Told in place of pytest's status where the unchanged compiler was there before the copy's."""
CLOCK = 20.0
"""Seconds on the clock for every second of processor time, on a machine full of other work."""


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant. `by`: the test that noticed, or what stopped it."""

    verdict: Verdict
    by: str = ""

    @property
    def killed(self) -> bool:
        """Whether it was noticed."""
        return self.verdict in ("killed", "timeout")


def copy_tree(root: Path, folder: Path) -> Path:
    """The files that git knows or could know of, beside what the tests find at `../shared`, in a new folder."""
    tree = folder / "tree"
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.split("\0"):
        if name and (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name)
    shared = root.parent / "shared"
    if shared.exists():
        (folder / "shared").symlink_to(shared.resolve())
    compileall.compile_dir(tree / "compiler", quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return tree


@dataclass
class Chosen:
    """A plugin of pytest: these tests in this order; notes the first that fails."""

    order: Sequence[str]
    failed: str = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Only what was chosen."""
        known = {item.nodeid: item for item in items}
        items[:] = [known[i] for i in self.order if i in known]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The first failure, of the test or its fixtures."""
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _child(tree: str, tests: Sequence[str], seconds: float, tell: Connection) -> None:
    """Run the tests in the copy and tell pytest's status and the first failure. Ends the process."""
    os.setsid()
    if early := sorted(m for m in sys.modules if m.partition(".")[0] in ("compiler", "tests")):
        tell.send((LOADED, early[0]))
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    os.chdir(tree)
    sys.path[:] = [tree, *(p for p in sys.path if p)]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = tree
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    chosen = Chosen(tests)
    files = list(dict.fromkeys(map(file_of, tests)))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--basetemp={tree}-tmp"]
    status = pytest.main([*options, *files], plugins=[chosen])
    tell.send((int(status), chosen.failed))
    tell.close()
    os._exit(0)


@dataclass
class Bench:
    """Runs mutants one after the other in one copy of the repository."""

    tree: Path
    preloaded: Sequence[str] = PRELOADED
    _context: Any = field(default_factory=lambda: multiprocessing.get_context("forkserver"))

    def __post_init__(self) -> None:
        self._context.set_forkserver_preload(list(self.preloaded))

    def run(self, module: str, source: str, tests: Sequence[str], seconds: float) -> Outcome:
        """The outcome for a changed file; the copy is whole again afterwards. `seconds`: recorded, of the tests."""
        if not tests:
            return Outcome("untested")
        path = self.tree / module
        original = path.read_text()
        path.write_text(source)
        try:
            return self._tested(tests, 10 * seconds + PATIENCE)
        finally:
            path.write_text(original)

    def _tested(self, tests: Sequence[str], seconds: float) -> Outcome:
        ours, theirs = self._context.Pipe(duplex=False)
        child = self._context.Process(target=_child, args=(str(self.tree), tests, seconds, theirs))
        child.start()
        theirs.close()
        try:
            if not ours.poll(CLOCK * seconds):
                return Outcome("timeout", f"{CLOCK * seconds:.0f} s on the clock")
            status, failed = ours.recv()
        except EOFError:
            child.join()
            return self._ended(child.exitcode or 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.join()
            ours.close()
        return self._judged(status, failed)

    @staticmethod
    def _ended(code: int) -> Outcome:
        """A child that told nothing."""
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Outcome("timeout" if how in ("SIGXCPU", "SIGKILL") else "killed", how)

    @staticmethod
    def _judged(status: int, failed: str) -> Outcome:
        """RuntimeError where pytest ran no test although it could read the files, or not those of the copy."""
        if status == LOADED:
            raise RuntimeError(f"{failed} is loaded before the changed file: keep it out of the main module")
        if status == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise RuntimeError("none of the chosen tests is there any more; record them again")
        if status == pytest.ExitCode.OK:
            return Outcome("survived")
        return Outcome("killed", failed or "import")
