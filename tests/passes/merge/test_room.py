"""Merging where values of all samples do not fit into the memory set aside: the same bits, bounded memory."""

from __future__ import annotations

import weakref

import pytest

from compiler.calibration.tape import Part
from compiler.errors import TargetError
from compiler.ir.graph import Graph
from compiler.ir.text import digest
from compiler.passes.merge import room, rows
from compiler.passes.merge.merging import POLICIES, Merge
from compiler.passes.merge.originals import Originals, kept_bytes
from compiler.passes.merge.room import free_memory
from tests.graphs import Builder
from tests.passes.merge.families import FAMILIES, conv, head, joined
from tests.passes.merge.test_merge import data
from tests.passes.merge.test_parts import streams_of


def short(monkeypatch: pytest.MonkeyPatch, held: int = 0, walked: int = 0, worked_on: int = 0) -> None:
    """Set bytes aside, as if networks and inputs were large."""
    monkeypatch.setattr(room, "HELD", held)
    monkeypatch.setattr(room, "WALKED", walked)
    monkeypatch.setattr(rows, "WORKED_ON", worked_on)


@pytest.mark.parametrize("family", FAMILIES)
def test_merges_are_the_same_with_little_memory(family, monkeypatch):
    graph = joined(*(FAMILIES[family](t, i) for i, t in enumerate("ab")))
    use, one = data(graph, 70), Merge(max_drift=0.9, max_loss=3.0)
    expected = digest(one(graph, use))
    for held, walked, worked_on in ((0, 0, 0), (40_000, 20_000, 4_000), (400_000, 100_000, 100_000)):
        short(monkeypatch, held, walked, worked_on)
        assert digest(one(graph, use)) == expected


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "exact"])
def test_policies_are_the_same_with_little_memory(policy, monkeypatch):
    graph = joined(*(FAMILIES["residual"](t, i) for i, t in enumerate("abc")))
    use, one = data(graph, 40), Merge(policy=policy)
    expected = digest(one(graph, use))
    short(monkeypatch)
    assert digest(one(graph, use)) == expected


def large_maps(task: str, seed: int) -> Graph:
    """Layers on maps that are much larger than what is sampled of them."""
    b = Builder(task, seed)
    x = conv(b, b.input("x", 1, 2, 40, 40), 8)
    x = b.apply("MaxPool", conv(b, conv(b, x, 8), 8), kernel_shape=(4, 4), strides=(4, 4))
    b.task(task, head(b, conv(b, x, 8), 3))
    return b.done()


class Meter:
    """Bytes of the values that are alive, and the most at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self._run = Part.run
        monkeypatch.setattr(Part, "run", lambda part, arrays: self._counted(part, arrays))

    def _counted(self, part: Part, arrays: dict) -> dict:
        made = self._run(part, arrays)
        for array in made.values():
            self.now += array.nbytes
            weakref.finalize(array, self._gone, array.nbytes)
        self.most = max(self.most, self.now)
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


def test_values_of_all_samples_are_never_alive_together(monkeypatch):
    """A value of 32 samples takes 1.6 MB; two of each network are needed at a time."""
    graph = joined(large_maps("a", 0), large_maps("b", 1))
    short(monkeypatch, held=1 << 19, walked=1 << 18, worked_on=1 << 18)
    meter = Meter(monkeypatch)
    Merge(policy="zipit")(graph, data(graph, 32))
    assert 0 < meter.most < 1.4e6


def test_more_than_there_is_memory_for_is_refused_before_anything_is_measured(monkeypatch):
    graph = joined(*(FAMILIES["plain"](t, i) for i, t in enumerate("ab")))
    monkeypatch.setattr(room, "free_memory", lambda: 100_000)
    monkeypatch.setattr("compiler.passes.merge.merging.Originals", None)
    with pytest.raises(TargetError, match=r"kept of 48 calibration inputs, .* takes 0.0 GB; .* \(samples=\d+\)"):
        Merge()(graph, data(graph))


def test_what_is_counted_is_what_is_kept():
    graph = joined(*(FAMILIES["residual"](t, i) for i, t in enumerate("ab")))
    streams = streams_of(graph)
    found = Originals(graph, streams, list(data(graph, 8).batches(graph)))
    arrays = [*found.targets.values(), *(r for rows in found.features.values() for r in rows.values())]
    outputs = sum(a.nbytes for a in found.outputs.values())
    assert 8 * kept_bytes(streams) == sum(a.nbytes for a in arrays) + 2 * outputs


def test_free_memory_is_the_least_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(room, "GROUP", tmp_path)
    assert free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert free_memory() == 5000 * 1024
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 7\n")
    for most, free in (("max", 5000 * 1024), ("3000", 2000), ("900", 0)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert free_memory() == free
