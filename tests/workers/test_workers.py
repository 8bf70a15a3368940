from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from compiler.errors import ConfigError, JobError, LoweringError, TargetError
from compiler.workers import jobs as jobs_module
from compiler.workers.choose import open_workers
from compiler.workers.jobs import Here, Workers, again, call, code_version
from compiler.workers.pool import Pool
from compiler.workers.store import Store
from tests.workers.cheap import job

NOTHING_KEPT = Store(None)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pool(told):
    with Pool(2, told.append) as made:
        yield Workers(made, NOTHING_KEPT)


def calls(path: Path) -> int:
    return len(path.read_text().splitlines())


# ---------------------------------------------------------------------- results
def test_processes_give_what_this_process_gives_in_the_order_of_the_jobs(pool, told):
    jobs = [job("reverse", "x" * i + "end") for i in range(9)]
    assert pool.perform(jobs, "texts") == Workers(Here(), NOTHING_KEPT).perform(jobs, "texts")
    assert pool.perform(jobs, "texts")[2] == b"dnexx"
    assert told == []


def test_equal_jobs_run_once_and_not_at_all_where_their_result_is_kept(tmp_path):
    workers = Workers(Here(), Store(tmp_path / "kept"))
    jobs = [job("count", tmp_path / "calls", name) for name in ("first", "second")]
    assert workers.perform(jobs, "counting") == [b"done", b"done"]
    assert calls(tmp_path / "calls") == 1
    workers.perform(jobs, "counting")
    assert calls(tmp_path / "calls") == 1
    Workers(Here(), NOTHING_KEPT).perform(jobs, "counting")
    assert calls(tmp_path / "calls") == 2


def test_other_code_is_another_job(monkeypatch):
    before = job("reverse", "abc").key
    monkeypatch.setattr(jobs_module, "code_version", lambda: "another")
    assert job("reverse", "abc").key != before
    assert job("reverse", "abd").key != job("reverse", "abc").key != job("count", "abc").key


def test_a_worker_with_other_code_refuses():
    assert call("tests.workers.cheap:reverse", b"abc", code_version()) == b"cba"
    with pytest.raises(ConfigError, match="other versions of taskgraft, apache-tvm"):
        call("tests.workers.cheap:reverse", b"abc", "another")


def test_every_job_that_is_not_kept_is_counted(tmp_path):
    class Counts(list):
        def __call__(self, line):
            raise AssertionError(line)

        def count(self, stage, done, total):
            self.append((stage, done, total))

    say = Counts()
    jobs = [job("reverse", i) for i in (1, 2, 1)]
    Workers(Here(), NOTHING_KEPT).perform(jobs, "texts", say)
    assert say == [("texts", 0, 2), ("texts", 1, 2), ("texts", 2, 2)]


# ---------------------------------------------------------------------- what goes wrong
def test_a_lost_worker_is_one_line_and_its_job_runs_again(pool, told, tmp_path):
    jobs = [job("reverse", i) for i in range(4)] + [job("die_once", tmp_path / "died", "the fourth kernel")]
    assert pool.perform(jobs, "kernels") == [b"0", b"1", b"2", b"3", b"survived"]
    assert len(told) == 1
    assert told[0].startswith("a worker process was lost; again: ")
    assert "the fourth kernel" in told[0]
    assert pool.perform(jobs, "kernels")[-1] == b"survived"
    assert len(told) == 1


def test_many_jobs_that_run_again_are_counted():
    assert again(["k1", "k2"]) == "again: k1, k2"
    assert again([f"k{n}" for n in range(8)]) == "again: k0, k1, k2, k3, k4 and 3 more"


def test_a_job_whose_worker_is_lost_again_is_named(pool, told):
    with pytest.raises(JobError, match=r"^kernel k_3 for host: its worker process was lost twice \(killed"):
        pool.perform([job("reverse", 1), job("die", 2, "kernel k_3 for host"), job("reverse", 3)], "kernels")
    assert len(told) == 1


@pytest.mark.parametrize("place", ["pool", "here"])
def test_a_failing_job_is_one_error_with_its_name(place, request):
    workers = request.getfixturevalue("pool") if place == "pool" else Workers(Here(), NOTHING_KEPT)
    with pytest.raises(JobError, match=r"^kernel k_7: ValueError: seven is no shape$") as error:
        workers.perform([job("reverse", 1), job("fail", 2, "kernel k_7")], "kernels")
    assert error.value.exit_code == 5
    with pytest.raises(LoweringError, match=r"^kernel k_8: TVM cannot compile it$"):
        workers.perform([job("refuse", 3, "kernel k_8")], "kernels")
    assert workers.perform([job("reverse", "ab")], "texts") == [b"ba"]


# ---------------------------------------------------------------------- the store
def test_what_is_damaged_counts_as_absent(tmp_path):
    store = Store(tmp_path / "kept")
    assert store.load("a") is None
    store.save("a", b"content")
    assert Store(tmp_path / "kept").load("a") == b"content"
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["a"]
    path = tmp_path / "kept" / "a"
    for broken in (path.read_bytes()[:-1], b"", path.read_bytes() + b"x"):
        path.write_bytes(broken)
        assert store.load("a") is None
    store.save("a", b"content")
    assert store.load("a") == b"content"


def test_a_store_on_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there").mkdir()
    monkeypatch.setattr("compiler.workers.store.replace_whole", full)
    for folder in (tmp_path / "there", tmp_path / "out" / "cache"):
        with pytest.raises(TargetError, match="No space left on device; make room there, or name another"):
            Store(folder).save("a", b"")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="not a folder that can be written to; name another"):
            Store(folder)
    store = Store(tmp_path / "gone")
    (tmp_path / "gone").touch()
    with pytest.raises(ConfigError, match="cannot be written: File exists; name another"):
        store.save("a", b"")
    (tmp_path / "cache" / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cache/a: cannot be written: Is a directory; remove this folder"):
        Store(tmp_path / "cache").save("a", b"")
    Store(None).save("a", b"")


# ---------------------------------------------------------------------- what is asked for
def test_nothing_is_opened_where_nothing_is_asked_for(tmp_path):
    with open_workers() as workers:
        assert workers is None
    with open_workers(cache=tmp_path) as workers:
        assert isinstance(workers.executor, Here)
    with open_workers(2) as workers:
        assert isinstance(workers.executor, Pool)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"count": 0}, "--workers 0: give the number of worker processes, 1 or more"),
        ({"count": 2, "cluster": "tcp://here:1"}, "give one of the two"),
    ],
)
def test_contradictions_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason), open_workers(**options):
        pass


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(os.sys.modules, "distributed", None)
    monkeypatch.delitem(os.sys.modules, "compiler.workers.cluster", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'taskgraft\[cluster\]'"), open_workers(cluster="tcp://h:1"):
        pass
