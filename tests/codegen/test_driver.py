"""Names, header and driver text."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from compiler.codegen import interface as interface_module
from compiler.codegen.driver import driver_text, header_text
from compiler.codegen.interface import interface
from compiler.codegen.program import Level, Library, Port, Program, TaskIO
from compiler.codegen.target import find_target
from compiler.errors import ConfigError
from compiler.ir.types import DType, TensorType
from tests.codegen.handmade import KERNELS, tiny_library

TARGETS = ["x86-64-v4", "aarch64-cortex-a76", "armv7-neon"]


def compiled(text: str, folder: Path, command: list[str]) -> str:
    """What the C compiler says about `text`; skips where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    (folder / "x.h").write_text(text)
    done = subprocess.run([*command, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "x.h"], cwd=folder,
                          capture_output=True, text=True, check=False)  # fmt: skip
    return done.stderr


@pytest.mark.parametrize("command", [["gcc", "-std=c99", "-pedantic"], ["g++", "-std=c++17", "-pedantic"]])
def test_header_is_clean_c99_and_cpp(tmp_path: Path, command: list[str]) -> None:
    face = interface(tiny_library(b""))
    assert compiled(header_text(face, find_target("x86-64-v4")), tmp_path, command) == ""


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("listed", [(1, 2, 3), (3,), ()])
def test_driver_compiles_without_warnings(tmp_path: Path, name: str, listed: tuple[int, ...]) -> None:
    target, library = find_target(name), tiny_library(b"", listed)
    face = interface(library)
    (tmp_path / "tiny.h").write_text(header_text(face, target))
    compiler = next((c for c in target.compilers if shutil.which(c)), target.compilers[0])
    command = [compiler, "-std=c11", *target.driver_flags, "-x", "c", "-I."]
    assert compiled(driver_text(library, face, target, "id"), tmp_path, command) == ""


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("listed", [(1, 2, 3), (3,)])
def test_driver_with_levels_compiles_without_warnings(tmp_path: Path, name: str, listed: tuple[int, ...]) -> None:
    target, library = find_target(name), levelled(tiny_library(b"", listed))
    face = interface(library)
    (tmp_path / "tiny.h").write_text(header_text(face, target))
    compiler = next((c for c in target.compilers if shutil.which(c)), target.compilers[0])
    command = [compiler, "-std=c11", *target.driver_flags, "-x", "c", "-I."]
    text = driver_text(library, face, target, "id")
    assert compiled(text, tmp_path, command) == ""
    assert "LEVELLED(0, 128)" in text and "SWITCH(1)" in text
    assert {"tiny_measure", "tiny_run_within"} <= set(face.symbols)


_SLOW = """#include <time.h>
static int slow_clock(clockid_t id, struct timespec *now) {
  static const unsigned waits[] = {0, 500, 3700, 0, 4000, 200};  /* ms: start, switch point and end of two rounds */
  static unsigned reads;
  static unsigned long ms;
  ms += waits[reads++ % 6];
  now->tv_sec = ms / 1000, now->tv_nsec = ms % 1000 * 1000000;
  return (void)id, 0;
}
#define clock_gettime slow_clock
"""

_CALLS = """#include "driver.c"
const unsigned char w_tiny_pool[1024];
int main(void) {
  static _Alignas(64) unsigned char workspace[TINY_WORKSPACE_MAX];
  static float x[8], y[8];
  static int32_t z[2];
  static tiny_times times;
  const void *const in[] = {x};
  void *const out[] = {y, z};
  tiny_call call = {.size = sizeof call, .workspace = workspace, .workspace_bytes = sizeof workspace};
  call.level_used = 77;
  @calls@
}
"""


