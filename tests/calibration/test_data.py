from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.data import CalibrationSet, archived, load_arrays, named_function
from compiler.errors import ConfigError
from compiler.passes.base import Resources
from tests.graphs import Builder


def made():
    return {"x": np.arange(6.0)}


def wrong():
    return [1, 2]


def inputs(*shape):
    net = Builder()
    net.task("t", net.apply("Relu", net.input("x", *shape)))
    return net.done()


def test_arrays_from_a_file_and_from_a_function(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones(3), y=np.zeros(2))
    assert sorted(load_arrays("d.npz", tmp_path)) == ["x", "y"]
    assert load_arrays("tests.calibration.test_data:made", tmp_path)["x"].tolist() == list(range(6))


@pytest.mark.parametrize(
    "source,message",
    [
        ("absent.npz", "cannot be read"),
        ("text.npz", "not an .npz file"),
        ("one.npy", "one array without a name"),
        ("objects.npz", "not an .npz file of plain arrays"),
        ("single.npz", "not an .npz file of plain arrays: one array without a name; save each under its own"),
        ("tests.calibration.test_data:wrong", "must return a dict"),
        ("tests.calibration.test_data:absent", "cannot be imported"),
        ("tests.calibration.test_data:ROOT_NAME", "is not a function"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, source, message):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ConfigError, match=message):
        load_arrays(source, tmp_path)


ROOT_NAME = "a constant"


def test_functions_by_name():
    assert named_function("tests.calibration.test_data:made") is made


@pytest.mark.parametrize(
    "network,data,batches,size",
    [((1, 3), (5, 3), 5, 1), ((2, 3), (5, 3), 2, 2), ((3,), (5, 3), 5, 1), ((), (4,), 4, 1)],
)
def test_batches_have_exactly_the_input_shape(network, data, batches, size):
    graph = inputs(*network)
    array = np.arange(np.prod(data), dtype=np.float64).reshape(data)
    found = CalibrationSet({"x": array, "labels": np.zeros(5)}, graph.inputs)
    feeds = list(found())
    assert (found.batches, found.batch_size) == (batches, size)
    assert all(f["x"].shape == network and f["x"].dtype == np.float32 for f in feeds)
    taken = np.concatenate([f["x"].reshape(-1) for f in feeds])
    assert np.array_equal(taken, array.reshape(-1)[: taken.size])
    assert len(list(found())) == batches
    assert len(list(Resources(calibration=found).batches(graph))) == batches


def test_a_single_number_has_no_samples():
    with pytest.raises(ConfigError, match="hold a single number as 'x'"):
        CalibrationSet({"x": np.array(1.0)}, inputs(1, 2).inputs)


def test_a_limit_and_data_that_do_not_fit():
    graph = inputs(1, 3)
    assert CalibrationSet({"x": np.zeros((9, 3))}, graph.inputs, limit=4).batches == 4
    with pytest.raises(ConfigError, match=r"has shape \[9, 4\]; expected \[samples, 3\]"):
        CalibrationSet({"x": np.zeros((9, 4))}, graph.inputs)
    with pytest.raises(ConfigError, match="lacks input 'x'; it has y"):
        CalibrationSet({"y": np.zeros((9, 3))}, graph.inputs)
    with pytest.raises(ConfigError, match="less than one batch"):
        CalibrationSet({"x": np.zeros((0, 3))}, graph.inputs)
    with pytest.raises(ConfigError, match="data for input 'x' hold NaN"):
        list(CalibrationSet({"x": np.array([[1, np.nan, 3]])}, graph.inputs)())


def test_inputs_of_different_numbers_of_samples_are_refused():
    b = Builder()
    b.task("t", b.apply("Add", b.input("x", 1, 3), b.input("y", 1, 3)))
    found = b.done().inputs
    assert CalibrationSet({"x": np.zeros((9, 3)), "y": np.zeros((9, 3))}, found, limit=4).batches == 4
    with pytest.raises(ConfigError, match="different numbers of batches per input: 'x' 9, 'y' 8"):
        CalibrationSet({"x": np.zeros((9, 3)), "y": np.zeros((8, 3))}, found)


def test_an_input_without_elements_takes_no_data():
    with pytest.raises(ConfigError, match="there is nothing to feed it with"):
        CalibrationSet({"x": np.zeros((4, 3))}, inputs(0, 3).inputs)


def test_paths_are_relative_to_the_folder_of_the_release(tmp_path):
    (tmp_path / "deep").mkdir()
    np.savez(tmp_path / "deep" / "d.npz", x=np.ones(3))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_arrays("d.npz", Path(tmp_path))


def test_arrays_of_any_name_are_archived():
    """Names of numpy's own arguments, and of parts of a path."""
    arrays = {n: np.arange(3, dtype=np.float32) + k for k, n in enumerate(("file", "allow_pickle", "self", "a/b"))}
    with np.load(io.BytesIO(archived(arrays))) as held:
        assert {n: held[n].tolist() for n in held.files} == {n: a.tolist() for n, a in arrays.items()}
    assert archived(arrays) == archived(arrays)
