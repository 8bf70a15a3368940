"""Plans and tuning databases as inputs of a build: what is chosen, recorded, refused, and that it is repeatable."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest

from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import find_target
from compiler.codegen.tuning import TuningDatabase
from compiler.compile import build, compile_release
from compiler.config import load_config, parse_config
from compiler.errors import ConfigError, TargetError
from compiler.ir.onnx_in import load
from compiler.planning import Planning, planning_of
from compiler.release import load_release, transform
from tests.codegen.test_tuning import measured_layers
from tests.shared import ROOT
from tests.small_models import RELEASE, network, write_release
from tests.test_compile import digests

HOST = find_target("host")
SMALL = RELEASE.split("[calibration]")[0]
"""Without data: nothing is evaluated."""


def measured(folder) -> TuningDatabase:
    """Invented measurements of the layers of the release in a folder."""
    graph, _ = transform(load_release(load_config(folder / "release.toml")))
    return measured_layers(graph, HOST)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with a release, a database, and the bundle built by it."""
    folder = tmp_path_factory.mktemp("tuned")
    write_release(folder, SMALL)
    measured(folder).save(folder / "db.json")
    compile_release(load_config(folder / "release.toml"), tuning=folder / "db.json", output=folder / "out")
    return folder


def plan_of(folder) -> dict:
    return json.loads((folder / "host" / "plan.json").read_text())


def sources(folder) -> set[str]:
    return {s["chosen_by"] for s in plan_of(folder)["steps"] if "chosen_by" in s}


def test_rebuilds_from_a_plan_are_byte_identical_elsewhere(tuned, tmp_path):
    """The measured build, and two from its plan: other folders, another hash seed, the database not at hand."""
    apart, here = tmp_path / "somewhere111", tmp_path / "somewhere222"
    for folder in (apart, here):
        folder.mkdir()
        write_release(folder, SMALL)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-m", "compiler", "compile", "release.toml", "-o", "again", "-q"]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--plan", tuned / "out"], cwd=apart, env=environment, check=True)
    plan = tuned / "out" / "host" / "plan.json"
    compile_release(load_config(here / "release.toml"), plan=[plan], output=here / "again")
    found = [digests(tuned / "out"), digests(apart / "again"), digests(here / "again")]
    assert found[0] == found[1] == found[2]
    assert {"host/libpair.so", "host/plan.json", "host/manifest.json"} <= set(found[0])
    assert sources(tuned / "out") == {"database", "rule"}


def test_plan_and_database_are_inputs_of_the_manifest(tuned, tmp_path):
    inputs = json.loads((tuned / "out" / "host" / "manifest.json").read_text())["inputs"]
    database = TuningDatabase.load(tuned / "db.json")
    assert inputs["taskgraft:tuning"] == database.digest == plan_of(tuned / "out")["database"]
    config = load_config(tuned / "release.toml")
    compile_release(config, tuning="none", output=tmp_path / "rule", selftest=False)
    by_rule = json.loads((tmp_path / "rule" / "host" / "manifest.json").read_text())["inputs"]
    assert "taskgraft:tuning" not in by_rule and by_rule["taskgraft:plan"] != inputs["taskgraft:plan"]
    assert sources(tmp_path / "rule") == {"rule"}


def test_the_bundles_own_graph_with_its_plan_is_the_same_library(tuned, tmp_path):
    bundle = tuned / "out" / "host"
    again = build(load(bundle / "merged.onnx"), "host", tmp_path, name="pair", plan=bundle, selftest=False)
    for name in ("src/kernels.a", "weights.bin", "plan.json", "pair.h"):
        assert (again.path / name).read_bytes() == (bundle / name).read_bytes(), name


def test_the_release_file_names_plan_or_database(tuned, tmp_path):
    for key, value in (("plan", tuned / "out"), ("tuning", tuned / "db.json")):
        folder = tmp_path / key
        folder.mkdir()
        write_release(folder, SMALL + f'[planning]\n{key} = "{os.path.relpath(value, folder)}"\n')
        compile_release(load_config(folder / "release.toml"), selftest=False)
        assert plan_of(folder / "dist" / "pair") == plan_of(tuned / "out")
    assert f'{key} = "' in load_config(folder / "release.toml").resolved()


def test_arguments_stand_in_place_of_the_release_file(tuned):
    config = load_config(tuned / "release.toml", ["planning.plan=old/plan.json"])
    assert planning_of(config).plans == (tuned / "old/plan.json",)
    assert planning_of(config, tuning=tuned / "db.json") == Planning((), tuned / "db.json")
    other = load_config(tuned / "release.toml", ["planning.tuning=none"])
    assert planning_of(other).sources([HOST])["host"].measured is None
    assert planning_of(other, [tuned / "out"]).plans == (tuned / "out",)


def test_both_keys_of_the_release_file_contradict():
    text = {"schema": 1, "name": "n", "tasks": {"a": {"model": "a.onnx"}}}
    with pytest.raises(ConfigError, match=r"planning.plan: give either `plan` or `tuning`"):
        parse_config({**text, "planning": {"plan": "p", "tuning": "t"}}, ROOT)
    with pytest.raises(ConfigError, match=r"planning.plans: unknown key; did you mean 'plan'\?"):
        parse_config({**text, "planning": {"plans": "p"}}, ROOT)
    found = parse_config({**text, "planning": {"plan": ["p", "q"]}}, ROOT)
    assert found.planning.plan == ("p", "q")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"plan": ["p.json"], "tuning": "t.json"}, "give either a plan"),
        ({"plan": ["p.json"], "tune": 5.0}, "give either a plan"),
        ({"tune": 0.0}, "more than 0"),
        ({"tune": float("nan")}, "more than 0"),
        ({"tune": 5.0, "tuning": "none"}, "the database given is 'none'"),
        ({"plan": "absent.json"}, "absent.json: cannot be read"),
        ({"tuning": "absent.json"}, "absent.json: cannot be read"),
    ],
)
def test_contradictions_and_absent_files_are_told_before_any_work(tuned, options, reason):
    said: list[str] = []
    with pytest.raises(ConfigError, match=reason):
        compile_release(load_config(tuned / "release.toml"), output=tuned / "no", say=said.append, **options)
    assert said == [] and not (tuned / "no").exists()


