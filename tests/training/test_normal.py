"""Convolutions normalised while they train: as torch's own batch normalisation, and plain ones after."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph  # noqa: E402
from compiler.training.loop import Recipe, Stepping, Training, held_out_loss  # noqa: E402
from compiler.training.losses import Objective, squared  # noqa: E402
from compiler.training.module import TorchNet  # noqa: E402
from compiler.training.normal import EPS, Normals  # noqa: E402
from compiler.training.samples import Data  # noqa: E402
from tests.graphs import Builder  # noqa: E402

BATCH = 16
RATE = 0.01


def network(seed: int = 1, groups: int = 1) -> Graph:
    b = Builder(seed)
    h = b.apply("Relu", b.conv(b.input("x", 1, 2, 6, 6), 4, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Relu", b.conv(h, 6, 3, strides=(2, 2), group=groups))
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(3, 24), b.weight(3), transB=1))
    return b.done()


def samples(count: int, seed: int = 0, scale: float = 3.0) -> Data:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy((rng.normal(size=(count, 1, 2, 6, 6)) * scale + 1).astype(np.float32))
    return Data({"x": x}, {("t", 0): x[:, :, 0, 0, :3] * 0.5})


def objective(net: TorchNet) -> Objective:
    return Objective({("t", 0): (net.graph.tasks["t"].outputs[0], 1.0, squared(1.0))}, {})


def run(net: TorchNet, data: Data) -> torch.Tensor:
    with torch.no_grad():
        (found,) = net.run(data.inputs).values()
    return found


def torch_network(net: TorchNet, data: Data, groups: int = 1) -> torch.nn.Sequential:
    """The same network of torch's own layers, whose normalisations begin without an effect on `data`."""
    w = {r.name: v.detach().clone() for r, v in net.weights.items()}
    nn = torch.nn
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, EPS, momentum=None), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False, groups=groups), nn.BatchNorm2d(6, EPS, momentum=None), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 3),
    ]  # fmt: skip
    convolutions, biases, (product, shift) = _named(net.graph)
    with torch.no_grad():
        x = data.inputs["x"][:, 0]
        for k, at in enumerate((0, 3)):
            layers[at].weight.copy_(w[convolutions[k]])
            raw = layers[at](x)
            variance, mean = torch.var_mean(raw.double(), (0, 2, 3), correction=0)
            layers[at + 1].weight.copy_((variance + EPS).sqrt())
            layers[at + 1].bias.copy_(w[biases[k]] + mean)
            x = torch.relu(raw + w[biases[k]][:, None, None])
        layers[7].weight.copy_(w[product])
        layers[7].bias.copy_(w[shift])
    return nn.Sequential(*layers)


def _named(graph: Graph) -> tuple[list[str], list[str], list[str]]:
    """Weights of the convolutions, their biases, and weight and bias of the product."""
    by_op = [(s.node.op.name, [v.ref.name for _, v in s.operands.present()][1:]) for s in graph.sites()]
    found = [names for op, names in by_op if op == "Conv"]
    return [n[0] for n in found], [n[1] for n in found], next(names for op, names in by_op if op == "Gemm")


# ---------------------------------------------------------------------- what a network computes
@pytest.mark.parametrize("mixed", [False, True])
def test_nothing_changes_where_it_begins_and_where_it_is_folded(mixed):
    net, data = TorchNet(network()), samples(50)
    net.mixed = mixed
    before, first = run(net, data), net.state()
    net.normalise([data.at(slice(n, n + 10)).inputs for n in range(0, 50, 10)])
    torch.testing.assert_close(run(net, data), before, rtol=1e-3, atol=5e-2 if mixed else 1e-4)
    net.fold()
    torch.testing.assert_close(run(net, data), before, rtol=1e-3, atol=5e-2 if mixed else 1e-4)
    assert net.state().keys() == first.keys()


