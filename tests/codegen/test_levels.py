"""Sparsity levels in a library: one pool, every level exact, switched by a number."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.random_switching import switch
from compiler import build, open_bundle, parse_pass
from compiler.codegen.budgets import LevelTimes, times_type
from compiler.codegen.bundle import read_plan
from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import Sources, decide
from compiler.codegen.plans import parse_plan
from compiler.codegen.runtime import BoundCall, Network
from compiler.codegen.target import find_target
from compiler.errors import BundleError, LoweringError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.types import DType, TensorType
from tests.codegen.handmade import check_conversions
from tests.codegen.native import NativeLibrary
from tests.graphs import Builder

LEVELS = 3
SUBSETS = [("a",), ("b",), ("a", "b")]


def network() -> Graph:
    """Two tasks with a residual, a concatenation and a matrix product, nested; one layer has biases by level."""
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("x", 1, 16, 8, 8), 64, 3, pads=(1, 1, 1, 1)))
    y = b.apply("Add", b.apply("Relu", b.conv(x, 64, 3, pads=(1, 1, 1, 1))), x)
    b.task("a", b.conv(b.apply("Concat", x, y, axis=1), 40, 3, strides=(2, 2)))
    flat = b.apply("Flatten", b.apply("Relu", b.conv(y, 24, 1)))
    inner = b.graph.value(flat).shape[1]
    b.task("b", b.apply("Gemm", flat, b.weight(20, inner), b.weight(20), transB=1))
    graph = parse_pass("nest{levels=0.1+0.5+0.8,dense=()}")(b.done()).copy()
    bias = graph.operands(graph.nodes()[0])[2]
    others = [bias.constant + np.float32(0.1 * k) for k in range(1, LEVELS)]
    graph.update(bias.ref, data=bias.constant, sparser=others)
    return graph.freeze()


@dataclass
class Made:
    graph: Graph
    net: Network
    feeds: dict[str, np.ndarray]
    expected: dict[tuple[tuple[str, ...], int], dict[str, bytes]]
    """Bytes of every (subset, level), each from a fresh run."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The self-test of the build runs every subset at every level, with pools and budgets."""
    graph = network()
    net = open_bundle(build(graph, "host", tmp_path_factory.mktemp("levels"), name="nested").path)
    feeds = random_feeds(graph, np.random.default_rng(5))
    found = {}
    for subset, level in itertools.product(SUBSETS, range(LEVELS)):
        found[subset, level] = {t: a.tobytes() for t, a in net.run(feeds, tasks=subset, level=level).items()}
    yield Made(graph, net, feeds, found)


def test_every_level_is_right(made: Made) -> None:
    for level in range(LEVELS):
        wanted = evaluate(at_level(made.graph, level), made.feeds)
        found = made.net.run(made.feeds, level=level)
        for task in made.graph.tasks.values():
            assert difference(found[task.name], wanted[task.outputs[0].name]) < 1e-5
    assert len({made.expected[("a",), level]["a"] for level in range(LEVELS)}) == LEVELS


def test_subsets_have_the_bits_of_the_full_set_at_every_level(made: Made) -> None:
    for (subset, level), outputs in made.expected.items():
        full = made.expected[("a", "b"), level]
        assert all(outputs[t] == full[t] for t in subset)


def recorded(made: Made) -> Sources:
    return parse_plan(read_plan(made.net.bundle)).sources


@pytest.mark.parametrize("level", [1, 2])
def test_a_level_extracted_has_the_same_bits(made: Made, level: int, tmp_path: Path) -> None:
    library = generate(at_level(made.graph, level), find_target("host"), sources=recorded(made))
    assert (len(library.levels), len(library.programs)) == (LEVELS - level, len(SUBSETS))
    native = NativeLibrary(library, tmp_path)
    for program in library.programs:
        outputs = native.run(program, made.feeds)
        for task, (array,) in outputs.items():
            assert array.tobytes() == made.expected[tuple(outputs), level][task], (task, level)


