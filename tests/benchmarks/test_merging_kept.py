"""What the merging study keeps and reads again, in which order it runs, and labels that some samples lack."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from benchmarks.merging import kept, methods, record, recorded, seeded, study, training
from benchmarks.merging.families import FAMILIES, Data, Effort, Family, Part
from benchmarks.merging.methods import METHODS, Setting
from benchmarks.merging.record import Seeded, Swept
from benchmarks.merging.recorded import RecordError
from benchmarks.merging.rule import Point, all_subsets
from compiler import Graph, load, parse_pass
from compiler.errors import BudgetError, PassError
from compiler.ir.text import digest
from tests.graphs import Builder

TASKS = ("a", "b")
SEPARATE, LATTICE = METHODS["separate"][0], METHODS["lattice"]


def linear(tasks: tuple[str, ...] = TASKS, seed: int = 0) -> Graph:
    """Two classes per task from 4 numbers."""
    b = Builder(seed=seed)
    x = b.input("x", 1, 4)
    for task in tasks:
        b.task(task, b.apply("Gemm", x, b.weight(2, 4), b.weight(2), transB=1))
    return b.done()


def part(count: int, seed: int) -> Part:
    rng = np.random.default_rng(seed)
    return Part(rng.normal(size=(count, 4)).astype(np.float32), {t: rng.integers(0, 2, count) for t in TASKS})


@pytest.fixture
def setting() -> Setting:
    data = Data(part(20, 0), part(10, 1), part(10, 2))
    return Setting(linear(), data, Effort(0, 1, 1, 1), (0.5, 0.25), 3, lambda text: None)


def point(budget: float, cost: int = 100) -> Point:
    found = dict.fromkeys(TASKS, 100 * budget)
    return Point(budget, budget, found, found, {q: cost * len(q) for q in all_subsets(TASKS)})


class Swept3:
    """A stand-in for `methods.sweep` with three points; it may be cut short behind the second one."""

    def __init__(self, cut: bool = False) -> None:
        self.cut, self.starts = cut, list[Graph]()

    def __call__(self, setting: Setting, pipeline: str, start: Graph, caps: Any) -> Iterator[tuple[Point, Graph]]:
        self.starts.append(start)
        yield point(1.0), start
        yield point(0.5), linear(seed=1)
        if self.cut:
            raise InterruptedError
        yield point(0.25), linear(seed=2)


def not_asked(*given: Any) -> Any:
    raise AssertionError("this is kept, or not to be trained")


# ---------------------------------------------------------------------- sweeps
def test_a_sweep_that_was_cut_short_counts_as_far_as_it_got(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "sweep", Swept3(cut=True))
    assert kept.kept_sweep(setting, SEPARATE, None, tmp_path, train=False) is None
    with pytest.raises(InterruptedError):
        kept.kept_sweep(setting, SEPARATE, None, tmp_path)
    monkeypatch.setattr(kept, "sweep", not_asked)
    found = kept.kept_sweep(setting, SEPARATE, None, tmp_path, train=False)
    assert found is not None and not found.finished
    assert [p.budget for p in found.points] == [1.0, 0.5]
    assert all(f.exists() for f in found.networks)
    assert digest(load(found.networks[0])) == digest(setting.originals), "they may be what is timed"
    assert re.fullmatch(r"\S.*, torch \d\S*", found.trained_on) and not found.trained_on.startswith("cpu,")


def test_a_sweep_that_was_cut_short_is_run_again_and_a_finished_one_is_read(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "sweep", Swept3(cut=True))
    with pytest.raises(InterruptedError):
        kept.kept_sweep(setting, SEPARATE, None, tmp_path)
    monkeypatch.setattr(kept, "sweep", Swept3())
    done = kept.kept_sweep(setting, SEPARATE, None, tmp_path)
    assert done is not None and done.finished and len(done.points) == 3
    monkeypatch.setattr(kept, "sweep", not_asked)
    assert kept.kept_sweep(setting, SEPARATE, None, tmp_path) == done


def test_pipelines_that_merge_alike_begin_with_one_start(setting, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(kept.methods, "merged", lambda *given: made.append(given) or linear(seed=7))
    monkeypatch.setattr(kept, "_minutes", lambda began: 2.5)
    sweep = Swept3()
    monkeypatch.setattr(kept, "sweep", sweep)
    pipelines = [*METHODS["mtz"], *LATTICE]
    for pipeline in pipelines:
        assert kept.kept_sweep(setting, pipeline, None, tmp_path) is not None
    starts = {methods.merging_of(setting, p) for p in pipelines}
    assert len(starts) < len(pipelines), "else there is nothing to see"
    assert [passes for _, passes in made] == sorted(starts, key=[p for _, p in made].index)
    assert len(sweep.starts) == len(pipelines)
    assert kept.kept_start(setting, pipelines[-1], tmp_path)[1] == 2.5, "each is told what the start took"
    start, minutes = kept.kept_start(setting, SEPARATE, tmp_path)
    assert start is setting.originals and minutes == 0


class Stuck:
    """A stand-in for `Narrowing` that reaches no budget."""

    first = 1000.0

    def __init__(self, error: Exception) -> None:
        self.error = error

    def down_to(self, share: float, caps: Any) -> None:
        raise self.error


def test_a_budget_out_of_reach_ends_a_sweep_and_any_other_failure_is_told(setting, monkeypatch):
    monkeypatch.setattr(methods, "expected_macs", lambda graph: 1000.0)
    monkeypatch.setattr(methods, "Narrowing", lambda *given: Stuck(BudgetError("too small")))
    assert len(list(methods.sweep(setting, SEPARATE, setting.originals))) == 1
    monkeypatch.setattr(methods, "Narrowing", lambda *given: Stuck(PassError("diverged")))
    with pytest.raises(PassError, match="diverged"):
        list(methods.sweep(setting, SEPARATE, setting.originals))


def at_once(work: Callable[[], Any], count: int) -> list[Any]:
    """What each of some threads made, or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_what_two_make_at_once_is_whole(setting, tmp_path, monkeypatch):
    """Both have found nothing, and both have merged, when the first of them writes."""
    together = threading.Barrier(2, timeout=30)

    def merged(*given: Any) -> Graph:
        together.wait()
        return linear(seed=7)

    def save(graph: Graph, path: Path) -> None:
        kept_save(graph, path)
        together.wait()

    kept_save = kept.save
    monkeypatch.setattr(kept.methods, "merged", merged)
    monkeypatch.setattr(kept, "save", save)
    starts = at_once(lambda: kept.kept_start(setting, LATTICE[0], tmp_path), 2)
    assert [digest(graph) for graph, _ in starts] == [digest(linear(seed=7))] * 2
    assert sorted(f.suffix for f in tmp_path.iterdir()) == [".minutes", ".onnx"]

    file, wanted = tmp_path / "record.json", {"points": list(range(500))}

    def write() -> bool:
        for _ in range(50):
            kept._write(file, wanted)
            if kept._read(file) != wanted:
                return False
        return True

    assert at_once(write, 4) == [True] * 4


