"""Plans as files: read back, matched to targets, refused with one message where damaged, stale or hostile."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.codegen.generate import generate
from compiler.codegen.groups import Group, make_groups
from compiler.codegen.manifest import canonical
from compiler.codegen.planner import Sources, candidates, decide, situation
from compiler.codegen.plans import MOST_BYTES, Plan, load_plan, load_plans, parse_plan
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import find_target
from compiler.codegen.tuning import TuningDatabase
from compiler.errors import ConfigError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from tests.codegen.test_tuning import measured_layers
from tests.graphs import Builder
from tests.sparse import sparse_weight

HOST = find_target("host")


def graph() -> Graph:
    """A block with every family that has a choice, and steps that have none."""
    b = Builder()
    x = b.input("x", 1, 16, 8, 8)
    y = b.apply("Relu", b.conv(x, 32, 3, pads=(1, 1, 1, 1)))
    z = b.apply("Add", b.conv(y, 32, 3, pads=(1, 1, 1, 1)), y)
    w = b.apply("Relu", b.conv(z, 32, 3, pads=(1, 1, 1, 1), group=32))
    flat = b.apply("Flatten", b.apply("GlobalAveragePool", w))
    b.task("a", b.apply("Gemm", flat, b.weight(5, 32), transB=1))
    b.task("b", b.conv(w, 24, 1))
    return b.done()


@pytest.fixture(scope="module")
def record() -> dict:
    """The plan of the graph as it is written."""
    return json.loads(canonical(generate(graph(), HOST, name="net").plan))


def test_a_rebuild_from_its_own_plan_is_the_same_library(record):
    first = generate(graph(), HOST, name="net")
    assert generate(graph(), HOST, name="net", sources=parse_plan(record).sources) == first


def test_a_rebuild_of_a_layer_with_one_sparse_weight():
    """Its tile has zeros for the weight that is multiplied densely."""
    b = Builder()
    sparse = sparse_weight(b.graph, BlockSparse(1), (1, 128, 32), 0.1)
    b.task("t", b.apply("LSTM", b.input("x", 5, 1, 32), sparse, b.weight(1, 128, 32), hidden_size=32))
    network = b.done()
    first = generate(network, HOST)
    plan = parse_plan(json.loads(canonical(first.plan)))
    assert [(c.algorithm, c.tile[4:]) for c in plan.choices.values()] == [("recurrent-sparse", (0, 0, 0, 0))]
    assert generate(network, HOST, sources=plan.sources) == first


def test_a_rebuild_of_a_measured_plan_carries_its_measurements():
    database = measured_layers(graph(), HOST)
    sources = Sources(measured=database, database=database.digest)
    first = generate(graph(), HOST, name="net", sources=sources)
    steps = [s for s in first.plan["steps"] if "algorithm" in s]  # type: ignore[attr-defined]
    assert {s["chosen_by"] for s in steps} == {"database", "rule"}
    assert all(s["measured_ns"] for s in steps if s["chosen_by"] == "database")
    plan = parse_plan(json.loads(canonical(first.plan)))
    assert plan.database == database.digest == TuningDatabase.parse(json.loads(database.text())).digest
    again = generate(graph(), HOST, name="net", sources=plan.sources)
    assert again == first


def test_what_the_plan_says_of_a_step(record):
    steps = record["steps"]
    assert [s["template"] for s in steps if s["template"] == "copy"] and steps[0]["to"].startswith("blocked16")
    second = next(s for s in steps if s["nodes"][0] == "conv.1")
    assert second["nodes"] == ["conv.1", "add"] and second["tasks"] == ["a", "b"]
    assert [(v["name"], v["shape"]) for v in second["writes"]] == [("add:0", [1, 32, 8, 8])]
    assert second["reads"][0]["layout"].startswith("blocked16+1x1")
    assert second["flops"] == 2 * 64 * 32 * 32 * 9 + 64 * 32
    assert second["weight_bytes"] >= 4 * (32 * 32 * 9 + 32)
    assert second["predicted_ns"] > 0 and second["measured_ns"] is None
    algorithms = [o["algorithm"] for o in second["others"]]
    assert len(algorithms) == len(second["others"]) >= 4
    assert second["ways"] > len(algorithms)


# ---------------------------------------------------------------------- files and targets
def written(folder: Path, record: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_bytes(canonical(record))
    return folder / "plan.json"


def test_plans_are_found_in_files_bundles_and_output_folders(tmp_path, record):
    file = written(tmp_path / "out" / "host", record)
    plan = parse_plan(record)
    for place in (file, file.parent, tmp_path / "out"):
        assert load_plans([place], [HOST]) == {"host": plan}
    assert load_plans([file], [HOST, find_target(HOST.preset)]) == {"host": plan, HOST.preset: plan}


def test_one_file_per_target(tmp_path, record):
    other = {**record, "target": "armv7-neon", "steps": []}
    files = [written(tmp_path / "one", record), written(tmp_path / "two", other)]
    found = load_plans(files, [HOST, find_target("armv7-neon")])
    assert (found["host"].preset, found["armv7-neon"].preset) == (HOST.preset, "armv7-neon")


def test_a_target_without_a_plan_or_with_two(tmp_path, record):
    file = written(tmp_path / "out" / "host", record)
    with pytest.raises(ConfigError, match=r"no plan for target 'armv7-neon'.*are for x86"):
        load_plans([file], [find_target("armv7-neon")])
    shorter = written(tmp_path / "other", {**record, "steps": record["steps"][:2]})
    with pytest.raises(ConfigError, match="several plans that differ for target 'host'"):
        load_plans([file, shorter], [HOST])
    written(tmp_path / "out" / HOST.preset, {**record, "steps": record["steps"][:2]})
    assert load_plans([tmp_path / "out"], [HOST]) == {"host": parse_plan(record)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no plan"):
        load_plans([tmp_path / "empty"], [HOST])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "has schema None, this version reads 1"),
        (b'{"schema": true}', "has schema True"),
        (b'{"schema": 99, "target": "x", "steps": []}', "has schema 99"),
        (b'{"schema": 1}', "target: expected the name of an instruction set\n  steps: expected a list"),
    ],
)
def test_what_is_not_a_plan(tmp_path, text, reason):
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_plan(tmp_path / "plan.json")
    assert reason in str(caught.value) and "plan.json" in str(caught.value)


def test_a_plan_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read: No such file"):
        load_plan(tmp_path / "absent.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        load_plan(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("nodes", [], "nodes: expected a list of names"),
        ("nodes", [1], "nodes: expected a list of names"),
        ("algorithm", "", "algorithm: expected a name"),
        ("algorithm", None, "algorithm: expected a name"),
        ("tile", "8x1", "tile: expected a list of whole numbers, none below zero"),
        ("tile", [True], "tile: expected"),
        ("tile", [-8, 1, 1], "tile: expected"),
        ("tile", [1.5], "tile: expected"),
        ("measured_ns", "3", "measured_ns: expected null or a positive whole number"),
        ("others", {}, "others: expected a list of choices"),
        ("others", [3], "others: expected a list of choices"),
        ("others", [{"algorithm": "conv"}], "tile: expected"),
    ],
)
def test_malformed_steps_are_named(record, key, value, reason):
    broken = copy.deepcopy(record)
    number = next(i for i, s in enumerate(broken["steps"]) if "algorithm" in s)
    broken["steps"][number][key] = value
    broken["steps"].append("no step")
    with pytest.raises(ConfigError) as caught:
        parse_plan(broken, "plan p.json")
    text = str(caught.value)
    assert f"step {number}: {reason}" in text and "expected a table" in text and text.startswith("plan p.json")


def test_a_node_is_planned_once_and_digests_are_digests(record):
    twice = {**record, "steps": [*record["steps"], record["steps"][1]], "database": "yes"}
    with pytest.raises(ConfigError, match=r"(?s)database: expected null or a SHA-256.*a second one for 'conv'"):
        parse_plan(twice)


# ---------------------------------------------------------------------- hostile plans
def damaged(draw: st.DrawFn, record: dict) -> dict:
    """A plan with a few arbitrary changes to its steps."""
    made = copy.deepcopy(record)
    steps = made["steps"]
    for _ in range(draw(st.integers(1, 3))):
        step = steps[draw(st.integers(0, len(steps) - 1))]
        kind = draw(st.sampled_from(["tile", "algorithm", "nodes", "drop", "junk"]))
        if kind == "tile":
            step["tile"] = draw(st.lists(st.integers(-1, 2**70) | st.integers(1, 16), max_size=4))
        elif kind == "algorithm":
            names = ["conv", "winograd2x2", "winograd4x4", "depthwise", "gemm", "generic", "recurrent", "none", ""]
            step["algorithm"] = draw(st.sampled_from(names))
        elif kind == "nodes":
            step["nodes"] = draw(st.sampled_from([s["nodes"] for s in steps]))
        elif kind == "drop" and len(steps) > 1:
            steps.remove(step)
        else:
            step[draw(st.sampled_from(sorted(step)))] = draw(st.none() | st.integers() | st.text(max_size=3))
    return made


@functools.cache
def proposals() -> tuple[Graph, Sequence[Group], list[set[Choice]]]:
    """The graph, its groups, and what the strategies propose for each."""
    network = graph()
    groups = make_groups(network)
    known = situation(network, groups, HOST)
    return network, groups, [{c.choice for c in candidates(g, known)} for g in groups]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_plan_ends_in_one_message_or_in_choices_of_the_strategies(data, record):
    network, groups, proposed = proposals()
    try:
        decisions = decide(network, groups, HOST, parse_plan(damaged(data.draw, record)).sources)
    except ConfigError:
        return
    for group, choices in zip(groups, proposed, strict=True):
        assert decisions[group.anchor.node.ref].choice in choices


def test_a_plan_of_another_network_is_refused(record):
    b = Builder()
    b.task("t", b.conv(b.input("x", 1, 16, 8, 8), 32, 3))
    with pytest.raises(ConfigError, match=r"(?s)does not fit graph 'net'.*'conv': one kernel for conv, relu"):
        generate(b.done(), HOST, sources=parse_plan(record).sources)


def test_plans_compare_by_their_choices():
    plan = Plan("x86-64-v4", {"a": ("a",)}, {"a": Choice("conv", (1, 1, 1))})
    assert plan == Plan("x86-64-v4", {"a": ("a",)}, {"a": Choice("conv", (1, 1, 1))})
    assert plan != Plan("x86-64-v4", {"a": ("a",)}, {"a": Choice("conv", (2, 1, 1))})
