"""The study of portfolios: what it calls the same network, and what it divides by what."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from torch import nn  # noqa: E402

from benchmarks import __main__, gradual, portfolio  # noqa: E402
from benchmarks.cifar import TASK  # noqa: E402
from benchmarks.merging.families import Part  # noqa: E402
from benchmarks.resident import Resident  # noqa: E402
from benchmarks.rows import Row  # noqa: E402
from compiler import load, save  # noqa: E402
from compiler.ir.encoding import BlockSparse  # noqa: E402
from compiler.ir.graph import Graph, Value  # noqa: E402
from compiler.ir.levels import at_level, level_count  # noqa: E402
from compiler.ir.reference import difference, evaluate, random_feeds  # noqa: E402
from models.training.export import Interface, export_onnx  # noqa: E402
from tests.graphs import Builder  # noqa: E402

DEAD = 5
"""Channels that have no weights, with biases; every third weight of the others is there."""


def sparse() -> Graph:
    """Three convolutions and a product; the two convolutions in the middle are sparse without a pattern."""
    b = Builder(seed=3)
    first, second = (b.rng.normal(size=shape).astype(np.float32) for shape in ((24, 16, 3, 3), (32, 24, 3, 3)))
    first[np.arange(first.size).reshape(first.shape) % 3 > 0] = 0
    first[:DEAD] = 0
    second[b.rng.random(second.shape) < 0.97] = 0
    x = b.apply("Relu", b.conv(b.input("image", 1, 3, 8, 8), 16, 3, pads=(1, 1, 1, 1)))
    x = b.apply("Relu", b.apply("Conv", x, b.const(first), b.weight(24), pads=(1, 1, 1, 1)))
    x = b.apply("Relu", b.apply("Conv", x, b.const(second), b.weight(32), pads=(1, 1, 1, 1)))
    x = b.apply("Flatten", b.apply("GlobalAveragePool", x))
    b.task(TASK, b.apply("Gemm", x, b.weight(10, 32), b.weight(10), transB=1))
    return b.done()


def test_level_0_is_the_sparse_model_without_its_dead_channels(tmp_path):
    save(sparse(), tmp_path / "sparse.onnx")
    images = np.random.default_rng(1).normal(size=(portfolio.CALIBRATION, 3, 8, 8)).astype(np.float32)
    found = portfolio.made(tmp_path / "sparse.onnx", images)
    assert level_count(found.levels) == portfolio.LEVELS and found.seconds > 0
    feeds = random_feeds(found.sparse, np.random.default_rng(0))
    (wanted,) = evaluate(found.sparse, feeds).values()
    (level0,) = evaluate(at_level(found.levels, 0), feeds).values()
    (last,) = evaluate(at_level(found.levels, portfolio.LEVELS - 1), feeds).values()
    assert difference(level0, wanted) < 1e-5 < difference(last, wanted)
    assert [w.shape[0] for w in convolutions(found.sparse)] == [16, 24, 32], "shapes are kept"
    left = 24 - DEAD + 1  # one channel stands for all that are constant
    assert [w.shape[0] for w in convolutions(found.levels)] == [16, left, 32]
    assert [isinstance(w.type.encoding, BlockSparse) for w in convolutions(found.levels)] == [False, True, True]


def convolutions(graph: Graph) -> list[Value]:
    return [s.operands[1] for s in graph.sites() if s.node.op.name == "Conv"]


def test_stored_is_the_share_of_blocks_with_a_weight_in_the_fullest_layer_between_first_and_last():
    b = Builder()
    weights = [np.ones((8, 8), np.float32), *np.zeros((2, 20, 20), np.float32), np.ones((8, 20), np.float32)]
    weights[1] = weights[1][:, :8]
    for row, column in ((0, 0), (7, 0), (8, 1), (19, 7)):  # blocks of 8 rows, the last of 4
        weights[1][row, column] = 1
    weights[2][0, 0] = 1
    x = b.input("x", 1, 8)
    for weight in weights:
        x = b.apply("Gemm", x, b.const(weight), b.weight(len(weight)), transB=1)
    b.task("t", x)
    assert portfolio.stored(b.done()) == pytest.approx(3 / (3 * 8))


def test_ratios_are_against_the_better_of_the_two_baselines():
    rows = [
        Row("portfolio", portfolio.SPARSE_OURS, 0.1, 0.25, 2.5),
        Row("portfolio", portfolio.SPARSE_ORT, 0.1, 0.5, 5.0),
        Row("portfolio", "onnxruntime, level 0", 0.1, 0.12, 1.2),
    ]
    found = portfolio.against_sparse(rows, {"onnxruntime": 800, "ours": 1000, "level 0": 100})
    assert (found["dnnshifter_size"], found["dnnshifter_latency"]) == (8.0, 2.5)
    rows[0] = Row("portfolio", portfolio.SPARSE_OURS, error="it failed")
    assert portfolio.against_sparse(rows, {"ours": 1, "level 0": 1})["dnnshifter_latency"] is None
    apart = portfolio.against_apart(0.5, Resident(1000, [1.0], [9.0]), Resident(6000, [40.0, 50.0, 60.0], [9.0]))
    assert (apart["load_over_switch"], apart["memory_ratio"]) == (100.0, 6.0)


class Small(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for channels in (3, 8, 8):
            layers += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        super().__init__(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(8, 10))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A network whose normalisation does something, as a file in which it is folded, and images."""
    torch.manual_seed(1)
    net, interface = Small(), Interface("image", TASK, (1, 3, 8, 8))
    with torch.no_grad():
        for norm in (net[1], net[4], net[7]):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.bias.normal_()
    export_onnx(net, tmp_path / "dense.onnx", interface, keep_batch_norm=False)
    monkeypatch.setattr(gradual, "NETWORKS", {"small": Small})
    monkeypatch.setattr(gradual, "INTERFACE", interface)
    images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    return net, tmp_path, Part(images, {TASK: np.arange(64) % 10})


