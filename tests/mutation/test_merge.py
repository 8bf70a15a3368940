"""A merge that mixes up channels, forgets a slice or lets a label read too much: a check of its own notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.passes.merge import assemble, emit, layer, merging, recurrent
from compiler.passes.merge.assemble import Assembly
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.entries import ordered
from compiler.passes.merge.match import align
from compiler.passes.merge.merging import Merge
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.recurrent import Cells
from compiler.passes.merge.streams import Streams
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.relabel import relabelled
from tests.mutation.test_passes import count_calls, on_call
from tests.passes.merge.families import FAMILIES, joined
from tests.passes.merge.test_merge import data, feed
from tests.passes.merge.test_recurrent import trunk

FEW = 16


def run(family: str) -> None:
    graph = joined(FAMILIES[family]("a", 0), FAMILIES[family]("b", 1))
    Merge(policy="mtz")(graph, data(graph, FEW))


def wiring(family: str) -> Callable[[], None]:
    """The check that every merge begins with."""
    graph = joined(FAMILIES[family]("a", 0), FAMILIES[family]("b", 1))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    originals = Originals(graph, streams, list(data(graph, merging.WIRING).batches(graph)))
    return lambda: merging.check_wiring(streams, originals)


def test_every_merge_checks_the_wiring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_calls(monkeypatch, merging, "check_wiring", lambda: run("plain")) == 1


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_parameter_that_loses_its_order(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new parameter in turn, weights, biases, slopes and statistics, has its first axis rolled."""
    check = wiring(family)
    caught = 0
    for owner in (assemble, emit):
        for number in range(count_calls(monkeypatch, owner, "parameter", check)):
            with monkeypatch.context() as patch:
                moved: list[bool] = []

                def rolled(original: Any, g: Any, n: Any, data: Any, d: Any, moved: list[bool] = moved) -> Any:
                    moved.append(not np.array_equal(np.roll(data, 1, 0), data))
                    return original(g, n, np.roll(data, 1, 0), d)

                on_call(patch, owner, "parameter", number, rolled)
                try:
                    check()
                except VerifyError as error:
                    assert "channels were mixed up" in str(error)
                    caught += 1
                    continue
                assert not any(moved), f"{owner.__name__} parameter {number}"
    assert caught


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_network_that_loses_a_column(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel that a layer read is not found among what it reads now."""
    check, original = wiring(family), layer.LayerFit._counterparts
    check()
    monkeypatch.setattr(layer.LayerFit, "_counterparts", lambda self, s, e: original(self, s, e)[1:])
    with pytest.raises(VerifyError, match="channels were mixed up"):
        check()


def split_units() -> Callable[[], None]:
    """Units of three sets of tasks, each beside others of its own layer."""
    graph = trunk("LSTM")
    copies = Copies(graph)
    labels = copies.full()
    labels[copies.numbers(copies.streams.streams[0])] = [7, 7, 7, 1, 1, 1, 2, 2, 2]

    def check() -> None:
        relabelled(copies, labels, [feed(graph)])

    return check


def test_recurrent_weights_and_states_that_lose_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new weight, bias and initial state in turn has its last axis rolled."""
    check = split_units()
    check()
    rolled = 0
    for number in range(count_calls(monkeypatch, recurrent, "parameter", check)):
        with monkeypatch.context() as patch:
            kinds: list[bool] = []

            def moved(original: Any, g: Any, n: Any, a: Any, d: Any, kinds: list[bool] = kinds) -> Any:
                kinds.append(bool(d.is_float))
                return original(g, n, np.roll(a, 1, -1) if d.is_float else a, d)

            on_call(patch, recurrent, "parameter", number, moved)
            try:
                check()
            except VerifyError as error:
                assert "channels were mixed up" in str(error)
                rolled += 1
                continue
            assert kinds == [False], f"parameter {number}"
    assert rolled == 3 * 5 + 1  # of three nodes, and the initial state that the smaller ones read


def test_units_that_read_what_is_not_for_all_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    check = split_units()
    monkeypatch.setattr(Cells, "above", lambda self, mask: list(self._cells))
    with pytest.raises(VerifyError, match="is for a, but b needs it too"):
        check()


def test_a_label_that_reads_what_is_not_for_all_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(self: Assembly, place: Any, groups: Any) -> Any:
        sources = place.holding(groups)
        return ordered([self._entries[s.site.operands[0].ref] for s in sources])

    graph = joined(FAMILIES["plain"]("a", 0, (8, 12, 12)), FAMILIES["plain"]("b", 1, (8, 12, 12)))
    Merge(policy="mtz", share=0.5)(graph, data(graph, FEW))
    monkeypatch.setattr(Assembly, "readable", too_much)
    with pytest.raises(VerifyError, match="is for a, but b needs it too"):
        Merge(policy="mtz", share=0.5)(graph, data(graph, FEW))


def test_a_result_that_is_handed_to_the_wrong_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of one network are listed under the other: their masks do not fit what reads them."""
    original = Assembly._each

    def swapped(self: Assembly, place: Any) -> None:
        original(self, place)
        if len(place.sources) == 2:
            a, b = (s.site.results[0].ref for s in place.sources)
            self._entries[a], self._entries[b] = self._entries[b], self._entries[a]

    monkeypatch.setattr(Assembly, "_each", swapped)
    with pytest.raises((VerifyError, ValueError, StopIteration)):
        run("plain")
