"""The bundle directory: contents, atomicity, tampering, reproducibility."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.codegen import bundle as bundle_module
from compiler.codegen import link
from compiler.codegen.bundle import Bundle, read_bundle
from compiler.codegen.emulate import run_selftest
from compiler.codegen.manifest import canonical
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import find_target
from compiler.errors import BundleError, ConfigError, LoweringError, TargetError
from tests.codegen.emulated import linkable
from tests.codegen.handmade import check_conversions, compile_kernels, tiny_bundle, tiny_library
from tests.shared import ROOT

HOST = find_target("host")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_kernels(HOST, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def bundle(objects: bytes, tmp_path: Path) -> Bundle:
    return tiny_bundle(tiny_library(objects), HOST, tmp_path / "dist")


def test_contents_and_checksums(bundle: Bundle) -> None:
    for name in ("tiny.h", "libtiny.so", "libtiny.a", "merged.onnx", "weights.bin", "plan.json", "src/selftest.c"):
        assert (bundle.path / name).is_file(), name
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bundle.path, check=False)
    assert done.returncode == 0
    listed = {line.split("  ")[1] for line in (bundle.path / "SHA256SUMS").read_text().splitlines()}
    assert listed == {*bundle.manifest["files"], "manifest.json"}


def test_manifest_states_the_facts(bundle: Bundle) -> None:
    data = (bundle.path / "manifest.json").read_bytes()
    manifest = json.loads(data)
    assert data == canonical(manifest)
    assert manifest == bundle.manifest
    assert manifest["target"]["preset"] == HOST.preset
    rows = {tuple(row["tasks"]): row for row in manifest["subsets"]}
    assert set(rows) == {("a",), ("b",), ("a", "b")}
    both = rows["a", "b"]
    assert (both["symbol"], both["workspace_bytes"], both["kernels"], both["macs"]) == ("tiny_run_a__b", 128, 3, 8)
    pool = (bundle.path / "weights.bin").read_bytes()
    assert manifest["pool"]["sha256"] == hashlib.sha256(pool).hexdigest()
    core = {key: manifest[key] for key in ("inputs", "toolchain", "target")}
    assert manifest["build_id"] == hashlib.sha256(canonical(core)).hexdigest()


def test_weights_lie_in_the_library(bundle: Bundle) -> None:
    assert (bundle.path / "weights.bin").read_bytes() in bundle.library.read_bytes()


def test_read_checks_and_agrees(bundle: Bundle) -> None:
    assert read_bundle(bundle.path) == bundle
    assert read_bundle(bundle.path.parent) == bundle
    assert read_bundle(bundle.path.parent, "host") == bundle
    with pytest.raises(ConfigError, match="holds the targets host"):
        read_bundle(bundle.path.parent, "x86-64-v3")


@pytest.mark.parametrize("name", ["libtiny.so", "tiny.h", "golden/out_001.bin", "src/kernels.a"])
def test_changed_and_missing_files_are_named(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    (bundle.path / "plan.json").unlink()
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle.path)
    assert f"{name} has another digest" in str(caught.value)
    assert "plan.json" in str(caught.value)


def test_links_and_escapes_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(bundle.header, tmp_path / "copy.h")
    bundle.header.unlink()
    bundle.header.symlink_to(tmp_path / "copy.h")
    with pytest.raises(BundleError, match=r"tiny\.h is a link"):
        read_bundle(bundle.path)
    for name in ("../x", "/etc/passwd", ""):
        with pytest.raises(BundleError, match="not a name inside"):
            bundle_module.plain_path(bundle.path, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99"),
        ({"files": None}, "lacks files"),
        ({"build_id": None, "levels": None, "switch_points": None}, "lacks build_id, levels, switch_points"),
        ({"levels": [{"density": True}]}, r"levels\[0\].density is true, not of type int or float"),
        ({"subsets": [{"tasks": ["a"]}]}, r"subsets\[0\].level is missing"),
        (None, "not JSON"),
    ],
)
def test_manifest_of_another_kind_is_refused(bundle: Bundle, change: dict[str, Any] | None, message: str) -> None:
    record = {k: v for k, v in {**bundle.manifest, **(change or {})}.items() if v is not None}
    text = canonical(record) if change else b"{"
    (bundle.path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.path)


def test_index_pins_the_manifest(bundle: Bundle) -> None:
    path = bundle.path / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="not the one"):
        read_bundle(bundle.path.parent)


def test_existing_bundle_is_replaced_by_force_only(bundle: Bundle, objects: bytes) -> None:
    library = dataclasses.replace(tiny_library(objects), plan={"groups": 4})
    with pytest.raises(ConfigError, match="force=True replaces it"):
        tiny_bundle(library, HOST, bundle.path.parent)
    assert read_bundle(bundle.path) == bundle
    again = tiny_bundle(library, HOST, bundle.path.parent, force=True)
    assert again.manifest["build_id"] != bundle.manifest["build_id"]
    assert read_bundle(bundle.path.parent) == again
    assert sorted(p.name for p in bundle.path.parent.iterdir()) == ["host", "index.json"]


@pytest.mark.parametrize("read", [read_bundle, open_bundle])
def test_a_bundle_can_be_read_while_another_one_takes_its_place(
    bundle: Bundle, objects: bytes, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    """Every move of a replacement takes its time; whoever reads meanwhile gets the old bundle or the new one."""
    original, root = Path.rename, bundle.path.parent
    libraries = [dataclasses.replace(tiny_library(objects), plan={"groups": n}) for n in (4, 5)]

    def slow(path: Path, to: Path) -> Path:
        moved = original(path, to)
        time.sleep(0.004)
        return moved

    monkeypatch.setattr(Path, "rename", slow)
    ended = threading.Event()

    def replace() -> None:
        for number in range(6):
            tiny_bundle(libraries[number % 2], HOST, root, force=True)
        ended.set()

    writer = threading.Thread(target=replace)
    writer.start()
    found = 0
    try:
        while not ended.is_set():
            read(root)
            found += 1
    finally:
        writer.join()
    assert found


def test_folder_of_another_bundle_is_refused(bundle: Bundle, objects: bytes) -> None:
    with pytest.raises(ConfigError, match="holds the bundle 'tiny'"):
        tiny_bundle(tiny_library(objects, name="other"), HOST, bundle.path.parent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, LoweringError])
def test_nothing_half_written_remains(
    objects: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(bundle_module.link, "link_library", interrupted)
    with pytest.raises(error):
        tiny_bundle(tiny_library(objects), HOST, tmp_path / "new" / "dist")
    assert list(tmp_path.iterdir()) == []


def test_failed_replacement_keeps_the_old_bundle(
    bundle: Bundle, objects: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if path.name.startswith(".host.") and not path.name.endswith(".old"):
            raise KeyboardInterrupt
        return original(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        tiny_bundle(tiny_library(objects), HOST, bundle.path.parent, force=True)
    assert read_bundle(bundle.path.parent) == bundle
    assert sorted(p.name for p in bundle.path.parent.iterdir()) == ["host", "index.json"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupt_at_any_move_leaves_one_whole_bundle(
    bundle: Bundle, objects: bytes, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Stopped just before or just after every renaming of a replacement; the index is of the bundle beside it."""
    root, original = bundle.path.parent, Path.rename
    library = dataclasses.replace(tiny_library(objects), plan={"groups": 4})
    for step in range(3):
        left = [step]

        def stopped(path: Path, to: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] == -1 and not after:
                raise KeyboardInterrupt
            moved = original(path, to)
            if left[0] == -1:
                raise KeyboardInterrupt
            return moved

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", stopped)
            tiny_bundle(library, HOST, root, force=True)
        replaced = after and step == 2
        assert (read_bundle(root) == bundle) is not replaced
        assert sorted(p.name for p in root.iterdir()) == ["host", "index.json"]


