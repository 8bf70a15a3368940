"""Linking, and the gates on what was linked."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compiler.codegen import link
from compiler.codegen.elf import Elf, archive
from compiler.codegen.interface import interface
from compiler.errors import LoweringError
from tests.codegen.emulated import linkable
from tests.codegen.handmade import KERNELS, compile_kernels, tiny_bundle, tiny_library

CROSS = ["aarch64-cortex-a72", "armv7-neon"]


@pytest.mark.parametrize("name", ["host", *CROSS])
def test_library_exports_the_header_and_imports_nothing_else(tmp_path: Path, name: str) -> None:
    target = linkable(name)
    library = tiny_library(compile_kernels(target, tmp_path))
    bundle = tiny_bundle(library, target, tmp_path / "dist")
    symbols = Elf(bundle.library.read_bytes()).symbols(dynamic=True)
    assert sorted(s.name for s in symbols if s.defined) == list(interface(library).symbols)
    strong = {s.name for s in symbols if not s.defined and not s.weak}
    assert strong <= {"getauxval"}
    facts = bundle.manifest["library"]
    assert all(n in ("libc.so.6", "libm.so.6") for n in facts["needed"])
    assert facts["page_size"] >= 4096
    assert bundle.library.stat().st_mode & 0o111  # written anew after the linker, with its rights


@pytest.mark.parametrize("name", ["host", *CROSS])
def test_archive_is_one_object_that_defines_the_header_only(tmp_path: Path, name: str) -> None:
    target = linkable(name)
    library = tiny_library(compile_kernels(target, tmp_path))
    bundle = tiny_bundle(library, target, tmp_path / "dist")
    data = bundle.archive.read_bytes()
    index = int.from_bytes(data[68:72], "big")
    assert index == len(interface(library).symbols)
    assert len(list(_members(data))) == 2, "symbol index and one member"


def _members(archive: bytes) -> Iterator[bytes]:
    """The headers of an ar archive's members: 60 bytes each, of which ten at 48 say how many follow."""
    at = len(b"!<arch>\n")
    while at < len(archive):
        header = archive[at : at + 60]
        assert header.endswith(b"`\n")
        yield header
        size = int(header[48:58])
        at += 60 + size + size % 2


@pytest.mark.parametrize("name", ["host", *CROSS])
def test_symbols_agree_with_nm(tmp_path: Path, name: str) -> None:
    target = linkable(name)
    bundle = tiny_bundle(tiny_library(compile_kernels(target, tmp_path)), target, tmp_path / "dist")
    listed = subprocess.run(["nm", "-D", bundle.library], check=True, capture_output=True, text=True).stdout
    rows = [line.split()[-2:] for line in listed.splitlines()]
    symbols = Elf(bundle.library.read_bytes()).symbols(dynamic=True)
    assert {name.split("@")[0] for kind, name in rows if kind == "T"} == {s.name for s in symbols if s.defined}
    assert {name.split("@")[0] for kind, name in rows if kind in "Uw"} == {s.name for s in symbols if not s.defined}


