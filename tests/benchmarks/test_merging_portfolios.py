"""Which two networks make the cheapest portfolio of a family, and what is told of them."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from benchmarks.merging import latency
from benchmarks.merging.portfolios import best, candidates, with_portfolio
from benchmarks.merging.record import Seeded, family_record, portfolio_networks
from compiler import save
from tests.benchmarks.test_merging import SINGLE, point, swept
from tests.ir.test_portfolio import apart, shared
from tests.shared import ROOT

APART = {"a": 10.0, "b": 20.0, "a+b": 30.0}
TOGETHER = {"a": 22.0, "b": 23.0, "a+b": 25.0}
BETWEEN = {"a": 14.0, "b": 21.0, "a+b": 27.0}


def test_the_pair_is_that_of_the_cheapest_expected_call() -> None:
    found = {("x", "1"): APART, ("y", "2"): TOGETHER, ("z", "3"): BETWEEN}
    assert best(found) == (("x", "1"), ("y", "2"))
    assert best({("y", "2"): TOGETHER, ("z", "3"): BETWEEN}) == (("y", "2"), ("z", "3"))


def test_a_network_that_is_always_the_cheapest_needs_no_other() -> None:
    assert best({("x", "1"): {q: n + 1 for q, n in BETWEEN.items()}, ("z", "3"): BETWEEN}) == (("z", "3"),)
    assert best({}) == ()


def family(**costs: dict[str, float] | None) -> dict[str, object]:
    methods: dict[str, dict[str, object]] = {m: {"pipeline": m, "pipelines": {m: c}} for m, c in costs.items()}
    methods["separate"] |= {"drop_mean": 0.1, "drop_worst": 0.3}
    if "mtz" in methods:
        methods["mtz"] |= {"drop_mean": 0.2, "drop_worst": 0.25}
    rows = [
        {"tasks": q.split("+"), "macs": {m: c and c[q] for m, c in costs.items()}, "latency_ms": {}} for q in APART
    ]
    return {"methods": methods, "subsets": rows}


def test_the_record_names_networks_and_what_calls_cost() -> None:
    found = with_portfolio(family(separate=APART, mtz=TOGETHER, lattice=BETWEEN, pam=None))
    assert [row["macs"]["portfolio"] for row in found["subsets"]] == [10, 20, 25]
    assert found["portfolio"] == {
        "networks": [
            {"method": "separate", "pipeline": "separate", "combinations": 2, "drop_mean": 0.1, "drop_worst": 0.3},
            {"method": "mtz", "pipeline": "mtz", "combinations": 1, "drop_mean": 0.2, "drop_worst": 0.25},
        ],
        "misses": [],
        "drop_mean": 0.2,
        "drop_worst": 0.3,
    }
    assert with_portfolio(found) == found, "told once, however often it is asked"


def test_what_two_networks_cannot_reach_is_a_miss() -> None:
    third = {"a": 30.0, "b": 12.0, "a+b": 40.0}
    found = with_portfolio(family(separate=APART, mtz=TOGETHER, zipit=third))
    names = [n["method"] for n in found["portfolio"]["networks"]]
    missed = {"+".join(m["tasks"]): m["ratio"] for m in found["portfolio"]["misses"]}
    least = {q: min(APART[q], TOGETHER[q], third[q]) for q in APART}
    costs = {"+".join(r["tasks"]): r["macs"]["portfolio"] for r in found["subsets"]}
    assert len(names) == 2 and missed == {q: round(costs[q] / n, 3) for q, n in least.items() if costs[q] > n} != {}


def test_a_pipeline_that_keeps_the_rule_nowhere_is_no_candidate() -> None:
    record = family(separate=APART, lattice=BETWEEN)
    record["methods"]["lattice"]["pipelines"]["other"] = None  # type: ignore[index]
    assert list(candidates(record)) == [("separate", "separate"), ("lattice", "lattice")]
    assert "portfolio" not in with_portfolio(family(separate=None))


def test_its_networks_are_timed_where_all_were_kept(tmp_path: Path) -> None:
    costs = {"separate": (600, 900), "mtz": (800, 700)}
    sweeps = {m: {m: swept([point(1.0, 90, 80, first)], tmp_path / m)} for m, (first, _) in costs.items()}
    seeds = [Seeded(0, SINGLE, SINGLE, sweeps, 1.0)]
    record = family_record("pair", "two tasks", seeds)
    assert portfolio_networks(seeds, record) == []
    for method in costs:
        (tmp_path / method).mkdir()
        (tmp_path / method / "0.onnx").touch()
    wanted = [tmp_path / n["method"] / "0.onnx" for n in record["portfolio"]["networks"]]
    assert portfolio_networks(seeds, record) == wanted != []


RECORDS = sorted(p.name for p in (ROOT / "benchmarks" / "results").glob("merging-*.json"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_portfolio_of_a_checked_in_record_is_the_best_of_its_networks(name: str) -> None:
    (record,) = json.loads((ROOT / "benchmarks" / "results" / name).read_text()).get("families", [{}])[:1] or [{}]
    if "portfolio" not in record:
        pytest.skip("a record of released networks, which are not trained")
    found = candidates(record)
    told = statistics.fmean(row["macs"]["portfolio"] for row in record["subsets"])
    for pair in itertools.combinations_with_replacement(found.values(), 2):
        costs = [min(c["+".join(row["tasks"])] for c in pair) for row in record["subsets"]]
        assert told <= statistics.fmean(costs) + 1


def test_calls_of_the_portfolio_are_timed_at_their_cheapest_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0005)
    monkeypatch.setattr(latency, "TURNS", 1)
    files = {"separate": tmp_path / "separate.onnx", "lattice": tmp_path / "lattice.onnx"}
    save(apart(), files["separate"])
    save(shared(), files["lattice"])
    found = latency.latency_record(files, list(files.values()))
    for row in found.rows.values():
        macs = row["latency_macs"]
        assert macs["portfolio"] <= min(macs["separate"], macs["lattice"])
        assert row["latency_ms"]["portfolio"] > 0
    levels = {
        q: row["latency_macs"]["portfolio"] == row["latency_macs"]["separate"] for q, row in found.rows.items()
    }
    assert levels["a",] and not levels["a", "b", "c"]
    alone = latency.latency_record(files, [files["lattice"]])
    assert all(row["latency_macs"]["portfolio"] == row["latency_macs"]["lattice"] for row in alone.rows.values())
    sizes = found.pool_bytes
    assert max(sizes["separate"], sizes["lattice"]) < sizes["portfolio"] <= sizes["separate"] + sizes["lattice"]
