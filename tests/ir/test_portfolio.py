"""Several networks for the same tasks in one graph: each level is its network, whatever is done to the whole."""

from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import pytest

from compiler import ConfigError, VerifyError, cost_report, parse_pass, portfolio, to_onnx
from compiler.cost.combine import cheapest_levels
from compiler.errors import CompilerError, PassError, UnsafeInputError
from compiler.ir.graph import Graph
from compiler.ir.levels import LEVELS_KEY, ORDER_KEY, at_level, is_portfolio, level_count
from compiler.ir.onnx_in import ENCODINGS_KEY, TASKS_KEY, load
from compiler.ir.reference import evaluate, random_feeds
from compiler.ir.text import digest
from compiler.ir.union import union
from compiler.ir.verify import verify
from compiler.passes.base import Resources
from tests.graphs import Builder
from tests.passes.merge.families import conv, head, plain

TASKS = ("a", "b", "c")


def apart() -> Graph:
    """A network of its own for every task; cheap ones."""
    return union({t: plain(t, i, (6, 8)) for i, t in enumerate(TASKS)}, name="net")


def shared(tasks: tuple[str, ...] = TASKS, outputs: int = 3) -> Graph:
    """One trunk for all tasks, dearer than any of the networks apart."""
    b = Builder("net", 5)
    x = conv(b, conv(b, b.input("x", 1, 3, 8, 8), 9), 14, strides=(2, 2))
    for task in tasks:
        b.task(task, head(b, x, outputs))
    return b.done()


def answers(graph: Graph, tasks: tuple[str, ...] = TASKS) -> dict[str, bytes]:
    """The bits of every task's first output on one input."""
    found = evaluate(graph, random_feeds(graph, np.random.default_rng(3)), tasks)
    return {t: found[graph.tasks[t].outputs[0].name].tobytes() for t in tasks}


def test_each_level_is_its_network() -> None:
    networks = [shared(), apart()]
    made = portfolio(networks)
    assert level_count(made) == 2 and is_portfolio(made)
    for level, network in enumerate(networks):
        alone = at_level(made, level, alone=True)
        assert level_count(alone) == 1 and not is_portfolio(alone)
        assert answers(alone) == answers(network)
        assert len(alone.nodes()) == len(network.nodes())
        assert cost_report(alone).record() == cost_report(network).record()


def test_what_networks_share_is_computed_once() -> None:
    networks = [shared(), shared(), apart()]
    once = parse_pass("deduplicate")
    made = once(portfolio(networks))
    assert len(made.nodes()) == len(once(shared()).nodes()) + len(once(apart()).nodes())
    for level, network in enumerate(networks):
        assert answers(at_level(made, level)) == answers(network)
    assert made.tasks["a"].variants[0] == made.tasks["a"].outputs != made.tasks["a"].variants[1]


@pytest.mark.parametrize("spec", ["remove-dead-code", "deduplicate", "extract-tasks{tasks=a+b+c}"])
def test_passes_that_keep_levels_keep_a_portfolio(spec: str) -> None:
    networks = [apart(), shared()]
    after = parse_pass(spec)(portfolio(networks))
    assert [answers(at_level(after, k)) for k in (0, 1)] == [answers(n) for n in networks]


def test_a_part_of_the_tasks_is_a_portfolio_too() -> None:
    part = parse_pass("extract-tasks{tasks=b}")(portfolio([shared(), apart()]))
    assert list(part.tasks) == ["b"]
    for level, network in enumerate((shared(), apart())):
        assert answers(at_level(part, level), ("b",)) == answers(network, ("b",))
    level = parse_pass("extract-level{level=1}")(part)
    assert not is_portfolio(level) and digest(level) == digest(at_level(part, 1))