def test_a_sweep_is_told_by_all_that_decides_it(setting, monkeypatch):
    first = kept._key(setting, SEPARATE, None)
    assert kept._key(replace(setting, say=print), SEPARATE, None) == first
    others = [
        kept._key(setting, LATTICE[0], None),
        kept._key(setting, SEPARATE, {("a",): 10.0}),
        kept._key(setting, SEPARATE, {("a",): 11.0}),
        kept._key(replace(setting, originals=linear(seed=9)), SEPARATE, None),
        kept._key(replace(setting, effort=Effort(0, 1, 1, 2)), SEPARATE, None),
        kept._key(replace(setting, seed=4), SEPARATE, None),
        kept._key(replace(setting, shares=(0.5,)), SEPARATE, None),
    ]
    for name in ("SAMPLES", "BETWEEN"):
        with monkeypatch.context() as changed:
            changed.setattr(methods, name, 17)
            others.append(kept._key(setting, SEPARATE, None))
    assert kept._sources() == [Path(m.__file__).read_bytes() for m in (methods, training)]
    monkeypatch.setattr(kept, "_sources", lambda: [b"other methods"])
    others.append(kept._key(setting, SEPARATE, None))
    assert len({first, *others}) == 1 + len(others)


def test_accuracies_of_single_networks_are_kept(setting, tmp_path, monkeypatch):
    first = kept.kept_accuracy(setting, tmp_path)
    assert set(first[0]) == set(TASKS) and first[0] != first[1]
    monkeypatch.setattr(kept, "accuracy", not_asked)
    assert kept.kept_accuracy(setting, tmp_path) == first