def said(calls: str, folder: Path, clock: str = "", exit_code: int = 0) -> str:
    """What C statements say that call the driver of a library with levels; the last kernel returns `exit_code`."""
    program = "#define _POSIX_C_SOURCE 200809L\n#include <stdio.h>\n" + clock + _CALLS.replace("@calls@", calls)
    target, library = find_target("host"), levelled(tiny_library(b""))
    face = interface(library)
    texts = {"tiny.h": header_text(face, target), "driver.c": driver_text(library, face, target, "id")}
    texts |= {"main.c": program, "kernels.c": KERNELS}
    for name, text in texts.items():
        (folder / name).write_text(text)
    command = ["gcc", "-std=c11", f"-DEXIT={exit_code}", "-pthread", "-I.", "main.c", "kernels.c", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True)
    return subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_times_beyond_what_their_type_holds_are_its_largest(tmp_path: Path) -> None:
    """The usual times of two parts of a call, 4.0 s and 3.7 s, are of different rounds."""
    calls = """int code = tiny_measure(TINY_ALL, in, out, &call, 2, &times);
  printf("%d %u %u", code, times.rest_ns[0][0], times.rest_ns[0][1]);"""
    assert said(calls, tmp_path, clock=_SLOW) == f"0 {2**32 - 1} 3700000000"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_budget_beyond_what_the_clock_counts_is_none(tmp_path: Path) -> None:
    """By the table the call takes 4.29 s or more at level 0, as on a slow or emulated processor."""
    calls = """times.tasks = TINY_ALL, times.threads = 1;
  times.rest_ns[0][0] = times.rest_ns[0][1] = UINT32_MAX;
  const uint32_t budgets[] = {4000000, 4294967, 4294968, UINT32_MAX};
  for (int i = 0; i < 4; i++) {
    int code = tiny_run_within(TINY_ALL, in, out, &call, &times, budgets[i]);
    printf("%d:%u ", code, call.level_used);
  }"""
    assert said(calls, tmp_path) == "0:1 0:1 0:0 0:0 "


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_times_that_could_not_be_measured_are_no_table(tmp_path: Path) -> None:
    calls = """times.tasks = TINY_ALL;
  int code = tiny_measure(TINY_ALL, in, out, &call, 2, &times);
  printf("%d %d", code, tiny_run_within(TINY_ALL, in, out, &call, &times, 1000));"""
    assert said(calls, tmp_path, exit_code=1) == "7 11"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_refused_calls_with_a_budget_change_nothing(tmp_path: Path) -> None:
    refused = {
        "tiny_run_within(0, in, out, &call, &times, 1)": 3,
        "tiny_run_within(4, in, out, &call, &times, 1)": 3,
        "tiny_run_within(TINY_ALL, 0, out, &call, &times, 1)": 1,
        "tiny_run_within(TINY_ALL, in, 0, &call, &times, 1)": 1,
        "tiny_run_within(TINY_ALL, in, (void *const[]){y, 0}, &call, &times, 1)": 1,
        "tiny_run_within(TINY_ALL, in, out, 0, &times, 1)": 1,
        "tiny_run_within(TINY_ALL, in, out, &call, 0, 1)": 1,
        "tiny_run_within(TINY_ALL, in, out, &call, &times, 1)": 11,
        "(times.tasks = TINY_ALL, times.threads = 2, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 11,
        "(times.threads = 1, call.sparsest = 2, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 4,
        "(call.sparsest = UINT32_MAX, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 4,
        "(call.sparsest = 0, call.level = 2, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 4,
        "tiny_measure(TINY_ALL, in, out, &call, 1, &times)": 4,
        "(call.level = 0, tiny_measure(TINY_ALL, in, out, &call, 0, &times))": 1,
        "tiny_measure(TINY_ALL, in, out, &call, 32, &times)": 1,
        "tiny_measure(TINY_ALL, in, out, &call, 1, 0)": 1,
        "tiny_measure(0, in, out, &call, 1, &times)": 3,
        "tiny_measure(TINY_ALL, in, out, 0, 1, &times)": 1,
        "(call.workspace_bytes = 1, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 2,
        "(call.size = 8, tiny_run_within(TINY_ALL, in, out, &call, &times, 1))": 6,
    }
    calls = "\n  ".join(f'printf("%d:%u ", {text}, call.level_used);' for text in refused)
    assert said(calls, tmp_path) == "".join(f"{code}:77 " for code in refused.values())


