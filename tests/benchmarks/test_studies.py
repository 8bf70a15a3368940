"""Threads, subsets, overhead and compile time: names, contenders, and one quick run where it is cheap."""

from __future__ import annotations

import json

import pytest

from benchmarks import (
    __main__,
    compile_time,
    frontier,
    multitask,
    newcomer,
    overhead,
    reading,
    threads,
    wakewords,
)
from benchmarks.families import families, subsets, synthetic
from benchmarks.fuzz import study as fuzz
from benchmarks.peers import PEERS, reading_engine
from benchmarks.peers.client import PeerError
from benchmarks.results import record_of
from benchmarks.rows import OUR_FAULT, Row
from compiler import load, union
from compiler.errors import ConfigError
from tests.benchmarks.fakes import settings
from tests.small_models import network


def test_the_studies_others_rely_on():
    assert {"dense", "sparse", "multitask", "overhead", "threads", "compile-time"} <= set(__main__.STUDIES)
    assert "resnet18-2-threads" in threads.cases(2)
    assert threads.ALONE == "ours-1-thread"


def test_a_call_from_c_and_from_python(tmp_path, capsys):
    asked = ["--quick", "--peers", "onnxruntime", "--json", "--kept", str(tmp_path)]
    assert overhead.main(asked) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["case"] for r in rows] == ["call-from-c", "call-from-python"]
    for row in rows:
        assert row["ours_ms"] > 0 and row["peer_ms"] > 0 and row["difference"] == 0 and "cold_ratio" not in row


def test_a_row_by_a_matrix_and_a_loop_that_reads_as_many_bytes(tmp_path, capsys):
    assert reading.main(["--quick", "--only", "row-256x128", "--json", "--kept", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["peer"] == "reading" and row["difference"] <= 1e-5
    assert 0 < row["ratio"] == pytest.approx(row["peer_ms"] / row["ours_ms"], rel=1e-3)
    assert row["note"].startswith("128 KiB at ")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_loop_reads_every_vector_once_a_time(count):
    turns, lanes = 101, 4
    options = {"bytes": turns * 8 * 4 * lanes + 12, "lanes": lanes, "march": "native", "threads": count}
    engine = reading_engine.load("", {}, options)
    assert engine.call() == 0.5 * 8 * turns * engine.inner


def test_threads_are_compared_with_one_and_with_reading_the_weights(tmp_path, capsys):
    asked = ["--quick", "--only", "lenet-2-threads", "--peers", "ours-1-thread,reading", "--json"]
    assert threads.main([*asked, "--kept", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["case"], r["peer"], r["clock"]) for r in rows] == [
        ("lenet-2-threads", p, "wall") for p in ("ours-1-thread", "reading")
    ]
    assert all(r["ratio"] > 0 and r["difference"] <= 1e-4 for r in rows)


def test_too_many_cores_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="1024 cores wanted"):
        threads.main(["--threads", "1024", "--kept", str(tmp_path)])


def test_families_are_the_synthetic_one_and_those_of_the_repository():
    assert list(families()) == ["trunk-and-heads", "labels", "fashion", "shared-backbone", "spoken"]


def test_the_synthetic_family_shares_its_trunk():
    graph = synthetic()
    convolutions = [n for n in graph.nodes() if n.op.name == "Conv"]
    assert len(graph.tasks) == 3 and len(convolutions) == 6 + 3 * 2
    assert [len(s) for s in subsets(graph)] == [1, 1, 1, 2, 2, 2, 3]


def test_rows_of_a_family_cover_every_subset_and_the_full_one_has_sizes(tmp_path, monkeypatch):
    graph = union({n: load(network("x", i + 2), task=n) for i, n in enumerate("ab")}, input="x", name="pair")
    timed = []

    def measured(case, peers, settings, build, *, time=True):
        timed.append(case.model())
        return [Row(case.name, p, 1.0, 1.0, 1.0) for p in peers]

    monkeypatch.setattr(multitask, "measure", measured)
    rows = list(multitask.rows_of("pair", graph, ["ours-alone"], settings(tmp_path), time=True))
    assert [r.case for r in rows] == ["pair:a", "pair:b", "pair:a+b"]
    assert [len(m.graph.output) for m in timed] == [1, 1, 2]
    assert rows[0].library_bytes is None and rows[2].library_bytes > rows[2].pool_bytes > 0


def test_compile_time_rows(tmp_path, monkeypatch):
    def loading(contender, ready, settings):
        if contender.label == "iree":
            raise PeerError("not installed")
        return {"ours": 2.0, "tvm-stock": 8.0}[contender.label], '{"library_bytes": 20, "pool_bytes": 15}'

    monkeypatch.setattr(compile_time, "_loading", loading)

    class Ready:
        file = tmp_path

    missing, stock = compile_time.rows_of("resnet18-compile", Ready, settings(tmp_path), 1.0)
    assert (missing.peer, missing.error, missing.ratio, missing.ours_ms) == ("iree", "not installed", None, 2000.0)
    assert (stock.ours_ms, stock.peer_ms, stock.ratio) == (2000.0, 8000.0, 4.0)
    assert stock.record()["library_bytes"] == 20
    assert set(compile_time.COMPILERS) <= set(PEERS)


def test_a_failure_of_our_compilation_is_a_row_for_each_compiler(tmp_path, monkeypatch):
    def loading(contender, ready, settings):
        raise PeerError("no memory")

    monkeypatch.setattr(compile_time, "_loading", loading)

    class Ready:
        file = tmp_path

    rows = list(compile_time.rows_of("resnet18-compile", Ready, settings(tmp_path), 1.0))
    assert [(r.peer, r.error) for r in rows] == [(p, f"{OUR_FAULT}no memory") for p in compile_time.COMPILERS]


def test_a_missing_combination_of_wake_words_is_seen():
    found = {"networks": 8, "combinations_priced": 255, "functions": 255}
    assert wakewords.whole(found)
    assert not wakewords.whole(found | {"functions": 9})
    assert not wakewords.whole(found | {"combinations_priced": 254})


def test_without_wake_word_networks_the_study_says_so(tmp_path, capsys):
    for study in (wakewords, newcomer):
        assert study.main(["--networks", str(tmp_path)]) == 2
        assert "name their folder with --networks" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["darb", "portfolio", "nesting", "equal-accuracy"])