# ---------------------------------------------------------------------- a seed of a family
def sweeps_of(costs: dict[str, int], asked: list[tuple[str, Any, bool]]) -> Callable[..., Swept | None]:
    """A stand-in for `kept_sweep`: one point that keeps the rule, at a cost per pipeline; None without a cost."""

    def found(setting: Setting, pipeline: str, caps: Any, folder: Path, train: bool) -> Swept | None:
        asked.append((pipeline, caps, train))
        if pipeline not in costs:
            return None
        return Swept([point(1.0, costs[pipeline])], [], 1.5)

    return found


@pytest.fixture
def run(setting, tmp_path) -> seeded.Run:
    return seeded.Run(FAMILIES["fashion-pair"], setting, tmp_path)


MTZ, PAM = METHODS["mtz"][0], METHODS["pam"][0]


def test_ours_comes_last_and_is_capped_by_the_cheapest_of_the_others(run, monkeypatch):
    asked: list[tuple[str, Any, bool]] = []
    costs = {SEPARATE: 50, MTZ: 40} | {p: 45 + 15 * number for number, p in enumerate(LATTICE)}
    monkeypatch.setattr(seeded, "kept_sweep", sweeps_of(costs, asked))
    found = seeded.run_seed(run, ["lattice", "separate", "mtz"])
    assert list(found.sweeps) == ["separate", "mtz", "lattice"]
    ours, others = asked[-len(LATTICE) :], asked[: -len(LATTICE)]
    assert [p for p, _, _ in ours] == list(LATTICE)
    assert all(caps == {("a",): 40, ("b",): 40, ("a", "b"): 80} for _, caps, _ in ours)
    assert all(caps is None for _, caps, _ in others)
    assert set(found.sweeps["lattice"]) == {*LATTICE, SEPARATE}, "networks that share nothing are among ours"
    assert found.minutes == 1.5 * len(costs)


def test_each_combination_has_the_cap_of_its_own_cheapest_method(run, monkeypatch):
    one, two = point(1.0, 40), point(1.0, 40)
    one = replace(one, macs={("a",): 10, ("b",): 90, ("a", "b"): 100})
    points = {SEPARATE: one, MTZ: two}
    monkeypatch.setattr(seeded, "kept_sweep", lambda s, p, *given: Swept([points[p]], [], 1.0))
    assert run.caps(["separate", "mtz", "lattice"]) == {("a",): 10, ("b",): 40, ("a", "b"): 80}
    assert run.caps(["lattice"]) is None


def test_without_training_what_is_not_there_is_left_out(run, monkeypatch):
    asked: list[tuple[str, Any, bool]] = []
    monkeypatch.setattr(seeded, "kept_sweep", sweeps_of({SEPARATE: 50, LATTICE[1]: 45}, asked))
    found = seeded.run_seed(replace(run, train=False), ["separate", "pam", "lattice"])
    assert {m: set(s) for m, s in found.sweeps.items()} == {
        "separate": {SEPARATE},
        "lattice": {LATTICE[1], SEPARATE},
    }
    assert PAM in {p for p, _, _ in asked} and not any(train for _, _, train in asked)


def test_without_training_nothing_is_trained(run, monkeypatch):
    for name in ("merged", "sweep"):
        monkeypatch.setattr(methods, name, not_asked)
    monkeypatch.setattr(kept, "sweep", not_asked)
    said: list[str] = []
    quiet = replace(run, train=False, setting=replace(run.setting, say=said.append))
    found = seeded.run_seed(quiet, ["separate", "lattice"])
    assert found.sweeps == {} and found.minutes == 0
    assert [s for s in said if "nothing is kept" in s] == [
        "  separate: nothing is kept of it",
        "  lattice: nothing is kept of it",
    ]


