"""Pairs of other people's networks: people in three parts, scores, limits, and what the record says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.merging.pair_record import (
    PAIRS,
    Pair,
    Point,
    Task,
    family_record,
    moved,
    percent_right,
    smallest,
    table,
)
from benchmarks.merging.people import UNLABELLED, split
from compiler.config import parse_config
from compiler.release import load_release
from tests.shared import shared_path

PAIR = Pair(
    "two tasks",
    {
        "a": Task("a.onnx", (), moved, 1.0, "years"),
        "b": Task("b.onnx", (), percent_right(lambda y: y[:, 0] > 0, "b"), 0.5, "percent"),
    },
)


def point(a: float, b: float, both: int) -> Point:
    macs = {"a": both, "b": both, "a+b": both}
    return Point(["pass"], macs, {"a": a, "b": b}, {"a": a - 0.1, "b": b - 1}, 1.0)


BEFORE = point(0.0, 90.0, 1000)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_person_is_in_two_parts_and_no_face_is_lost(seed):
    identity = np.random.default_rng(5).integers(0, 40, 300)
    parts = split(identity, seed)
    people = [set(identity[p]) for p in parts]
    assert all(not people[i] & people[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert sorted(np.concatenate(parts)) == list(range(300))
    assert all(np.array_equal(a, b) for a, b in zip(parts, split(identity, seed), strict=True))


def test_faces_without_a_label_do_not_count():
    score = percent_right(lambda y: y[:, 0] > 0, "b")
    labels = {"b": np.array([1, 0, UNLABELLED, 0])}
    assert score(np.array([[1.0], [2.0], [3.0], [-1.0]]), np.zeros((4, 1)), labels) == pytest.approx(200 / 3)


def test_moved_is_the_mean_distance_below_zero():
    assert moved(np.array([[1.0], [4.0]]), np.array([[2.0], [2.0]]), {}) == pytest.approx(-1.5)


def test_the_cheapest_point_within_every_limit_counts():
    points = [point(-0.2, 89.9, 800), point(-0.9, 89.6, 500), point(-1.1, 90.0, 300)]
    assert smallest(PAIR, BEFORE, points) is points[1]
    assert smallest(PAIR, BEFORE, [point(0.0, 89.4, 400)]) is None


def test_the_record_says_what_both_together_save_and_the_table_marks_it():
    points = [point(-0.2, 89.9, 800), point(-5.0, 70.0, 300)]
    chosen = {"lattice": points[0], "separate": None}
    record = family_record("pair", PAIR, BEFORE, chosen, {"lattice": points, "separate": points[1:]})
    assert record["fewer_macs_together"] == 1.25
    assert record["accuracy_merged"] == {"a": -0.3, "b": 88.9} and record["accuracy_single"] == BEFORE.report
    assert record["subsets"][-1] == {
        "tasks": ["a", "b"],
        "macs": {"original": 1000, "lattice": 800, "separate": None},
    }
    lines = table(record).splitlines()
    assert [line for line in lines if "*" in line] == ["| lattice * | -0.30 | 88.90 | 800 | 1.25 |"]
    assert len(lines) == 6


@pytest.mark.parametrize("name", list(PAIRS))
def test_the_networks_of_a_pair_read_one_input_through_their_adapters(name):
    pair = PAIRS[name]
    folder = shared_path("models", next(iter(pair.tasks.values())).file).parent
    graph = load_release(parse_config(pair.release(), folder)).graph
    assert [(v.ref.name, v.shape) for v in graph.inputs] == [(pair.input, pair.shape)]
    assert list(graph.tasks) == list(pair.tasks)