def test_the_densest_level_alone_is_the_same_network_and_pool(made: Made, tmp_path: Path) -> None:
    """By the plan of all levels; by its own: test_extracted_levels.py."""
    graph = at_level(made.graph, 0, alone=True)
    alone = generate(graph, find_target("host"), sources=recorded(made), subsets=[frozenset("ab")])
    pool = made.net.bundle.manifest["pool"]["bytes"]
    assert len(alone.pool) < pool <= 1.05 * len(alone.pool), "the densest level is there once"
    for task, (array,) in NativeLibrary(alone, tmp_path).run(alone.full, made.feeds).items():
        assert array.tobytes() == made.expected[("a", "b"), 0][task]


def test_the_manifest_describes_every_level(made: Made) -> None:
    manifest = made.net.bundle.manifest
    assert [r["level"] for r in manifest["levels"]] == [0, 1, 2]
    assert np.abs(np.array(made.net.levels) - [0.9, 0.5, 0.2]).max() < 0.1  # last blocks are lower
    assert {(tuple(r["tasks"]), r["level"]) for r in manifest["subsets"]} == set(made.expected)
    assert len(manifest["switch_points"]) == 5


def test_switching_from_two_threads_gives_the_bytes_of_fresh_runs_and_keeps_no_memory(made: Made) -> None:
    found = switch(made.net, [made.feeds], 2400, seed=0)
    assert (found["calls"], found["threads"], found["wrong"]) == (2400, 2, 0)
    assert found["growth_bytes"] < 1 << 20


def timed_and_bound(made: Made) -> tuple[LevelTimes, BoundCall]:
    return made.net.measure(made.feeds, tasks=["a"], rounds=1), made.net.bind(["a"], **made.feeds)


def asks(made: Made, level: Any, times: LevelTimes, bound: BoundCall) -> list[Callable[[], object]]:
    """Every place where a call takes a level."""
    return [
        lambda: made.net.run(made.feeds, level=level),
        lambda: made.net.workspace_bytes(["a"], level),
        lambda: made.net.run_within(made.feeds, 0, times, level=level),
        lambda: bound(level),
        lambda: bound.within(0, times, level=level),
    ]


def test_levels_and_budgets_that_do_not_exist(made: Made) -> None:
    times, bound = timed_and_bound(made)
    for ask in asks(made, LEVELS, times, bound):
        with pytest.raises(ValueError, match=f"^level {LEVELS} is not in this bundle$"):
            ask()
    for ask in (lambda: made.net.run_within(made.feeds, 0, None), lambda: bound.within(0, None)):
        with pytest.raises(ValueError, match=r"times are None; give what measure\(\) made"):
            ask()
    with pytest.raises(ValueError, match="1 to 31 rounds"):
        made.net.measure(made.feeds, rounds=0)
    with pytest.raises(ValueError, match="a budget is 0 to"):
        made.net.run_within(made.feeds, -1, times)


@pytest.mark.parametrize("wrong", ["cheapest", 1.0, None, -1, 1 << 32])
def test_a_level_is_a_number_wherever_one_is_asked_for(made: Made, wrong: Any) -> None:
    """-1 would be the cheapest one to C."""
    times, bound = timed_and_bound(made)
    sparsest = [lambda: made.net.run_within(made.feeds, 0, times, sparsest=wrong)] * (wrong is not None)
    for ask in asks(made, wrong, times, bound) + sparsest:
        with pytest.raises(ValueError, match=rf"^level {wrong!r}: levels are the numbers 0 to 2$"):
            ask()
    assert bound(np.int64(1))["a"].tobytes() == made.expected[("a",), 1]["a"]
    assert made.net.run(made.feeds, tasks="a", level=np.uint8(2))["a"].tobytes() == made.expected[("a",), 2]["a"]


