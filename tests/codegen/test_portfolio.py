"""Libraries of a portfolio: each level has the bits of its network compiled alone; a call finds the cheapest."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compiler import CHEAPEST, ConfigError, build, cost_report, open_bundle, parse_pass, portfolio
from compiler.codegen import emulate
from compiler.codegen.budgets import LevelTimes, times_type
from compiler.codegen.generate import generate
from compiler.codegen.runtime import Network
from compiler.codegen.target import find_target
from compiler.codegen.variants import flattened
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level
from compiler.ir.reference import difference, evaluate, random_feeds
from compiler.ir.union import union
from tests.codegen.handmade import check_conversions
from tests.graphs import Builder
from tests.ir.test_portfolio import TASKS, apart, shared
from tests.passes.merge.families import conv, head, plain

SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(TASKS, n)]


@dataclass
class Made:
    graph: Graph
    net: Network
    alone: tuple[Network, Network]
    feeds: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The self-test of the build runs every subset at every level, and at the cheapest, with pools."""
    networks, folder = (shared(), apart()), tmp_path_factory.mktemp("portfolio")
    graph = parse_pass("deduplicate")(portfolio(networks))
    net = open_bundle(build(graph, "host", folder / "both", name="both").path)
    first, second = (
        open_bundle(build(n, "host", folder / str(k), name=f"only{k}", selftest=False).path)
        for k, n in enumerate(networks)
    )
    yield Made(graph, net, (first, second), random_feeds(graph, np.random.default_rng(5)))


def test_every_level_has_the_bits_of_its_network(made: Made) -> None:
    for (level, alone), subset in itertools.product(enumerate(made.alone), SUBSETS):
        wanted = alone.run(made.feeds, tasks=subset)
        found = made.net.run(made.feeds, tasks=subset, level=level)
        assert {t: a.tobytes() for t, a in found.items()} == {t: a.tobytes() for t, a in wanted.items()}


def test_every_level_agrees_with_the_reference(made: Made) -> None:
    for level in (0, 1):
        graph = at_level(made.graph, level)
        wanted = evaluate(graph, made.feeds)
        found = made.net.run(made.feeds, level=level)
        for name, task in graph.tasks.items():
            assert difference(found[name], wanted[task.outputs[0].name]) < 1e-5


def test_a_call_finds_the_level_of_the_fewest_operations(made: Made) -> None:
    levels = {r.tasks: r.level for r in cost_report(made.graph).cheapest()}
    assert set(levels.values()) == {0, 1}
    for subset in SUBSETS:
        wanted = made.net.run(made.feeds, tasks=subset, level=levels[subset])
        other = made.net.run(made.feeds, tasks=subset, level=1 - levels[subset])
        found = made.net.run(made.feeds, tasks=subset, level=CHEAPEST)
        assert all(np.array_equal(found[t], wanted[t]) and not np.array_equal(found[t], other[t]) for t in subset)
    call = made.net.bind(("a",), x=made.feeds["x"])
    assert np.array_equal(call(CHEAPEST)["a"], made.net.run(made.feeds, tasks="a", level=levels["a",])["a"])


def test_an_input_can_be_called_cheapest(tmp_path: Path) -> None:
    """The driver has a table of this name: a function with such a parameter read the level from the input."""
    networks = []
    for dear in (True, False):
        b = Builder("net", 1)
        x = b.input("cheapest", 1, 4)
        b.task("a", b.apply("MatMul", x, b.weight(4, 4)) if dear else b.apply("Neg", x))
        networks.append(b.done())
    bundle = build(portfolio(networks), "host", tmp_path / "word", name="word", selftest=False)
    program = """
    #include "word.h"
    int main(void) {
      static _Alignas(64) unsigned char workspace[WORD_WORKSPACE_MAX];
      float x[4] = {0}, a[4];
      word_call call = {.size = sizeof call, .workspace = workspace, .workspace_bytes = sizeof workspace};
      call.level = WORD_CHEAPEST;
      return word_run_a(x, a, &call) ? 99 : (int)call.level_used;
    }
    """
    (tmp_path / "main.c").write_text(program)
    command = ["gcc", "-std=c11", f"-I{bundle.path}", "main.c", str(bundle.path / "libword.a"), "-lpthread"]
    subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"]).returncode == 1


def sized(width: int) -> Graph:
    """Two tasks on a trunk, if it has any channels: threads share its convolutions."""
    b = Builder("net", width)
    x = b.input("x", 1, 3, 48, 48)
    x = conv(b, conv(b, x, width), width, strides=(2, 2)) if width else x
    for task in ("a", "b"):
        b.task(task, head(b, x, 3))
    return b.done()


