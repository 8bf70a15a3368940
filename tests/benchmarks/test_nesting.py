"""The study of nested levels: the shares it asks for, what it compares, and when an aim is met."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from benchmarks import __main__, nesting
from benchmarks.cifar import TASK
from benchmarks.merging.families import Part
from compiler import Graph
from compiler.ir.levels import at_level
from tests.graphs import Builder

AIMS = (nesting.Aim(0.6, 0.5), nesting.Aim(0.2, 0.3))


@pytest.fixture(scope="module")
def dense() -> Graph:
    """The second layer has most of the weights, the first most of the FLOPs."""
    b = Builder(seed=1)
    h = b.apply("Relu", b.conv(b.input("image", 1, 3, 32, 32), 32, 3, strides=(2, 2)))
    h = b.apply("Relu", b.conv(b.apply("MaxPool", h, kernel_shape=(4, 4), strides=(4, 4)), 64, 3))
    b.task(TASK, b.apply("Gemm", b.apply("Flatten", h), b.weight(10, 64), b.weight(10), transB=1))
    return b.done()


def test_the_shares_are_the_least_that_fit(dense):
    shares = nesting.shares(dense, dense, AIMS)
    for share, aim in zip(shares, AIMS, strict=True):
        assert aim.holds(nesting.nesting(share, 0.995)(dense), dense)
        assert not aim.holds(nesting.nesting(share - 0.02, 0.995)(dense), dense)
    levels = nesting.nesting(*shares)(dense)
    first, second = (nesting.fractions(at_level(levels, k, alone=True), dense) for k in (0, 1))
    assert first[0] <= 0.6 and 0.45 < first[1] <= 0.5
    assert 0.17 < second[0] <= 0.2 and second[1] <= 0.3


def test_bits_of_a_level_are_compared_with_a_library_of_its_own(dense, tmp_path):
    levels = nesting.nesting(0.5, 0.8)(dense)
    net = nesting.open_bundle(nesting.build(levels, "host", tmp_path / "levels", name="net", selftest=False).path)
    part = Part(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32), {})
    assert nesting.wrong_bits(net, levels, part, tmp_path) == [0, 0]
    other = SimpleNamespace(bundle=net.bundle, run=lambda x, level: net.run(x, level=0))
    assert nesting.wrong_bits(other, levels, part, tmp_path / "other") == [0, 3]


def test_an_aim_is_met_by_size_and_accuracy_on_report_data():
    sizes, dense = [(0.13, 0.15), (0.05, 0.045)], {"selection": 0.1, "report": 0.8}
    aims = nesting.RECIPE.aims

    def met(first: float, second: float, sizes=sizes) -> list[bool]:
        return nesting.met(sizes, dense, [{"report": first}, {"report": second}], aims)

    assert met(0.798, 0.7745) == [True, True]
    assert met(0.796, 0.7735) == [False, False]
    assert met(0.9, 0.9, [(0.135, 0.1), (0.05, 0.046)]) == [False, False]


def test_it_is_a_study_and_says_what_data_it_lacks(tmp_path, capsys):
    assert __main__.STUDIES["nesting"] == "benchmarks.nesting"
    assert nesting.main(["--data", str(tmp_path), "--kept", str(tmp_path / "kept")]) == 2
    assert "data sets are no part of the repository" in capsys.readouterr().err