def test_a_network_may_lack_tasks() -> None:
    made = portfolio([shared(), shared(("c",)), apart()])
    assert [len(t.variants) for t in made.tasks.values()] == [2, 2, 2]
    assert made.tasks["a"].variants[0] == made.tasks["a"].outputs
    assert answers(at_level(made, 1), ("a", "b")) == answers(shared(), ("a", "b"))
    assert answers(at_level(made, 1), ("c",)) == answers(shared(("c",)), ("c",))
    made = portfolio([shared(), apart(), shared(("c",))])
    assert made.tasks["a"].variants[1] == made.tasks["a"].variants[0] != made.tasks["a"].outputs


def test_labels_are_those_of_the_first_network() -> None:
    made = portfolio([apart(), shared()])
    assert {n: t.labels for n, t in made.tasks.items()} == {n: t.labels for n, t in apart().tasks.items()}
    assert made.tasks["a"].labels != (made.tasks["a"].outputs[0].name,)


def test_files_hold_every_level() -> None:
    made = portfolio([shared(), apart()])
    model = to_onnx(made)
    assert digest(load(model)) == digest(made)
    assert len(model.graph.output) == 6
    assert digest(made) != digest(portfolio([apart(), shared()])) != digest(shared())


@pytest.mark.parametrize(
    "variants", ["x", [[]], [["nowhere"]], [["gemm:0", "gemm:0"]], [[["gemm:0"]]], [7], [["gemm:0"], [None]]]
)
def test_damaged_levels_of_a_file_are_refused(variants: object) -> None:
    model = to_onnx(portfolio([shared(("a",)), shared(("a",))]))
    (entry,) = (p for p in model.metadata_props if p.key == TASKS_KEY)
    rows = json.loads(entry.value)
    entry.value = json.dumps([[*rows[0][:3], variants]])
    with pytest.raises(UnsafeInputError, match=f"metadata '{TASKS_KEY}' does not fit"):
        load(model)


@pytest.mark.parametrize("key", [TASKS_KEY, ENCODINGS_KEY, LEVELS_KEY, ORDER_KEY])
def test_metadata_of_lists_without_end_are_refused(key: str) -> None:
    model = to_onnx(shared(("a",)))
    metadata = {p.key: p.value for p in model.metadata_props} | {key: "[" * 100_000}
    onnx.helper.set_model_props(model, metadata)
    with pytest.raises(UnsafeInputError, match=f"metadata '{key}'"):
        load(model)


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        ([], "task 'b': has 1 levels, another one has 2"),
        ([[["gemm:0"]]], r"task 'b': gives float32\[1,3\] at level 1, float32\[1,4\] at level 0"),
    ],
)
def test_a_file_whose_levels_do_not_fit_each_other_is_refused(variants: list[object], reason: str) -> None:
    b = Builder("net")
    x = b.input("x", 1, 3, 8, 8)
    b.task("a", head(b, x, 3))
    b.task("b", head(b, x, 4))
    model = to_onnx(portfolio([b.done()] * 2))
    (entry,) = (p for p in model.metadata_props if p.key == TASKS_KEY)
    rows = json.loads(entry.value)
    entry.value = json.dumps([rows[0], [*rows[1][:3], *variants]])
    with pytest.raises(UnsafeInputError, match=reason):
        load(model)


def test_the_cheapest_level_is_that_of_the_cheapest_network() -> None:
    networks = [shared(), apart(), union({"a": plain("a", 7, (5, 7)), "b": plain("b", 8, (6, 9))}, name="net")]
    made, bits = portfolio(networks), {t: 1 << i for i, t in enumerate(TASKS)}
    tables = [
        {frozenset(r.tasks): r.cost.flops for r in cost_report(n).combinations} for n in (networks[0], networks[1])
    ]
    levels = cheapest_levels(made)
    assert levels[0] == 0 and set(levels) == {0, 1, 2}
    rows = {frozenset(r.tasks): r for r in cost_report(made).cheapest()}
    for size in (1, 2, 3):
        for tasks in map(frozenset, itertools.combinations(TASKS, size)):
            level = levels[sum(bits[t] for t in tasks)]
            assert rows[tasks].level == level
            assert rows[tasks].cost.flops <= min(t[tasks] for t in tables)
            if level < 2:
                assert rows[tasks].cost.flops == tables[level][tasks]


