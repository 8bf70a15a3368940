"""Damaged files for everything that reads files: ONNX, release files, bundles, indices, plans, tuning, data, specs.

Allowed is to read them or to raise the reader's own errors. A finding is any other exception, the death of the
process, a file opened outside the folder, or more than `MEMORY` bytes.

`python -m benchmarks.fuzz.readers NAME --seconds S` attacks one reader in this process: guided by coverage where
`atheris` is installed and `--coverage` is given, else by seeded mutation alone. The study runs it for each in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks.fuzz.mutate import Mutator, mutate_bytes, mutate_json, mutate_lines, mutate_onnx, one_of
from benchmarks.fuzz.totals import add, origin

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 3 << 30
"""Address space that inputs may take: beyond it an allocation fails, and the failure is a finding."""
SLOW = 20.0
"""Seconds of processor time for one input that count as a hang."""


@dataclass(frozen=True)
class Reader:
    """`seeds`: whole files to start from. `prepare` fills a folder once, `read` reads one input within it."""

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutator
    read: Callable[[Path, bytes], object]
    prepare: Callable[[Path], None] = lambda folder: None


# ---------------------------------------------------------------------- what reads files
def _models() -> list[bytes]:
    from benchmarks.fuzz.families import family

    found = [m.model.SerializeToString() for s in range(12) for m in family(s).members.values()]
    return [*sorted(found, key=len)[:20], *_with_levels()]


def _with_levels() -> list[bytes]:
    """Exported networks whose metadata hold levels: of sparsity, and a portfolio."""
    from benchmarks.fuzz.families import family
    from compiler import load, parse_pass, portfolio, to_onnx, union

    models = {t: load(m.model, task=t) for t, m in family(8).members.items()}
    graph = union(models, name="net")
    nested = parse_pass("nest{levels=0+0.5,pattern=block4x1,dense=(),min_inputs=2}")(graph)
    both = (to_onnx(g) for g in (nested, portfolio([graph, graph])))
    return [model.SerializeToString(deterministic=True) for model in both]


def _read_model(folder: Path, data: bytes) -> object:
    from compiler.ir.onnx_in import load

    (folder / "net.onnx").write_bytes(data)
    return load(folder / "net.onnx", allow_external_data=True)


def _read_release(folder: Path, data: bytes) -> object:
    from compiler.config import load_config

    (folder / "release.toml").write_bytes(data)
    return load_config(folder / "release.toml").resolved()


def _releases() -> list[bytes]:
    return [p.read_bytes() for p in sorted((ROOT / "models").glob("*/*.toml"))] + [
        block.encode()
        for block in re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL)
    ]


@functools.cache
def _bundle() -> dict[str, bytes]:
    """Every file of a small bundle for this machine, by its path below the output folder."""
    from benchmarks.fuzz.families import family
    from compiler.compile import build
    from compiler.ir.onnx_in import load
    from compiler.ir.union import union

    models = {t: load(m.model, task=t) for t, m in family(3).members.items()}
    with tempfile.TemporaryDirectory() as work:
        build(union(models, input="image", name="net"), "host", work, selftest=False)
        found = [p for p in Path(work).rglob("*") if p.is_file()]
        return {str(p.relative_to(work)): p.read_bytes() for p in found}


def _lay_out(folder: Path) -> None:
    for name, data in _bundle().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _bundle_file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [_bundle()[name]]


def _read_bundle(folder: Path, data: bytes) -> object:
    """The manifest is damaged and the index agrees with it, as whoever damages one can arrange."""
    from compiler.codegen.runtime import open_bundle

    (folder / "host" / "manifest.json").write_bytes(data)
    index = json.loads((folder / "index.json").read_bytes())
    index["targets"]["host"]["manifest_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    network = open_bundle(folder)
    return network.inputs, network.levels, network.portfolio


def _read_index(folder: Path, data: bytes) -> object:
    from compiler.codegen.runtime import open_bundle

    (folder / "index.json").write_bytes(data)
    return open_bundle(folder).inputs


def _read_bundle_plan(folder: Path, data: bytes) -> object:
    from compiler.codegen.plans import load_plan

    (folder / "plan.json").write_bytes(data)
    return load_plan(folder / "plan.json")


def _read_tuning(folder: Path, data: bytes) -> object:
    from compiler.codegen.tuning import TuningDatabase

    (folder / "tuning.json").write_bytes(data)
    return TuningDatabase.load(folder / "tuning.json").digest


def _databases() -> list[bytes]:
    from compiler.codegen.strategies import STRATEGIES
    from compiler.codegen.strategies.base import Choice
    from compiler.codegen.tuning import TuningDatabase

    made = TuningDatabase({})
    for number, algorithm in enumerate(STRATEGIES):
        made.add(f"layer {number % 3}", Choice(algorithm, (number + 1, 4)), 1e-3)
    return [made.text().encode()]


def _archives() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, image=np.arange(24, dtype=np.float32).reshape(2, 3, 4), label=np.array([1, 2]))
        found.append(buffer.getvalue())
    return found


def _read_data(folder: Path, data: bytes) -> object:
    from compiler.calibration.data import load_arrays

    (folder / "data.npz").write_bytes(data)
    return load_arrays("data.npz", folder)


def _read_spec(folder: Path, data: bytes) -> object:
    from compiler.pipeline import parse

    return str(parse(data.decode("utf-8", "replace")))


def _specs() -> list[bytes]:
    from benchmarks.fuzz.families import pipeline
    from benchmarks.fuzz.grown import Pick

    return sorted({spec.encode() for seed in range(30) for spec in pipeline(Pick(seed))})


READERS = {
    r.name: r
    for r in (
        Reader("onnx", _models, mutate_onnx, _read_model),
        Reader("release", _releases, mutate_lines, _read_release),
        Reader("bundle", _bundle_file("host/manifest.json"), mutate_json, _read_bundle, _lay_out),
        Reader("index", _bundle_file("index.json"), mutate_json, _read_index, _lay_out),
        Reader("plan", _bundle_file("host/plan.json"), mutate_json, _read_bundle_plan),
        Reader("tuning", _databases, mutate_json, _read_tuning),
        Reader("data", _archives, mutate_bytes, _read_data),
        Reader("spec", _specs, mutate_bytes, _read_spec),
    )
}


# ---------------------------------------------------------------------- one input
@dataclass
class Watch:
    """Files opened outside a folder while `active`, Python's own and temporary ones aside."""

    folder: Path
    active: bool = False
    outside: list[str] = field(default_factory=list)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.active or event not in (
            "open",
            "os.listdir",
            "os.remove",
            "os.rename",
            "os.mkdir",
            "ctypes.dlopen",
        ):
            return
        path = arguments[0]
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
        full = os.path.realpath(os.path.join(self.folder, name))  # noqa: PTH118  the name may be nonsense for Path
        allowed = (str(self.folder), sys.prefix, sys.base_prefix, str(ROOT), *sys.path[1:], "/proc", "/usr/lib")
        if "/" in name and not full.startswith(tuple(a for a in allowed if a)):
            self.outside.append(name)