AGES, MOMENT = 4_000_000_000, 1
"""Nanoseconds: more than any budget here, and next to nothing."""


def write(times: LevelTimes, rest_ns: Callable[[int, int], int]) -> None:
    """A table by hand, as a function of level and point, without reserves: the machine's mood does not matter."""
    for k, (rest, reserve) in enumerate(zip(times.table.rest_ns, times.table.reserve_ns, strict=True)):
        for point in range(len(rest)):
            rest[point], reserve[point] = rest_ns(k, point), 0


def test_a_call_falls_to_the_level_its_budget_allows(made: Made) -> None:
    times = made.net.measure(made.feeds, tasks=["a"])
    rest = times.rest_ns
    assert (np.diff(rest.astype(np.int64), axis=1) <= 0).all(), "less is left from point to point"
    assert (rest[:, 0] > 0).all()
    hour = 3_600_000_000  # us
    for level in range(LEVELS):
        write(times, lambda k, _, level=level: MOMENT if k >= level else AGES)
        reached = made.net.run_within(made.feeds, 1_000_000, times)
        assert (reached.level, reached.late) == (level, False)
        assert reached.outputs["a"].tobytes() == made.expected[("a",), level]["a"]
    late = made.net.run_within(made.feeds, 0, times)
    assert (late.level, late.late) == (LEVELS - 1, True)
    assert made.net.run_within(made.feeds, hour, times, level=1).level == 1


def test_a_call_falls_no_further_than_it_may(made: Made) -> None:
    times = made.net.measure(made.feeds, tasks=["a"])
    held = made.net.run_within(made.feeds, 0, times, sparsest=1)
    assert (held.level, held.late) == (1, True)
    assert held.outputs["a"].tobytes() == made.expected[("a",), 1]["a"]
    assert made.net.run_within(made.feeds, 0, times, level=1, sparsest=1).level == 1
    for level, sparsest in ((0, 0), (2, 1), (0, LEVELS)):
        with pytest.raises(ValueError, match=f"from level {level} a call may fall to levels .*, not {sparsest}"):
            made.net.run_within(made.feeds, 0, times, level=level, sparsest=sparsest)


def test_a_bound_call_takes_budgets_too(made: Made) -> None:
    times = made.net.measure(made.feeds, tasks=["a"])
    with made.net.pool(2) as pool:
        bound, shared = made.net.bind(["a"], **made.feeds), made.net.bind(["a"], pool=pool, **made.feeds)
        for level in range(LEVELS):
            write(times, lambda k, _, level=level: MOMENT if k >= level else AGES)
            reached = bound.within(1_000_000, times)
            assert (reached.level, reached.late) == (level, False)
            assert reached.outputs["a"].tobytes() == made.expected[("a",), level]["a"]
            assert bound(2)["a"].tobytes() == made.expected[("a",), 2]["a"], "levels of other calls do not stay"
        assert bound.within(0, times, sparsest=1).level == 1 and bound.within(0, times).level == LEVELS - 1
        with pytest.raises(ValueError, match="from level 2 a call may fall to levels 2 to 2, not 1"):
            bound.within(0, times, level=2, sparsest=1)
        with pytest.raises(BundleError, match="other tasks or threads"):
            shared.within(0, times)
    with pytest.raises(ValueError, match="the pool is closed"):
        shared.within(0, times)


def test_the_reserve_counts_as_time_that_the_rest_takes(made: Made) -> None:
    """By the table a call is over in no time, but level 0 one time in ten not within the budget."""
    times = made.net.measure(made.feeds, tasks=["a"], rounds=31)
    assert times.reserve_ns.shape == times.rest_ns.shape
    assert times.reserve_ns[0, 0] > 0, "31 rounds are never equally long"
    assert not times.reserve_ns[:, -1].any(), "nothing is left at the end"
    write(times, lambda *_: MOMENT)
    assert made.net.run_within(made.feeds, 50_000_000, times).level == 0
    for point in range(times.reserve_ns.shape[1]):
        times.table.reserve_ns[0][point] = AGES
    assert made.net.run_within(made.feeds, 1_000_000, times).level == 1