def test_without_a_portfolio_level_0_is_what_a_call_costs() -> None:
    nested = parse_pass("nest{levels=0+0.5,pattern=block4x1,dense=(),min_inputs=4}")(shared())
    assert {r.level for r in cost_report(nested).cheapest()} == {0}


def other_input(name: str = "y", size: int = 8) -> Graph:
    b = Builder("net")
    b.task("a", head(b, conv(b, b.input(name, 1, 3, size, size), 4), 3))
    return b.done()


NESTED = "nest{levels=0+0.5,pattern=block4x1,dense=(),min_inputs=4}"


@pytest.mark.parametrize(
    ("networks", "reason"),
    [
        ([shared()], "1 given; a portfolio has 2 to 16"),
        ([shared(("a",))] * 17, "17 given; a portfolio has 2 to 16"),
        ([shared(), shared(("d",))], "network 1 has no task of the first: d"),
        ([shared(), shared(("a", "d"))], "network 1 has the task 'd', which the first has not"),
        ([shared(("a",)), shared(("a",), 4)], r"network 1 gives float32\[1,4\] for 'a'; the first gives float32"),
        ([shared(), other_input()], r"network 1 reads 'y' float32\[1,3,8,8\]; the first has no such input"),
        (
            [shared(), other_input("x", 6)],
            r"network 1 reads 'x' float32\[1,3,6,6\]; the first has float32\[1,3,8,8\]",
        ),
        ([shared(), parse_pass(NESTED)(shared())], "network 1 has 2 levels of its own; take one"),
        ([portfolio([shared(), apart()]), shared()], "network 0 has 2 levels of its own; take one"),
    ],
)
def test_what_is_no_portfolio_is_refused(networks: list[Graph], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        portfolio(networks)
    names = [f"variant {n}" for n in range(len(networks))]
    with pytest.raises(ConfigError, match=reason.replace("network ", "variant ")):
        portfolio(networks, names=names)


def test_every_network_of_a_portfolio_has_a_name_or_none() -> None:
    with pytest.raises(ConfigError, match="2 networks and 1 names: one"):
        portfolio([shared(), apart()], names=["one"])


@pytest.mark.parametrize("spec", ["fold-constants", "prune-channels{flops=0.5}", "dead-channels"])
def test_passes_that_see_one_network_refuse_several(spec: str) -> None:
    with pytest.raises(ConfigError, match="there are 2 levels here, which this pass would not keep"):
        parse_pass(spec)(portfolio([shared(), apart()]))


def test_a_portfolio_joins_no_other_network() -> None:
    with pytest.raises(ConfigError, match="'p' is a portfolio of several networks; take one of them"):
        union({"p": portfolio([shared(), apart()]), "q": shared()})


def test_a_portfolio_has_no_sparsity_levels() -> None:
    made = portfolio([shared(), apart()]).copy()
    weight = next(v for v in made.parameters() if v.rank == 1)
    made.update(weight.ref, data=weight.constant, sparser=[weight.constant + 1])
    with pytest.raises(VerifyError, match="has sparsity levels, and the graph is a portfolio"):
        verify(made)


def test_an_output_of_a_level_cannot_be_removed() -> None:
    made = portfolio([shared(), apart()]).copy()
    (last,) = made.tasks["a"].variants[0]
    producer = made.producer(last)
    assert producer is not None
    with pytest.raises(CompilerError, match="is still used"):
        made.remove(producer.ref)


def test_training_sees_one_network() -> None:
    with pytest.raises(PassError, match="train the networks of a portfolio one by one"):
        parse_pass("distil").requires(portfolio([shared(), apart()]), Resources())