def test_build_from_python(tuned, tmp_path):
    onnx.save(network("x", 3), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    database = measured_layers(graph, HOST)
    first = build(graph, "host", tmp_path / "a", tuning=database, selftest=False)
    database.save(tmp_path / "db.json")
    second = build(graph, "host", tmp_path / "b", tuning=str(tmp_path / "db.json"), selftest=False)
    third = build(graph, "host", tmp_path / "c", plan=first.path, selftest=False)
    assert digests(first.path) == digests(second.path) == digests(third.path)
    with pytest.raises(ConfigError, match=r"(?s)plan for host does not fit graph 'm'.*'a/conv': no kernel begins"):
        build(graph, "host", tmp_path / "d", plan=str(tuned / "out"), selftest=False)
    assert not (tmp_path / "d").exists()


# ---------------------------------------------------------------------- --tune
def test_measurements_are_added_to_a_file_and_chosen_by(tuned, tmp_path, monkeypatch):
    calls = []

    def tune(graph, target, database, *, seconds, workers, keep, say):
        calls.append((target.preset, seconds, len(database.entries)))
        return TuningDatabase({**database.entries, **measured_layers(graph, target).entries})

    monkeypatch.setattr("compiler.planning.tune", tune)
    write_release(tmp_path, SMALL)
    config, said = load_config(tmp_path / "release.toml"), []
    compile_release(config, tune=7.0, targets=["host", HOST.preset, "aarch64-cortex-a72"], selftest=False,
                    allow_unlinked=True, say=said.append)  # fmt: skip
    assert calls == [(HOST.preset, 7.0, 0)]
    assert (tmp_path / "dist" / "tuning.json").read_text() == (tuned / "db.json").read_text()
    assert any("aarch64-cortex-a72 does not run here" in line for line in said)
    assert plan_of(tmp_path / "dist" / "pair") == plan_of(tuned / "out")
    compile_release(config, tune=5.0, tuning=tuned / "db.json", output=tmp_path / "more", selftest=False)
    assert calls[1] == (HOST.preset, 5.0, len(TuningDatabase.load(tuned / "db.json").entries))
    assert not (tmp_path / "tuning.json").exists()


def test_nothing_to_measure_on(tmp_path):
    write_release(tmp_path, SMALL)
    config = load_config(tmp_path / "release.toml")
    with pytest.raises(TargetError, match="which runs none of aarch64-cortex-a72"):
        compile_release(config, tune=5.0, targets=["aarch64-cortex-a72"])
    assert not (tmp_path / "dist").exists()


def test_measured_on_this_machine(tmp_path):
    """The real thing, for two seconds."""
    write_release(tmp_path, SMALL)
    said: list[str] = []
    config = load_config(tmp_path / "release.toml")
    compile_release(config, tune=2.0, tuning=tmp_path / "db.json", say=said.append)
    assert any(line.startswith("tune: build 1 of ") for line in said)
    database = TuningDatabase.load(tmp_path / "db.json")
    assert database.entries and plan_of(tmp_path / "dist" / "pair")["database"] == database.digest
    compile_release(config, plan=tmp_path / "dist" / "pair", output=tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "dist" / "pair")


def test_measurements_of_another_run_into_the_same_file_stay(tmp_path, monkeypatch):
    """And choices are made by them too: the plan has the digest of the file."""
    file = tmp_path / "db.json"

    def tune(graph, target, database, *, keep, **options):
        other = TuningDatabase()
        other.add("avx2|another layer", Choice("conv", (8, 1, 2)), 1e-6)
        other.save(file)
        return measured_layers(graph, target)

    monkeypatch.setattr("compiler.planning.tune", tune)
    write_release(tmp_path, SMALL)
    compile_release(load_config(tmp_path / "release.toml"), tune=7.0, tuning=file, selftest=False)
    found = TuningDatabase.load(file)
    assert "avx2|another layer" in found.entries and len(found.entries) > 1
    assert plan_of(tmp_path / "dist" / "pair")["database"] == found.digest


def test_an_interrupt_keeps_what_was_measured_and_says_where(tmp_path, monkeypatch):
    """The next run is given what the first had measured, and measures the rest."""
    given = []

    def tune(graph, target, database, *, keep, **options):
        given.append(sum(map(len, database.entries.values())))
        found = TuningDatabase({**database.entries, **measured_layers(graph, target).entries})
        keep(found)
        if len(given) == 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr("compiler.planning.tune", tune)
    write_release(tmp_path, SMALL)
    config = load_config(tmp_path / "release.toml")
    with pytest.raises(KeyboardInterrupt) as stop:
        compile_release(config, tune=7.0, selftest=False)
    file = tmp_path / "dist" / "tuning.json"
    assert stop.value.__notes__ == [f"what was measured is in {file}; the same command measures the rest"]
    assert file.exists() and not (tmp_path / "dist" / "pair").exists()
    compile_release(config, tune=7.0, selftest=False)
    assert given[0] == 0 < given[1]
