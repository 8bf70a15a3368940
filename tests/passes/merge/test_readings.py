"""What removing and swapping channels costs a layer, against dense solves; and what two nodes have in common."""

from __future__ import annotations

import re

import numpy as np
import pytest

from compiler.calibration.moments import RIDGE
from compiler.ir.graph import Site
from compiler.passes.merge import readings as readings_module
from compiler.passes.merge.channels import ChannelMap
from compiler.passes.merge.kinds import Kind, free_axes, kind_of
from compiler.passes.merge.labels import Unit
from compiler.passes.merge.match import align
from compiler.passes.merge.originals import Originals
from compiler.passes.merge.readings import Reading, readings
from compiler.passes.merge.streams import Streams
from tests.graphs import Builder
from tests.passes.merge.families import concat, joined, mlp, plain
from tests.passes.merge.test_merge import data


def reading_of(family) -> tuple[Reading, list[Unit], list[Unit]]:
    """A layer that reads channels of a stream of two networks; its own channels, and the other network's."""
    graph = joined(family("a", 0), family("b", 1))
    streams = Streams(graph, align(graph), ChannelMap(graph))
    originals = Originals(graph, streams, list(data(graph, 40).batches(graph)))
    for stream in streams.streams:
        if len(stream.groups) == 2:
            found = readings(streams, originals, stream.index)
            first, second = stream.groups
            if found[first]:
                units = [[Unit(g, i) for i in range(streams.group(g).width)] for g in (first, second)]
                return found[first][0], *units
    raise AssertionError("no stream is read")


class Dense:
    """The same numbers by one solve per question."""

    def __init__(self, reading: Reading) -> None:
        self._s, self._c, self._blocks = reading._s, reading._c, reading._blocks
        self._always, self._power, self._ridge = reading._always, reading._power, reading._ridge

    def unexplained(self, units, noise) -> float:
        """Residual of the best weights on the columns of these channels and on what is read besides."""
        columns = np.concatenate([self._always, *(self._blocks[u] for u in units)]).astype(int)
        s = self._s[np.ix_(columns, columns)] + self._ridge * np.eye(len(columns))
        at = len(self._always)
        for unit in units:
            block = self._blocks[unit]
            span = slice(at, at + block.size)
            s[span, span] += noise.get(unit, 0.0) * self._s[np.ix_(block, block)]
            at += block.size
        return 1 - float(np.sum(self._c[columns] * np.linalg.solve(s, self._c[columns]))) / self._power


@pytest.mark.parametrize("family", [plain, mlp, concat])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("pairs", [None, 1])
def test_one_inverse_says_what_a_solve_per_change_says(family, noisy, pairs, monkeypatch) -> None:
    """However many pairs are worked on at a time."""
    if pairs:
        monkeypatch.setattr(readings_module, "PAIRS", pairs)
    reading, own, other = reading_of(family)
    dense, read, others = Dense(reading), own[:-1], [*other[:3], own[-1]]
    noise = {u: 0.05 * (i + 1) for i, u in enumerate([*read[:2], others[0], others[-1]])} if noisy else {}
    assert all(reading.knows(u) for u in (*own, *other)) and not reading.knows(Unit(99, 0))
    found = reading.look(read, others, noise)
    now, start = dense.unexplained(read, noise), dense.unexplained(own, {})
    assert found.loss == pytest.approx(max(now - start, 0), abs=1e-9)
    assert found.removal.shape == (len(read),) and found.swap.shape == (len(read), len(others))
    for i, unit in enumerate(read[:3]):
        rest = [u for u in read if u != unit]
        gone = dense.unexplained(rest, noise) - now
        assert found.removal[i] == pytest.approx(gone, rel=1e-6, abs=1e-10)
        for j, instead in enumerate(others):
            swapped = dense.unexplained([*rest, instead], noise) - now
            assert found.swap[i, j] == pytest.approx(max(swapped, 0), rel=1e-5, abs=1e-9)
    assert reading.look(read, [], noise).swap.shape == (len(read), 0)


def test_reading_everything_loses_nothing_and_the_ridge_is_that_of_all_fits() -> None:
    reading, own, _ = reading_of(plain)
    found = reading.look(own, [], {})
    assert found.loss == pytest.approx(0, abs=1e-12)
    columns = np.concatenate([reading._always, *(reading._blocks[u] for u in own)]).astype(int)
    assert reading._ridge == pytest.approx(RIDGE * np.trace(reading._s[np.ix_(columns, columns)]) / len(columns))
    at = columns
    s = reading._s[np.ix_(at, at)] + reading._ridge * np.eye(len(at))
    weights = np.linalg.solve(s, reading._c[at])
    for i, unit in enumerate(own):
        w = weights[np.isin(at, reading._blocks[unit])]
        block = reading._s[np.ix_(reading._blocks[unit], reading._blocks[unit])]
        assert found.power[i] == pytest.approx(np.sum(w * (block @ w)) / reading._power)


