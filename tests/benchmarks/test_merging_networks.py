"""Networks and data of the families of the merging study: sizes, starts, who is in which part, what labels say."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from benchmarks.merging import faces
from benchmarks.merging.families import (
    FACES,
    FAMILIES,
    OBJECTS,
    REPORTED,
    TABLES,
    TAGS,
    WINDOW,
    Data,
    Effort,
    Family,
    Part,
)
from benchmarks.merging.nets import lenet, resnet, small_vgg, tagger, wide_vgg
from benchmarks.networks import Net
from compiler import cost_report, load, parse_pass
from compiler.passes.base import Resources
from tests.shared import shared_path

MACS = {
    "fashion-pair": 658_560,
    "spoken": 1_123_440,
    "fashion-five": 456_816,
    "fashion-five-wide": 31_159_808,
    "cifar-five": 40_812_672,
    "cifar-five-wide": 34_800_000,
    "faces": 15_106_176,
    "faces-resnet": 12_501_120,
    "taggers": 763_392,
}


def macs_of(model: onnx.ModelProto) -> int:
    return cost_report(load(model)).combinations[0].cost.macs


@pytest.mark.parametrize("name", MACS)
def test_networks_have_the_size_that_is_told(name):
    family = FAMILIES[name]
    task, classes = next(iter(family.tasks.items()))
    model = family.network(task, 0)
    assert macs_of(model) == MACS[name]
    decisions = WINDOW if name == "taggers" else 1
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert shape[-1] == classes and np.prod(shape) == decisions * classes
    told = re.search(r"(\d+) million", family.what)
    assert told is None or int(told[1]) == round(MACS[name] / 1e6)


def test_every_family_goes_below_where_it_starts_and_every_task_has_its_classes():
    for family in FAMILIES.values():
        assert list(family.shares) == sorted(set(family.shares), reverse=True) and family.shares[0] < 1
        outputs = {t: family.network(t, 0).graph.output[0].type.tensor_type.shape for t in family.tasks}
        assert {t: s.dim[-1].dim_value for t, s in outputs.items()} == dict(family.tasks), family.name


def test_layers_are_those_of_the_docstrings():
    small, wide = (make("t", 2, 0, (1, 8, 8), (4, 6)) for make in (small_vgg, wide_vgg))
    pooled = ["Conv", "Relu", "MaxPool"] * 2
    assert [n.op_type for n in small.graph.node] == [*pooled, "Flatten", "Gemm", "Relu", "Gemm"]
    assert [n.op_type for n in wide.graph.node] == [*pooled, "GlobalAveragePool", "Flatten", "Gemm"]
    assert shapes_of(small)[-4:] == [(6, 24), (6,), (2, 6), (2,)]
    assert shapes_of(lenet("t", 3, 0, (2, 4, 5)))[::2] == [(2, 1, 5, 5), (4, 2, 5, 5), (5, 64), (3, 5)]


def shapes_of(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [tuple(w.dims) for w in model.graph.initializer]


def test_a_seed_says_which_weights_a_network_begins_with():
    first, again, other = (resnet("t", 2, seed, (3, 8, 8), 1) for seed in (1, 1, 2))
    assert first.SerializeToString() == again.SerializeToString() != other.SerializeToString()
    assert shapes_of(first) == shapes_of(other)


def test_a_residual_block_starts_near_the_identity():
    """What a branch adds is small beside what goes past it, in blocks that have a bare shortcut and in others."""
    model = resnet("t", 2, 0, (3, 16, 16), 3, first=2)
    sums = [n for n in model.graph.node if n.op_type == "Add"]
    assert len(sums) == 9 and sum(n.op_type == "Conv" for n in model.graph.node) == 1 + 2 * 9 + 2
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(i) for n in sums for i in n.input)
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    found = ReferenceEvaluator(model).run(None, {"x": x})[1:]
    for branch, past in zip(found[::2], found[1::2], strict=True):
        assert 0 < np.std(branch) < 0.45 * np.std(past)
    assert found[0].shape == (1, 16, 8, 8) and found[-1].shape == (1, 64, 2, 2)


def test_gain_scales_the_weights_of_a_convolution_and_not_its_bias():
    one, other = (Net("n", (1, 3, 4, 4), seed=0) for _ in range(2))
    one.conv("x", 5)
    other.conv("x", 5, gain=0.2)
    (w, b), (less, same) = (
        [onnx.numpy_helper.to_array(i) for i in n.model("x").graph.initializer] for n in (one, other)
    )
    assert np.allclose(less, 0.2 * w, rtol=1e-6) and np.array_equal(b, same)


def test_quick_looks_at_few_images_and_full_at_all_where_it_says_so():
    part = Part(np.zeros((REPORTED + 9, 1), np.float32), {})
    family = Family(
        "f", "", {}, lambda folder: Data(part, part, part), lenet, Effort(0, 1, 1, 1), Effort(7, 1, 1, 1)
    )

    def counts(quick: bool) -> list[int]:
        data = family.data(Path(), quick)
        return [len(x) for x in (data.train.inputs, data.selection.inputs, data.report.inputs, data.unlabelled)]

    assert counts(quick=True) == [7, REPORTED, REPORTED, 7]
    assert counts(quick=False) == [REPORTED + 9] * 4


# ---------------------------------------------------------------------- faces
def test_no_person_is_in_two_parts():
    identity = np.random.default_rng(0).integers(0, 40, 300)
    parts = faces.split(identity, 0, faces.TRAINING)
    assert sorted(np.concatenate(parts)) == list(range(300))
    people = [set(identity[rows]) for rows in parts]
    assert [len(p) for p in people] == [18, 12, 10] and len(set.union(*people)) == 40


def test_faces_have_their_own_labels_and_none_where_nobody_gave_one(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow, which the extra [images] installs")
    count, names = 30, np.array([f"person_{i:02}.png" for i in range(30)])
    labels = {t: (np.arange(count) % classes).astype(np.uint8) for t, classes in FACES.items()}
    labels["smile"][::3] = faces.UNLABELLED
    (tmp_path / "lfw").mkdir()
    np.savez(tmp_path / "lfw" / "lfw_labels.npz", name=names, identity=np.arange(count) // 2, **labels)
    with zipfile.ZipFile(tmp_path / "lfw" / "lfw_wide64_rgb_q92.zip", "w") as archive:
        for i, name in enumerate(names):
            file = io.BytesIO()
            image.new("RGB", (64, 64), (i, 100, 255)).save(file, "PNG")
            archive.writestr(str(name), file.getvalue())
    data, people = faces.load_faces(tmp_path), []
    for part in (data.train, data.selection, data.report):
        assert part.inputs.shape[1:] == (3, 64, 64) and part.inputs.dtype == np.float32
        assert np.all(part.inputs[:, 2] == 2.0), "255 is two deviations above the mean"
        number = np.rint(part.inputs[:, 0, 0, 0] * 63.75 + 127.5).astype(int)
        people.append(set(number // 2))
        for task, given in labels.items():
            assert part.labels[task].dtype == np.int64
            wanted = given[number].astype(int)
            assert np.array_equal(part.labels[task], np.where(wanted == faces.UNLABELLED, -1, wanted))
    assert [len(p) for p in people] == [7, 4, 4] and len(set.union(*people)) == 15


# ---------------------------------------------------------------------- CIFAR-10
KINDS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TOLD = {
    "vehicle": {"airplane", "automobile", "ship", "truck"},
    "road": {"automobile", "truck"},
    "pet": {"cat", "dog"},
    "hoofed": {"deer", "horse"},
    "flying": {"airplane", "bird"},
}


def test_five_tasks_tell_the_classes_they_are_named_after(tmp_path, monkeypatch):
    """Every pixel is the number of the image's class, so that an image says what its labels should be."""
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    from benchmarks import cifar
    from benchmarks.merging import objects

    monkeypatch.setattr(objects, "SELECTING", 3)
    folder = (tmp_path / cifar.ARCHIVE).parent
    folder.mkdir()
    pixels = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None, None], (10, 5, 3, 32, 32))
    np.savez(folder / objects.PIXELS, train=pixels, test=pixels[:, :1])
    data = objects.load_objects(tmp_path)
    assert [len(p.inputs) for p in (data.train, data.selection, data.report)] == [20, 30, 10]
    assert list(TOLD) == list(OBJECTS) == list(data.train.labels)
    for part in (data.train, data.selection, data.report):
        shown = np.rint((part.inputs[:, 0, 0, 0] * cifar.SPREAD + cifar.MIDDLE) * 255).astype(int)
        for task, kinds in TOLD.items():
            assert part.labels[task].tolist() == [int(KINDS[c] in kinds) for c in shown], task


