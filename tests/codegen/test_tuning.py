"""The tuning database: round trip, stale and malformed files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.codegen import tuning
from compiler.codegen.groups import make_groups
from compiler.codegen.planner import candidates, situation
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import Target, find_target
from compiler.codegen.tuning import (
    DATA,
    Measurement,
    TuningDatabase,
    database_of,
    layer_key,
    shipped,
    shipped_file,
)
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from tests.graphs import Builder
from tests.shared import ROOT

V4 = find_target("x86-64-v4")


def measured_layers(graph: Graph, target: Target) -> TuningDatabase:
    """Invented times of every layer: the fourth best candidate is the fastest, the first five are known."""
    groups = make_groups(graph)
    known, made = situation(graph, groups, target), TuningDatabase()
    for group in groups:
        key = layer_key(group, target)
        for place, candidate in enumerate(candidates(group, known)[:5] if key else ()):
            made.add(key or "", candidate.choice, 1e-6 * (10 + abs(3 - place)))
    return made


def one_layer(channels: int = 32, relu: bool = False) -> Graph:
    b = Builder()
    y = b.conv(b.input("x", 1, channels, 8, 8), 32, 3)
    b.task("t", b.apply("Relu", y) if relu else y)
    return b.done()


def group_of(channels: int = 32, relu: bool = False):
    return make_groups(one_layer(channels, relu))[0]


names = st.sampled_from(sorted(STRATEGIES))
tiles = st.lists(st.integers(1, 64), max_size=4).map(tuple)
choices = st.builds(Choice, names, tiles)
entries = st.dictionaries(
    st.text(max_size=20), st.dictionaries(choices, st.floats(1e-9, 10), min_size=1), max_size=5
)


@given(entries)
def test_round_trip(times):
    database = TuningDatabase()
    for key, found in times.items():
        for choice, seconds in found.items():
            database.add(key, choice, seconds)
    again = TuningDatabase.parse(json.loads(database.text()))
    assert again == database
    assert again.text() == database.text() and again.digest == database.digest
    for key, found in times.items():
        assert again.known(key) == {c: max(1, round(s * 1e9)) for c, s in found.items()}


def test_a_file_is_written_whole_and_read_back(tmp_path):
    database = TuningDatabase()
    database.add("k", Choice("conv", (8, 1, 2)), 5e-6)
    database.save(tmp_path / "deeper" / "db.json")
    assert TuningDatabase.load(tmp_path / "deeper" / "db.json") == database
    assert [p.name for p in (tmp_path / "deeper").iterdir()] == ["db.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"db\.json: cannot be written: File exists"):
        database.save(tmp_path / "file" / "db.json")


def measurements(*rows: tuple[str, int, int]) -> TuningDatabase:
    """(layer, rows of the tile, microseconds)."""
    database = TuningDatabase()
    for key, tile, microseconds in rows:
        database.add(key, Choice("conv", (tile, 1, 2)), microseconds * 1e-6)
    return database


def test_two_that_write_into_one_file_keep_the_measurements_of_both(tmp_path):
    file = tmp_path / "deeper" / "db.json"
    first, second = measurements(("k", 8, 5), ("l", 8, 7)), measurements(("k", 4, 3), ("k", 8, 6), ("m", 8, 9))
    assert first.merge_into(file) == first == TuningDatabase.load(file)
    both = measurements(("k", 8, 6), ("k", 4, 3), ("l", 8, 7), ("m", 8, 9))
    assert second.merge_into(file) == both == TuningDatabase.load(file)
    assert [p.name for p in file.parent.iterdir()] == ["db.json"]
    link = tmp_path / "link.json"
    link.symlink_to(file)
    assert measurements(("n", 8, 1)).merge_into(link) == TuningDatabase.load(file) != both
    assert [p.name for p in tmp_path.iterdir() if p != link] == ["deeper"] and link.is_symlink()


def test_measurements_of_older_code_do_not_come_back_from_the_file(tmp_path):
    row = Measurement(1, "conv", (8, 1, 2), STRATEGIES["conv"].version - 1)
    TuningDatabase({"k": (row,), "l": (row,)}).save(tmp_path / "db.json")
    made = measurements(("k", 4, 3)).merge_into(tmp_path / "db.json")
    assert made.entries == {**measurements(("k", 4, 3)).entries, "l": (row,)}


def test_what_cannot_be_merged_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"db\.json: cannot be written: File exists"):
        measurements(("k", 8, 5)).merge_into(tmp_path / "file" / "db.json")
    with pytest.raises(ConfigError, match="is not a tuning database"):
        measurements(("k", 8, 5)).merge_into(tmp_path / "file")


def test_many_processes_and_threads_add_to_one_file(tmp_path):
    """Each writes layers of its own, one at a time, as `--tune` does after every build."""
    file = tmp_path / "db.json"
    script = (
        "import sys; from pathlib import Path; from threading import Thread\n"
        "from tests.codegen.test_tuning import measurements\n"
        "def add(name):\n"
        "    for n in range(10): measurements((f'{name}/{n}', 8, 5)).merge_into(Path(sys.argv[2]))\n"
        "teams = [Thread(target=add, args=[f'{sys.argv[1]}{k}']) for k in 'xy']\n"
        "for one in teams: one.start()\n"
        "for one in teams: one.join()\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", script, name, str(file)], cwd=ROOT) for name in "ab"]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
    assert len(TuningDatabase.load(file).entries) == 40


def test_a_newer_measurement_replaces_the_older():
    database = TuningDatabase()
    for seconds in (5e-6, 9e-6):
        database.add("k", Choice("conv", (8, 1, 2)), seconds)
    assert database.known("k") == {Choice("conv", (8, 1, 2)): 9000}


def test_measurements_of_older_code_are_ignored_and_die():
    old = STRATEGIES["conv"].version - 1
    rows = (Measurement(1, "conv", (8, 1, 2), old), Measurement(2, "unheard-of", (), 1))
    database = TuningDatabase({"k": rows})
    assert database.known("k") == {}
    database.add("k", Choice("conv", (4, 1, 2)), 5e-6)
    assert [m.tile for m in database.entries["k"]] == [(4, 1, 2)]


def test_code_that_changed_for_arm_alone_leaves_measurements_on_x86_alive(monkeypatch):
    database, choice = TuningDatabase(), Choice("conv", (8, 1, 2))
    keys = ["x86-64-v4|k", "aarch64-cortex-a76|k", "armv7-neon|k"]
    for key in keys:
        database.add(key, choice, 5e-6)
    assert [list(database.known(key)) for key in keys] == [[choice]] * 3
    monkeypatch.setattr(type(STRATEGIES["conv"]), "arm_version", STRATEGIES["conv"].arm_version + 1)
    assert [list(database.known(key)) for key in keys] == [[choice], [], []]


def test_the_best_of_every_layer_are_kept():
    database = TuningDatabase({"old": (Measurement(1, "conv", (8, 1, 2), STRATEGIES["conv"].version - 1),)})
    for n in range(1, 6):
        database.add("k", Choice("conv", (n, 1, 1)), 1e-6 * (6 - n))
    kept = database.best(2)
    assert kept.known("k") == {Choice("conv", (5, 1, 1)): 1000, Choice("conv", (4, 1, 1)): 2000}
    assert list(kept.entries) == ["k"] and len(database.entries["k"]) == 5


def test_layers_are_told_apart_by_shape_epilogue_and_instruction_set():
    keys = [
        layer_key(group_of(), V4),
        layer_key(group_of(relu=True), V4),
        layer_key(group_of(channels=48), V4),
        layer_key(group_of(), find_target("x86-64-v3")),
    ]
    b = Builder()
    for columns in (8, 9):
        b.task(f"t{columns}", b.apply("MatMul", b.input(f"x{columns}", 2, 16), b.weight(16, columns)))
    keys += [layer_key(g, V4) for g in make_groups(b.done())]
    assert len(set(keys)) == 6 and None not in keys
    assert layer_key(group_of(), V4) == keys[0]


def test_families_without_a_choice_have_no_entry():
    b = Builder()
    b.task("t", b.apply("Softmax", b.input("x", 4, 4)))
    (group,) = make_groups(b.done())
    assert layer_key(group, V4) is None and TuningDatabase().times(group, V4) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a tuning database"),
        ("[" * 200_000, "is not a tuning database"),
        ("[]", 'there is no "schema": 1'),
        ('{"schema": 2, "entries": {}}', 'there is no "schema": 1'),
        ('{"schema": 1}', 'there is no table "entries"'),
        ('{"schema": 1, "entries": []}', 'there is no table "entries"'),
        ('{"schema": 1, "entries": {"k": {}}}', "entry 'k' is not a list"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, [1]]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, [1], "5"]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, [1], -5]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, [1.5], 5]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", true, [1], 5]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, "12", 5]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [[null, 1, [1], 5]]}}', "is no measurement"),
        ('{"schema": 1, "entries": {"k": [["conv", 1, [1], 5], ["conv", 2, [1], 6]]}}', "one of two of a choice"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, reason):
    (tmp_path / "db.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        TuningDatabase.load(tmp_path / "db.json")
    assert reason in str(caught.value) and "db.json" in str(caught.value) and "--tune" in str(caught.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(ConfigError, match=r"tuning database .*db\.json: cannot be read: No such file"):
        TuningDatabase.load(tmp_path / "db.json")


def test_shipped_databases_are_current():
    """Every file that comes with the package, if any does, reads, is named after a target, and was measured on
    this code."""
    for path in DATA.glob("*.json"):
        target = find_target(path.stem.removeprefix("tuning-"))
        database = shipped(target)
        assert database.entries and database.text() == path.read_text()
        assert all(key.startswith(f"{target.preset}|") for key in database.entries)
        measured = [(key, m) for key, rows in database.entries.items() for m in rows]
        stale = sorted({m.algorithm for key, m in measured if not m.current(key)})
        assert not stale, f"{path.name}: older code of {', '.join(stale)}; python -m benchmarks tune --seconds 0"


def test_a_shipped_database_is_that_of_the_instruction_set(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "DATA", tmp_path)
    made = measured_layers(one_layer(), V4)
    shipped_file(V4).write_text(made.text())
    assert made.entries and shipped(V4) == database_of(None, V4) == made
    for other in (database_of(None, find_target("armv7-neon")), database_of(Path("none"), V4)):
        assert other == TuningDatabase()
