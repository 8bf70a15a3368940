"""The bundle directory of one target: written aside and renamed, read back with every digest checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compiler.codegen import driver, example, link, selftest
from compiler.codegen.golden import Golden, golden_files, golden_header
from compiler.codegen.interface import Interface, interface
from compiler.codegen.link import LinkFacts, Toolchain
from compiler.codegen.manifest import (
    ANY,
    build_id,
    canonical,
    manifest_record,
    misfits,
    parse_manifest,
    parse_object,
    sha256,
    target_record,
    toolchain_record,
)
from compiler.codegen.program import PLAN_SCHEMA, Library
from compiler.codegen.target import Target
from compiler.errors import BundleError, ConfigError, TargetError, listed, unwritable
from compiler.files import fresh_folder, holds, undo_moves

INDEX_SCHEMA = 1
_INDEX: dict[str, object] = {"name": str, "targets": {ANY: {"manifest_sha256": str, "linked": bool}}}
"""What readers of an index rely on."""
_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""Names of targets: folders beside the index, never a way out."""

REPLACED_WITHIN, LOOKED_EVERY = 0.05, 0.005
"""Seconds that the replacement of a bundle takes at most between its moves, and between two looks at it."""
Found = TypeVar("Found")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle directory of one target."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def target(self) -> str:
        return str(self.manifest["target"]["name"])

    @property
    def linked(self) -> bool:
        """False where no compiler for the target was found; `LINK.txt` then holds the commands."""
        return bool(self.manifest["linked"])

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / f"lib{self.name}.so"

    @property
    def archive(self) -> Path:
        """The static library."""
        return self.path / f"lib{self.name}.a"

    @property
    def header(self) -> Path:
        return self.path / f"{self.name}.h"


def write_bundle(
    library: Library,
    target: Target,
    root: Path,
    *,
    sources: Mapping[str, str],
    golden: Golden,
    graph_onnx: bytes,
    config_text: str,
    passes: Sequence[Mapping[str, object]] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    reports: Mapping[str, bytes] | None = None,
    threads: bool = True,
    force: bool = False,
    allow_unlinked: bool = False,
) -> Bundle:
    """Write `root/<target>/` and enter it in `root/index.json`.

    `sources` maps the label of every source file to its sha256; `costs` are rows with `tasks` and `level`;
    `reports` go to `reports/`, outside the digests, and may hold measured times. `threads`: with pools of threads
    in the interface; without them the library needs no pthread.
    Without a compiler for the target the bundle holds `LINK.txt` instead of the library: then TargetError follows
    the writing unless `allow_unlinked`. ConfigError if the bundle exists and `force` is not set, or the folder
    cannot be written; LoweringError if compiling or linking fails. Nothing half-written remains.
    """
    face, toolchain, final = interface(library, threads=threads), link.find_toolchain(target), root / target.name
    _check_free(root, final, face.name, force)
    digests = {"graph": graph_onnx, "config": config_text.encode(), "plan": canonical(library.plan)}
    inputs = {**sources, **{f"taskgraft:{label}": sha256(data) for label, data in digests.items()}}
    if library.plan.get("database"):
        inputs["taskgraft:tuning"] = str(library.plan["database"])
    identity = _identity(inputs, toolchain, target)
    texts = _texts(library, face, target, golden, str(identity["build_id"]))
    texts |= {"merged.onnx": graph_onnx, "config.resolved.toml": config_text.encode()}
    with _staging(root, target.name) as folder:
        _write_all(folder, texts)
        facts = _link(folder, face, target, toolchain)
        files = _digests(folder)
        record = manifest_record(
            library,
            face,
            identity=identity,
            facts=facts,
            passes=passes,
            costs=costs,
            golden=golden.record(),
            files=files,
        )
        manifest = canonical(record)
        _write_all(folder, {"manifest.json": manifest, "SHA256SUMS": _checksums(files, manifest)})
        _write_all(folder / "reports", reports or {})
        _publish(folder, final, _index_with(root, face.name, target.name, manifest, linked=facts is not None))
    if facts is None and not allow_unlinked:
        raise TargetError(
            f"no C compiler for {target.name} found: {final} is not linked. Install {target.compilers[0]} or the "
            f"zig extra, or run the commands in {final / 'LINK.txt'}; allow_unlinked=True accepts this"
        )
    return Bundle(final, parse_manifest(manifest, str(final)))


