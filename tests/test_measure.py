"""Evaluation of a release: what the graph is given."""

from __future__ import annotations

import numpy as np

from compiler.calibration.samples import StreamedSet
from compiler.measure import inputs_of
from tests.graphs import Builder


def test_samples_are_read_when_they_are_asked_for():
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 1, 3)))
    graph, opened = b.done(), []

    def samples():
        for number in range(5):
            opened.append(number)
            yield {"x": np.full(3, number, np.float32), "of another network": np.zeros(3)}

    feeds = StreamedSet(samples, graph.inputs)
    opened.clear()
    given = inputs_of(feeds, graph)
    assert list(next(given)) == ["x"] and opened == [0]
    assert len(list(given)) == 4
