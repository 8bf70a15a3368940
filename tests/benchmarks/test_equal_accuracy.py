"""The study of speed at equal accuracy: which networks it takes, and that they are what was trained."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from benchmarks import __main__, equal_accuracy  # noqa: E402
from benchmarks.equal_accuracy import INTERFACE, blocked, exported, network, smallest, without_channels  # noqa: E402
from benchmarks.masked_training import Trained, Wide, pattern_of  # noqa: E402
from compiler import load, parse_pass, to_onnx  # noqa: E402
from compiler.ir.encoding import BlockSparse, Dense  # noqa: E402
from compiler.ir.reference import difference, evaluate  # noqa: E402
from models.training.masked import Masks, Stored  # noqa: E402

IMAGES = np.random.default_rng(5).random((1, 784), np.float32)


def trained(net: Wide) -> Trained:
    masks = Masks(net.matrices(), pattern_of(net, equal_accuracy.PATTERNS_OF_BLOCKS[0]))
    masks.shrink(0.25)
    with masks.applied():
        return Trained({k: v.clone() for k, v in net.state_dict().items()}, 0.9, 0.9, Stored(1, 1, 0), 0.0)


def test_others_find_the_study():
    assert __main__.STUDIES["equal-accuracy"] == equal_accuracy.__name__


def test_the_last_network_within_the_limit_is_taken_and_no_smaller_one_is_trained():
    scores = {0.5: 0.899, 0.25: 0.896, 0.125: 0.894, 0.1: 0.9}
    made = []

    def make(share):
        made.append(share)
        return Trained({}, scores[share], 0.0, Stored(1, 1, 0), 0.0)

    start = Trained({}, 0.9, 0.9, Stored(1, 1, 0), 0.0)
    found = smallest(list(scores), make, start)
    assert (found.share, found.trained.dev) == (0.25, 0.896)
    assert made == [0.5, 0.25, 0.125] == list(found.tried)
    with pytest.raises(ValueError, match=r"0\.125 loses more than 0\.005; begin with a larger one"):
        smallest([0.125], make, start)


def test_blocks_of_the_exported_network_are_those_that_were_trained(tmp_path):
    torch.manual_seed(1)
    whole = Wide((96, 64))
    found = trained(whole)
    plain = load(exported(found, tmp_path / "net.onnx"), task=INTERFACE.output)
    graph = blocked(plain)
    stored = [v.type.encoding for v in graph.parameters() if len(v.type.shape) == 2]
    assert stored == [BlockSparse(0, (16, 1))] * 2 + [Dense()], "ten outputs are fewer than a block has"
    assert plain.parameters() and all(not isinstance(v.type.encoding, BlockSparse) for v in plain.parameters())
    (scores,) = evaluate(graph, {INTERFACE.input: IMAGES}).values()
    with torch.no_grad():
        whole.load_state_dict(found.state)
        assert difference(scores, whole.eval()(torch.from_numpy(IMAGES)).numpy()) < 1e-5
    hidden = network(found).hidden
    assert next(v.type.shape for v in graph.parameters() if len(v.type.shape) == 2) == (hidden[0], 784)
    assert hidden[0] < 96 and hidden[1] < 64


def test_a_narrow_network_is_the_file_that_onnxsim_makes(monkeypatch):
    made = []

    def prune(model, sparsity):
        made.append(parse_pass(f"prune-channels{{parameters={1 - sparsity},scope=local}}")(load(model)))
        return to_onnx(made[-1])

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(apply_structured_pruning=prune))
    net = without_channels(Wide((48, 32)).eval(), 0.5).eval()
    assert net.hidden[0] < 48 and net.hidden[1] < 32
    (scores,) = evaluate(made[0], {INTERFACE.input: IMAGES}).values()
    with torch.no_grad():
        assert difference(net(torch.from_numpy(IMAGES)).numpy(), scores) < 1e-5


def test_without_onnxsim_or_data_the_study_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    assert equal_accuracy.main(["--data", str(tmp_path), "--kept", str(tmp_path)]) == 2
    assert "install the extra `bench`" in capsys.readouterr().err
