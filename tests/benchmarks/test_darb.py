"""The study of pruning ratios: what leaves with a channel, what is trained once, and what a file of rows says."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from torch import nn  # noqa: E402

from benchmarks import darb, masked_training  # noqa: E402
from benchmarks.masked_training import (  # noqa: E402
    CHANNELS,
    HIDDEN,
    NARROW_BLOCKS,
    NARROW_DARB,
    Case,
    Tagger,
    Wide,
    pattern_of,
)
from compiler.workers.store import Store  # noqa: E402
from models.training.masked import Masks  # noqa: E402

TAGS = 5


def masked(net: nn.Module, density: float) -> tuple[Masks, list[np.ndarray]]:
    """Masks of channels, and the matrices as they are within them."""
    masks = Masks(net.matrices(), pattern_of(net, CHANNELS))
    masks.shrink(density)
    with masks.applied():
        return masks, [p.detach().numpy().copy() for p in net.matrices()]


def left(matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.flatnonzero((matrix != 0).any(axis=1 - axis))


@pytest.fixture
def tagger() -> Tagger:
    torch.manual_seed(3)
    return Tagger(11, 7, TAGS).eval()


def test_a_tagger_of_the_hidden_units_that_are_left_computes_the_same(tagger):
    """The tie of ONNX: unit j leaves in both directions, with its four gates, its recurrent column, its readers."""
    masks, matrices = masked(tagger, 0.4)
    units = left(matrices[1], 1)
    assert 0 < len(units) < HIDDEN
    narrow = nn.LSTM(96, len(units), batch_first=True, bidirectional=True)
    gates = np.concatenate([units + g * HIDDEN for g in range(4)])
    with torch.no_grad():
        for name, p in narrow.named_parameters():
            whole = dict(tagger.lstm.named_parameters())[name][gates]
            p.copy_(whole[:, units] if name.startswith("weight_hh") else whole)
        words, suffixes = torch.arange(11)[None], torch.arange(11)[None] % 7
        x = torch.cat([tagger.word(words), tagger.suffix(suffixes)], dim=-1)
        read = np.concatenate([units, units + HIDDEN])
        scores = narrow(x)[0] @ tagger.out.weight[:, read].T + tagger.out.bias
        with masks.applied():
            assert torch.allclose(tagger(words, suffixes), scores, atol=1e-5)
    assert masks.stored.stored == sum(
        p.numel() for n, p in narrow.named_parameters() if "weight" in n
    ) + TAGS * len(read)


def test_as_few_channels_leave_as_the_density_asks_for(tagger):
    for net, density in ((tagger, 0.3), (Wide((24, 16)), 0.5)):
        masks, _ = masked(net, density)
        step = max(sum(net.matrices()[m].shape[1 - axis] for m, axis, _ in u.spans) for u in net.units())
        most = density * masks.stored.elements
        assert most - step < masks.stored.stored <= most and masks.stored.index_bytes == 0


def test_the_units_with_the_least_weights_leave_first():
    net = Wide((24, 16))
    with torch.no_grad():
        net[0].weight[:5] *= 0.01
        net[3].weight[:, :5] *= 0.01
    _, (first, second, _) = masked(net, 0.8)
    assert list(left(first, 0)) == list(left(second, 1)) == list(range(5, 24))


def test_blocks_of_a_narrow_network_are_those_of_its_own_rows():
    """Half of the units leave, and half of what remains: blocks hold 16 of the rows that are there."""
    torch.manual_seed(4)
    net = Wide((96, 64))
    masks = Masks(net.matrices(), pattern_of(net, NARROW_BLOCKS))
    masks.shrink(0.25)
    with masks.applied():
        matrices = [p.detach().numpy().copy() for p in net.matrices()]
    first = matrices[0]
    rows = left(first, 0)
    narrow = np.add.reduceat(first[rows] != 0, np.arange(0, len(rows), 16), axis=0)
    heights = np.minimum(16, len(rows) - np.arange(0, len(rows), 16))[:, None]
    assert 30 < len(rows) < 60 and ((narrow == 0) | (narrow == heights)).all() and (narrow == 0).mean() > 0.3
    assert masks.stored.stored == sum(int((p != 0).sum()) for p in matrices) and masks.stored.index_bytes > 0


def test_units_of_a_narrow_network_stay_away_and_its_weights_may_come_back():
    torch.manual_seed(5)
    net = Wide((96, 64))
    masks = Masks(net.matrices(), pattern_of(net, NARROW_DARB))
    masks.shrink(0.25)
    with masks.applied():
        first = [p.detach().numpy() != 0 for p in net.matrices()]
    rows, columns = (np.flatnonzero(first[1].any(axis=a)) for a in (1, 0))
    with torch.no_grad():
        for p, mask in zip(net.matrices(), first, strict=True):
            p[torch.from_numpy(~mask)] *= 50
    masks.shrink(0.2)
    with masks.applied():
        second = [p.detach().numpy() != 0 for p in net.matrices()]
    assert set(np.flatnonzero(second[1].any(axis=1))) <= set(rows) < set(range(64))
    assert set(np.flatnonzero(second[1].any(axis=0))) <= set(columns) < set(range(96))
    assert (second[1] & ~first[1]).any()
    assert masks.stored.stored <= 0.2 * masks.stored.elements * 1.05 and masks.stored.index_bytes > 0


def test_the_ratios_of_both_kinds_of_darb_are_over_those_of_plain_patterns():
    found = [row("darb", 0.05, 0.896), row(NARROW_DARB, 0.025, 0.896), row(CHANNELS, 0.1, 0.896)]
    made = darb.record([*found, row("block16x1", 0.2, 0.8)], small(), 0, "all", None)
    assert made["darb_ratio"] == 20.0
    assert made["over"] == {
        "darb": {"block16x1": None, CHANNELS: pytest.approx(2.0)},
        NARROW_DARB: {"block16x1": None, CHANNELS: pytest.approx(4.0)},
    }


def test_a_unit_that_has_left_stays_away_and_a_weight_may_come_back():
    for pattern, returning in ((CHANNELS, False), ("unstructured", True)):
        net = Wide((24, 16))
        masks = Masks(net.matrices(), pattern_of(net, pattern), returning)
        masks.shrink(0.5)
        with masks.applied():
            before = net[3].weight.detach().numpy() != 0
        with torch.no_grad():
            net[3].weight[torch.from_numpy(~before)] = 9.0
        masks.shrink(0.25)
        with masks.applied():
            again = (net[3].weight.detach().numpy() != 0) & ~before
        assert again.any() == returning


# ---------------------------------------------------------------------- what is kept
def small(name: str = "small") -> Case:
    rng = np.random.default_rng(0)
    part = torch.from_numpy(rng.random((256, 784), np.float32)), torch.from_numpy(rng.integers(0, 10, 256))
    return Case(name, lambda: Wide((24, 16)), part, part, part, 1e-3, (1, 1, 1), "nothing")


def test_what_was_trained_is_not_trained_again(tmp_path, monkeypatch):
    store = Store(tmp_path)
    found = list(darb.rows(small(), ["darb", CHANNELS], [0.25], 0, store))
    monkeypatch.setattr(masked_training, "train", lambda *rest: pytest.fail("trained again"))
    assert list(darb.rows(small(), ["darb", CHANNELS], [0.25], 0, store)) == found
    with pytest.raises(pytest.fail.Exception):
        list(darb.rows(small("other"), ["darb"], [0.25], 0, store))


def test_a_row_does_not_depend_on_the_rows_before_it():
    both = list(darb.rows(small(), ["darb", CHANNELS], [0.25], 0, Store(None)))
    (alone,) = darb.rows(small(), [CHANNELS], [0.25], 0, Store(None))
    assert (both[1].dev, both[1].ratio) == (alone.dev, alone.ratio)


def row(pattern: str, density: float, dev: float, dense: float = 0.9) -> darb.Row:
    return darb.Row("small", pattern, density, 1 / density, 1 / density, dense, dense, dev, dev, 1.0)


def test_rows_join_those_of_the_same_dense_network():
    case = small()
    first = darb.record([row("darb", 0.05, 0.896), row("darb", 0.04, 0.89)], case, 0, "first", None)
    both = darb.record([row("block16x1", 0.2, 0.897), row("darb", 0.04, 0.8951)], case, 0, "second", first)
    assert [(r["density"], r["command"]) for r in both["rows"]] == [
        (0.05, "first"),
        (0.04, "second"),
        (0.2, "second"),
    ]
    assert both["command"] == "first; second" and both["darb_ratio"] == 25.0
    assert both["over"] == {"darb": {"block16x1": pytest.approx(5.0)}}
    other = darb.record([row("channels", 0.5, 0.7, dense=0.8)], case, 0, "third", both)
    assert len(other["rows"]) == 1 and other["ratios"] == {"channels": None} and other["over"] == {}


def test_the_file_grows_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(darb, "CASES", {"small": lambda data, quick: small()})
    asked = ["--data", str(tmp_path), "--only", "small", "--pattern", "darb", "--density", "0.25"]
    assert darb.main([*asked, "--save", str(tmp_path), "--json"]) == 0
    assert darb.main([*asked[:-3], CHANNELS, *asked[-2:], "--save", str(tmp_path), "--json"]) == 0
    record = json.loads((tmp_path / "pruning-darb-small.json").read_text())
    assert [r["pattern"] for r in record["rows"]] == ["darb", CHANNELS]