def test_unexpected_import_is_refused(tmp_path: Path) -> None:
    target = linkable("host")
    source = "int puts(const char *);\n" + KERNELS.replace("return EXIT", 'return puts("x")')
    library = tiny_library(compile_kernels(target, tmp_path, source))
    with pytest.raises(LoweringError, match="imports puts"):
        tiny_bundle(library, target, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_libm_is_allowed(tmp_path: Path) -> None:
    target = linkable("host")
    source = "float expf(float);\n" + KERNELS.replace("return EXIT", "y[1] += (int)(0 * expf(s[0])); return EXIT")
    bundle = tiny_bundle(tiny_library(compile_kernels(target, tmp_path, source)), target, tmp_path / "dist")
    assert "expf" in bundle.manifest["library"]["imports"]


def test_missing_kernel_is_reported_with_the_linkers_words(tmp_path: Path) -> None:
    target = linkable("host")
    library = tiny_library(compile_kernels(target, tmp_path, KERNELS.replace("k_tiny_2", "k_tiny_9")))
    with pytest.raises(LoweringError, match="k_tiny_2"):
        tiny_bundle(library, target, tmp_path / "dist")


def test_two_archives_with_equal_kernel_names_fit_in_one_program(tmp_path: Path) -> None:
    target = linkable("host")
    toolchain = link.find_toolchain(target)
    assert toolchain is not None
    objects = compile_kernels(target, tmp_path)
    bundles = [tiny_bundle(tiny_library(objects, name=n), target, tmp_path / n) for n in ("one", "two")]
    (tmp_path / "main.c").write_text(
        '#include "one.h"\n#include "two.h"\n'
        "int main(void) { return one_abi() - two_abi() + one_run(0, 0, 0, 0) - 3; }"
    )
    includes = [f"-I{b.path}" for b in bundles]
    archives = [str(b.archive) for b in bundles]
    command = [*toolchain.cc, *includes, str(tmp_path / "main.c"), *archives, "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0


def test_hiding_changes_visibility_and_nothing_else(tmp_path: Path) -> None:
    before = compile_kernels(linkable("host"), tmp_path)
    after = Elf(before).hide()
    changed = [i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y]
    assert len(changed) == 3, "one byte per kernel"
    assert all(after[i] & 3 == 2 for i in changed)
    assert Elf(after).symbols() == Elf(before).symbols()


def test_archive_round_trip(tmp_path: Path) -> None:
    data = compile_kernels(linkable("host"), tmp_path)
    (tmp_path / "x.a").write_bytes(archive([("one.o", data), ("two.o", data)]))
    listed = subprocess.run(["ar", "t", "x.a"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert listed.split() == ["one.o", "two.o"]
    subprocess.run(["ar", "x", "x.a", "two.o"], cwd=tmp_path, check=True)
    assert (tmp_path / "two.o").read_bytes() == data


def test_executable_stack_and_run_path_are_noticed(tmp_path: Path) -> None:
    toolchain = link.find_toolchain(linkable("host"))
    assert toolchain is not None
    (tmp_path / "x.c").write_text("int x(void) { return 1; }")
    flags = ["-shared", "-fPIC", "-Wl,-z,execstack", "-Wl,-rpath,/somewhere"]
    subprocess.run([*toolchain.cc, *flags, "x.c", "-o", "x.so"], cwd=tmp_path, check=True)
    assert set(Elf((tmp_path / "x.so").read_bytes()).problems()) == {"an executable stack", "a run path"}


def test_not_an_elf_file() -> None:
    with pytest.raises(LoweringError, match="ELF"):
        Elf(b"MZ")


@pytest.mark.parametrize("target", ["host", "armv7-neon"])
def test_a_symbol_gets_another_name_and_the_others_stay(target: str, tmp_path: Path) -> None:
    before = compile_kernels(linkable(target), tmp_path)
    after = Elf(before).renamed("k_tiny_1", "k_a_much_longer_name_of_a_kernel")
    names = [s.name for s in Elf(before).symbols()]
    assert [s.name for s in Elf(after).symbols()] == [
        "k_a_much_longer_name_of_a_kernel" if n == "k_tiny_1" else n for n in names
    ]
    with pytest.raises(LoweringError, match="an object has 0 symbols 'k_tiny_9'; 1 expected"):
        Elf(before).renamed("k_tiny_9", "k")
    (tmp_path / "renamed.o").write_bytes(after)
    toolchain = link.find_toolchain(linkable(target))
    assert toolchain is not None
    subprocess.run([*toolchain.cc, "-shared", "-o", "renamed.so", "renamed.o"], cwd=tmp_path, check=True)
    exported = {s.name for s in Elf((tmp_path / "renamed.so").read_bytes()).symbols(dynamic=True)}
    assert {"k_tiny_0", "k_a_much_longer_name_of_a_kernel"} <= exported