def test_a_folder_without_sweeps_makes_no_record(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "prepared", lambda *given: replace(run, train=given[-1]))
    monkeypatch.setattr(Family, "data", lambda *given: run.setting.data)
    command = ["--family", "halves", "--as-kept", "--data", str(tmp_path), "--save", str(tmp_path / "saved")]
    assert study.main([*command, "--kept", str(tmp_path)]) == 2
    assert "holds no sweep that all seeds have" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()
    options = study.options_of(command)
    assert study._command("halves", options) == "python -m benchmarks merging --family halves --as-kept"


def test_large_networks_have_a_pam_that_begins_pruned_and_all_else_alike():
    (pruned,) = methods.pipelines("pam", large=True)
    first, prune, narrow = record.passes_of(pruned, tasks=5)
    assert (first, narrow) == ("merge{policy=pam}", methods.WHOLE)
    assert parse_pass(prune).multiple == 2, "a channel alone could not be narrowed"
    for method in METHODS:
        assert methods.pipelines(method, large=False) == METHODS[method]
        assert method == "pam" or methods.pipelines(method, large=True) == METHODS[method]


def test_a_family_of_large_networks_runs_its_own_pam(run, monkeypatch):
    asked: list[tuple[str, Any, bool]] = []
    monkeypatch.setattr(seeded, "kept_sweep", sweeps_of({}, asked))
    for name in ("fashion-pair", "cifar-five-wide"):
        replace(run, family=FAMILIES[name]).swept("pam")
    assert [pipeline for pipeline, _, _ in asked] == [PAM, methods.PAM_PRUNED]


# ---------------------------------------------------------------------- beside a saved record
NOTES = {"trained_on": ["a GPU"], "cut_short": [[3, "mtz", MTZ]], "minutes": 7.0, "command": "before"}


@pytest.fixture
def saved(run, monkeypatch) -> dict[str, Any]:
    """A record of `separate` and `mtz` at seed 3, which has accuracies to two digits, and latencies."""
    monkeypatch.setattr(seeded, "kept_sweep", sweeps_of({SEPARATE: 50, MTZ: 60}, []))
    monkeypatch.setattr(seeded, "kept_accuracy", lambda *given: ({"a": 99.12, "b": 98.4}, {"a": 99.0, "b": 98.0}))
    found = record.family_record("pair", "what", [seeded.run_seed(run, ["separate", "mtz"])])
    for row in found["subsets"]:
        row["latency_ms"] = {"separate": 2.0, "portfolio": 1.5}
    return {**NOTES, "families": [found | {"pool_bytes": {"separate": 4}}]}


def of_pam(run, monkeypatch, cost: int, accuracy: float = 99.1234) -> Seeded:
    """What was run now: `pam` alone, with accuracies to four digits."""
    exact = {"a": accuracy, "b": 98.3951}, {"a": 99.0, "b": 98.0}
    monkeypatch.setattr(seeded, "kept_sweep", sweeps_of({PAM: cost}, []))
    monkeypatch.setattr(seeded, "kept_accuracy", lambda *given: exact)
    return seeded.run_seed(run, ["pam"])


@pytest.mark.parametrize("cost, timed", [(70, {"separate": 2.0, "portfolio": 1.5}), (20, {"separate": 2.0})])
def test_a_method_joins_a_saved_record(run, saved, monkeypatch, cost, timed):
    (joined,) = recorded.with_recorded([of_pam(run, monkeypatch, cost)], saved)
    assert list(joined.sweeps) == ["separate", "mtz", "pam"]
    assert joined.single_selection == {"a": 99.12, "b": 98.4}, "its points are to those digits"
    assert not joined.sweeps["mtz"][MTZ].finished and joined.sweeps["separate"][SEPARATE].finished
    found = recorded.with_timed(record.family_record("pair", "what", [joined]), saved)
    assert [row["macs"]["pam"] for row in found["subsets"]] == [cost, cost, 2 * cost]
    assert [row["macs"]["mtz"] for row in found["subsets"]] == [60, 60, 120], "as they were"
    assert all(row["latency_ms"] == timed for row in found["subsets"]), "of the same networks"
    assert ("pool_bytes" in found) == ("portfolio" in timed)
    made = {"command": "now", "minutes": 2.0, "trained_on": ["a CPU"]}
    assert recorded.joined_notes(made, saved) == {
        "command": "before; now",
        "minutes": 9.0,
        "trained_on": ["a CPU", "a GPU"],
    }


