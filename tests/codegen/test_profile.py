"""A clock around every kernel call: what is computed stays right, and every call has its time."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.bundle import read_plan
from compiler.codegen.generate import generate
from compiler.codegen.profile import TimedBundle, TimedLibrary, profile, profile_library
from compiler.codegen.target import find_target
from compiler.compile import build
from compiler.errors import BundleError, TargetError
from compiler.ir.reference import difference, evaluate
from tests.graphs import Builder


def two_layers():
    b = Builder()
    y = b.apply("Relu", b.conv(b.input("x", 1, 16, 6, 6), 32, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(y, 16, 1), y)
    return b.done()


def test_outputs_are_those_of_the_library():
    graph = two_layers()
    feeds = {"x": np.random.default_rng(3).normal(size=(1, 16, 6, 6)).astype(np.float32)}
    timed = TimedLibrary(generate(graph, find_target("host"), name="p"), find_target("host"), feeds)
    times = timed.run()
    assert len(times) == len(timed.steps) and times.dtype == np.uint64 and times.sum() > 0
    expected = evaluate(graph, feeds)
    assert len(timed.outputs) == len(expected) == 2
    for found, want in zip(timed.outputs.values(), expected.values(), strict=True):
        assert difference(found, want) <= 1e-4


def test_every_call_has_a_time_and_says_how_it_runs():
    graph = two_layers()
    steps = profile_library(generate(graph, find_target("host"), name="p"), find_target("host"), seconds=0.01)
    assert all(step.seconds >= 0 and step.choice for step in steps)
    named = [node for step in steps for node in step.nodes]
    assert {n.ref.name for n in graph.nodes()} <= set(named)


def test_a_library_is_unloaded_with_the_program_that_timed_it():
    """Its file holds all weights, and takes space as long as it is mapped."""
    library = generate(two_layers(), find_target("host"), name="p")

    def mapped() -> int:
        return sum("taskgraft-profile-" in line for line in Path("/proc/self/maps").read_text().splitlines())

    gc.collect()
    before = mapped()
    timed = TimedLibrary(library, find_target("host"))
    assert timed.run().size and mapped() > before
    del timed
    gc.collect()
    assert mapped() == before


def test_an_input_of_another_shape_is_refused():
    library = generate(two_layers(), find_target("host"), name="p")
    with pytest.raises(ValueError, match="input 'x' has shape"):
        TimedLibrary(library, find_target("host"), {"x": np.zeros((1, 16, 6, 5), np.float32)})


def test_a_target_that_does_not_run_here_is_refused():
    target = find_target("aarch64-cortex-a72")
    with pytest.raises(TargetError, match="does not run here"):
        profile_library(generate(two_layers(), target, name="p"), target)


@pytest.fixture
def bundle(tmp_path):
    return build(two_layers(), "host", tmp_path / "out", name="p", selftest=False)


def test_a_bundle_is_timed_from_its_own_sources(bundle):
    graph = two_layers()
    feeds = {"x": np.random.default_rng(3).normal(size=(1, 16, 6, 6)).astype(np.float32)}
    timed = TimedBundle(bundle, find_target("host"), feeds)
    for found, want in zip(timed.outputs.values(), evaluate(graph, feeds).values(), strict=True):
        timed.run()
        assert difference(found, want) <= 1e-4
    steps = profile(timed, 0.01)
    assert [list(s.nodes) for s in steps] == [s["nodes"] for s in read_plan(bundle)["steps"]]
    assert sum(s.seconds for s in steps) > 0


def test_a_driver_of_another_build_than_the_plan_is_refused(bundle):
    driver = bundle.path / "src" / "p_driver.c"
    driver.write_text(driver.read_text().replace("FAILS(call)", "((call) != 0)"))
    with pytest.raises(BundleError, match=r"timed 0 calls and the plan lists \d+.*compile the bundle again"):
        TimedBundle(bundle, find_target("host")).run()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99, "steps": []}', '{"schema": 1, "steps": [3]}'])
def test_a_plan_of_another_form_is_refused(bundle, text):
    (bundle.path / "plan.json").write_text(text)
    with pytest.raises(BundleError, match=r"plan\.json is not"):
        read_plan(bundle)


def test_inputs_live_as_long_as_what_reads_them():
    graph = two_layers()
    library = generate(graph, find_target("host"), name="p")
    given = {"x": np.ones((1, 16, 6, 6), np.float32)}
    timed = TimedLibrary(library, find_target("host"), given)
    expected = evaluate(graph, given)
    address = given["x"].ctypes.data
    del given
    taken = [np.full((1, 16, 6, 6), 7, np.float32) for _ in range(50)]
    assert address not in {t.ctypes.data for t in taken}
    timed.run()
    for found, want in zip(timed.outputs.values(), expected.values(), strict=True):
        assert difference(found, want) <= 1e-4