def test_data_that_are_not_here_are_named(study, tmp_path, capsys):
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    if study == "equal-accuracy":
        pytest.importorskip("onnxsim", reason="needs onnxsim, which the extra [bench] installs")
    assert __main__.main([study, "--kept", str(tmp_path), "--data", str(tmp_path / "no")]) == 2
    assert f"{tmp_path}/no/" in capsys.readouterr().err


def test_graphs_and_cases_that_are_not_here_are_named(tmp_path, capsys):
    assert fuzz.main(["--corpus", str(tmp_path / "no")]) == fuzz.main(["--replay", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("is not here") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("reading", "--hot"),
        ("portfolio", "--only", "x"),
        ("nesting", "--target", "host"),
        ("tune", "--json"),
        ("threads", "--threads", "0"),
        ("switching", "--calls", "0"),
        ("darb", "--data", ".", "--density"),
        ("frontier", "--shares", "0.5,"),
        ("workers", "--counts", "0"),
    ],
    ids=" ".join,
)
def test_options_that_would_do_nothing_are_refused(arguments, capsys):
    if arguments[0] in ("portfolio", "nesting", "darb"):
        pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    with pytest.raises(SystemExit):
        __main__.main(list(arguments))
    assert "usage: " in capsys.readouterr().err


def test_a_target_or_case_that_does_not_exist_is_a_sentence(tmp_path, capsys):
    assert __main__.main(["overhead", "--target", "pdp11", "--kept", str(tmp_path)]) == ConfigError.exit_code
    assert "pdp11" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no case pdp; there are call-from-c, call-from-python"):
        __main__.main(["overhead", "--only", "pdp", "--kept", str(tmp_path)])


def test_commands_of_records_say_what_was_left_out():
    assert record_of("x", ["--only", "a*", "--quick"], "n", {}, {})["command"] == (
        "python -m benchmarks x --only 'a*' --quick"
    )


def test_a_frontier_of_which_no_point_was_timed_is_not_within():
    record = {"quantity": "latency_us", "pass": "compress", "points": [{"error": None}]}
    assert frontier.row_of("fashion", record) | {"points": 0} == {
        "release": "fashion",
        "quantity": "latency_us",
        "pass": "compress",
        "largest_error": None,
        "within": False,
        "points": 0,
    }