def test_threads_share_calls_at_any_level(tmp_path: Path) -> None:
    """Calls of level 0 are too small to share; the self-test of the build tries pools too."""
    graph = portfolio([sized(0), sized(32)])
    net = open_bundle(build(graph, "host", tmp_path, name="sized").path)
    kernels = [r["shared_kernels"] for r in net.bundle.manifest["subsets"] if r["tasks"] == ["a", "b"]]
    assert kernels[0] == 0 < kernels[1]
    driver = (net.bundle.path / "src/sized_driver.c").read_text()
    assert "case 1: return POOL(call) ? with_pool(POOL(call), team_c, " in driver
    feeds = random_feeds(graph, np.random.default_rng(2))
    with net.pool(2) as pool:
        for level in (0, 1, CHEAPEST):
            wanted = net.run(feeds, level=level)
            found = net.run(feeds, level=level, pool=pool)
            assert all(np.array_equal(found[t], wanted[t]) for t in ("a", "b"))


def test_an_input_that_one_level_reads_and_what_a_level_returns_as_it_is(tmp_path: Path) -> None:
    """An input, a constant and what two tasks exchange between levels are copied to the callers."""
    networks = []
    for level in (0, 1):
        b = Builder("net", level)
        x, y = b.input("x", 1, 4), b.input("y", 1, 4)
        b.task("a", b.apply("Mul", x, y) if level else b.apply("Neg", x))
        b.task("b", y if level else x)
        b.task("c", b.const(np.full((1, 4), level + 2, np.float32)))
        first, second = b.apply("Exp", x), b.apply("Abs", x)
        b.task("d", second if level else first)
        b.task("e", first if level else second)
        networks.append(b.done())
    graph = parse_pass("deduplicate")(portfolio(networks))
    net = open_bundle(build(graph, "host", tmp_path, name="odd").path)
    feeds = random_feeds(graph, np.random.default_rng(4))
    masks = {p["name"]: p["tasks_mask"] for p in net.bundle.manifest["io"]["inputs"]}
    assert masks["y"] == 0b00011
    for level, network in enumerate(networks):
        wanted = evaluate(network, feeds)
        for task in network.tasks.values():
            found = net.run(feeds, tasks=task.name, level=level)[task.name]
            assert difference(found, wanted[task.outputs[0].name]) < 1e-6


def test_the_library_holds_what_networks_share_once() -> None:
    target = find_target("host")
    one = generate(shared(), target, name="one")
    same = generate(parse_pass("deduplicate")(portfolio([shared(), shared()])), target, name="one")
    assert same.pool == one.pool and len(same.kernels) == len(one.kernels)
    assert [p.workspace_bytes for p in same.variants[0]] == [p.workspace_bytes for p in one.programs]
    assert same.cheapest == (0,) * 8


def test_the_manifest_names_the_kind_of_the_levels(made: Made) -> None:
    manifest = made.net.bundle.manifest
    assert [level["kind"] for level in manifest["levels"]] == ["variant", "variant"]
    wanted = [cost_report(n).combinations[-1].cost.weight_bytes for n in (shared(), apart())]
    assert [level["weight_bytes"] for level in manifest["levels"]] == wanted
    assert [t["name"] for t in manifest["tasks"]] == list(TASKS) and len(manifest["io"]["outputs"]) == 3
    rows = {(tuple(r["tasks"]), r["level"]): r["kernels"] for r in manifest["subsets"]}
    assert rows[("a",), 1] < rows[TASKS, 1] and rows[TASKS, 0] != rows[TASKS, 1]
    assert made.net.portfolio and not made.alone[0].portfolio


