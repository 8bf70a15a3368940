"""The merging study: the accuracy rule, costs at it, and what the record says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.merging.families import FAMILIES, Data, Part, half_width
from benchmarks.merging.record import (
    Seeded,
    Swept,
    chosen,
    expected,
    family_record,
    kept_notes,
    least,
    rule_networks,
    table,
)
from benchmarks.merging.rule import Point, all_subsets, at_rule, excess, mean_points, rounded
from tests.shared import shared_path

SINGLE = {"a": 90.0, "b": 80.0}


def point(share: float, a: float, b: float, cost: int, *, report: float = 0.0) -> Point:
    macs = {("a",): cost, ("b",): 2 * cost, ("a", "b"): 3 * cost}
    return Point(share, share, {"a": a, "b": b}, {"a": a - report, "b": b - report}, macs)


def test_the_rule_is_half_a_point_on_average_and_one_for_each():
    assert excess(SINGLE, {"a": 89.5, "b": 79.5}) == pytest.approx(1.0)
    assert excess(SINGLE, {"a": 88.8, "b": 80.2}) == pytest.approx(1.2)  # mean 0.5, worst 1.2
    assert excess(SINGLE, {"a": 91.0, "b": 81.0}) < 0


def test_the_cost_at_the_rule_lies_between_two_points():
    points = [point(1.0, 90, 80, 1000), point(0.5, 89.8, 79.7, 600), point(0.2, 89.0, 79.0, 200)]
    found = at_rule(points, SINGLE)
    # mean drop 0.25 at 600, 1.0 at 200: the rule is a third of the way
    assert found is not None and not found.bound
    assert found.macs[("a",)] == pytest.approx(600 - 400 / 3)
    assert found.report["a"] == pytest.approx(89.8 - 0.8 / 3)


def test_the_sparsest_point_that_keeps_the_rule_counts():
    points = [point(1.0, 88, 79, 1000), point(0.5, 89.8, 79.8, 600), point(0.2, 89.0, 79.0, 200)]
    found = at_rule(points, SINGLE)
    assert found is not None and 200 < found.macs[("a",)] < 600


def test_without_a_point_that_breaks_the_rule_the_cost_is_a_bound():
    found = at_rule([point(1.0, 90, 80, 1000), point(0.5, 90, 80, 600)], SINGLE)
    assert found is not None and found.bound and found.macs[("a",)] == 600


def test_without_a_point_that_keeps_the_rule_there_is_no_cost():
    assert at_rule([point(1.0, 88, 78, 1000)], SINGLE) is None
    assert expected(None) == float("inf")


def test_caps_are_the_least_of_the_methods_that_keep_the_rule():
    one = at_rule([point(1.0, 90, 80, 1000)], SINGLE)
    two = at_rule([point(1.0, 90, 80, 900)], SINGLE)
    assert least({"x": one, "y": two, "z": None}) == {("a",): 900, ("b",): 1800, ("a", "b"): 2700}
    assert least({"z": None}) is None


def swept(points, folder=None) -> Swept:
    networks = [folder / f"{i}.onnx" for i in range(len(points))] if folder else []
    return Swept(points, networks, 1.0)


@pytest.fixture
def record() -> dict:
    methods = {"separate": 1000, "mtz": 900, "lattice": 950}
    sweeps = {m: {"": swept([point(1.0, 90, 80, cost, report=0.2)])} for m, cost in methods.items()}
    seed = Seeded(0, SINGLE, SINGLE, sweeps, 1.0)
    return family_record("pair", "two tasks", [seed, seed])


def test_the_record_has_the_keys_that_others_read(record):
    assert record["tasks"] == ["a", "b"]
    assert record["accuracy_single"] == SINGLE
    assert record["accuracy_merged"] == {"a": 89.8, "b": 79.8}
    assert record["accuracy_drop_mean"] == pytest.approx(0.2)
    assert [row["tasks"] for row in record["subsets"]] == [["a"], ["b"], ["a", "b"]]
    macs = {"separate": 3000, "mtz": 2700, "lattice": 2850}
    assert record["subsets"][2]["macs"] == {**macs, "portfolio": 2700}


def test_the_record_says_what_every_pipeline_of_a_method_costs():
    """The cheaper one counts; the other one, and one that never keeps the rule, are told beside it."""
    points = {"whole": point(1.0, 90, 80, 500), "sets": point(1.0, 90, 80, 700), "rest": point(1.0, 80, 70, 300)}
    sweeps = {"lattice": {name: swept([p]) for name, p in points.items()}}
    found = family_record("pair", "two tasks", [Seeded(0, SINGLE, SINGLE, sweeps, 1.0)])["methods"]["lattice"]
    assert found["pipeline"] == "whole" and found["pipelines"]["rest"] is None
    assert {n: found["pipelines"][n]["a+b"] for n in ("whole", "sets")} == {"whole": 1500, "sets": 2100}


def test_every_subset_that_another_method_computes_cheaper_is_listed(record):
    assert record["misses"] == [
        {"tasks": row["tasks"], "against": "mtz", "ratio": 1.056} for row in record["subsets"]
    ]


def test_the_table_shows_all_subsets_and_drops(record):
    lines = table(record).splitlines()
    assert lines[0] == "| pair | separate | mtz | lattice | portfolio |"
    assert lines[4] == "| a + b | 3,000 | 2,700 | 2,850 | 2,700 |"
    assert lines[5] == "| mean drop, points | 0.20 | 0.20 | 0.20 | 0.20 |"


def test_the_rule_is_read_from_means_over_the_seeds():
    """One seed breaks the rule at 600 and the other is far within it: together they keep it."""
    sweeps = [[point(0.5, 89.2, 79.4, 600)], [point(0.5, 90.2, 80.2, 500)]]
    seeds = [Seeded(i, SINGLE, SINGLE, {"lattice": {"": swept(s)}}, 1.0) for i, s in enumerate(sweeps)]
    assert at_rule(sweeps[0], SINGLE) is None
    found = chosen(seeds)["lattice"].found
    assert found is not None and found.macs[("a",)] == 550 and found.report["a"] == pytest.approx(89.7)


def test_a_pipeline_that_one_seed_lacks_is_left_out():
    """It is the cheapest where it is there; a method without any pipeline of all seeds has no place at all."""
    cheap, dear = swept([point(1.0, 90, 80, 100)]), swept([point(1.0, 90, 80, 900)])
    first = {"lattice": {"sets": cheap, "whole": dear}, "mtz": {"m": dear}, "pam": {"p": cheap}}
    second = {"lattice": {"whole": dear}, "mtz": {"m": dear}, "zipit": {"z": cheap}}
    seeds = [Seeded(i, SINGLE, SINGLE, sweeps, 1.0) for i, sweeps in enumerate((first, second))]
    for order in (seeds, seeds[::-1]):
        assert {m: list(c.each) for m, c in chosen(order).items()} == {"lattice": ["whole"], "mtz": ["m"]}
        record = family_record("pair", "two tasks", order)
        assert list(record["methods"]) == ["lattice", "mtz"] and record["misses"] == []
    assert [set(p["sweeps"]) for p in record["points"]] == [set(second), set(first)], "what was measured is told"


def test_the_record_says_what_sweeps_ran_on_and_which_were_cut_short():
    whole = swept([point(1.0, 90, 80, 100)])
    gpu, cut = replace(whole, trained_on="gpu, torch 2"), replace(whole, trained_on="cpu, torch 2", finished=False)
    first = {"mtz": {"m": cut}, "lattice": {"a": gpu, "b": cut}}
    seeds = [Seeded(3, SINGLE, SINGLE, first, 1.0), Seeded(1, SINGLE, SINGLE, {"mtz": {"m": gpu}}, 1.0)]
    assert kept_notes(seeds) == {
        "trained_on": ["cpu, torch 2", "gpu, torch 2"],
        "cut_short": [[3, "lattice", "b"], [3, "mtz", "m"]],
    }


def test_the_network_just_within_the_rule_is_timed(tmp_path):
    """Of three budgets the last one breaks the rule; a network that was not kept is not named."""
    points = [point(0.5, 90, 80, 900), point(0.4, 89.8, 79.8, 700), point(0.3, 80, 70, 500)]
    sweeps = {m: {"": swept(points, tmp_path / m)} for m in ("separate", "lattice", "mtz")}
    for method in ("separate", "mtz"):
        (tmp_path / method).mkdir()
        for file in sweeps[method][""].networks:
            file.touch()
    assert rule_networks([Seeded(0, SINGLE, SINGLE, sweeps, 1.0)]) == {"separate": tmp_path / "separate" / "1.onnx"}


def test_only_budgets_that_all_seeds_reach_are_averaged():
    longer = [point(1.0, 90, 80, 900), point(0.4, 89.8, 79.8, 700), point(0.3, 89, 79, 500)]
    shorter = [point(1.0, 90, 80, 900), point(0.4, 89.6, 79.6, 740)]
    found = mean_points([longer, shorter])
    assert [p.budget for p in found] == [1.0, 0.4]
    assert found[1].macs[("a",)] == 720


def test_unlabelled_inputs_are_the_training_ones_in_another_order():
    inputs = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    part = Part(inputs, {"a": np.zeros(4, np.int64)})
    found = Data(part, part, part).unlabelled
    assert sorted(x.tolist() for x in found) == sorted(x.tolist() for x in inputs)
    few = Data(part, part, part).reduced(2, 1)
    assert sorted(x.tolist() for x in few.unlabelled) == sorted(x.tolist() for x in inputs[2:])
    assert len(few.selection.inputs) == 1


def test_half_the_width_averages_neighbours():
    image = np.array([[[[0.0, 1.0, 4.0, 8.0], [2.0, 2.0, 1.0, 0.0]]]])
    assert half_width(image).tolist() == [[[[0.5, 6.0], [2.0, 0.5]]]]


def test_halves_have_nothing_to_do_with_each_other():
    data = FAMILIES["halves"].load(shared_path("data"))
    assert [len(p.inputs) for p in (data.train, data.selection, data.report)] == [45_000, 15_000, 10_000]
    for part in (data.train, data.selection, data.report):
        assert part.inputs.shape[1:] == (1, 28, 28)
        same = np.mean(part.labels["digit"] == part.labels["garment"])
        assert same == pytest.approx(0.1, abs=0.01)


def test_subsets_come_small_ones_first():
    assert all_subsets(("a", "b", "c"))[2:4] == [("c",), ("a", "b")]


@pytest.mark.parametrize("right", range(200, 301, 7))
def test_a_network_that_keeps_the_rule_exactly_keeps_it_in_files(right):
    """Of 300 recordings one task loses none and the other three, or one and two: half a point on average."""
    single = rounded({"a": right / 3, "b": (right - 1) / 3})
    for lost in ((0, 3), (1, 2)):
        found = {t: n / 3 for t, n in zip("ab", (right - lost[0], right - 1 - lost[1]), strict=True)}
        point = Point.of(json.loads(json.dumps(Point(1.0, 1.0, found, found, {("a",): 5}).record())))
        kept = at_rule([point], single)
        assert kept is not None and kept.macs == {("a",): 5}
    worse = {"a": right / 3, "b": (right - 5) / 3}
    assert at_rule([Point(1.0, 1.0, worse, worse, {("a",): 5})], single) is None