def test_a_network_whose_normalisations_were_folded_gets_them_back(small):
    net, folder, part = small
    found = gradual.restored("small", load(folder / "dense.onnx"), part.inputs)
    x = torch.from_numpy(part.inputs)
    with torch.no_grad():
        wanted = net.eval()(x)
        assert torch.allclose(found.eval()(x), wanted, atol=1e-5)
        assert torch.allclose(found.train()(x), wanted, atol=1e-4), "statistics are those of the images"


def alive(graph):
    """Layer -> share of its weights that are not zero."""
    sites = (s for s in graph.sites() if s.node.op.name in ("Conv", "Gemm"))
    return {s.node.ref.name: float(np.mean(s.operands[1].constant != 0)) for s in sites}


def test_weights_leave_step_by_step_and_stay_away(small):
    _, folder, part = small
    steps = gradual.Steps((1 / 2, 1 / 8), (1, 1), seed=0, batch=16)
    found = gradual.gradual("small", folder / "dense.onnx", part, steps, folder)
    first, *between, last = alive(load(found.file)).values()
    assert (first, last) == (1, 1) and between == [pytest.approx(1 / 8)] * 2, "the same share of every layer"
    half = folder / f"small-sparse-{steps.name(1)}-64.onnx"
    assert list(alive(load(half)).values()) == [1, pytest.approx(1 / 2), pytest.approx(1 / 2), 1]
    written = found.file.read_bytes()
    again = gradual.gradual("small", folder / "nowhere.onnx", part, steps, folder)
    assert again == found and found.seconds > 0 and found.file.read_bytes() == written
    for kernel in (1, 2):  # what is gone stays gone
        before, after = (gradual.weights(load(f))[kernel][0] != 0 for f in (half, found.file))
        assert not (after & ~before).any()


def test_the_study_says_what_data_it_lacks(tmp_path, capsys):
    assert __main__.STUDIES["portfolio"] == "benchmarks.portfolio"
    assert portfolio.main(["--data", str(tmp_path), "--kept", str(tmp_path)]) == 2
    assert "data sets are no part of the repository" in capsys.readouterr().err
