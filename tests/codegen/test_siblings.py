"""Which convolutions are siblings, and in what order groups run."""

from __future__ import annotations

from unittest import mock

from compiler.codegen import generate as generation
from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, make_groups
from compiler.codegen.siblings import layer_order, sibling_sets
from compiler.codegen.target import find_target
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
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
    graph, target = labelled(layers=6), find_target("host")
    with mock.patch.object(generation, "layer_order", lambda groups: groups):
        by_task = generate(graph, target)
    by_layer = generate(graph, target)
    assert by_layer.full.workspace_bytes < by_task.full.workspace_bytes
