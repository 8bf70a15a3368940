"""The study of speed at equal accuracy: which networks it takes, and that they are what was trained."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from benchmarks import __main__, equal_accuracy  # noqa: E402
from benchmarks.equal_accuracy import INPUT, OUTPUT, blocked, exported, network, smallest, without_channels  # noqa: E402
from benchmarks.masked_training import Case, Convolutional, Trained, Wide, pattern_of  # noqa: E402
from compiler import load, parse_pass, to_onnx  # noqa: E402
from compiler.errors import PassError  # noqa: E402
from compiler.ir.encoding import BlockSparse, Dense  # noqa: E402
from compiler.ir.reference import difference, evaluate  # noqa: E402
from models.training.masked import Masks, Stored, matrix_of, weight_of  # noqa: E402

KINDS = [(Wide, (96, 64)), (Convolutional, (64, 64, 96))]


def images(kind: type) -> np.ndarray:
    return np.random.default_rng(5).random(kind.shape, np.float32)


def case(kind: type) -> Case:
    none = (torch.zeros(0),)
    return Case("case", kind, none, none, none, 1e-3, (1, 1, 1), "nothing")


def trained(net: Wide | Convolutional) -> Trained:
    masks = Masks(net.matrices(), pattern_of(net, equal_accuracy.PATTERNS_OF_OURS[0]))
    masks.shrink(0.25)
    with masks.applied():
        return Trained({k: v.clone() for k, v in net.state_dict().items()}, 0.9, 0.9, masks.stored, 0.0)


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
    with pytest.raises(PassError, match=r"0\.125 loses more than 0\.005; begin with a larger one"):
        smallest([0.125], make, start)


@pytest.mark.parametrize(("kind", "hidden"), KINDS)
def test_blocks_of_the_exported_network_are_those_that_were_trained(kind, hidden, tmp_path):
    torch.manual_seed(1)
    whole = kind(hidden)
    found = trained(whole)
    plain = load(exported(case(kind), found, tmp_path / "net.onnx"), task=OUTPUT)
    graph = blocked(plain)
    layers = [s.operands[1] for s in graph.sites() if s.node.op.name in ("Conv", "Gemm")]
    stored = [v.type.encoding for v in layers]
    assert stored == [BlockSparse(0, (16, 1))] * len(hidden) + [Dense()], "ten outputs are fewer than a block has"
    assert plain.parameters() and all(not isinstance(v.type.encoding, BlockSparse) for v in plain.parameters())
    sparse = sum(v.type.encoding.stored(v.type.shape, v.constant) for v in layers[:-1])
    assert 0.8 * found.stored.stored < sparse <= found.stored.stored, "blocks of the file are those of the training"
    (scores,) = evaluate(graph, {INPUT: images(kind)}).values()
    with torch.no_grad():
        whole.load_state_dict(found.state)
        assert difference(scores, whole.eval()(torch.from_numpy(images(kind))).numpy()) < 1e-5
    left = network(case(kind), found).hidden
    assert [v.type.shape[0] for v in layers] == [*left, 10]
    assert all(few < many for few, many in zip(left, hidden, strict=True))


@pytest.mark.parametrize(("kind", "hidden"), KINDS)
def test_units_are_all_that_leaves_with_a_channel(kind, hidden):
    """Without what a unit's spans hold, nothing that it computes reaches the output; others still do."""
    torch.manual_seed(2)
    net, x = kind(hidden).eval(), torch.from_numpy(images(kind))
    for group, layer in zip(net.units(), [m for m in net if hasattr(m, "weight")], strict=False):
        values = []
        with torch.no_grad():
            for matrix, axis, first in group.spans:
                weight = net.matrices()[matrix]
                flat = matrix_of(weight).clone()
                flat.movedim(axis, 0)[first + 3] = 0
                weight.copy_(weight_of(flat, weight))
            assert layer.weight[3].eq(0).all()
            for bias in (0.0, 5.0):
                layer.bias[3] = bias
                values.append(net(x).numpy())
            layer.bias[4] += 5.0
            assert not np.array_equal(net(x).numpy(), values[0])
        assert np.array_equal(*values)


@pytest.mark.parametrize(("kind", "hidden"), KINDS)
def test_a_narrow_network_is_the_file_that_onnxsim_makes(kind, hidden, monkeypatch):
    made = []

    def prune(model, sparsity):
        made.append(parse_pass(f"prune-channels{{parameters={1 - sparsity},scope=local}}")(load(model)))
        return to_onnx(made[-1])

    monkeypatch.setitem(sys.modules, "onnxsim", SimpleNamespace(apply_structured_pruning=prune))
    net = without_channels(kind(hidden).eval(), 0.5).eval()
    assert all(few < many for few, many in zip(net.hidden, hidden, strict=True))
    (scores,) = evaluate(made[0], {INPUT: images(kind)}).values()
    with torch.no_grad():
        assert difference(net(torch.from_numpy(images(kind))).numpy(), scores) < 1e-5


def test_without_onnxsim_or_data_the_study_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    assert equal_accuracy.main(["--data", str(tmp_path), "--kept", str(tmp_path)]) == 2
    assert "install the extra `bench`" in capsys.readouterr().err
