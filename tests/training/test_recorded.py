"""Steps that are recorded and replayed are the steps that were to be taken, on the CPU and where there is a GPU."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph  # noqa: E402
from compiler.training.distilling import Material, Wanted, prepared  # noqa: E402
from compiler.training.loop import Stepping, learning_rate  # noqa: E402
from compiler.training.module import TorchNet, check_agrees, exact_products  # noqa: E402
from compiler.training.recorded import WARM, Recorded  # noqa: E402
from compiler.training.samples import Data  # noqa: E402
from tests.graphs import Builder  # noqa: E402

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
STEPS, BATCH = 12, 16


def network(seed: int) -> Graph:
    """A network whose lowerings make constants, gather and pool."""
    b = Builder(seed=seed)
    x = b.input("x", 1, 2, 8, 8)
    h = b.apply("Relu", b.conv(x, 8, 3, pads=(1, 1, 1, 1)))
    h = b.apply("LeakyRelu", b.conv(h, 8, 3, strides=(2, 2)), alpha=0.1)
    h = b.apply("Flatten", b.apply("GlobalAveragePool", h))
    b.task("a", b.apply("Gemm", h, b.weight(3, 8), b.weight(3), transB=1))
    return b.graph.freeze()


def stepped(device: str, seed: int = 0) -> tuple[Stepping, TorchNet, Data]:
    """What trains a network towards another one, and samples, of which the last batch is not full."""
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.normal(size=(1, 2, 8, 8)).astype(np.float32)} for _ in range(3 * BATCH + 5)]
    net = TorchNet(network(1), device)
    wanted = Wanted({"a": 1.0}, frozenset("a"), 2.0, 0.0)
    data, objective = prepared(net, Material(network(2), feeds, {}), wanted, BATCH)
    return Stepping(net, objective, 0.01), net, data


def trained(device: str) -> dict[str, np.ndarray]:
    stepping, net, data = stepped(device)
    rows = torch.arange(len(data), device=device).split(BATCH)
    for step in range(STEPS):
        stepping.step(data.at(rows[step % len(rows)]), learning_rate(step, STEPS))
    return {n: w.cpu().numpy() for n, w in net.state().items()}


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_those_of_the_same_optimizer_taken_one_by_one(device, monkeypatch):
    with exact_products():
        found = trained(device)
        monkeypatch.setattr("compiler.training.recorded.WARM", STEPS + 1)  # nothing is recorded
        expected = trained(device)
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)
    assert any(np.abs(w - v).max() > 1e-3 for w, v in zip(found.values(), _first().values(), strict=True))


def _first() -> dict[str, np.ndarray]:
    return {n: w.numpy() for n, w in TorchNet(network(1)).state().items()}


@pytest.mark.parametrize("device", DEVICES)
def test_results_are_those_of_the_function_for_every_call(device):
    calls: list[int] = []

    def function(part: Data) -> tuple[torch.Tensor, ...]:
        calls.append(len(part))
        return (part.inputs["x"].sum(1) * 2,)

    recorded = Recorded(function, torch.device(device))
    for number in range(3 * WARM):
        for size in (4, 3):
            x = torch.full((size, 5), float(number), device=device)
            (found,) = recorded(Data({"x": x}, {}))
            np.testing.assert_array_equal(found.cpu().numpy(), np.full(size, 10.0 * number, np.float32))
    again = WARM + 1 if device == "cuda" else 3 * WARM
    assert calls.count(4) <= again


@pytest.mark.skipif(DEVICES == ["cpu"], reason="torch sees no GPU")
def test_what_cannot_be_recorded_is_called():
    def function(part: Data) -> tuple[torch.Tensor, ...]:
        return (part.inputs["x"] * float(part.inputs["x"].sum()),)  # waits for the GPU

    recorded = Recorded(function, torch.device("cuda"))
    for number in range(3 * WARM):
        (found,) = recorded(Data({"x": torch.full((2,), float(number), device="cuda")}, {}))
        assert found.tolist() == [2.0 * number**2] * 2


@pytest.mark.parametrize("device", DEVICES)
def test_the_torch_function_agrees_with_the_reference(device):
    feeds = [{"x": np.random.default_rng(n).normal(size=(1, 2, 8, 8)).astype(np.float32)} for n in range(2)]
    check_agrees(TorchNet(network(0), device), feeds)


def test_settings_of_products_come_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError), exact_products():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise RuntimeError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_a_step_that_goes_on_from_what_was_remembered_is_the_same_step():
    (one, net, data), (two, other, _) = stepped("cpu"), stepped("cpu")
    part = data.at(slice(0, BATCH))
    one.step(part)
    other.load(net.state())
    two.load(copy.deepcopy(one.state()))
    one.step(part, 0.5)
    two.step(part, 0.5)
    for name, weight in net.state().items():
        assert torch.equal(weight, other.state()[name]), name


def test_what_a_step_holds_is_free_when_the_step_is():
    stepping, _, data = stepped("cpu")
    stepping.step(data.at(slice(0, BATCH)))
    held = weakref.ref(stepping._one)
    gc.disable()  # nothing but the count of references frees it
    try:
        del stepping
        assert held() is None
    finally:
        gc.enable()