def test_networks_of_a_joined_record_cannot_be_timed(run, saved, monkeypatch):
    joined = recorded.with_recorded([of_pam(run, monkeypatch, 70)], saved)
    assert record.rule_networks(joined) == {}
    assert record.portfolio_networks(joined, record.family_record("pair", "what", joined)) == []


def test_a_record_of_other_networks_or_seeds_is_refused(run, saved, monkeypatch):
    with pytest.raises(
        RecordError, match=r"other single networks, a 99\.12, b 98\.4 percent right and not a 99\.13"
    ):
        recorded.with_recorded([of_pam(run, monkeypatch, 70, 99.13)], saved)
    with pytest.raises(RecordError, match="no seed 4, but 3"):
        recorded.with_recorded([replace(of_pam(run, monkeypatch, 70), seed=4)], saved)


def test_a_saved_record_is_of_one_family_and_methods_are_named(tmp_path, capsys):
    file = str(tmp_path / "saved.json")
    for more in ([], ["--family", "halves"], ["--method", "pam"]):
        assert study.main(["--data", str(tmp_path), "--beside", file, *more]) == 2
        assert "--beside is the record of one family" in capsys.readouterr().err
    options = study.options_of(["--beside", "saved.json", "--method", "pam"])
    assert study._command("halves", options).endswith("--family halves --method pam --beside saved.json")


# ---------------------------------------------------------------------- samples without a label
def test_samples_without_a_label_are_not_counted():
    graph, data = linear(), part(40, 5)
    whole = training.accuracy(graph, data)
    wrong = training.accuracy(graph, Part(data.inputs, {t: 1 - v for t, v in data.labels.items()}))
    assert {t: 100 - a for t, a in wrong.items()} == pytest.approx(whole)
    known = np.arange(40) % 4 == 0
    masked = Part(data.inputs, {"a": np.where(known, data.labels["a"], -1), "b": data.labels["b"]})
    rows = Part(data.inputs[known], {t: v[known] for t, v in data.labels.items()})
    found = training.accuracy(graph, masked)
    assert found["a"] == pytest.approx(training.accuracy(graph, rows)["a"]) and found["b"] == whole["b"]


def test_samples_without_a_label_are_not_trained_on():
    """They would make every weight no number."""
    data, known = part(60, 6), np.arange(60) % 3 > 0
    labels = np.where(known, data.labels["a"], -1)
    inputs = np.where(known[:, None], data.inputs, np.float32("nan"))
    masked, rows = linear(("a",)).copy(), linear(("a",)).copy()
    before = digest(rows)
    training.train_on_labels(masked, Part(inputs, {"a": labels}), "a", 2, seed=0)
    training.train_on_labels(rows, Part(data.inputs[known], {"a": data.labels["a"][known]}), "a", 2, seed=0)
    assert digest(masked) == digest(rows) != before


def test_single_networks_are_trained_once_and_kept_at_half_precision(tmp_path, monkeypatch):
    spoken = FAMILIES["spoken"].network
    family = SimpleNamespace(name="f", tasks={"a": 10}, network=lambda task, seed: spoken("digit", seed))
    rng = np.random.default_rng(0)
    data = Part(rng.normal(size=(20, 1, 40, 48)).astype(np.float32), {"a": rng.integers(0, 10, 20)})
    first = training.singles(family, data, Effort(0, 1, 1, 1), 0, tmp_path)["a"]
    for value in first.parameters():
        if value.constant.dtype == np.float32:
            assert np.array_equal(value.constant, value.constant.astype(np.float16).astype(np.float32))
    monkeypatch.setattr(training, "train_on_labels", not_asked)
    assert digest(training.singles(family, data, Effort(0, 1, 1, 1), 0, tmp_path)["a"]) == digest(first)
    assert [f.suffix for f in tmp_path.iterdir()] == [".onnx"]
    with pytest.raises(AssertionError):
        training.singles(family, data, Effort(0, 2, 1, 1), 0, tmp_path)
