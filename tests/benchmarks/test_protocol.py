"""Worker and client: what is asked is answered, and every way of failing has words."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.host import timed_cores
from benchmarks.peers.client import PeerError, Worker, last_words
from benchmarks.peers.engine import read_arrays, write_arrays
from benchmarks.rounds import ALONE
from tests.benchmarks.fakes import FEEDS, LAUNCH


def loaded(does, patience=20.0, feeds=FEEDS, **options):
    worker = Worker(LAUNCH, patience)
    try:
        worker.load("none", feeds, timed_cores(1), {"does": does, **options})
    except BaseException:
        worker.close()
        raise
    return worker


def test_a_conversation():
    with loaded("double") as worker:
        assert (worker.version, worker.note) == ("9.9", "a note")
        np.testing.assert_array_equal(worker.outputs()["y"], 2 * FEEDS["x"])
        samples = worker.run(calls=7, batch=3)
    assert len(samples.cpu) == len(samples.wall) == 7
    assert all(c > 0 for c in samples.cpu + samples.wall)


def test_times_are_per_call_and_without_the_flushing():
    with loaded("double", spin=0.004) as worker:
        batched = worker.run(calls=2, batch=5)
        flushed = worker.run(calls=2, flush=64 << 20)
    for samples in (batched, flushed):
        assert 0.004 <= min(samples.cpu) < 0.012
        assert samples.share <= 1


def test_a_call_may_compute_often():
    with loaded("double", spin=0.004, inner=4) as worker:
        assert 0.001 <= min(worker.run(calls=2).cpu) < 0.003


def test_an_engine_may_bring_its_own_clock():
    with loaded("double", own=0.25) as worker:
        samples = worker.run(calls=2, batch=3)
    assert samples.cpu == samples.wall == (0.25, 0.25)


@pytest.mark.parametrize("does", ["double", "threads"])
def test_the_share_shows_where_an_engine_computes(does):
    with loaded(does, spin=0.01) as worker:
        assert (worker.run(calls=5).share >= ALONE) == (does == "double")


def test_a_refusal_is_told_in_the_engines_words():
    with pytest.raises(PeerError, match="RuntimeError: this processor is not supported"):
        loaded("refuse")


def test_a_crash_is_told_with_its_last_words():
    with pytest.raises(PeerError, match=r"ended with status 3: .*illegal instruction"):
        loaded("die")


def test_the_words_are_those_about_the_error_not_the_addresses_behind_it():
    log = "starting\n\nassertion failed: x > 0\n 1# main at main.c\n 2# start at start.c\n"
    assert last_words(log) == "assertion failed: x > 0"
    assert last_words("one\ntwo\n") == "one | two"
    assert last_words("Assertion in /home/me/venv/lib/site-packages/engine/a.so") == "Assertion in engine/a.so"


def test_silence_ends():
    with pytest.raises(PeerError, match=r"no answer to 'load' within 0\.5 s"):
        loaded("hang", patience=0.5)


def test_a_dead_worker_is_noticed():
    with loaded("double") as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(PeerError, match="ended with status -9"):
            worker.run(1)


def test_arrays_keep_name_type_and_shape(tmp_path):
    arrays = {
        "file": np.array(3.5, np.float32),
        "a/b:0": np.arange(6).reshape(2, 3).T,
        "names": np.zeros((0, 2), bool),
    }
    path = str(tmp_path / "arrays.npz")
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], array)
