"""The study of nested levels: the shares it asks for, what it keeps and compares, and when an aim is met."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from benchmarks import __main__, nesting
from benchmarks import nested_measuring as measuring
from benchmarks import nested_training as training
from benchmarks.cifar import TASK, Effort
from benchmarks.merging.families import Data, Part
from compiler import Graph, save
from compiler.ir.levels import at_level, level_count
from compiler.ir.text import digest
from compiler.passes.base import Resources
from tests.graphs import Builder

AIMS = (training.Aim(0.6, 0.5), training.Aim(0.2, 0.3))
RECIPE = training.Recipe(channels=0.6, narrowed=2, rounds=2, settle=1, level=2, aims=AIMS, draws=2)


@pytest.fixture(scope="module")
def dense() -> Graph:
    """The second layer has most of the weights, the first most of the FLOPs."""
    b = Builder(seed=1)
    h = b.apply("Relu", b.conv(b.input("image", 1, 3, 32, 32), 32, 3, strides=(2, 2)))
    h = b.apply("Relu", b.conv(b.apply("MaxPool", h, kernel_shape=(4, 4), strides=(4, 4)), 64, 3))
    b.task(TASK, b.apply("Gemm", b.apply("Flatten", h), b.weight(10, 64), b.weight(10), transB=1))
    return b.done()


def test_the_shares_are_the_least_that_fit(dense):
    shares = training.shares(dense, dense, RECIPE)
    for share, aim in zip(shares, AIMS, strict=True):
        assert aim.excess(training.nesting((share, 0.995))(dense), dense) <= 0
        assert aim.excess(training.nesting((share - 0.02, 0.995))(dense), dense) > 0
    levels = training.nesting(shares)(dense)
    first, second = (training.fractions(at_level(levels, k, alone=True), dense) for k in (0, 1))
    assert first[0] <= 0.6 and 0.45 < first[1] <= 0.5
    assert 0.17 < second[0] <= 0.2 and second[1] <= 0.3


def test_levels_by_costs_have_what_their_aims_allow(dense):
    recipe = replace(RECIPE, aims=(training.PRUNED, training.Aim(1.0, 0.5), training.Aim(1.0, 0.3)), measured=8)
    use = Resources(calibration={"image": images(8, 0).inputs})
    found = training.sizes(dense, dense, recipe, use)
    assert found.flops == pytest.approx((1.0, 0.5, 0.3), rel=1e-5) and not found.weight_bytes
    levels = recipe.nested(dense, found, use)
    for k, aim in enumerate(recipe.aims):
        weights, flops = training.fractions(at_level(levels, k, alone=True), dense)
        assert weights <= aim.weights and 0.75 * aim.flops < flops <= aim.flops


@pytest.mark.parametrize("measured", [0, 8])
def test_bytes_are_limited_where_the_flops_have_too_many_weights(dense, measured):
    recipe = replace(
        RECIPE, aims=(training.PRUNED, training.Aim(0.5, 0.5), training.Aim(0.1, 0.4)), measured=measured
    )
    use = Resources(calibration={"image": images(8, 0).inputs})
    found = training.sizes(dense, dense, recipe, use)
    assert len(found.weight_bytes) == len(found.flops) == 3
    levels = recipe.nested(dense, found, use)
    for k, aim in enumerate(recipe.aims[1:], 1):
        weights, flops = training.fractions(at_level(levels, k, alone=True), dense)
        assert weights <= aim.weights and flops <= aim.flops
        assert max(weights / aim.weights, flops / aim.flops) > 0.8
    every = recipe.nested(
        dense, replace(found, weight_bytes=found.weight_bytes[1:], flops=found.flops[1:]).from_all_of(dense), use
    )
    assert training.fractions(at_level(every, 0, alone=True), dense) == (1.0, 1.0)


def test_blocks_that_leave_in_rounds_from_all_of_them_leave_the_wished_levels(dense):
    """The level that they leave from is not there in the end."""
    recipe = replace(RECIPE, gradual=True, normalise=True)
    seen = images(40, 0)
    use = Resources(calibration={"image": seen.inputs}, labels=seen.labels, teacher=dense)
    levels = recipe.levels(dense, training.sizes(dense, dense, recipe, use), use)
    assert level_count(levels) == 2
    for k, aim in enumerate(AIMS):
        weights, flops = training.fractions(at_level(levels, k, alone=True), dense)
        assert 0.9 < max(weights / aim.weights, flops / aim.flops) <= 1


def test_an_aim_below_what_stays_whole_is_refused(dense):
    """The last layer alone has more than a thousandth of the weights."""
    recipe = training.Recipe(0.6, 1, 1, 1, 1, aims=(training.Aim(0.001, 0.5),))
    with pytest.raises(ValueError, match=r"Aim\(weights=0.001.* has \d+% more, as layers of `whole` \(last\) stay"):
        training.shares(dense, dense, recipe)


def test_layers_that_stay_whole_have_one_level(dense):
    levels = training.nesting((0.5, 0.8), ("first", "last"))(dense)
    assert sorted(v.shape[0] for v in levels.parameters() if v.sparser) == [64]


def images(count: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    return Part(rng.normal(size=(count, 3, 32, 32)).astype(np.float32), {TASK: rng.integers(0, 10, count)})


@pytest.mark.parametrize("on_gpu", [False, True])
def test_draws_show_every_image_as_often_with_its_label(on_gpu, monkeypatch):
    if on_gpu:
        monkeypatch.setattr(training, "_moved", partial(training._moved_on_gpu, device="cpu"))
    part = Part(np.repeat(np.arange(1.0, 8, dtype=np.float32), 3 * 64).reshape(7, 3, 8, 8), {TASK: np.arange(7)})
    seen = training.augmented(part, 3, 2, seed=1)
    assert np.array_equal(seen.inputs.max(axis=(1, 2, 3)), seen.labels[TASK] + 1)
    assert np.array_equal(np.bincount(seen.labels[TASK]), [3] * 7)
    assert np.array_equal(seen.labels[TASK][:7], np.arange(7)), "one draw alone keeps the order"
    assert not np.array_equal(seen.labels[TASK][7:14], np.arange(7))


def test_training_fits_the_time_there_is():
    recipe = training.Recipe(channels=0.4, narrowed=4, rounds=4, settle=1, level=4)
    assert recipe.epochs_of_levels == 12
    assert recipe.within(60.0, 5.0) == recipe
    shorter = recipe.within(44.0, 5.0)
    assert (shorter.rounds, shorter.level, shorter.narrowed) == (4, 2, 4)
    fewer = recipe.within(15.0, 5.0)
    assert (fewer.rounds, fewer.level, fewer.narrowed) == (1, 1, 4), "rounds are given up last"
    assert recipe.within(20.0, 5.0).rounds == 2
    least = recipe.within(-1.0, 5.0)
    assert (least.rounds, least.level) == (1, 1)
    assert (recipe.scaled(0.5).narrowed, recipe.scaled(0.01).epochs_of_levels) == (2, 3)
    gradual = replace(recipe, gradual=True)
    assert gradual.epochs_of_levels == 12 + 3, "every level once, and the one that blocks leave from"
    assert gradual.within(60.0, 5.0).level == 2


@pytest.fixture
def tiny(dense, monkeypatch, tmp_path) -> Data:
    """Data of a study whose dense network needs no training."""
    save(dense, tmp_path / "dense.onnx")
    monkeypatch.setattr(training, "trained", lambda *given: tmp_path / "dense.onnx")
    return Data(images(20, 0), images(30, 1), images(30, 2))


def test_a_clock_tells_an_epoch_by_the_ends_of_epochs(monkeypatch):
    now = iter((100.0, 103.0, 109.0, 112.5))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(now))
    told = training.Clock()
    assert told.epoch == 0
    for line in (
        "distil: epoch 1 of 3",
        "distil: continues",
        "distil: epoch 2 of 3",
        "round 1: distil: epoch 3 of 3",
    ):
        told(line)
    assert told.epoch == 4.5


def test_what_was_trained_is_kept_and_goes_on_to_be_measured(tiny, tmp_path, monkeypatch):
    study = training.Study(Effort(epochs=1, seed=0), RECIPE)
    first = training.kept_levels("small", tiny, study, tmp_path)
    monkeypatch.delattr(training, "made")
    again = training.kept_levels("small", tiny, study, tmp_path)
    assert digest(first.levels) == digest(again.levels) and first.record == again.record
    assert level_count(again.levels) == 2
    with pytest.raises(NameError):  # other epochs are another study, which nothing can train any more
        training.kept_levels("small", tiny, study.scaled(2), tmp_path)
    record = measuring.measured(again, tiny, tmp_path / "compiled")
    assert record["training"]["torch"] and record["training"]["device"] and not record["shortened"]
    assert record["wrong_bits"] == [0, 0] and record["flops_fraction"][1] <= record["flops_fraction"][0] <= 0.5
    for compiled, trained in zip(record["accuracy"]["levels"], record["accuracy"]["trained"], strict=True):
        assert compiled == pytest.approx(trained, abs=0.2)
    shown, before = nesting.line("small", record), nesting.line("small", first.record)
    assert f"level 1: {record['weights_fraction'][1]:.2%} of weights" in shown and "library of the level" in shown
    assert f"trained on {record['training']['device']}" in before and "library of the level" not in before


def test_levels_are_trained_where_no_tensor_compiler_is():
    code = (
        "import sys; sys.modules['tvm'] = sys.modules['tvm_ffi'] = None; "
        "import benchmarks.nesting, benchmarks.nested_training"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_bits_of_a_level_are_compared_with_a_library_of_its_own(dense, tmp_path):
    levels = training.nesting((0.5, 0.8))(dense)
    net = measuring.open_bundle(
        measuring.build(levels, "host", tmp_path / "levels", name="net", selftest=False).path
    )
    part = Part(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32), {})
    assert measuring.wrong_bits(net, levels, part, tmp_path) == [0, 0]
    other = SimpleNamespace(bundle=net.bundle, run=lambda x, level: net.run(x, level=0))
    assert measuring.wrong_bits(other, levels, part, tmp_path / "other") == [0, 3]


def test_an_aim_is_met_by_size_and_accuracy():
    first, second = training.AIMS
    assert first.met((0.13, 0.15), 0.7975, 0.8) and not first.met((0.13, 0.15), 0.7965, 0.8)
    assert second.met((0.05, 0.045), 0.7745, 0.8) and not second.met((0.05, 0.045), 0.7735, 0.8)
    assert not first.met((0.135, 0.1), 0.9, 0.8) and not second.met((0.05, 0.046), 0.9, 0.8)


def test_blocks_may_leave_from_all_that_pruning_left(dense):
    shares = training.shares(dense, dense, replace(RECIPE, aims=(training.PRUNED, *AIMS)))
    assert shares == (0.0, *training.shares(dense, dense, RECIPE))


def test_it_is_a_study_and_says_what_data_it_lacks(tmp_path, capsys):
    assert __main__.STUDIES["nesting"] == "benchmarks.nesting"
    assert nesting.main(["--data", str(tmp_path), "--kept", str(tmp_path / "kept")]) == 2
    assert "data sets are no part of the repository" in capsys.readouterr().err


def test_training_alone_measures_nothing_and_saves_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        nesting.options_of(["--train-only", "--save", str(tmp_path)])
    assert "--save is of measured levels" in capsys.readouterr().err
    for wrong in ("--minutes", "--epochs-scale"):
        with pytest.raises(SystemExit):
            nesting.options_of([wrong, "0"])


def test_every_network_has_the_minutes_of_the_command_line(tmp_path, monkeypatch, capsys):
    """Measuring one takes nothing from the training of the next."""
    clock, ends = [100.0], []
    record = {"wrong_bits": [0], "pool_bytes": {"over_densest": 1.0}}

    def kept_levels(name, data, study, kept, until):
        ends.append(until - clock[0])
        clock[0] += 50
        return training.Kept(Graph("none"), {})

    def measured(*given):
        clock[0] += 1000
        return record

    monkeypatch.setattr(nesting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(nesting, "load_cifar", lambda *given: Data(images(1, 0), images(1, 0), images(1, 0)))
    monkeypatch.setattr(nesting, "kept_levels", kept_levels)
    monkeypatch.setattr(nesting, "measured", measured)
    monkeypatch.setattr(nesting, "line", lambda name, record: name)
    asked = ["--minutes", "2", "--only", "vgg*", "--kept", str(tmp_path)]
    assert nesting.main(asked) == 0
    assert ends == [120.0, 120.0] and capsys.readouterr().out.split() == ["vgg-cifar10", "vgg16-cifar10"]
    record["wrong_bits"] = [0, 3]
    assert nesting.main(asked) == 1