def levelled(library: Library) -> Library:
    """The same library with two levels: the constant of its first call is another one at level 1."""

    def changed(program: Program) -> Program:
        first, *others = program.calls
        arguments = (dataclasses.replace(a, stride=128 * (a.kind == "pool")) for a in first.arguments)
        return dataclasses.replace(program, calls=(dataclasses.replace(first, arguments=tuple(arguments)), *others))

    full, programs = changed(library.full), tuple(map(changed, library.programs))
    return dataclasses.replace(library, full=full, programs=programs, levels=(Level(), Level()))


def test_header_names_every_entry_task_and_workspace() -> None:
    text = header_text(interface(tiny_library(b"")), find_target("x86-64-v3"))
    for part in (
        "int tiny_run_a(const float *x, float *a, tiny_call *call);",
        "int tiny_run_a__b(const float *x, float *a, int32_t *b, tiny_call *call);",
        "#define TINY_B (UINT64_C(1) << 1)",
        "#define TINY_WORKSPACE_A__B 128u",
        "#define TINY_CPU_AVX2 ",
        "[1] task b, n: int32[2]",
    ):
        assert part in text


def test_no_mutable_globals_but_the_cpu_check() -> None:
    text = driver_text(tiny_library(b""), interface(tiny_library(b"")), find_target("aarch64-cortex-a72"), "id")
    statics = [line for line in text.splitlines() if line.strip().startswith("static") and "(" not in line]
    assert [line for line in statics if "const" not in line] == [
        "  static _Atomic uint32_t cached;  /* bit 31: known */"
    ]
    assert "malloc" not in text


def test_table_exists_only_where_a_subset_is_unlisted() -> None:
    target = find_target("x86-64-v3")
    for listed, table in (((1, 2, 3), False), ((1, 3), True)):
        library = tiny_library(b"", listed)
        assert ("program_table" in driver_text(library, interface(library), target, "id")) is table


def test_many_calls_share_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface_module, "SPECIALISED_CALLS", 5)
    library = tiny_library(b"")
    face = interface(library)
    assert face.needs_table
    assert not any(e.specialised for e in face.entries)
    text = driver_text(library, face, find_target("x86-64-v3"), "id")
    assert text.count("RUN(k_tiny_0") == 1