@dataclass
class Attack:
    """Inputs fed to one reader so far, and what came of them."""

    reader: Reader
    folder: Path
    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, bytes] = field(default_factory=dict)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.folder)
        self.reader.prepare(self.folder)
        sys.addaudithook(self.watch.hear)

    def feed(self, data: bytes) -> None:
        """Read one input and note the outcome."""
        from compiler.errors import CompilerError, VerifyError

        (self.folder.parent / "last").write_bytes(data)
        start = time.process_time()
        self.watch.active = True
        try:
            self.reader.read(self.folder, data)
            self.counts["accepted"] += 1
        except VerifyError as error:
            self._found(error, data)
        except CompilerError as error:
            self.counts[type(error).__name__] += 1
        except Exception as error:  # any other is what is being looked for
            self._found(error, data)
        finally:
            self.watch.active = False
        if time.process_time() - start > SLOW:
            self._keep(f"more than {SLOW:g} s", data)
        if self.watch.outside:
            self._keep(f"opened {sorted(set(self.watch.outside))[:3]}", data)
            self.watch.outside.clear()

    def record(self, seconds: float) -> dict[str, Any]:
        """JSON-ready; `seconds` is the processor time that it took."""
        return {
            "reader": self.reader.name,
            "seconds": round(seconds),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            "outcomes": dict(self.counts),
            "findings": list(self.findings),
        }

    def _found(self, error: Exception, data: bytes) -> None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/compiler/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        self._keep(
            f"{type(error).__name__} in {where}: {str(error)[:120]}", data, f"{type(error).__name__} in {where}"
        )

    def _keep(self, what: str, data: bytes, key: str = "") -> None:
        self.counts["found"] += 1
        key = key or re.sub(r"\d+", "#", what)
        if key not in self.findings:
            self.findings[key] = data
            print(f"FOUND {self.reader.name}: {what}", file=sys.stderr, flush=True)


def mutated(reader: Reader, rng: np.random.Generator) -> Iterator[bytes]:
    """Endless damage to the seeds, some of it on top of former damage."""
    seeds = reader.seeds()
    yield from seeds
    pool = list(seeds)
    while True:
        data = reader.mutate(one_of(rng, pool), rng) if rng.random() < 0.9 else mutate_bytes(one_of(rng, pool), rng)
        yield data
        if rng.random() < 0.05:
            if len(pool) < 4 * len(seeds) + 20:
                pool.append(data)
            else:
                pool[int(rng.integers(len(seeds), len(pool)))] = data


