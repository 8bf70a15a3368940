"""Samples from .npy files, folders and iterables, read when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.calibration.data import CalibrationSet
from compiler.calibration.samples import StreamedSet, open_calibration
from compiler.errors import ConfigError, PassError
from compiler.ir.types import DType
from compiler.passes.base import Resources
from tests.graphs import Builder

DATA = np.arange(30, dtype=np.float32).reshape(10, 3)


def graph_of(*shapes):
    b = Builder()
    names = "xyz"[: len(shapes)]
    outs = [b.apply("Relu", b.input(n, *s)) for n, s in zip(names, shapes, strict=True)]
    b.task("t", *outs)
    return b.done()


def feeds_of(found, name="x"):
    return np.concatenate([f[name] for f in found()])


def generated():
    for row in DATA:
        yield {"x": row}


def listed():
    return [{"x": row[None]} for row in DATA]


def array_dict():
    return {"x": DATA}


def number():
    return 3


ONE = generated()


def again():
    return ONE


def words():
    return "xyz"


def failing():
    return {}["lost"]


def failing_later():
    yield {"x": DATA[0]}
    raise RuntimeError("no more")


HERE = "tests.calibration.test_samples"


def test_an_npy_file_is_mapped_and_starts_again(tmp_path):
    np.save(tmp_path / "d.npy", DATA)
    graph = graph_of((1, 3))
    found = open_calibration("d.npy", tmp_path, graph.inputs, 0)
    assert isinstance(found, StreamedSet) and (found.batches, found.batch_size) == (10, 1)
    assert np.array_equal(feeds_of(found), DATA) and np.array_equal(feeds_of(found), DATA)
    assert len(list(Resources(calibration=found).batches(graph))) == 10
    assert open_calibration("d.npy", tmp_path, graph.inputs, 4).batches == 4


def test_batches_are_whole(tmp_path):
    np.save(tmp_path / "d.npy", DATA)
    found = open_calibration("d.npy", tmp_path, graph_of((4, 3)).inputs, 0)
    assert (found.batches, found.batch_size) == (2, 4)
    assert np.array_equal(feeds_of(found), DATA[:8])


def test_a_folder_of_arrays_in_the_order_of_names(tmp_path):
    for i in (2, 0, 1):
        np.save(tmp_path / f"{i}.npy", DATA[i])
    (tmp_path / "notes.txt").write_text("not data")
    found = open_calibration(".", tmp_path, graph_of((1, 3)).inputs, 0)
    assert np.array_equal(feeds_of(found), DATA[:3])


def test_a_folder_of_archives_and_one_folder_per_input(tmp_path):
    graph = graph_of((1, 3), (1, 2))
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        np.savez(tmp_path / "a" / f"{i}.npz", x=DATA[i], y=DATA[i, :2])
        for name, row in (("x", DATA[i]), ("y", DATA[i, :2])):
            (tmp_path / "b" / name).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "b" / name / f"{i}.npy", row)
    for source in "ab":
        found = open_calibration(source, tmp_path, graph.inputs, 0)
        assert np.array_equal(feeds_of(found, "x"), DATA[:3])
        assert np.array_equal(feeds_of(found, "y"), DATA[:3, :2])
    (tmp_path / "b" / "y" / "2.npy").unlink()
    with pytest.raises(ConfigError, match=r"different numbers of \.npy files: 'x' 3, 'y' 2"):
        open_calibration("b", tmp_path, graph.inputs, 0)


@pytest.mark.parametrize("function", ["generated", "listed"])
def test_iterables_start_again(function):
    found = open_calibration(f"{HERE}:{function}", Path(), graph_of((1, 3)).inputs, 0)
    assert isinstance(found, StreamedSet)
    assert np.array_equal(feeds_of(found), DATA) and found.batches == 10
    assert np.array_equal(feeds_of(found), DATA)


def test_dicts_and_archives_are_sets_of_arrays(tmp_path):
    inputs = graph_of((1, 3)).inputs
    np.savez(tmp_path / "d.npz", x=DATA)
    for source in ("d.npz", f"{HERE}:array_dict"):
        assert isinstance(open_calibration(source, tmp_path, inputs, 0), CalibrationSet)


@pytest.mark.parametrize(
    "source,message",
    [
        ("pictures", "images are not decoded here; save them as .npy"),
        ("empty", "holds no .npy or .npz file"),
        ("objects.npy", "not an .npy file of plain numbers"),
        ("wide.npy", r"has shape \[4\]; expected \[3\]"),
        ("none.npy", "holds no sample"),
        (f"{HERE}:number", "must return a dict from name to numpy array, or an iterable"),
        ("number.npy", "holds a single number; give an array of samples"),
        ("archive.npy", "holds arrays by name, as an .npz file does"),
        ("archives", "holds arrays by name, as an .npz file does"),
        ("absent.npy", r"absent\.npy: cannot be read: No such file"),
        (f"{HERE}:again", "again' returns one iterator again and again"),
        (f"{HERE}:words", "a sample is str; give dicts from input name to numpy array"),
        (f"{HERE}:failing", "failing' failed: KeyError: 'lost'"),
        ("folders", "one per input is expected; there is no .*folders/x"),
    ],
)
def test_what_does_not_fit(tmp_path, source, message):
    for name in ("pictures", "empty", "folders/y", "archives"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pictures" / "a.PNG").write_bytes(b"")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    np.save(tmp_path / "number.npy", np.float32(3))
    for name in ("archive.npy", "archives/0.npy"):
        with (tmp_path / name).open("wb") as file:
            np.savez(file, x=DATA)
    with pytest.raises(ConfigError, match=message) as told:
        list(open_calibration(source, tmp_path, graph_of((1, 3)).inputs, 0)())
    assert "pickle" not in str(told.value)


def test_a_function_that_fails_on_the_way_is_named():
    found = open_calibration(f"{HERE}:failing_later", Path(), graph_of((1, 3)).inputs, 0)
    with pytest.raises(ConfigError, match="failing_later' failed: RuntimeError: no more"):
        list(found())


def test_one_array_for_several_inputs(tmp_path):
    np.save(tmp_path / "d.npy", DATA)
    with pytest.raises(ConfigError, match="is one array, but the networks read 'x', 'y'"):
        open_calibration("d.npy", tmp_path, graph_of((1, 3), (1, 3)).inputs, 0)


@pytest.mark.parametrize("rows", [3, 4])
def test_data_have_samples_for_one_call_at_least(tmp_path, rows):
    np.save(tmp_path / "d.npy", DATA[:rows])
    if rows == 4:
        assert open_calibration("d.npy", tmp_path, graph_of((4, 3)).inputs, 0).batches == 1
        return
    with pytest.raises(ConfigError, match="fewer samples than a call of the network takes: 4"):
        open_calibration("d.npy", tmp_path, graph_of((4, 3)).inputs, 0)


def test_a_limit_beyond_any_count_takes_every_sample():
    assert StreamedSet(lambda: [{"x": np.zeros((4, 3))}] * 2, graph_of((4, 3)).inputs, 10**20).batches == 2


def test_every_sample_has_to_fit():
    """Other shapes of as many elements would be read as something else."""
    turned = StreamedSet(lambda: [{"x": np.zeros((2, 3))}, {"x": np.zeros((3, 2))}], graph_of((1, 2, 3)).inputs)
    with pytest.raises(ConfigError, match=r"a sample for input 'x' has shape \[3, 2\]; expected \[2, 3\]"):
        list(turned())
    mixed = StreamedSet(lambda: [{"x": np.zeros((4, 3))}, {"x": np.zeros(3)}], graph_of((4, 3)).inputs)
    with pytest.raises(ConfigError, match="some samples for input 'x' are whole batches"):
        list(mixed())
    with pytest.raises(ConfigError, match="different numbers of samples per input: 4 for 'x', 1 for 'y'"):
        StreamedSet(lambda: [{"x": np.zeros(3), "y": np.zeros((4, 2))}], graph_of((4, 3), (4, 2)).inputs)
    with pytest.raises(PassError, match=r"input 'x' has shape \[5, 3, 2\], expected \[samples, 2, 3\]"):
        list(Resources(calibration={"x": np.zeros((5, 3, 2))}).batches(graph_of((1, 2, 3))))


def test_a_sample_that_lacks_an_input():
    with pytest.raises(ConfigError, match="a sample lacks input 'x'; it has y"):
        StreamedSet(lambda: [{"y": np.zeros(3)}], graph_of((1, 3)).inputs)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((4, 3), 0.5), "numbers from 0.5 to 0.5 that its type uint8 does not have"),
        (np.full((4, 3), 300), "numbers from 300 to 300 that"),
        (np.full((4, 3), np.nan), "that its type uint8 does not have"),
        (np.full((4, 3), "x"), "are <U1; the network reads uint8"),
    ],
)
def test_integers_are_never_made_of_other_numbers(data, message, streamed):
    b = Builder()
    b.task("t", b.apply("Cast", b.input("x", 1, 3, dtype=DType.UINT8), to=1))
    inputs = b.done().inputs
    found = (
        StreamedSet(lambda: ({"x": row} for row in data), inputs)
        if streamed
        else CalibrationSet({"x": data}, inputs)
    )
    with pytest.raises(ConfigError, match=message):
        next(iter(found()))


@pytest.mark.parametrize(("kind", "wrong"), [(DType.FLOAT32, 1e300), (DType.FLOAT16, 1e6)])
def test_numbers_do_not_become_infinite(kind, wrong):
    b = Builder()
    b.task("t", b.apply("Cast", b.input("x", 1, 3, dtype=kind), to=1))
    inputs, data = b.done().inputs, np.array([[0, 1, -np.inf], [0, 1, wrong]])
    feeds = CalibrationSet({"x": data}, inputs)()
    first = next(feeds)
    assert first["x"].tolist() == [[0, 1, -np.inf]]
    with pytest.raises(ConfigError, match=f"'x' hold numbers that are infinite in its type {kind.value}"):
        next(feeds)


def test_integers_may_come_as_other_numbers_of_equal_value():
    b = Builder()
    b.task("t", b.apply("Cast", b.input("x", 1, 3, dtype=DType.UINT8), to=1))
    for kind in (np.int64, np.float64):
        (feed,) = CalibrationSet({"x": np.array([[0, 7, 255]], kind)}, b.done().inputs)()
        assert feed["x"].dtype == np.uint8 and feed["x"].tolist() == [[0, 7, 255]]