@pytest.mark.parametrize(
    ("names", "name", "message"),
    [
        (("Age", "b"), "tiny", "task 'Age': lower-case letters, digits and single underscores"),
        (("a__b", "b"), "tiny", "task 'a__b'"),
        (("a", "a"), "tiny", "task 'a' appears twice"),
        (("a", "b"), "Tiny-2", "name 'Tiny-2': lower-case letters"),
        (("a", "abi"), "tiny", "TINY_ABI"),
        (("a", "workspace_a"), "tiny", "TINY_WORKSPACE_A"),
        (("cpu_avx2", "b"), "tiny", "TINY_CPU_AVX2"),
        (("a", "b"), "signal", "name 'signal': programs would read signal.h"),
    ],
)
def test_names_that_cannot_be_c_names_are_refused(names: tuple[str, str], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        interface(tiny_library(b"", names=names, name=name))


def test_a_task_cannot_have_the_name_of_a_function_with_levels() -> None:
    library = tiny_library(b"", names=("within", "b"))
    assert "tiny_run_within" in interface(library).symbols
    with pytest.raises(ConfigError, match="tiny_run_within; rename the task"):
        interface(levelled(library))


def test_all_bad_names_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        interface(tiny_library(b"", names=("1a", "B"), name="X"))
    assert all(word in str(caught.value) for word in ("'1a'", "'B'", "'X'"))


def with_ports(inputs: tuple[str, ...], outputs: tuple[tuple[str, ...], ...]) -> Library:
    kind = TensorType(DType.FLOAT32, (8,))
    return dataclasses.replace(
        tiny_library(b""),
        inputs=tuple(Port(n, kind, n) for n in inputs),
        tasks=tuple(TaskIO("ab"[i], tuple(Port(n, kind, n) for n in t)) for i, t in enumerate(outputs)),
    )


def test_parameters_avoid_keywords_and_each_other() -> None:
    face = interface(with_ports(("class", "a/x:0", "a.x:0", "9"), (("int",), ("p", "q"))))
    assert [p.identifier for p in face.inputs] == ["class_", "a_x_0", "a_x_0_", "x9"]
    assert [p.identifier for p in face.outputs] == ["a", "b_p", "b_q"]


@pytest.mark.parametrize(
    "word", ["NULL", "ALWAYS", "SIZE_MAX", "size_t", "float", "team_3", "call", "TINY_ALL", "TINY_H"]
)
def test_parameters_avoid_what_headers_and_the_driver_define(tmp_path: Path, word: str) -> None:
    """Among them functions that the entry of this very subset calls."""
    target, plain = find_target("x86-64-v3"), with_ports((word, "x"), ((word,), ("p", "q")))
    calls = tuple(dataclasses.replace(c, shared=True, parts=4) for c in plain.full.calls)
    programs = tuple(dataclasses.replace(p, calls=calls) for p in plain.programs)
    full = dataclasses.replace(plain.full, calls=calls)
    kernels = tuple(dataclasses.replace(k, parts=4) for k in plain.kernels)
    library = dataclasses.replace(plain, full=full, programs=programs, kernels=kernels)
    face = interface(library)
    assert [p.identifier for p in face.inputs] == [f"{word}_", "x"]
    assert any(entry.shares for entry in face.entries)
    (tmp_path / "tiny.h").write_text(header_text(face, target))
    command = ["gcc", "-std=c11", *target.driver_flags, "-x", "c", "-I."]
    assert compiled(driver_text(library, face, target, "id"), tmp_path, command) == ""


@pytest.mark.parametrize(("name", "word"), [("x86-64-v3", "SIGBUS"), ("aarch64-cortex-a72", "PF_R")])
def test_parameters_may_be_macros_of_what_the_driver_includes(tmp_path: Path, name: str, word: str) -> None:
    """The header, which includes next to nothing, keeps the name of the model."""
    target, plain = find_target(name), with_ports((word, "x"), (("y",), ("p", "q")))
    calls = tuple(dataclasses.replace(c, shared=True, parts=4) for c in plain.full.calls)
    kernels = tuple(dataclasses.replace(k, parts=4) for k in plain.kernels)
    full = dataclasses.replace(plain.full, calls=calls)
    library = dataclasses.replace(plain, full=full, kernels=kernels, programs=(full,))
    face = interface(library)
    assert [p.identifier for p in face.inputs] == [word, "x"]
    (tmp_path / "tiny.h").write_text(header_text(face, target))
    compiler = next((c for c in target.compilers if shutil.which(c)), target.compilers[0])
    command = [compiler, "-std=c11", *target.driver_flags, "-x", "c", "-I."]
    assert compiled(driver_text(library, face, target, "id"), tmp_path, command) == ""


def test_a_header_follows_others_that_define_short_words(tmp_path: Path) -> None:
    face = interface(with_ports(("I", "complex", "noreturn", "EOF", "NAN"), (("p",), ("q",))))
    others = [f"-include{name}.h" for name in ("complex", "stdio", "math", "stdnoreturn")]
    text = header_text(face, find_target("x86-64-v3"))
    assert compiled(text, tmp_path, ["gcc", "-std=c11", *others]) == ""


def test_hostile_names_stay_inside_comments(tmp_path: Path) -> None:
    face = interface(with_ports(('*/ int x = system("sh"); /*', "b\\\n#error"), (("p",), ("q",))))
    assert compiled(header_text(face, find_target("x86-64-v3")), tmp_path, ["gcc", "-std=c99"]) == ""
