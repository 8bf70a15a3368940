"""Streamed moments against numpy on all rows at once; the cache."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler.calibration.moments import Cache, Kept, Moments, content_key, correlation, data_key
from compiler.errors import ConfigError
from compiler.passes.base import Resources
from compiler.pipeline import parse
from tests.graphs import Builder


def rows(seed=0, count=400):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, count, 5)) @ rng.standard_normal((5, 5)) + 3
    y = x @ rng.standard_normal((5, 3)) + 0.1 * rng.standard_normal((2, count, 3))
    return x, y


def streamed(x, y, parts=(0, 7, 100, 400)):
    moments = Moments()
    for a, b in itertools.pairwise(parts):
        moments.add(x[:, a:b], y[:, a:b])
    return moments


def test_streaming_equals_numpy():
    x, y = rows()
    g, c, power = streamed(x, y).central()
    for group in range(2):
        both = np.cov(np.concatenate([x[group], y[group]], axis=1), rowvar=False, bias=True)
        assert np.allclose(g[group], both[:5, :5])
        assert np.allclose(c[group], both[:5, 5:])
        assert np.allclose(power[group], np.diag(both)[5:])


def test_the_fit_is_ridge_regression_towards_the_old_weights():
    x, y = rows()
    moments = streamed(x, y)
    old = np.zeros((2, 5, 3))
    new, offset = moments.solve(old, central=True)
    assert np.allclose(moments.error(new, offset), np.mean((x @ new + offset[:, None] - y) ** 2, axis=1))
    least = [np.linalg.lstsq(np.c_[x[g], np.ones(400)], y[g], rcond=None)[0] for g in range(2)]
    exact = np.stack([w[:-1] for w in least])
    assert np.all(moments.error(new, offset) < 1.01 * moments.error(exact, np.stack([w[-1] for w in least])))
    kept, _ = moments.solve(exact, central=True)
    assert np.allclose(kept, exact)  # nothing left to gain: the ridge pulls towards what is there


def test_a_part_and_mixed_targets():
    x, y = rows()
    moments, mix = streamed(x, y), np.array([[0.5, 0], [0.5, 0], [0, 2]])
    columns = np.array([0, 3])
    part = moments.select(columns, np.arange(3)).mixed(mix)
    direct = streamed(x[:, :, columns], y @ mix)
    for name in ("x", "y", "xx", "xy", "yy"):
        assert np.allclose(getattr(part, name), getattr(direct, name)), name


def test_rows_that_are_added_change_nothing_made_before():
    x, y = rows()
    moments = streamed(x, y)
    mixed = moments.mixed(np.eye(y.shape[2]))
    before = mixed.rows, mixed.x.copy(), mixed.xx.copy()
    moments.add(x, y)
    assert mixed.rows == before[0] and np.array_equal(mixed.x, before[1]) and np.array_equal(mixed.xx, before[2])
    assert np.allclose(moments.xx, 2 * before[2])


def test_the_constant_that_makes_means_equal():
    x, y = rows()
    w = np.ones((2, 5, 3))
    found = streamed(x, y).best_offset(w)
    assert np.allclose((x @ w + found[:, None]).mean(axis=1), y.mean(axis=1))


def test_correlation_of_constants_is_zero():
    found = correlation(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_arrays_and_back(tmp_path):
    moments = streamed(*rows())
    cache = Cache(tmp_path / "kept")
    assert cache.load("key") is None
    cache.store("key", moments.arrays())
    again = Moments.of(cache.load("key"))
    assert again.rows == moments.rows and all(
        np.array_equal(getattr(again, n), getattr(moments, n)) for n in ("x", "y", "xx", "xy", "yy")
    )
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["key"]


def test_a_damaged_file_counts_as_absent(tmp_path):
    (tmp_path / "key").write_bytes(b"PK\x03\x04 no")
    assert Cache(tmp_path).load("key") is None
    Cache(tmp_path).store("key", {"a": np.ones(2)})
    assert Cache(tmp_path).load("key")["a"].tolist() == [1, 1]
    assert Cache(None).load("key") is None


def test_nothing_is_packed_where_nothing_is_kept(monkeypatch):
    monkeypatch.setattr("compiler.calibration.moments.archived", None)
    Cache(None).store("key", {"a": np.ones(2)})


@pytest.mark.parametrize(
    "other", [np.arange(6.0).reshape(3, 2), np.arange(6, dtype=np.float32), np.arange(6.0) + 1]
)
def test_keys_tell_type_shape_and_content(other):
    assert content_key("a", np.arange(6.0)) != content_key("a", other)
    assert data_key([{"x": np.arange(6.0)}]) == data_key([{"x": np.arange(6.0)}])
    assert data_key([{"x": np.arange(6.0)}]) != data_key([{"y": np.arange(6.0)}])


def test_kept_moments_of_a_name_that_goes_on_behind_a_space(tmp_path):
    x, y = rows()
    first, second = streamed(x, y), streamed(x[:, :100], y[:, :100], (0, 50, 100))
    kept = Kept(Cache(tmp_path), "key")
    kept.moments("fc 1", lambda: first)
    found = kept.moments("fc", lambda: second)
    assert found.rows == 100 and kept.moments("fc", lambda: first).rows == 100
    kept.store()
    again = Kept(Cache(tmp_path), "key")
    assert again.complete and again.moments("fc 1", lambda: second).rows == 400
    assert np.array_equal(again.moments("fc", lambda: first).xx, second.xx)


@pytest.mark.parametrize(
    "spec",
    [
        "sparsify{flops=0.5,min_inputs=8}",
        "sparsify{density=0.5,update=obs,min_inputs=8}",
        "compress{flops=0.4,min_inputs=8}",
        "prune-channels{flops=0.5,score=rms}",
        "prune-channels{flops=0.5,score=obs}",
        "prune-channels{flops=0.5,score=fisher}",
        *(f"merge{{{options}}}" for options in ("max_loss=0.5", "start=shared", "policy=mtz", "policy=pam")),
    ],
)
def test_nothing_is_measured_by_inputs_that_make_no_numbers(spec):
    if "fisher" in spec:
        pytest.importorskip("torch")
    b = Builder(seed=1)
    x = b.input("x", 1, 2, 6, 6)
    for task in "ab":
        h = b.apply("Relu", b.conv(b.apply("Relu", b.conv(x, 16, 3)), 16, 3))
        b.task(task, b.apply("Gemm", b.apply("Flatten", h), b.weight(64, 3), b.weight(3)))
    data = np.random.default_rng(0).standard_normal((40, 2, 6, 6)).astype(np.float32)
    data[7, 0, 2, 2] = np.inf
    graph = b.done()
    with np.errstate(all="ignore"), pytest.raises(ConfigError, match="some calibration inputs make infinite"):
        parse(spec)(graph, Resources(calibration={"x": data}, teacher=graph))