def test_times_of_calls_are_those_at_the_cheapest_level(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made.net.bundle.manifest["subsets"]
    times = [{"tasks": "+".join(r["tasks"]), "level": r["level"], "seconds_min": r["level"]} for r in rows]
    monkeypatch.setattr(emulate, "run_bench", lambda *_, **__: json.dumps({"subsets": times}))
    found = emulate.fastest_calls(made.net.bundle, find_target("host"), seconds=0.01)
    assert found == {frozenset(r.tasks): r.level for r in cost_report(made.graph).cheapest()}


def test_a_call_stays_in_its_network(made: Made) -> None:
    assert not any(word in made.net.bundle.header.read_text() for word in ("both_measure", "both_run_within"))
    with pytest.raises(ValueError, match="levels that are networks of their own: a call cannot become faster"):
        made.net.measure(made.feeds)
    for ask in (made.net.run, lambda _, level: made.net.bind(["a"], **made.feeds)(level)):
        with pytest.raises(ValueError, match="level 2 is not in this bundle"):
            ask(made.feeds, level=2)
    with pytest.raises(ValueError, match="is not in this bundle"):
        made.alone[0].run(made.feeds, level=CHEAPEST)
    bound = made.net.bind(["a"], **made.feeds)
    for ask in (bound, lambda level: made.net.run(made.feeds, level=level)):
        for wrong in ("cheapest", -1):
            told = rf"^level {wrong!r}: levels are the numbers 0 to 1 or compiler\.CHEAPEST$"
            with pytest.raises(ValueError, match=told):
                ask(wrong)
    with pytest.raises(ValueError, match="no level to fall to"):
        bound.within(0, LevelTimes(("a",), times_type(2, 0)()), sparsest=1)


def test_subsets_without_a_function_run_through_the_table(tmp_path: Path) -> None:
    """Eight tasks: singles and the whole have functions, and nothing else."""
    tasks = "abcdefgi"
    single = union({t: plain(t, i, (4, 6)) for i, t in enumerate(tasks)}, name="net")
    graph = portfolio([shared(tuple(tasks)), single])
    bundle = build(graph, "host", tmp_path, name="eight")
    net, feeds = open_bundle(bundle.path), random_feeds(graph, np.random.default_rng(1))
    cheapest = {r.tasks: r.level for r in cost_report(graph).cheapest()}
    some = [("a",), ("b", "c"), tuple("adg"), tuple("bcdefg"), tuple(tasks)]
    assert {cheapest[s] for s in some} == {0, 1}
    for subset, level in itertools.product(some, (0, 1, CHEAPEST)):
        wanted = evaluate(g := at_level(graph, cheapest[subset] if level == CHEAPEST else level), feeds)
        found = net.run(feeds, tasks=subset, level=level)
        assert set(found) == set(subset)
        assert all(difference(found[t], wanted[g.tasks[t].outputs[0].name]) < 1e-5 for t in subset)


def test_a_c_program_asks_for_the_cheapest_level(made: Made, tmp_path: Path) -> None:
    """The header compiles as C and as C++, and `level_used` tells which level it was."""
    program = """
    #include "both.h"
    #include <stdio.h>
    #include <stdlib.h>
    int main(void) {
      static float x[192], a[3], b[3], c[3];
      both_call call = {0};
      call.size = sizeof call, call.workspace_bytes = BOTH_WORKSPACE_MAX, call.level = BOTH_CHEAPEST;
      if (posix_memalign(&call.workspace, 64, BOTH_WORKSPACE_MAX)) return 9;
      if (both_run_a(x, a, &call)) return 1;
      printf("%u ", call.level_used);
      if (both_run_a__b__c(x, a, b, c, &call)) return 2;
      printf("%u of %u", call.level_used, BOTH_LEVELS);
      return 0;
    }
    """
    folder = made.net.bundle.path
    for compiler in filter(shutil.which, ("gcc", "g++")):
        source = tmp_path / ("main.c" if compiler == "gcc" else "main.cpp")
        source.write_text(program)
        command = [compiler, "-Wall", "-Werror", f"-I{folder}", str(source), str(made.net.bundle.archive)]
        subprocess.run([*command, "-lpthread", "-o", str(tmp_path / "main")], check=True)
        assert subprocess.run([tmp_path / "main"], capture_output=True, text=True).stdout == "1 0 of 2"


def test_more_tasks_than_a_table_of_the_cheapest_has_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.codegen.generate.form", lambda *_: pytest.fail("kernels are planned"))
    graph = portfolio([shared(tuple(f"t{i}" for i in range(17)))] * 2)
    with pytest.raises(ConfigError, match="a portfolio for 17 tasks; at most 16 are possible"):
        generate(graph, find_target("host"))


def test_c_files_convert_nothing_in_silence(made: Made) -> None:
    check_conversions(made.net.bundle.path)


def test_the_example_asks_for_the_cheapest_level(made: Made, tmp_path: Path) -> None:
    folder = made.net.bundle.path
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I.", "example/main.c", "libboth.a"]
    subprocess.run([*command, "-lm", "-lpthread", "-o", str(tmp_path / "demo")], cwd=folder, check=True)
    told = subprocess.run([tmp_path / "demo", folder / "golden"], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "by the network of level 0"


def test_more_levels_than_a_library_has_bits_for_are_refused() -> None:
    assert len(flattened(portfolio([shared(tuple(f"t{i}" for i in range(16)))] * 4)).tasks) == 64
    graph = portfolio([shared(tuple(f"t{i}" for i in range(13)))] * 5)
    with pytest.raises(ConfigError, match="a portfolio of 5 networks for 13 tasks; a library holds at most 64"):
        flattened(graph)