# ---------------------------------------------------------------------- kinds
def site_of(make, width: int = 8) -> tuple[Site, dict]:
    """The last node behind a layer of some width, and the axes that count channels."""
    b = Builder()
    y = make(b, b.conv(b.input("x", 1, 3, 6, 6), width, 3), width)
    b.task("t", y)
    graph = b.done()
    return list(graph.sites())[-1], free_axes(graph)


def kind(make, width: int = 8) -> Kind:
    return kind_of(*site_of(make, width))


SAME = {
    "Relu": lambda b, y, n: b.apply("Relu", y),
    "Conv": lambda b, y, n: b.conv(y, 2 * n, 3),
    "depthwise": lambda b, y, n: b.conv(y, n, 3, group=n),
    "slope per channel": lambda b, y, n: b.apply("PRelu", y, b.weight(n, 1, 1)),
    "Reshape": lambda b, y, n: b.apply("Reshape", y, b.const(np.array([1, n, 16]))),
    "BatchNormalization": lambda b, y, n: b.apply("BatchNormalization", y, *(b.weight(n) for _ in range(4))),
}


@pytest.mark.parametrize("name", SAME)
def test_widths_and_weights_make_no_difference(name: str) -> None:
    a, b = kind(SAME[name], 8), kind(SAME[name], 12)
    assert a == b and a.key == b.key and a.difference(b) == ""


DIFFERENT = [
    (SAME["Relu"], lambda b, y, n: b.apply("Sigmoid", y), "one is Relu, the other Sigmoid"),
    (SAME["Conv"], lambda b, y, n: b.conv(y, n, 3, strides=(2, 2)), r"strides is \(1, 1\) and \(2, 2\)"),
    (SAME["Conv"], lambda b, y, n: b.conv(y, n, 3, group=2), "group is 1 and 2"),
    (SAME["depthwise"], lambda b, y, n: b.conv(y, n, 3, group=2), "group is one per channel and 2"),
    (SAME["Conv"], lambda b, y, n: b.conv(y, n, 3, bias=False), "operands differ in shape or in constants"),
    (
        lambda b, y, n: b.apply("Mul", y, b.const(np.float32(2))),
        lambda b, y, n: b.apply("Mul", y, b.const(np.float32(3))),
        "operands differ in shape or in constants",
    ),
    (
        lambda b, y, n: b.apply("LeakyRelu", y, alpha=0.1),
        lambda b, y, n: b.apply("LeakyRelu", y, alpha=0.2),
        "alpha is 0x1.9.* and 0x1.9.*",
    ),
    (
        lambda b, y, n: b.apply("Transpose", y, perm=(0, 1, 2, 3)),
        lambda b, y, n: b.apply("Transpose", y, perm=(0, 2, 1, 3)),
        r"perm is \(0, 1, 2, 3\) and \(0, 2, 1, 3\)",
    ),
    (
        lambda b, y, n: b.apply("Reshape", y, b.const(np.array([1, n, 16]))),
        lambda b, y, n: b.apply("Reshape", y, b.const(np.array([1, n, 2, 8]))),
        r"maps are 1x\*x16 and 1x\*x2x8",
    ),
    (
        lambda b, y, n: b.apply("Gather", y, b.const(np.array([0, 1])), axis=2),
        lambda b, y, n: b.apply("Gather", y, b.const(np.array([1, 0])), axis=2),
        "operands differ in shape or in constants",
    ),
    (
        lambda b, y, n: b.apply("PRelu", y, b.weight(4)),
        lambda b, y, n: b.apply("PRelu", y, b.weight(4, scale=2.0)),
        "operands differ in shape or in constants",
    ),
]


@pytest.mark.parametrize("number", range(len(DIFFERENT)))
def test_everything_else_does_and_the_first_difference_is_told(number: int) -> None:
    first, second, message = DIFFERENT[number]
    a, b = kind(first), kind(second)
    assert a != b and a.key != b.key
    assert re.fullmatch(message, a.difference(b)), a.difference(b)


def test_axes_that_count_channels() -> None:
    b = Builder()
    x = b.input("x", 1, 3, 6, 6)
    h = b.conv(x, 8, 3)
    flat = b.apply("Flatten", h)
    y = b.apply("Gemm", flat, b.weight(128, 5))
    turned = b.apply("Transpose", h, perm=(0, 2, 3, 1))
    mean = b.apply("ReduceMean", h, b.const(np.array([1])))
    picture = b.apply("Relu", x)
    whole = b.apply("Cast", b.apply("ArgMax", y, axis=1), to=7)
    b.task("t", y, turned, mean, picture, whole)
    free = free_axes(b.done())
    expected = {x: (), h: (1,), flat: (1,), y: (1,), turned: (3,), mean: (), picture: (), whole: ()}
    assert {r: tuple(sorted(free[r])) for r in expected} == expected
