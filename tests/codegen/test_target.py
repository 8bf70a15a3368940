"""Target presets."""

import pytest

from compiler.codegen.target import find_target, machine_arch, resolve_host, target_names
from compiler.errors import ConfigError, TargetError

V3 = frozenset("fma movbe f16c avx avx2 bmi2 abm".split())
V4 = V3 | frozenset("avx512f avx512dq avx512cd avx512bw avx512vl".split())


@pytest.mark.parametrize(
    "name", ["x86-64-v3", "x86-64-v4", "aarch64-cortex-a72", "aarch64-cortex-a76", "armv7-neon"]
)
def test_presets_agree_with_their_names(name: str) -> None:
    target = find_target(name)
    assert target.name == target.preset == name
    assert target.tvm["kind"] == "llvm"
    assert str(target.tvm["mcpu"]) in name or name == "armv7-neon"
    assert target.lanes == target.machine.lanes
    assert 0 < len(target.features) <= 31, "the driver keeps the missing ones in 31 bits"
    assert len({f.name for f in target.features}) == len(target.features)


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown target 'cortex'") as caught:
        find_target("cortex")
    assert all(name in str(caught.value) for name in target_names())


@pytest.mark.parametrize(
    ("flags", "preset"), [(V4, "x86-64-v4"), (V4 - {"avx512vl"}, "x86-64-v3"), (V3 - {"fma"}, "x86-64")]
)
def test_host_is_the_best_preset_the_processor_has(flags: frozenset[str], preset: str) -> None:
    host = resolve_host("x86_64", flags)
    assert (host.name, host.preset, host.emulator) == ("host", preset, None)


def test_host_on_arm() -> None:
    plain = resolve_host("aarch64", frozenset({"fp", "asimd"}))
    rich = resolve_host("aarch64", frozenset({"fp", "asimd", "atomics", "asimdhp", "asimdrdm", "asimddp"}))
    assert (plain.preset, rich.preset) == ("aarch64-cortex-a72", "aarch64-cortex-a76")


def test_host_refuses_an_unknown_architecture() -> None:
    with pytest.raises(TargetError, match="no preset fits this processor \\(sparc\\)"):
        resolve_host("sparc", frozenset())


def test_host_is_this_machine() -> None:
    assert find_target("host").arch == machine_arch()
    assert find_target("host").native


def test_wide_vectors_are_not_halved_by_the_generic_model() -> None:
    assert "-prefer-256-bit" in find_target("x86-64-v4").tvm["mattr"]  # type: ignore[operator]


def test_armv7_passes_floats_in_registers() -> None:
    assert find_target("armv7-neon").tvm["mfloat-abi"] == "hard"