def test_a_private_umask_gives_private_folders(objects: bytes, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = tiny_bundle(tiny_library(objects), HOST, tmp_path / "dist").path
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o077) for p in (folder, *folder.rglob("*"))} == {"0o0"}


def test_unwritable_folder(objects: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written: .*; choose another folder"):
        tiny_bundle(tiny_library(objects), HOST, tmp_path / "file" / "dist")


def test_golden_of_another_shape_is_refused(objects: bytes, tmp_path: Path) -> None:
    library = tiny_library(objects)
    reversed_tasks = dataclasses.replace(library, tasks=library.tasks[::-1])
    with pytest.raises(LoweringError, match="golden sample 0"):
        tiny_bundle(reversed_tasks, HOST, tmp_path / "dist")


def test_reports_are_outside_the_digests(objects: bytes, tmp_path: Path) -> None:
    bundle = tiny_bundle(tiny_library(objects), HOST, tmp_path, reports={"measured/time.json": b"{}"})
    assert (bundle.path / "reports/measured/time.json").read_bytes() == b"{}"
    assert not any(name.startswith("reports") for name in bundle.manifest["files"])


def test_without_a_compiler_the_bundle_says_how_to_link(
    objects: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(link, "find_toolchain", lambda target: None)
        with pytest.raises(TargetError, match=r"LINK\.txt"):
            tiny_bundle(tiny_library(objects), HOST, tmp_path / "strict")
        bundle = tiny_bundle(tiny_library(objects), HOST, tmp_path / "dist", allow_unlinked=True)
    assert not bundle.linked
    assert read_bundle(tmp_path / "strict") == dataclasses.replace(bundle, path=tmp_path / "strict/host")
    assert run_selftest(bundle, HOST).status == "skipped"
    subprocess.run(
        ["sh", "-e", "LINK.txt"], cwd=bundle.path, check=True, env={**os.environ, "CC": "gcc", "AR": "ar"}
    )
    finished = dataclasses.replace(bundle, manifest={**bundle.manifest, "linked": True})
    assert run_selftest(finished, HOST).status == "passed"


REBUILD = """
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.codegen.handmade import compile_kernels, tiny_bundle, tiny_library
from compiler.codegen.target import find_target
target = find_target("{target}")
folder = Path(sys.argv[1]); folder.mkdir(parents=True)
tiny_bundle(tiny_library(compile_kernels(target, folder)), target, folder / "dist")
"""


@pytest.mark.parametrize("target", ["host", "aarch64-cortex-a72"])
def test_rebuild_elsewhere_gives_the_same_bytes(tmp_path: Path, target: str) -> None:
    linkable(target)
    trees = []
    for folder, seed in (("a", "1"), ("b/deeper", "2")):
        program = REBUILD.format(root=str(ROOT), target=target)
        env = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program, tmp_path / folder], check=True, env=env, cwd=tmp_path)
        dist = tmp_path / folder / "dist"
        trees.append({p.relative_to(dist): p.read_bytes() for p in dist.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]
    leaks = [name for name, data in trees[0].items() if str(tmp_path).encode() in data or b"taskgraft-" in data]
    assert leaks == []


def test_c_files_convert_nothing_in_silence(bundle: Bundle) -> None:
    check_conversions(bundle.path)


def test_example_runs(bundle: Bundle, tmp_path: Path) -> None:
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I.", "example/main.c", "libtiny.a", "-o"]
    subprocess.run([*command, tmp_path / "example"], cwd=bundle.path, check=True)
    done = subprocess.run([tmp_path / "example"], cwd=bundle.path, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["a[0]", "=", "1", "b[0]", "=", "82"]
    lost = subprocess.run([tmp_path / "example", "nowhere"], check=False, capture_output=True, text=True)
    assert lost.returncode == 1
    assert lost.stderr == f"cannot open nowhere/in_000.bin; usage: {tmp_path / 'example'} GOLDEN_FOLDER\n"


def test_the_example_says_how_it_is_built_and_run(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    comment = (folder / "example/main.c").read_text().partition("*/")[0]
    build, run = re.findall(r"^     (\S.*)$", comment, re.M)
    subprocess.run(build, shell=True, cwd=folder, check=True)
    done = subprocess.run(run, shell=True, cwd=folder, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["a[0]", "=", "1", "b[0]", "=", "82"]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_example_builds_with_cmake(bundle: Bundle, tmp_path: Path) -> None:
    subprocess.run(
        ["cmake", "-S", bundle.path / "example", "-B", tmp_path / "build"], check=True, stdout=subprocess.DEVNULL
    )
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [tmp_path / "build/example", bundle.path / "golden"], check=True, capture_output=True, text=True
    )
    assert "b[0] = 82" in done.stdout