def read_bundle(path: Path, target: str | None = None) -> Bundle:
    """The bundle in `path`, a bundle directory or a folder with an `index.json`, with all digests checked.

    BundleError names every file that is missing, changed, or not a plain file inside the bundle. ConfigError where
    there is no such folder, where it does not hold `target`, or holds several and none is named.
    """
    return settled(path, lambda: checked_bundle(path, target))


def settled(path: Path, read: Callable[[], Found]) -> Found:
    """What `read` finds in a folder of bundles; once more where one of them was replaced meanwhile.

    A replacement moves a folder away, another one in and then its index: whoever reads in between finds no bundle,
    or a damaged one.
    """
    while True:
        before = _stamps(path)
        try:
            return read()
        except (BundleError, ConfigError):
            if not _moves(path, before):
                raise


def _moves(path: Path, before: object) -> bool:
    """Whether bundles in `path` are others than before, or become others soon."""
    for _ in range(round(REPLACED_WITHIN / LOOKED_EVERY)):
        if _stamps(path) != before:
            return True
        time.sleep(LOOKED_EVERY)
    return False


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """What tells that a bundle or an index is another one: files, when they were written."""
    found = []
    for file in [path / "index.json", path / "manifest.json", *sorted(path.glob("*/manifest.json"))]:
        with contextlib.suppress(OSError):  # moved away since it was listed
            status = file.stat()
            found.append((str(file), status.st_ino, status.st_mtime_ns))
    return found


def checked_bundle(path: Path, target: str | None = None) -> Bundle:
    """`read_bundle` at one moment."""
    folder = _bundle_folder(path, target)
    manifest = parse_manifest(read_plain(folder, "manifest.json"), str(folder / "manifest.json"))
    problems = [p for name, entry in sorted(manifest["files"].items()) if (p := _problem(folder, name, entry))]
    if problems:
        raise BundleError(f"{folder} is damaged:\n  " + "\n  ".join(problems))
    return Bundle(folder, manifest)


def read_plan(bundle: Bundle) -> dict[str, Any]:
    """What the bundle's plan.json says: see docs/planning.md. BundleError where it is no plan of this schema."""
    where = bundle.path / "plan.json"
    record = parse_object(read_plain(bundle.path, "plan.json"), str(where))
    schema, steps = record.get("schema"), record.get("steps")
    if schema != PLAN_SCHEMA or not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise BundleError(f"{where} is not a plan of schema {PLAN_SCHEMA}; compile the bundle again")
    return record


def read_index(root: Path) -> dict[str, Any]:
    """`root/index.json`: `name`, and `targets`: target name -> `manifest_sha256`, `linked`.

    BundleError where it is not an index of this schema, or a target is not the name of a folder beside it.
    """
    where = root / "index.json"
    record = parse_object(read_plain(root, "index.json"), str(where))
    problems = list(misfits(record, _INDEX))
    if record.get("schema") != INDEX_SCHEMA or problems or not record["targets"]:
        raise BundleError(f"{where} is not an index of schema {INDEX_SCHEMA}{listed(problems)}")
    for target in record["targets"]:
        if not _TARGET.fullmatch(target):
            raise BundleError(f"{where}: {target!r} is not the name of a target")
    return record


def read_plain(folder: Path, name: str) -> bytes:
    """A file inside `folder`; BundleError as for `plain_path`, or if it cannot be read."""
    try:
        return plain_path(folder, name).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {folder / name}: {error.strerror}") from error


