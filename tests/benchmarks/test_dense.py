"""The study end to end on the smallest network, without looking at the times; how bundles are kept."""

from __future__ import annotations

import json

from benchmarks import dense, ours
from compiler import load
from tests.small_models import network


def test_a_case_from_file_to_row(tmp_path, capsys):
    asked = ["--only", "mlp", "--quick", "--hot", "--peers", "onnxruntime", "--json", "--kept", str(tmp_path)]
    assert dense.main(asked) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["case"], row["peer"]) == ("mlp", "onnxruntime")
    assert row["ours_ms"] > 0 and row["peer_ms"] > 0 and row["difference"] <= 1e-4
    assert abs(row["ratio"] - row["peer_ms"] / row["ours_ms"]) < 1e-4 * row["ratio"]
    assert row["peak"] > 0


def test_a_bundle_is_kept_until_something_that_decides_it_changes(tmp_path, monkeypatch):
    graph = load(network("x", 2))

    def folder(**changes):
        return ours.compiled(graph, **{"identity": "1", "kept": tmp_path, "passes": ("fold-constants",), **changes})

    first = folder()
    assert (first.folder / "manifest.json").exists() and first.library_bytes > 0 and first.seconds > 0
    monkeypatch.setattr(ours, "build", lambda *args, **kwargs: 1 / 0)
    assert folder() == first
    monkeypatch.undo()
    monkeypatch.setattr(ours, "sources_digest", lambda: "changed")
    others = [folder(), folder(identity="2"), folder(passes=())]
    assert len({o.folder for o in (first, *others)}) == 4
