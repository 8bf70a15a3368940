"""CIFAR-10 for studies: three disjoint parts, and networks of the size they say."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")
image = pytest.importorskip("PIL.Image", reason="needs pillow, which the extra [images] installs")

from benchmarks import cifar  # noqa: E402
from compiler import cost_report, load  # noqa: E402
from models.training.export import export_onnx  # noqa: E402
from models.training.fit import Schedule, _resident_batches, fit_resident, predict, random_shift  # noqa: E402

KINDS = [f"kind{c}" for c in range(cifar.CLASSES)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Grey images whose brightness says class and number: 20 * class + 3 * number."""
    folder = tmp_path_factory.mktemp("data")
    (folder / cifar.ARCHIVE).parent.mkdir()
    with zipfile.ZipFile(folder / cifar.ARCHIVE, "w") as made:
        for part, count in (("train", 4), ("test", 2)):
            for c, kind in enumerate(KINDS):
                for n in range(count):
                    file = io.BytesIO()
                    image.new("RGB", (32, 32), (20 * c + 3 * n,) * 3).save(file, "JPEG", quality=100)
                    made.writestr(f"{part}/{kind}/{n:04}.jpg", file.getvalue())
    return folder


def brightness(part) -> set[int]:
    means = part.inputs.mean(axis=(1, 2, 3)) * cifar.SPREAD + cifar.MIDDLE
    return {round(float(m) * 255) for m in means}


def test_parts_are_disjoint_and_labels_follow_their_images(archive, tmp_path):
    data = cifar.load_cifar(archive, tmp_path, selection=1)
    assert [len(p.inputs) for p in (data.train, data.selection, data.report)] == [30, 10, 20]
    assert brightness(data.selection) == {20 * c + 9 for c in range(10)}
    assert brightness(data.train) == {20 * c + 3 * n for c in range(10) for n in range(3)}
    seen = np.round((data.train.inputs.mean(axis=(1, 2, 3)) * cifar.SPREAD + cifar.MIDDLE) * 255)
    assert np.array_equal(seen // 20, data.train.labels[cifar.TASK])
    again = cifar.load_cifar(Path("nowhere"), tmp_path, selection=1)
    assert np.array_equal(again.report.inputs, data.report.inputs), "decoded pixels are kept"


def test_a_trained_network_is_read_again_and_has_the_size_that_is_told(archive, tmp_path):
    part = cifar.load_cifar(archive, selection=1).train
    effort = cifar.Effort(epochs=1, seed=0, batch=15)
    file = cifar.trained("vgg-cifar10", part, effort, tmp_path)
    written = file.read_bytes()
    assert cifar.trained("vgg-cifar10", part, effort, tmp_path) == file and file.read_bytes() == written
    assert cost_report(load(file)).combinations[0].cost.macs == pytest.approx(25.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("network", "macs"),
    [("vgg-cifar10", 25.7e6), ("vgg16-cifar10", 313e6), ("resnet18-cifar10", 555e6), ("resnet20-cifar10", 41e6)],
)
def test_networks_have_the_size_that_is_told(network, macs, tmp_path):
    file = tmp_path / "net.onnx"
    export_onnx(cifar.NETWORKS[network](), file, cifar.INTERFACE, keep_batch_norm=False)
    assert cost_report(load(file)).combinations[0].cost.macs == pytest.approx(macs, rel=0.01)


def test_images_that_lie_on_a_device_are_moved_and_mirrored_as_a_whole():
    images = np.arange(3 * 6 * 6, dtype=np.float32).reshape(1, 3, 6, 6) + 1
    inputs = torch.from_numpy(images).repeat(64, 1, 1, 1)
    seen = list(_resident_batches(inputs, torch.arange(64), 16, torch.Generator().manual_seed(0), 1))
    assert sorted(torch.cat([y for _, y in seen]).tolist()) == list(range(64))
    padded = np.pad(images[0], ((0, 0), (1, 1), (1, 1)))
    windows = [padded[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    known = {w.tobytes(): n for n, w in enumerate([*windows, *(w[:, :, ::-1] for w in windows)])}
    met = {known[np.ascontiguousarray(x.numpy()).tobytes()] for batch, _ in seen for x in batch}
    assert len(met) > 12


def test_training_where_the_data_lie_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 256)
    inputs = (rng.normal(size=(256, 3, 4, 4)) + labels[:, None, None, None]).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    fit_resident(cifar.Mixed(net), inputs, labels, Schedule(5, seed=0, batch=32), torch.device("cpu"), 1)
    assert np.mean(predict(net, inputs) == labels) > 0.9


def test_a_shift_moves_all_channels_alike():
    x = np.arange(2 * 3 * 5 * 5, dtype=np.float32).reshape(2, 3, 5, 5) + 1
    moved = random_shift(x, 1, 1, np.random.default_rng(0))
    for before, after in zip(x, moved, strict=True):
        rows = np.nonzero(after[0].any(axis=1))[0]
        assert len(rows) >= 4
        held = after[:, after[0] > 0]
        assert np.array_equal(held - held[0], np.repeat([[0], [25], [50]], held.shape[1], axis=1))
        assert set(held[0]) <= set(before[0].ravel())


def test_accuracy_is_the_share_of_largest_scores():
    part = cifar.Part(np.zeros((2, 3, 32, 32), np.float32), {cifar.TASK: np.array([1, 3])})
    scores = np.eye(10)[[1, 2]].reshape(2, 1, 10)
    assert cifar.accuracy(scores, part) == 0.5