def test_threads_share_a_call_with_a_budget(made: Made) -> None:
    """All of a layer is done at the level that the calling thread chose, whichever thread does it."""
    alone = made.net.measure(made.feeds, tasks=["a"], rounds=1)
    with made.net.pool(2) as pool:
        times = made.net.measure(made.feeds, tasks=["a"], pool=pool)
        assert (alone.threads, times.threads) == (1, 2)
        with pytest.raises(BundleError, match="the times were measured with other tasks or threads"):
            made.net.run_within(made.feeds, 1000, times)
        for level, start in itertools.product(range(LEVELS), range(1, 4)):
            for table in (alone, times):
                write(table, lambda k, p, level=level, start=start: AGES if k < level and p >= start else MOMENT)
            wanted = made.net.run_within(made.feeds, 1_000_000, alone)
            for _ in range(40):
                reached = made.net.run_within(made.feeds, 1_000_000, times, pool=pool)
                assert reached.level == wanted.level == level
                assert reached.outputs["a"].tobytes() == wanted.outputs["a"].tobytes()


def test_time_lost_before_the_first_layers_says_little_about_the_rest(made: Made) -> None:
    """By the table the first step takes a nanosecond, so it is hundreds of times slower than expected."""
    times = made.net.measure(made.feeds, tasks=["a"])
    write(times, lambda _, point: 1_000_000_000 + (point == 0))
    assert made.net.run_within(made.feeds, 50_000_000, times).level == 0


def compiled_example(made: Made, name: str, folder: Path) -> Path:
    """A program of the bundle's examples, without a warning."""
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I.", f"example/{name}.c", "libnested.a", "-lm"]
    subprocess.run([*command, "-lpthread", "-o", folder / name], cwd=made.net.bundle.path, check=True)
    return folder / name


def test_c_files_convert_nothing_in_silence(made: Made) -> None:
    check_conversions(made.net.bundle.path)


def test_the_example_holds_a_budget(made: Made, tmp_path: Path) -> None:
    program = compiled_example(made, "main", tmp_path)
    done = subprocess.run([program], cwd=made.net.bundle.path, check=True, capture_output=True, text=True)
    assert re.search(r"^budget \d+ us: level [0-2](, late)?$", done.stdout, re.MULTILINE)


