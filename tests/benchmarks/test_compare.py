"""A case with contenders that behave and misbehave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.compare import Contender, Problem, compare, started
from benchmarks.outputs import Expected
from benchmarks.peers import Peer
from benchmarks.peers.client import PeerError
from tests.benchmarks.fakes import EXPECTED, FEEDS, contender, settings

PROBLEM = Problem("case", FEEDS, EXPECTED)


def test_the_ratio_is_the_peers_time_over_ours(tmp_path):
    ours, peer = contender("ours", spin=0.002), contender("slower", spin=0.006)
    (row,) = compare(PROBLEM, ours, [peer], settings(tmp_path))
    assert row.error is None and row.clock == "cpu"
    assert 2 < row.ratio < 4.5
    assert row.ratio == pytest.approx(row.peer_ms / row.ours_ms)
    assert (row.version, row.note, row.difference, row.peer_difference) == (
        "9.9",
        "ours: a note; slower: a note",
        0.0,
        0.0,
    )


def test_an_engine_that_uses_other_threads_is_compared_by_wall_clock(tmp_path):
    ours, peer = contender("ours", spin=0.002), contender("other", does="threads", spin=0.006)
    (row,) = compare(PROBLEM, ours, [peer], settings(tmp_path))
    assert row.clock == "wall" and row.ratio > 0


def test_bad_peers_become_rows_with_reasons(tmp_path):
    peers = [contender("wrong", does="wrong"), contender("refuse", does="refuse"), contender("good", spin=0.001)]
    absent = Contender("absent", Peer("absent", requirements=("absent==1",)), tmp_path)
    ours = contender("ours", spin=0.001)
    rows = compare(PROBLEM, ours, [*peers, absent], settings(tmp_path))
    wrong, refused, _, missing = rows
    assert [r.ratio is None for r in rows] == [True, True, False, True]
    assert "off onnxruntime's" in wrong.error and "not supported" in refused.error
    assert "setup-peers absent" in missing.error
    assert not any(r.our_fault for r in rows)


def test_a_contender_may_compute_another_function(tmp_path):
    shifted = {"y": 2 * FEEDS["x"] + np.float32(0.1)}
    other = replace(contender("other", does="wrong"), expected=Expected.of(shifted, shifted))
    same = replace(contender("same"), expected=other.expected)
    found, missed = compare(PROBLEM, contender("ours"), [other, same], settings(tmp_path))
    assert found.error is None and found.peer_difference == 0.0
    assert "off onnxruntime's" in missed.error


def test_our_own_failure_is_marked_as_ours(tmp_path):
    (row,) = compare(PROBLEM, contender("ours", does="wrong"), [contender("good")], settings(tmp_path))
    assert row.our_fault and row.ratio is None
    alone = replace(PROBLEM, flops=1, against_peak=True)
    (row,) = compare(alone, contender("ours", does="wrong"), [], settings(tmp_path))
    assert row.peer == "peak" and row.our_fault


def test_cold_times_are_measured_beside_hot_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.compare.flush_bytes", lambda: 1 << 16)
    ours, peer = contender("ours", spin=0.001), contender("peer", spin=0.002)
    (row,) = compare(PROBLEM, ours, [peer], settings(tmp_path, cold=True))
    assert row.cold_ratio == pytest.approx(row.cold_peer_ms / row.cold_ours_ms)


def test_a_worker_that_fails_to_load_is_ended(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr("benchmarks.compare.Worker.close", lambda self: ended.append(self.name))
    with pytest.raises(PeerError):
        started(contender("refuse", does="refuse"), FEEDS, settings(tmp_path))
    assert ended == ["refuse"]
