"""What explain says of a plan, from invented records."""

from __future__ import annotations

import pytest

from compiler.codegen.explain import explain
from compiler.codegen.generate import generate
from compiler.codegen.target import find_target
from compiler.ir.encoding import BlockSparse
from compiler.machine import X86_64_V4
from tests.graphs import Builder
from tests.sparse import sparse_weight


def step(name: str, algorithm: str = "conv", **more) -> dict:
    """A step of a plan as `record` writes it."""
    return {
        "nodes": [name, f"{name}/relu"],
        "kernel": "k",
        "template": algorithm,
        "tasks": ["a", "b"],
        "algorithm": algorithm,
        "tile": [4, 2],
        "chosen_by": "rule",
        "ways": 9,
        "predicted_ns": 1000,
        "measured_ns": None,
        "others": [],
        "reads": [{"name": "x", "shape": [1, 8, 4, 4], "layout": "blocked8+1x1"}],
        "writes": [{"name": "y", "shape": [], "layout": "plain"}],
        "flops": 100_000,
        "weight_bytes": 64,
        **more,
    }


def other(algorithm: str, predicted: int | None, measured: int | None = None) -> dict:
    return {"algorithm": algorithm, "tile": [2], "predicted_ns": predicted, "measured_ns": measured}


COPY = {
    "nodes": ["pack x"],
    "kernel": "c",
    "template": "copy",
    "tasks": ["a"],
    "value": "x",
    "shape": [1, 3, 8, 8],
    "from": "plain",
    "to": "blocked3+1x1",
}
GENERIC = step("soft", "generic", tile=[], ways=1, predicted_ns=None)


def explained(*steps: dict, times=None):
    return explain({"target": "x86-64-v4", "steps": list(steps)}, X86_64_V4, times)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"ways": 1}, "the only way"),
        ({}, "best predicted of 9"),
        ({"members": [["a", "b"], ["a"]]}, "2 siblings by one kernel; best predicted of 9"),
        (
            {"others": [other("w", 1500), other("v", 1100), other("u", None)]},
            "best predicted of 9; then v 2 +10%, w 2 +50%",
        ),
        (
            {"chosen_by": "database", "measured_ns": 500, "others": [other("w", 100, 750), other("v", 50)]},
            "fastest measured; then w 2 +50%",
        ),
        ({"chosen_by": "plan", "others": [other("w", 800)]}, "recorded, one of 9; predicted: w 2 -20%"),
    ],
)
def test_why(more, why):
    (found,) = explained(step("conv", **more)).steps
    assert found.why == why


def test_facts_of_a_step_and_of_a_copy():
    found = explained(step("conv"), COPY, times=[4e-6, 1e-6])
    first, copy = found.steps
    assert (first.nodes, first.tasks, first.choice) == (("conv", "conv/relu"), ("a", "b"), "conv 4x2")
    assert (first.reads, first.writes) == (("1x8x4x4 blocked8+1x1",), ("scalar plain",))
    assert (first.predicted, first.seconds, first.share) == (pytest.approx(1e-6), 4e-6, 0.8)
    assert first.rate == pytest.approx(25e9) and first.peak == pytest.approx(25e9 / X86_64_V4.peak_flops)
    assert (copy.kind, copy.choice, copy.chosen_by, copy.rate) == ("copy", "plain to blocked3+1x1", "", None)
    assert (copy.reads, copy.writes) == (("1x3x8x8 plain",), ("1x3x8x8 blocked3+1x1",))
    assert found.seconds == pytest.approx(5e-6)
    assert found.record()["seconds"] == found.seconds


def test_without_times_there_are_no_shares():
    found = explained(step("conv"), COPY, GENERIC)
    assert found.seconds is None and not found.warnings
    assert all(s.share is s.seconds is s.rate is None for s in found.steps)
    assert found.remarks == ("1 copy between layouts", "1 generic step")


def test_copies_and_generic_steps_are_named_with_their_share():
    found = explained(step("conv"), COPY, GENERIC, times=[90e-6, 6e-6, 4e-6])
    assert found.remarks == (
        "1 copy between layouts: 6.0 us, 6.0% (pack x 6.0%)",
        "1 generic step: 4.0 us, 4.0% (soft 4.0%)",
    )
    assert not found.warnings


@pytest.mark.parametrize(("generic", "warned"), [(4.9e-6, False), (5.1e-6, True)])
def test_a_warning_where_generic_steps_take_more_than_a_twentieth(generic, warned):
    found = explained(step("conv"), GENERIC, times=[100e-6 - generic, generic])
    assert bool(found.warnings) == warned
    if warned:
        assert found.warnings == ("generic steps take 5.1% of the time, more than 5%: soft 5.1%",)


def test_what_is_too_short_for_the_clock_has_no_rate():
    (found,) = explained(step("conv"), times=[5e-8]).steps
    assert found.seconds == 5e-8 and found.rate is None


def test_sparse_layers_that_run_densely_are_said():
    dense = [step(f"l{i}", zeros="multiplied", weights="block16x1@32/64") for i in range(5)]
    found = explained(step("ok", zeros="left out"), *dense)
    assert found.remarks == (
        "5 layers with sparse weights run densely, because that is faster: "
        "l0 (conv 4x2), l1 (conv 4x2), l2 (conv 4x2) and 2 more",
    )


def test_a_generated_plan_can_be_explained():
    b = Builder()
    x = b.input("x", 1, 32, 12, 12)
    y = b.apply("Conv", x, sparse_weight(b.graph, BlockSparse(), (32, 32, 3, 3), 0.9), pads=(1, 1, 1, 1))
    b.task("t", b.apply("Softmax", b.apply("Flatten", b.apply("GlobalAveragePool", y))))
    target = find_target("x86-64-v4")
    found = explain(generate(b.done(), target).plan, target.machine)
    assert {"copy", "generic"} <= {s.kind for s in found.steps}
    (layer,) = (s for s in found.steps if s.zeros)
    assert layer.zeros == "multiplied" and "run densely" in found.remarks[-1]
    assert layer.flops > 0 and layer.weight_bytes >= 4 * 32 * 32 * 9 and "then" in layer.why