def test_the_example_that_holds_a_target_over_many_calls(made: Made, tmp_path: Path) -> None:
    program = compiled_example(made, "hold", tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, made.net.bundle.path / "golden", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    line = re.compile(r"budget (\d+) us: (\d+) of 1000 in time; calls by level: (\d+) (\d+) (\d+)")
    ample = [line.fullmatch(text) for text in run("60000000", "2").stdout.splitlines()]
    assert [found and found.groups() for found in ample] == [("60000000", "1000", "1000", "0", "0")] * 2
    (short,) = (line.fullmatch(text) for text in run("1", "1").stdout.splitlines())
    assert short and short.group(2, 3, 5) == ("0", "0", "1000"), "a microsecond is over before the first layer"
    (most,) = (line.fullmatch(text) for text in run("4294967297", "1").stdout.splitlines())
    assert most and most.group(1, 2) == ("4294967295", "1000"), "not the microsecond that 32 bits hold of it"
    refused = run("much")
    assert (refused.returncode, refused.stderr) == (1, "budget and lines are numbers above 0\n")
    assert not (made.net.bundle.path / "example" / "hold.c").read_text().count("@")


def test_late_layers_alone_become_sparser(made: Made) -> None:
    """From the last switch point of the task on (the convolution of `a`) the table says that time is short."""
    times = made.net.measure(made.feeds, tasks=["a"])
    write(times, lambda k, point: AGES if k < 2 and point == 3 else MOMENT)
    reached = made.net.run_within(made.feeds, 1_000_000, times)
    assert reached.level == 2
    part = made.graph.copy()
    sparse = at_level(made.graph, 2)
    name = made.net.bundle.manifest["switch_points"][2][0]
    node = next(n for n in part.nodes() if n.ref.name == name)
    for _, value in part.operands(node).present():
        if value.sparser:
            part.update(value.ref, data=sparse.value(value.ref).constant, sparser=())
    wanted = evaluate(part, made.feeds)[made.graph.tasks["a"].outputs[0].name]
    assert difference(reached.outputs["a"], wanted) < 1e-5


def test_a_bundle_of_one_level_has_no_budgets(tmp_path: Path) -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 1, 8)))
    net = open_bundle(build(b.done(), "host", tmp_path, name="plain", selftest=False).path)
    assert net.levels == (1.0,)
    assert not any(word in net.bundle.header.read_text() for word in ("plain_measure", "plain_run_within"))
    with pytest.raises(ValueError, match="a call cannot become faster"):
        net.measure(np.zeros((1, 8), np.float32))
    none = LevelTimes(("t",), times_type(1, 0)())
    with pytest.raises(ValueError, match="a call cannot become faster"):
        net.bind(["t"], x=np.zeros((1, 8), np.float32)).within(1, none)
    with pytest.raises(BundleError, match="'plain' has one level: no call has a budget"):
        net.run_within(np.zeros((1, 8), np.float32), 1, none)


def test_levels_that_are_all_alike_leave_nothing_to_fall_to(tmp_path: Path) -> None:
    """Training may find that a denser level is no better than the one nested in it; the self-test runs too."""
    b = Builder(seed=2)
    form, weight = BlockSparse(0, (8, 1)), b.rng.normal(size=(8, 8, 3, 3)).astype(np.float32)
    ref = b.graph.add_value("w", TensorType(DType.FLOAT32, weight.shape, form), weight, [weight, weight]).ref
    b.task("t", b.apply("Conv", b.input("x", 1, 8, 6, 6), ref))
    net = open_bundle(build(b.done(), "host", tmp_path, name="alike").path)
    assert len(net.levels) == 3 and net.bundle.manifest["switch_points"] == []
    x = np.ones((1, 8, 6, 6), np.float32)
    times = net.measure(x)
    reached = [net.run_within(x, budget, times, level=level) for budget, level in ((0, 0), (10**6, 0), (0, 1))]
    assert [(r.level, r.late) for r in reached] == [(0, True), (0, False), (1, True)]
    assert all(r.outputs["t"].tobytes() == net.run(x)["t"].tobytes() for r in reached)


def test_an_output_that_is_a_constant_is_that_of_the_level(tmp_path: Path) -> None:
    """One with levels of its own, one that is the weight of a layer, and one that is the same at all."""
    graph = switched().copy()
    own, plain = np.arange(4, dtype=np.float32), np.ones(3, np.float32)
    form = TensorType(DType.FLOAT32, own.shape)
    graph.set_task("own", [graph.add_value("own", form, own, [own + 10]).ref])
    weight = next(v for v in graph.parameters() if v.ref.name == "w")
    graph.set_task("weight", [weight.ref])
    graph.set_task("plain", [graph.add_value("plain", TensorType(DType.FLOAT32, plain.shape), plain).ref])
    net = open_bundle(build(graph.freeze(), "host", tmp_path, name="constants").path)
    for tasks in (None, ["own"], ["weight", "plain"]):
        for level, (mine, shared) in enumerate(((own, weight.constant), (own + 10, weight.sparser[0]))):
            found = net.run(np.ones((1, 8, 6, 6), np.float32), tasks=tasks, level=level)
            for task, expected in (("own", mine), ("weight", shared), ("plain", plain)):
                assert task not in found or np.array_equal(found[task], expected)


