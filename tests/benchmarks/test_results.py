"""Results on disk, on the page and on standard output."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import pytest

from benchmarks import page, results
from benchmarks.rounds import Duel
from benchmarks.rows import OUR_FAULT, REFUSED, Row, times
from tests.shared import ROOT

MEASURED = Row("lenet", "onnxruntime", **times(Duel(0.0125e-3, 0.025e-3, "cpu"), Duel(0.1e-3, 0.3e-3, "cpu")))
MISSING = Row("lenet", "iree", error="not installed")


def options(as_json=False, save=None):
    return argparse.Namespace(json=as_json, save=save)


def test_json_output_is_nothing_but_json_and_reasons_are_still_said(capsys):
    assert results.report([MEASURED, MISSING], "dense", options(as_json=True)) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert "lenet against iree: not installed" in captured.err


def test_the_status_is_about_our_side(capsys):
    assert results.report([Row("lenet", "iree", error=OUR_FAULT + "wrong")], "dense", options()) == 1
    assert results.report([MISSING], "dense", options()) == 0
    assert "not installed" in capsys.readouterr().out


def saved(folder, study="dense"):
    return json.loads((folder / f"{study}.json").read_text())


def test_rows_are_saved_one_by_one_and_replaced_by_newer_ones(tmp_path, capsys):
    results.report([MEASURED, MISSING], "dense", options(save=tmp_path))
    results.report([Row("lenet", "iree", 1.0, 3.0, 3.0)], "dense", options(save=tmp_path))
    rows = saved(tmp_path)["rows"]
    assert [(r["case"], r["peer"], r["ratio"]) for r in rows] == [
        ("lenet", "onnxruntime", 2.0),
        ("lenet", "iree", 3.0),
    ]
    assert all(len(r["build"]) == 8 for r in rows)
    assert saved(tmp_path)["machine"]["cpu"]


def test_rows_of_another_machine_do_not_stay(tmp_path, monkeypatch):
    results.save(tmp_path, "dense", [MEASURED])
    monkeypatch.setattr(results, "facts", lambda: {"cpu": "another"})
    results.save(tmp_path, "dense", [MISSING])
    assert [r["peer"] for r in saved(tmp_path)["rows"]] == ["iree"]


def test_tables_show_ratios_reasons_and_where_they_are_from(tmp_path):
    wall = Row("a|b", "onnxruntime", 1.0, 1.5, 1.5, clock="wall", gflops=50.0, version="1.2.3")
    refused = [Row("real:x", peer, error=f"{REFUSED}no such operator") for peer in ("onnxruntime", "iree")]
    results.save(tmp_path, "dense", [MEASURED, MISSING, wall, *refused])
    results.save(tmp_path, "overhead", [MEASURED])
    results.save(tmp_path, "dense-layers", [Row("conv", "peak", 1.0, 0.97, 0.97)])
    text = results.render(tmp_path)
    assert "| lenet | 0.0125 | – | 2.00 (3.00) | – |" in text
    assert "1.50 w" in text and "- lenet: iree: not installed\n" in text
    assert "- real:x: not compiled by us: no such operator\n" in text, "once, whatever the peer"
    assert f"### Overhead of a call\n\n{results.NOTES['overhead']}\n" in text and set(results.NOTES) <= set(
        results.TITLES
    )
    assert "`python -m benchmarks dense`" in text and "`python -m benchmarks dense --layers`" in text
    assert "onnxruntime 1.2.3" in text
    assert text.index("### Dense networks") < text.index("### Direct convolutions")


def test_the_page_is_filled_between_its_markers(tmp_path):
    target = tmp_path / "page.md"
    target.write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n")
    results.save(tmp_path, "dense", [MEASURED])
    asked = ["--page", str(target), "--results", str(tmp_path)]
    assert page.main([*asked, "--check"]) == 1
    assert page.main(asked) == 0 == page.main([*asked, "--check"])
    text = target.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "lenet" in text
    with pytest.raises(ValueError, match="the page needs"):
        page.filled("nothing", "")


def test_a_page_is_not_emptied_where_there_are_no_results(tmp_path, capsys):
    target = tmp_path / "page.md"
    target.write_text(f"{page.START}\nold\n{page.END}\n")
    with pytest.raises(SystemExit):
        page.main(["--page", str(target), "--results", str(tmp_path / "typo")])
    assert "no results of a study in" in capsys.readouterr().err and "old" in target.read_text()


def test_the_page_says_what_the_results_say():
    assert page.main(["--check"]) == 0


ROWS = {
    "ResNet-18, 224 x 224": ("dense", "resnet18"),
    "ResNet-50": ("dense", "resnet50"),
    "VGG-16": ("dense", "vgg16-224"),
    "MobileNetV2": ("dense", "mobilenetv2"),
    "LSTM tagger": ("dense", "lstm-tagger"),
    "ResNet-18, 90 % zeros in 16x1 blocks": ("sparse", "resnet18-block16x1-0.90"),
    "VGG-16, 32 x 32, one weight of 16": ("sparse", "vgg16-32-regular16"),
    "LSTM tagger, one weight of 16": ("sparse", "lstm-tagger-regular16"),
    "ResNet-18, two threads each": ("threads", "resnet18-2-threads"),
}
"""Row of README's table of speed -> study and case."""


def test_the_ratios_in_the_readme_are_those_of_the_results():
    _, _, table = (ROOT / "README.md").read_text().partition("| ratio: their time / ours |")
    head, _, *lines = table.partition("\n\n")[0].splitlines()
    peers = [name.strip().lower() for name in head.strip("| ").split("|")]
    told = {}
    for line in lines:
        what, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        told[what] = {p: c for p, c in zip(peers, cells, strict=True) if c}
    rows = {study: json.loads((page.RESULTS / f"{study}.json").read_text())["rows"] for study, _ in ROWS.values()}
    for what, (study, case) in ROWS.items():
        held = {r["peer"]: f"{r['ratio']:.2f}" for r in rows[study] if r["case"] == case and r["ratio"]}
        assert told.pop(what) == {p: held[p] for p in peers if p in held}, what
    ((what, cells),) = told.items()
    real = [r for r in rows["dense"] if r["case"].startswith("real:")]
    assert what.startswith(f"{len({r['case'] for r in real})} networks by other people")
    for peer, cell in cells.items():
        ratios = [r["ratio"] for r in real if r["peer"] == peer and r["ratio"]]
        assert cell == f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f}; {len(ratios)})"


def test_a_table_has_the_means_over_real_networks(tmp_path):
    results.save(tmp_path, "dense", [Row(f"real:{n}", "iree", 1.0, r, r) for n, r in (("a", 2.0), ("b", 8.0))])
    mean = "- iree, real networks: geometric mean 4.00 of 2, least 2.00 (real:a)"
    assert mean in results.render(tmp_path).splitlines()


def test_results_name_no_place_on_a_machine():
    for path in sorted(Path(ROOT, "benchmarks", "results").glob("*.json")):
        assert str(ROOT.parent) + "/" not in path.read_text()