def test_pixels_are_decoded_anew_and_left_nowhere_where_nobody_has_put_them(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    image = pytest.importorskip("PIL.Image", reason="needs pillow, which the extra [images] installs")
    from benchmarks import cifar
    from benchmarks.merging import objects

    monkeypatch.setattr(objects, "SELECTING", 1)
    (tmp_path / cifar.ARCHIVE).parent.mkdir()
    with zipfile.ZipFile(tmp_path / cifar.ARCHIVE, "w") as archive:
        for kind, part, number in ((k, p, n) for k in KINDS for p in ("train", "test") for n in range(2)):
            file = io.BytesIO()
            image.new("RGB", (32, 32), (20 * KINDS.index(kind),) * 3).save(file, "JPEG", quality=100)
            archive.writestr(f"{part}/{kind}/{number:04}.jpg", file.getvalue())
    data = objects.load_objects(tmp_path)
    shown = np.rint((data.report.inputs[:, 0, 0, 0] * cifar.SPREAD + cifar.MIDDLE) * 255).astype(int) // 20
    assert data.report.labels["road"].tolist() == [int(c in (1, 9)) for c in shown]
    assert [f.name for f in (tmp_path / "cifar10_jpg").iterdir()] == [cifar.ARCHIVE.name]


def test_classes_of_the_archive_are_numbered_in_the_order_of_their_names():
    with zipfile.ZipFile(shared_path("data", "cifar10_jpg", "cifar10_jpg.zip")) as archive:
        found = {n.split("/")[1] for n in archive.namelist() if n.endswith(".jpg")}
    assert tuple(sorted(found)) == KINDS


def test_taggers_share_their_tables_and_their_layer():
    pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
    from benchmarks.merging.training import joined

    tables = ((7, 3), (5, 2))
    networks = {t: load(tagger(t, 4, seed, 6, tables, 3), task=t) for seed, t in enumerate(TAGS)}
    family = joined(networks)
    read = np.stack([np.random.default_rng(k).integers(0, rows, (12, 6)) for k, (rows, _) in enumerate(tables)], 1)
    merged = parse_pass("merge{start=shared}")(family, Resources(calibration={"x": read[:, None]}))
    shared = [n.op.name for n in merged.nodes() if merged.needed_by()[n.ref] == frozenset(TAGS)]
    assert shared.count("LSTM") == 1 and [n.op.name for n in merged.nodes()].count("LSTM") == 1
    looked_up = [
        s.operands[0].shape for s in merged.sites() if s.node.op.name == "Gather" and s.operands[0].data is not None
    ]
    assert sorted({rows for rows, _ in looked_up}) == [5, 7]
    assert sum(columns for rows, columns in looked_up if rows == 7) == 3 * 3


def test_windows_are_running_text_with_every_tag():
    data = FAMILIES["taggers"].load(shared_path("data"))
    assert data.train.inputs.shape == (12580, 2, WINDOW) and data.train.inputs.min() > 0
    assert tuple(data.train.inputs.max(axis=(0, 2)) + 1) == tuple(rows for rows, _ in TABLES)
    for task, classes in TAGS.items():
        labels = data.train.labels[task]
        assert labels.shape == (12580, WINDOW) and labels.min() == 0 and labels.max() == classes - 1
        assert data.report.labels[task].min() >= -1
