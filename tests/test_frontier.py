"""taskgraft frontier: points, files, the cache, and what measured times are compared with."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.cli import main
from compiler.codegen.target import find_target
from compiler.codegen.tuning import TuningDatabase
from compiler.config import load_config
from compiler.errors import ConfigError
from compiler.frontier import Request, Timing, built_and_timed, frontier, spread
from compiler.ir.onnx_in import load
from compiler.page import frontier_page
from compiler.release import load_release, transform
from tests.browser import COLOURS_IN, Opened, chromium
from tests.codegen.test_tuning import measured_layers
from tests.small_models import RELEASE, write_release

ARM = "aarch64-cortex-a72"
SPEC = "compress{among=(),update=none}"
FLOPS = Request("flops", (0.05, 0.8), SPEC, ARM)


def config(folder: Path, text: str = RELEASE):
    return load_config(write_release(folder, text))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return frontier(config(tmp_path_factory.mktemp("frontier")), FLOPS)


def test_points_keep_their_budgets_or_say_why_not(found) -> None:
    original, reached, refused = found.rows
    assert [r["share"] for r in found.rows] == [1.0, 0.8, 0.05]
    assert [r["status"] for r in found.rows] == ["reached", "reached", "refused"]
    assert original["flops"] == original["budget"]
    assert 0.5 * reached["budget"] < reached["flops"] <= reached["budget"] == pytest.approx(0.8 * original["flops"])
    assert refused["reason"].startswith("flops: at most ") and "too many" in refused["reason"]
    assert refused["flops"] is refused["predicted_us"] is refused["metric_a"] is None
    assert reached["predicted_us"] > 0
    assert reached["measured_us"] is reached["error"] is None  # ARM does not run here
    assert original["drop_a"] == 0
    assert reached["drop_b"] == pytest.approx(
        reached["metric_b"] - original["metric_b"], rel=1e-3
    )  # mae: larger is worse


def test_csv_has_a_row_of_numbers_per_point(found) -> None:
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [int(r["point"]) for r in rows] == [0, 1, 2]
    for row, known in zip(rows, found.rows, strict=True):
        assert list(row) == list(known)
        for key, value in known.items():
            expected = "" if value is None else str(value)
            assert row[key] == expected
            if isinstance(value, (int, float)):
                assert float(row[key]) == value


def test_the_network_of_a_point_is_what_its_row_says(found, tmp_path) -> None:
    from compiler.cost.count import totals

    assert sorted(found.networks) == [0, 1]
    for number, data in found.networks.items():
        (tmp_path / "point.onnx").write_bytes(data)
        cost = totals(load(tmp_path / "point.onnx"))
        assert (cost.flops, cost.weight_bytes) == tuple(found.rows[number][k] for k in ("flops", "weight_bytes"))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path) -> None:
    release, cache = config(tmp_path), tmp_path / "cache"
    said: list[str] = []

    def stops(line: str) -> None:
        said.append(line)
        if line.startswith("share 0.05"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frontier(release, FLOPS, cache=cache, say=stops)
    said.clear()
    again = frontier(release, FLOPS, cache=cache, say=said.append)
    assert "share 1: from the cache" in said and "share 0.8: from the cache" in said
    assert any(line.startswith("share 0.05: compress{") for line in said)
    said.clear()
    third = frontier(release, FLOPS, cache=cache, say=said.append)
    assert sum("from the cache" in line for line in said) == 3
    assert third.record == again.record and third.networks == again.networks
    other = Request("flops", (0.8,), "prune-channels{score=l1}", ARM)
    said.clear()
    frontier(release, other, cache=cache, say=said.append)
    assert [line for line in said if "from the cache" in line] == ["share 1: from the cache"]


def test_points_of_other_code_are_made_anew(tmp_path, monkeypatch) -> None:
    release, request = config(tmp_path), Request("flops", (0.8,), SPEC, ARM)
    said: list[str] = []
    frontier(release, request, cache=tmp_path / "cache")
    monkeypatch.setattr("compiler.frontier.code_version", lambda: "another")
    frontier(release, request, cache=tmp_path / "cache", say=said.append)
    assert not any("from the cache" in line for line in said)


def test_points_are_made_anew_where_data_in_a_folder_have_changed(tmp_path) -> None:
    path = write_release(tmp_path)
    (tmp_path / "samples").mkdir()
    for number, image in enumerate(np.load(tmp_path / "data.npz")["image"]):
        np.savez(tmp_path / "samples" / f"{number:02}.npz", image=image)
    release = load_config(path, ["calibration.data=samples", "evaluation={samples=0}"])
    said: list[str] = []
    first = frontier(release, Request("flops", (0.8,), SPEC, ARM), cache=tmp_path / "cache")
    np.savez(tmp_path / "samples" / "00.npz", image=np.full((3, 8, 8), 9.0))
    again = frontier(release, Request("flops", (0.8,), SPEC, ARM), cache=tmp_path / "cache", say=said.append)
    assert not any("from the cache" in line for line in said)
    assert again.rows[1]["drift_a"] != first.rows[1]["drift_a"]


def test_points_are_made_anew_where_the_function_of_a_metric_has_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "own_metric_of_a_frontier.py"
    path, request = write_release(tmp_path), Request("flops", (0.8,), SPEC, ARM)
    release = load_config(path, ['evaluation.metric.a="own_metric_of_a_frontier:score"'])

    def scores(number: float) -> tuple[float, list[str]]:
        module.write_text(f"def score(outputs, labels):\n    return {number}\n")
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
        importlib.invalidate_caches()
        said: list[str] = []
        made = frontier(release, request, cache=tmp_path / "cache", say=said.append)
        return made.rows[1]["metric_a"], [line for line in said if "from the cache" in line]

    assert scores(0.25) == (0.25, [])
    assert scores(0.25) == (0.25, ["share 1: from the cache", "share 0.8: from the cache"])
    assert scores(0.75) == (0.75, [])


def test_measured_time_is_that_of_the_expected_call(tmp_path) -> None:
    text = RELEASE + '[workload]\n"a" = 0.25\n"a+b" = 0.75\n'
    asked = []

    def measure(graph, target, subsets, seconds, release, say) -> Timing:
        asked.append((target.name, set(subsets), seconds))
        return Timing({frozenset("a"): 4e-6, frozenset("ab"): 8e-6}, 1234, ())

    made = frontier(config(tmp_path, text), Request("latency_us", (0.99,), seconds=0.1), measure=measure)
    row = made.rows[0]
    assert asked[0] == ("host", {frozenset("a"), frozenset("ab")}, 0.1)
    assert row["measured_us"] == pytest.approx(0.25 * 4 + 0.75 * 8)
    assert row["error"] == pytest.approx(row["measured_us"] / row["predicted_us"] - 1)
    assert row["library_bytes"] == 1234
    assert made.record["largest_error"] == max(abs(r["error"]) for r in made.rows if r["error"] is not None)
    assert made.record["workload"] == {"a": 0.25, "a+b": 0.75}


def test_predicted_time_is_what_a_budget_would_be_compared_with(found, tmp_path) -> None:
    from compiler.passes.budget.limits import Limit
    from compiler.release import resources

    release = load_release(config(tmp_path))
    graph, _ = transform(release)
    use = resources(release.config, release.graph)
    assert found.rows[0]["predicted_us"] == Limit("latency_us", 0.0, ARM).cost(graph, use)


def test_the_database_that_a_release_names_is_what_predicts_and_builds(found, tmp_path, monkeypatch) -> None:
    release = config(tmp_path, RELEASE + '[planning]\ntuning = "db.json"\n')
    graph, request = transform(load_release(release))[0], Request("flops", (0.8,), SPEC, ARM)

    def predicted(database: TuningDatabase) -> list[float]:
        database.save(tmp_path / "db.json")
        rows = frontier(release, request, cache=tmp_path / "cache").rows
        return [r["predicted_us"] for r in rows]

    assert predicted(TuningDatabase()) == [r["predicted_us"] for r in found.rows[:2]]
    whole, _ = predicted(measured_layers(graph, find_target(ARM)))  # made anew: the cache is of another database
    assert whole > 5 and found.rows[0]["predicted_us"] < 5
    asked = []
    monkeypatch.setattr(
        "compiler.frontier.build", lambda *given, **options: asked.append(options["tuning"]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        built_and_timed(graph, find_target("host"), [frozenset("a")], 0.1, load_release(release), print)
    assert asked == [tmp_path / "db.json"]


# ---------------------------------------------------------------------- the command
def test_a_file_in_the_place_of_the_folder_is_told_before_any_work(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("compiler.commands.frontiers.frontier", lambda *given, **options: 1 / 0)
    (tmp_path / "out").write_text("mine")
    command = ["frontier", str(write_release(tmp_path)), "--budget", "flops", "-o", str(tmp_path / "out"), "-q"]
    assert main(command) == 2
    assert "out: not a folder that can be written to; choose another output folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def interrupted(*args, **options):
    raise KeyboardInterrupt


def test_the_command_writes_files_and_keeps_those_of_others(tmp_path, capsys, monkeypatch) -> None:
    path, out = write_release(tmp_path), tmp_path / "out"
    command = [
        "frontier",
        str(path),
        "--budget",
        "flops",
        "--target",
        ARM,
        "-o",
        str(out),
        "-q",
    ]
    command += ["--pass", SPEC]
    both = [*command, "--shares", "0.8,0.05"]
    assert main(both) == 0
    assert "share 0.05 refused: flops: at most" in capsys.readouterr().out
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == {
        *("frontier.csv", "frontier.json", "frontier.html", "point-0.onnx", "point-1.onnx")
    }
    record = json.loads((out / "frontier.json").read_text())
    assert [p["status"] for p in record["points"]] == ["reached", "reached", "refused"]
    assert "src=" not in (out / "frontier.html").read_text().replace("\n", "").split("<script")[0]
    assert main(both) == 2
    assert "already holds a frontier" in capsys.readouterr().err
    (out / "point-of-mine.onnx").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr("compiler.commands.frontiers.frontier_page", interrupted)
        assert main([*command, "--shares", "0.05", "--force"]) == 130
    assert "finished points are in" in capsys.readouterr().err
    assert not (out / "frontier.json").exists()  # it would name networks of two frontiers
    assert main([*command, "--shares", "0.05", "--force"]) == 0
    assert {p.name for p in out.glob("*.onnx")} == {"point-0.onnx", "point-of-mine.onnx"}


def test_an_interrupt_says_what_is_kept(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("compiler.commands.frontiers.frontier", interrupted)
    out = tmp_path / "out"
    assert main(["frontier", str(write_release(tmp_path)), "--target", ARM, "-o", str(out), "-q"]) == 130
    assert f"finished points are in {out / '.cache'}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "0.5,1.5"], "budgets are shares between 0 and 1"),
        (["--shares", "half"], "write numbers between 0 and 1"),
        (["--shares", ","], "not none"),
        (["--shares", "0.5,0.5"], "a budget is listed twice: 0.5, 0.5"),
        (["--points", "99999999"], "at most 100"),
        (["--shares", "0.5", "--points", "3"], "either --shares or --points"),
        (["--points", "0"], "at least one budget"),
        (["--pass", "deduplicate", "--shares", "0.5"], "deduplicate has no option latency_us"),
        (
            ["--pass", "compress{latency_us=30}"],
            "compress{latency_us=30}: the frontier sets latency_us at every point",
        ),
        (["--pass", "sparsify{target=host,flops=0.3}", "--budget", "flops"], "sets target, flops at every point"),
        (["--seconds", "0"], "give the seconds to measure for"),
    ],
)
def test_wrong_requests(tmp_path, capsys, arguments, message) -> None:
    command = ["frontier", str(write_release(tmp_path)), "--target", ARM, "-o", str(tmp_path / "out"), "-q"]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_count_of_points_is_spread_evenly_in_ratio() -> None:
    shares = spread(4)
    assert shares[-1] == 0.25
    assert [b / a for a, b in itertools.pairwise(shares)] == pytest.approx([0.25**0.25] * 3, rel=1e-3)
    with pytest.raises(ConfigError):
        spread(0)


@pytest.fixture(scope="module")
def page_file(found, tmp_path_factory) -> Path:
    """frontier.html as the command writes it, of a frontier whose times were measured."""
    record = json.loads(json.dumps(found.record))
    for row in record["points"]:
        row["measured_us"] = row["predicted_us"] and 1.1 * row["predicted_us"]
    path = tmp_path_factory.mktemp("page") / "frontier.html"
    path.write_text(frontier_page(record))
    return path


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone", "desk"])
def test_the_page_draws_its_plots_and_nothing_sticks_out(page_file, found, width, dark) -> None:
    with chromium() as browser:
        opened = Opened(browser, page_file, width=width, dark=dark)
        shown = opened.page
        plots = shown.query_selector_all("canvas[data-plot]")
        assert len(plots) == 7  # two metrics against time, FLOPs and bytes; predicted and measured time
        for plot in plots:
            assert plot.get_attribute("data-drawn") == "yes"
            assert len(plot.evaluate(COLOURS_IN)) >= 10
        rows = shown.query_selector_all("[data-table=points] tbody tr")
        assert len(rows) == len(found.rows)
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        back = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
        assert opened.complaints == []
        shown.close()