def switched(group: int = 1, slope: float | None = None, later: float | None = None) -> Graph:
    """A convolution whose weights have two levels; with a PRelu of `slope`, which is `later` at the second."""
    b = Builder()
    form, weight = BlockSparse(0, (8, 1)), np.ones((8, 8 // group, 3, 3), np.float32)
    part = np.zeros_like(weight)
    ref = b.graph.add_value("w", TensorType(DType.FLOAT32, weight.shape, form), weight, [part]).ref
    y = b.apply("Conv", b.input("x", 1, 8, 6, 6), ref, group=group)
    if slope is not None:
        sparser = [] if later is None else [np.full(1, later, np.float32)]
        one = TensorType(DType.FLOAT32, (1,))
        y = b.apply("PRelu", y, b.graph.add_value("slope", one, np.full(1, slope, np.float32), sparser).ref)
    b.task("t", y)
    return b.done()


def planned(graph: Graph) -> set[str]:
    """Algorithms of a plan for this machine."""
    made = decide(graph, make_groups(graph), find_target("host"), Sources())
    return {decision.choice.algorithm for decision in made.values()}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (switched(group=1), switched(group=8)),
        (switched(slope=0.1), switched(slope=0.1, later=0.2)),
    ],
    ids=["depthwise", "constant that becomes code"],
)
def test_what_no_kernel_can_switch_is_refused(right: Graph, wrong: Graph) -> None:
    """The same layers without that are planned."""
    assert planned(right)
    with pytest.raises(LoweringError, match=r"'conv'.*no strategy applies to weights with 2 levels"):
        planned(wrong)


def test_times_of_another_bundle_are_refused(made: Made, tmp_path: Path) -> None:
    """Their table has another size, and the library would read beyond its end."""
    nested = parse_pass("nest{levels=0.1+0.5,pattern=block4x1,dense=()}")(at_level(made.graph, 0, alone=True))
    other = open_bundle(build(nested, "host", tmp_path / "other", name="nested", selftest=False).path)
    times = other.measure(made.feeds, rounds=1)
    with pytest.raises(ValueError, match="measured with another bundle than this one of 'nested'"):
        made.net.run_within(made.feeds, 1000, times)
    bound = made.net.bind(["a", "b"], **made.feeds)
    with pytest.raises(ValueError, match="another bundle"):
        bound.within(1000, times)
    again = open_bundle(made.net.bundle.path)
    assert again.run_within(made.feeds, 1_000_000, made.net.measure(made.feeds, rounds=1)).level == 0


def test_inputs_may_be_called_like_arguments(tmp_path: Path) -> None:
    b = Builder()
    b.task("self", b.apply("Add", b.apply("Relu", b.input("tasks", 4)), b.input("self", 4)))
    net = open_bundle(build(b.done(), "host", tmp_path, name="named", selftest=False).path)
    given = {"tasks": np.ones(4, np.float32), "self": np.full(4, 2, np.float32)}
    np.testing.assert_array_equal(net.bind(["self"], **given)()["self"], np.full(4, 3, np.float32))


def test_every_name_can_be_bound(tmp_path: Path) -> None:
    """`pool` by position alone: as an argument it is the pool."""
    b = Builder()
    b.task("level", b.apply("Add", b.apply("Relu", b.input("pool", 4)), b.input("times", 4)))
    net = open_bundle(build(b.done(), "host", tmp_path, name="named", selftest=False).path)
    given = {"pool": np.ones(4, np.float32), "times": np.full(4, 2, np.float32)}
    with net.pool(2) as pool:
        bound = net.bind(["level"], given, pool=pool, level=np.zeros(4, np.float32))
        np.testing.assert_array_equal(bound()["level"], np.full(4, 3, np.float32))
    with pytest.raises(ValueError, match=r"goes into a dict: bind\(tasks, \{'pool': array\}\)"):
        net.bind(["level"], **given)