@contextlib.contextmanager
def attacked(name: str) -> Iterator[Attack]:
    """A reader with a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="taskgraft-readers-") as work:
        folder = Path(work) / "here"
        folder.mkdir()
        yield Attack(READERS[name], folder)


def by_seed(attack: Attack, seed: int, seconds: float, most: int = sys.maxsize) -> None:
    """Feed seeded mutations for some processor time."""
    inputs = mutated(attack.reader, np.random.default_rng([seed, len(attack.reader.name)]))
    attack.feed(next(inputs))
    until = time.process_time() + seconds
    for number, data in enumerate(inputs):
        if time.process_time() > until or number >= most:
            return
        attack.feed(data)


def by_coverage(attack: Attack, seed: int, seconds: float, finish: Callable[[], int]) -> NoReturn:
    """Feed what atheris makes of the seeds for some processor time, then exit with what `finish` returns:
    libFuzzer never returns."""
    atheris = importlib.import_module("atheris")
    until = time.process_time() + seconds

    def one(data: bytes) -> None:
        attack.feed(data)
        if time.process_time() > until:
            status = finish()
            sys.stdout.flush()
            os._exit(status)

    def mutator(data: bytes, most: int, number: int) -> bytes:
        rng = np.random.default_rng([seed, number])
        made = attack.reader.mutate(data, rng) if rng.random() < 0.7 else atheris.Mutate(data, most)
        return bytes(made)[:most]

    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(attack.reader.seeds()):
            (Path(corpus) / f"{i:03d}").write_bytes(data)
        options = [f"-seed={seed + 1}", "-max_len=200000", "-rss_limit_mb=0", "-verbosity=0"]
        atheris.Setup(["readers", *options, corpus], one, custom_mutator=mutator)
        atheris.Fuzz()
    raise AssertionError("libFuzzer returned")


# ---------------------------------------------------------------------- command line
def attack(seconds: float, seed: int, coverage: bool = False, save: Path | None = None) -> int:
    """Every reader in a child of its own, `seconds` of processor time each; prints a line per reader.

    1 where anything was found, 2 where what guides by coverage is not installed.
    """
    if coverage and not _guided():
        return 2
    status = 0
    for name in READERS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzz.readers",
            name,
            f"--seconds={seconds:g}",
            f"--seed={seed}",
        ]
        options = ["--coverage"] * coverage + ([f"--save={save}"] if save else [])
        done = subprocess.run([*command, *options], check=False)
        if done.returncode not in (0, 1):
            print(f"{name}: FOUND the process died with {done.returncode}")
        status |= int(done.returncode != 0)
    return status


def main(arguments: Sequence[str]) -> int:
    """Attack one reader here."""
    options = _parser().parse_args(arguments)
    if options.coverage and not _guided():
        return 2
    if options.coverage and "benchmarks.fuzz.covered" not in _program():
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.fuzz.covered", *arguments])
    with attacked(options.name) as made:
        made.reader.seeds()  # libraries that make them are mapped before memory is counted
        _limit_memory()
        start = time.process_time()

        def finish() -> int:
            command = ["python -m benchmarks.fuzz.readers", *arguments]
            entry = made.record(time.process_time() - start) | {"guided": options.coverage, "seed": options.seed}
            _report(made, entry, options.keep)
            if options.save:
                add(options.save, "readers", entry | origin(command))
            return int(bool(made.findings))

        if options.coverage:
            by_coverage(made, options.seed, options.seconds, finish)
        by_seed(made, options.seed, options.seconds)
        return finish()


def _guided() -> bool:
    """Whether atheris is installed, which is said where it is not."""
    found = importlib.util.find_spec("atheris") is not None
    if not found:
        print("--coverage needs atheris, which is not installed: pip install atheris", file=sys.stderr)
    return found


def _program() -> str:
    """The module this process runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return "" if spec is None else str(spec.name)


def _limit_memory() -> None:
    """At most `MEMORY` beside what is mapped now: libraries and what instruments them take a different part of the
    address space in every environment."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.fuzz.readers", description=__doc__)
    made.add_argument("name", choices=list(READERS))
    made.add_argument("--seconds", type=float, default=60, help="processor time")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--coverage", action="store_true", help="guided by atheris, which has to be installed")
    made.add_argument("--keep", type=Path, default=Path(".fuzz"), help="where inputs that found something go")
    made.add_argument("--save", type=Path, metavar="FILE", help="add the counts to those of earlier runs there")
    return made


def _report(made: Attack, entry: Mapping[str, Any], keep: Path) -> None:
    counts = ", ".join(f"{n} {k}" for k, n in made.counts.most_common())
    told = f"{made.counts.total()} inputs in {entry['seconds']:.0f} s, peak {entry['peak_mb']} MB: {counts}"
    print(f"{made.reader.name}: {told}", flush=True)
    for number, (what, data) in enumerate(made.findings.items()):
        print(f"  FOUND {what}")
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{made.reader.name}-{number}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
