"""Which convolutions are siblings, in what order groups run, and kernels that compute several siblings."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from compiler import build, open_bundle
from compiler.codegen import planner
from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, make_groups
from compiler.codegen.planner import Sources, candidates, form, situation
from compiler.codegen.plans import parse_plan
from compiler.codegen.siblings import layer_order, sibling_sets
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import Target, find_target
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from tests.codegen.test_generate import check
from tests.graphs import Builder

LABELS = {"ab": 16, "a": 8, "b": 16}
"""Set of tasks -> channels, in every layer."""


def labelled(layers: int = 3, side: int = 12) -> Graph:
    """Two tasks merged layer by layer, written down task by task: each layer has a convolution per set of tasks,
    which reads the channels of the sets that contain its own."""
    b = Builder()
    image = b.input("x", 1, 3, side, side)
    made: list[dict[str, ValueRef]] = [{} for _ in range(layers)]
    for label, channels in LABELS.items():
        for number in range(layers):
            read = [y for other, y in made[number - 1].items() if set(other) >= set(label)] if number else [image]
            x = read[0] if len(read) == 1 else b.apply("Concat", *read, axis=1)
            made[number][label] = b.apply("Relu", b.conv(x, channels, 3, pads=(1,) * 4))
    for task in "ab":
        b.task(task, b.apply("Concat", *(made[-1][s] for s in LABELS if task in s), axis=1))
    return b.done()


def names(groups: tuple[Group, ...]) -> list[str]:
    """First nodes."""
    return [g.anchor.node.ref.name for g in groups]


def test_the_convolutions_of_a_merged_layer_are_siblings():
    groups = make_groups(labelled())
    sets = [{groups[n].anchor.node.ref.name for n in members} for members in sibling_sets(groups)]
    # written down task by task: all layers of the first set, then those of the second, then those of the third
    layers = [set(names(tuple(g for g in groups if g.family == "conv")[n::3])) for n in range(3)]
    assert sets == layers


def test_siblings_do_not_depend_on_each_other_and_have_one_geometry():
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("x", 1, 8, 12, 12), 8, 3, pads=(1,) * 4))
    y = b.conv(x, 8, 3, pads=(1,) * 4)
    both = b.conv(b.apply("Concat", x, y, axis=1), 8, 3, pads=(1,) * 4)
    b.task("deep", both)
    b.task("strided", b.conv(x, 8, 3, strides=(2, 2), pads=(1,) * 4))
    assert sibling_sets(make_groups(b.done())) == ()


def test_siblings_run_next_to_each_other_after_what_they_read():
    groups = make_groups(labelled())
    ordered = layer_order(groups)
    assert sorted(names(ordered)) == sorted(names(groups)) and ordered != groups
    known: set[ValueRef] = set()
    for group in ordered:
        assert all(v.data is not None or v.ref == ValueRef("x") or v.ref in known for v in group.inputs())
        known |= {v.ref for v in group.outputs}
    for members in sibling_sets(ordered):
        assert members == tuple(range(members[0], members[-1] + 1))


def test_a_layer_at_a_time_takes_less_workspace_than_a_task_at_a_time():
    graph, target = labelled(layers=3), find_target("host")
    with mock.patch.object(planner, "layer_order", tuple):
        by_task = generate(graph, target)
    by_layer = generate(graph, target)
    assert by_layer.full.workspace_bytes < by_task.full.workspace_bytes


# ---------------------------------------------------------------------- one kernel
def planned(graph: Graph, sources: Sources | None = None, target: str = "host") -> list[Group]:
    """The groups as they will be built."""
    return list(form(graph, make_groups(graph), find_target(target), sources or Sources()))


@pytest.mark.parametrize(("side", "target"), [(12, "host"), (13, "host"), (12, "x86-64-v3")])
def test_one_kernel_computes_what_each_subset_needs(side: int, target: str, tmp_path: Path) -> None:
    # `check` holds results to the reference, subsets bit by bit to all tasks, and units to their independence
    used = check(labelled(side=side), tmp_path, target=target)
    assert any(name.startswith("winograd") and name.endswith("-siblings") for name in used)


def test_siblings_with_residuals_strides_and_blocks_of_several_widths(tmp_path: Path) -> None:
    b = Builder()
    image = b.input("x", 1, 3, 16, 16)
    x = [b.apply("Relu", b.conv(image, n, 3, pads=(1,) * 4)) for n in (32, 24)]
    for task, reads, channels in (("a", x[:1], 16), ("b", x, 12), ("c", x, 40)):
        seen = reads[0] if len(reads) == 1 else b.apply("Concat", *reads, axis=1)
        y = b.conv(seen, channels, 3, strides=(2, 2), pads=(1,) * 4)
        b.task(task, b.apply("Relu", b.apply("Add", b.conv(seen, channels, 1, strides=(2, 2)), y)))
    graph = b.done()
    assert [len(g.members) for g in planned(graph) if g.members] == [3]
    assert any(t.endswith("-siblings") for t in check(graph, tmp_path))


def test_a_kernel_for_siblings_is_chosen_where_it_is_predicted_faster() -> None:
    graph = labelled()
    groups = planned(graph)
    joined = [g for g in groups if g.members]
    known = situation(graph, groups, find_target("host"))
    assert joined, "wide layers on small images repay it"
    for group in joined:
        together = candidates(group, known)[0].seconds
        assert together < sum(candidates(m, known)[0].seconds for m in group.members)
    slow = Times({c.choice: 10**6 for c in candidates(joined[0], known)})
    assert not any(g.members for g in planned(graph, Sources(measured=slow)))


class Times:
    """Measurements: these of siblings, a microsecond of anything else."""

    def __init__(self, joint: dict[Choice, int]) -> None:
        self.joint = joint

    def times(self, group: Group, target: Target) -> dict[Choice, int]:
        return self.joint if group.members else {Choice("conv", (1, 1, 1)): 1000}


def test_a_recorded_plan_decides_what_is_one_kernel() -> None:
    graph, target = labelled(), find_target("host")
    library = generate(graph, target)
    plan = parse_plan(library.plan)
    again = generate(graph, target, sources=plan.sources)
    assert (again.objects, again.plan["steps"]) == (library.objects, library.plan["steps"])
    apart = {n: c for g in make_groups(graph) if g.family == "conv" for n, c in [_best(graph, g)]}
    assert not any(g.members for g in planned(graph, Sources(apart)))


def _best(graph: Graph, group: Group) -> tuple[str, Choice]:
    groups = make_groups(graph)
    return group.anchor.node.ref.name, candidates(group, situation(graph, groups, find_target("host")))[0].choice


def test_the_driver_asks_for_the_members_of_any_subset(tmp_path: Path) -> None:
    bundle = build(labelled(), "host", tmp_path / "b", name="net", subsets=[frozenset("ab")], threads=False)
    text = (bundle.path / "src" / "net_driver.c").read_text()
    assert "((tasks & UINT64_C(0x3)) != 0) << 0 | ((tasks & UINT64_C(0x1)) != 0) << 1" in text
    net = open_bundle(bundle.path)
    feed = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    both = net.run(feed)
    for task in "ab":
        alone = net.run(feed, tasks=[task])
        np.testing.assert_array_equal(alone[task], both[task])