def test_what_was_trained_computes_the_same_folded():
    net, data = TorchNet(network()), samples(64)
    net.normalise([data.inputs])
    stepping = Stepping(net, objective(net), RATE)
    for _ in range(5):
        stepping.step(data)
    net.measure([data.inputs])
    normalised, weights = run(net, data), {r: w.clone() for r, w in net.weights.items()}
    net.fold()
    torch.testing.assert_close(run(net, data), normalised, rtol=1e-4, atol=1e-4)
    changed = [not torch.equal(w, weights[r]) for r, w in net.weights.items()]
    assert changed == [True] * 4 + [False] * 2, "two convolutions have scales, and the product has none"


@pytest.mark.parametrize("groups", [1, 2])
def test_steps_are_those_of_torchs_batch_normalisation(groups):
    net, data = TorchNet(network(groups=groups)), samples(3 * BATCH)
    parts = [data.at(slice(n, n + BATCH)) for n in range(0, len(data), BATCH)]
    other = torch_network(net, data, groups)
    net.normalise([data.inputs])
    stepping = Stepping(net, objective(net), RATE)
    for group in (full := stepping._optimizer.param_groups):
        group["lr"] = RATE  # of every tensor alike, as there
    stepping._full = [RATE] * len(full)
    theirs = torch.optim.Adam(other.parameters(), RATE)
    for part in parts * 3:
        stepping.step(part)
        theirs.zero_grad()
        torch.nn.functional.mse_loss(other(part.inputs["x"][:, 0]), part.teacher["t", 0][:, 0]).backward()
        theirs.step()
    for layer in other:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
    with torch.no_grad():
        other(data.inputs["x"][:, 0])  # statistics of all samples
    net.measure([data.inputs])
    _unbiased(other, len(data))
    with torch.no_grad():
        expected = other.eval()(data.inputs["x"][:, 0])
    torch.testing.assert_close(run(net, data)[:, 0], expected, rtol=1e-3, atol=1e-3)
    net.fold()
    torch.testing.assert_close(run(net, data)[:, 0], expected, rtol=1e-3, atol=1e-3)


def _unbiased(net: torch.nn.Sequential, count: int) -> None:
    """Torch keeps variances over one sample less."""
    for layer, places in ((net[1], 36), (net[4], 4)):
        layer.running_var *= (count * places - 1) / (count * places)


def test_statistics_are_the_means_over_batches():
    net, data = TorchNet(network()), samples(40)
    parts = [data.at(slice(n, n + 20)).inputs for n in (0, 20)]
    net.normalise(parts)
    node = next(s.node.ref.name for s in net.graph.sites() if s.node.op.name == "Conv")
    weights = list(net.weights.values())
    name = _named(net.graph)[0][0]
    weight = next(w for r, w in net.weights.items() if r.name == name)
    raw = torch.nn.functional.conv2d(data.inputs["x"][:, 0], weight, padding=1)
    state = net.state()
    torch.testing.assert_close(state[f"{node}/mean"], raw.mean((0, 2, 3)))
    torch.testing.assert_close(state[f"{node}/variance"], raw.var((0, 2, 3), correction=0))
    assert len(weights) + 6 == len(state)


# ---------------------------------------------------------------------- which convolutions
def counted(net: TorchNet) -> int:
    return len(list(Normals(net.graph, net.weights, net._masks).scales))


def with_convolution(change: str) -> TorchNet:
    """One ordinary convolution and one that something is the matter with."""
    b = Builder(3)
    x = b.input("x", 1, 2, 6, 6)
    h = b.conv(x, 2, 3, pads=(1, 1, 1, 1))
    weight, bias = b.weight(2, 2, 3, 3), b.weight(2)
    h = b.apply("Conv", *((h, weight) if change == "no bias" else (h, weight, bias)), pads=(1, 1, 1, 1))
    if change == "shared weight":
        h = b.apply("Conv", h, weight, b.weight(2))
    if change == "shared bias":
        h = b.apply("Conv", h, b.weight(2, 2, 3, 3), bias)
    if change == "fixed input":
        h = b.apply("Add", h, b.apply("Conv", b.weight(1, 2, 6, 6), b.weight(2, 2, 1, 1), b.weight(2)))
    b.task("t", h)
    return TorchNet(b.graph.freeze())