def plain_path(folder: Path, name: str) -> Path:
    """`folder/name`; BundleError for links, absolute names and `..`."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise BundleError(f"'{name}' is not a name inside the bundle")
    path = folder / name
    try:
        linked = any((folder / Path(*parts[:i])).is_symlink() for i in range(1, len(parts) + 1))
    except OSError as error:  # a name that is too long
        raise BundleError(f"{path}: {error.strerror}") from None
    if linked:
        raise BundleError(f"{path} is a link")
    return path


def _bundle_folder(path: Path, target: str | None) -> Path:
    if not (path / "index.json").exists():
        if not (path / "manifest.json").exists():
            told = f"{path} is no bundle{_bundles_below(path)}"
            raise BundleError(told) if path.exists() else ConfigError(told)
        return path
    targets = read_index(path)["targets"]
    if target is None and len(targets) == 1:
        target = next(iter(targets))
    if target is None or target not in targets:
        raise ConfigError(f"{path} holds the targets {', '.join(sorted(targets))}; name one of them")
    folder = path / target
    if sha256(read_plain(path, f"{target}/manifest.json")) != targets[target]["manifest_sha256"]:
        raise BundleError(f"{folder / 'manifest.json'} is not the one that {path / 'index.json'} lists")
    return folder


def _bundles_below(path: Path) -> str:
    """What someone may have meant who names a folder that is no bundle."""
    if not path.is_dir():
        return ", which is a folder: this is a file" if path.exists() else ": there is no such folder"
    found = sorted(p.parent for p in path.glob("*/index.json"))
    return f"; there are bundles in {', '.join(map(str, found))}" if found else ": it has no index.json"


def _problem(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    try:
        found = _digest(plain_path(folder, name))
    except BundleError as error:
        return str(error)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return "" if found == entry["sha256"] else f"{name} has another digest than the manifest says"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_free(root: Path, final: Path, name: str, force: bool) -> None:
    if (root / "index.json").exists() and (other := read_index(root)["name"]) != name:
        raise ConfigError(f"{root} holds the bundle '{other}'; choose another folder for '{name}'")
    if final.exists() and not force:
        raise ConfigError(f"{final} exists; force=True replaces it")


def _identity(inputs: Mapping[str, str], toolchain: Toolchain | None, target: Target) -> dict[str, object]:
    tools, goal = toolchain_record(toolchain.version if toolchain else "none"), target_record(target)
    return {
        "inputs": dict(inputs),
        "toolchain": tools,
        "target": goal,
        "build_id": build_id(inputs, tools, goal),
    }


def _texts(library: Library, face: Interface, target: Target, golden: Golden, identity: str) -> dict[str, bytes]:
    """Every file that needs no compiler."""
    name = face.name
    texts = {
        f"{name}.h": driver.header_text(face, target),
        f"src/{name}_driver.c": driver.driver_text(library, face, target, identity),
        "src/weights.S": link.weights_source(face),
        "src/exports.map": link.version_script(face),
        "src/golden.h": golden_header(face, golden),
        "src/selftest.c": selftest.selftest_text(face, target),
        "src/bench.c": selftest.bench_text(face),
        **example.example_files(face, target),
    }
    data = {file: text.encode("ascii") for file, text in texts.items()}
    data |= {"src/kernels.a": link.kernel_archive(library.objects), "weights.bin": library.pool}
    return data | {"plan.json": canonical(library.plan)} | golden_files(golden, face)


def _link(folder: Path, face: Interface, target: Target, toolchain: Toolchain | None) -> LinkFacts | None:
    if toolchain is not None:
        return link.link_library(folder, face, toolchain)
    link.prepare_link(folder, face, target)
    return None


@contextlib.contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A fresh folder beside the final one; gone afterwards unless it was renamed, and so is a root we made."""
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = fresh_folder(f".{name}.", root)
    except OSError as error:
        raise unwritable(root, error, "choose another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _digests(folder: Path) -> dict[str, dict[str, object]]:
    """`sha256` and `bytes` of every file, by name."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"sha256": _digest(p), "bytes": p.stat().st_size} for p in paths}


def _checksums(files: Mapping[str, Mapping[str, object]], manifest: bytes) -> bytes:
    """The format of `sha256sum`."""
    digests = {**{name: entry["sha256"] for name, entry in files.items()}, "manifest.json": sha256(manifest)}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def _publish(folder: Path, final: Path, index: bytes) -> None:
    """Flush `folder` to disk, rename it to `final` and write the index beside it. An existing bundle steps aside
    first; whatever stops that, it is there again, or the new one is there with its index.
    """
    for path in [*folder.rglob("*"), folder]:
        _flush(path)
    listing, aside = final.with_name("index.json"), final.with_name(f"{folder.name}.old")
    try:
        if final.exists():
            final.rename(aside)
        folder.rename(final)
        _write_flushed(listing, index)
    except BaseException:  # an interrupt between any two of these
        if folder.exists() or not holds(listing, index):  # that of a rebuild has the same bytes
            undo_moves(folder, final, aside)
        raise
    finally:
        if aside.exists():
            shutil.rmtree(aside)


def _write_flushed(path: Path, data: bytes) -> None:
    """Write a file aside, flush it to disk and rename it."""
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_bytes(data)
        _flush(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _index_with(root: Path, name: str, target: str, manifest: bytes, *, linked: bool) -> bytes:
    """The index of `root`, with a target entered in it."""
    known = read_index(root)["targets"] if (root / "index.json").exists() else {}
    targets = {k: v for k, v in known.items() if (root / k).is_dir()}
    targets[target] = {"manifest_sha256": sha256(manifest), "linked": linked}
    return canonical({"schema": INDEX_SCHEMA, "name": name, "targets": targets})
