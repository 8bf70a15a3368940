"""The format others read."""

from __future__ import annotations

import json

from benchmarks.rounds import Duel
from benchmarks.rows import COLUMNS, PLAIN, Row, line, means, times, to_json

MEASURED = Row("lenet", "onnxruntime", **times(Duel(0.0125e-3, 0.025e-3, "cpu"), Duel(0.1e-3, 0.3e-3, "cpu")))
MISSING = Row("lenet", "iree", error="not installed")


def test_a_measured_row():
    record = MEASURED.record()
    assert record["case"] == "lenet" and record["peer"] == "onnxruntime"
    assert (record["ours_ms"], record["peer_ms"], record["ratio"]) == (0.0125, 0.025, 2.0)
    assert (record["cold_ours_ms"], record["cold_peer_ms"], record["cold_ratio"]) == (0.1, 0.3, 3.0)
    assert "error" not in record and record["clock"] == "cpu"


def test_a_row_that_was_not_measured_has_the_same_keys_and_a_reason():
    record = MISSING.record()
    assert set(PLAIN) <= set(record)
    assert record["ratio"] is None and record["error"] == "not installed"


def test_json_is_a_list_of_rows():
    rows = json.loads(to_json([MEASURED, MISSING]))
    assert [r["peer"] for r in rows] == ["onnxruntime", "iree"]
    assert json.loads(to_json([])) == []


def test_a_line_shows_the_ratios_and_what_a_reader_should_know():
    text = line(Row("a", "b", 1.5, 3.0, 2.0, clock="wall", note="copies"))
    assert "2.00" in text and "wall clock; copies" in text
    assert "ratio" in COLUMNS


def test_means_are_geometric_and_keep_real_networks_apart():
    rows = [Row(case, "p", ratio=r) for case, r in (("a", 1.0), ("b", 4.0), ("real:c", 2.0), ("real:d", 8.0))]
    assert means([*rows, MISSING]).splitlines() == [
        "p: geometric mean 2.00 of 2, least 1.00 (a)",
        "p, real networks: geometric mean 4.00 of 2, least 2.00 (real:c)",
    ]