@pytest.mark.parametrize(
    ("change", "left"),
    [("nothing", 2), ("no bias", 1), ("shared weight", 1), ("shared bias", 1), ("fixed input", 2)],
)
def test_convolutions_with_a_weight_and_a_bias_of_their_own_are_normalised(change, left):
    assert counted(with_convolution(change)) == left


def test_what_is_fixed_in_part_stays_plain_and_zeros_stay():
    net, data = TorchNet(network()), samples(30)
    (first, second), (bias, _), _ = _named(net.graph)
    refs = {r.name: r for r in net.weights}
    masks = {n: np.ones(net.weights[refs[n]].shape, bool) for n in (first, second, bias)}
    masks[first][1:] = False
    for name, left in ((second, 2), (first, 1)):
        masks[second][:, 1] = False
        net.free({refs[n]: masks[n] for n in {second, name}})
        if name == second:
            net.put(refs[second], net.array(refs[second]) * masks[second])  # what is not free is zero
        assert counted(net) == left
    net.free({refs[bias]: np.zeros(4, bool)})
    assert counted(net) == 1, "a bias that may not change"
    net.free({refs[second]: masks[second]})
    net.normalise([data.inputs])
    stepping = Stepping(net, objective(net), RATE)
    for _ in range(3):
        stepping.step(data)
    net.measure([data.inputs])
    net.fold()
    assert np.array_equal(net.array(refs[second]) != 0, masks[second])


# ---------------------------------------------------------------------- training
def training(normalise=True, file=None, say=lambda line: None) -> tuple[Training, TorchNet]:
    net, recipe = TorchNet(network()), Recipe(4, BATCH, RATE, 0, 0, normalise=normalise)
    return Training(net, objective(net), recipe, samples(100), samples(40, seed=1), file, say), net


@pytest.mark.parametrize("normalise", [False, True])
def test_what_comes_back_is_plain_and_as_good_as_it_was_judged(normalise):
    whole, net = training(normalise)
    history = whole.run()
    assert net.state().keys() == {r.name for r in net.weights}
    judged = held_out_loss(net, objective(net), samples(40, seed=1), BATCH)
    assert judged == pytest.approx(min(history.losses), rel=1e-4) and judged < 0.8 * history.losses[0]


@pytest.mark.parametrize(("count", "sizes"), [(33, [16, 16]), (34, [16, 16, 2]), (32, [16, 16]), (17, [16])])
def test_a_batch_of_one_sample_is_left_out(count, sizes):
    b = Builder(4)
    h = b.apply("Relu", b.conv(b.input("x", 1, 2, 6, 6), 4, 6))  # one number per channel and sample
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(3, 4), b.weight(3), transB=1))
    net, seen = TorchNet(b.done()), []
    run_ = Training(net, objective(net), Recipe(1, BATCH, RATE, 0, 0, normalise=True), samples(count), samples(8))
    step = run_._stepping.step
    run_._stepping.step = lambda part, factor: (seen.append(len(part)), step(part, factor))
    run_.run()
    assert seen == sizes and all(bool(w.isfinite().all()) for w in net.weights.values())


def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path):
    whole, net = training()
    whole.run()

    def stop(text):
        if "epoch 2 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(file=tmp_path / "kept", say=stop)[0].run()
    said = []
    again, other = training(file=tmp_path / "kept", say=said.append)
    again.run()
    assert said[0] == "distil: continues after epoch 2"
    assert all(torch.equal(w, other.state()[n]) for n, w in net.state().items())
