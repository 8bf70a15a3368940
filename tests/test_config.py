from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from compiler.config import load_config, parse_config
from compiler.errors import ConfigError
from compiler.toml_table import amount, dumps
from tests.shared import ROOT
from tests.small_models import write_release

RELEASES = sorted(ROOT.glob("models/*/*.toml"))

BASE = """
schema = 1
name = "faces"
[input.image]
shape = [1, 3, 32, 32]
[tasks.age]
model = "age.onnx"
input = "data"
adapter = [{ scale = [0.5, 0.5, 0.5], offset = -1.0 }]
[tasks.mood]
model = "mood.onnx"
"""


def parse(text):
    return parse_config(tomllib.loads(text), Path("somewhere"))


def problems(text):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize("path", RELEASES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_checked_in_release_reads_and_its_resolved_form_means_the_same(path):
    config = load_config(path)
    assert parse_config(tomllib.loads(config.resolved()), config.folder) == config
    assert set(config.tasks) == set(config.evaluation.metric)


def test_everything_has_a_place():
    config = parse(
        BASE
        + """
        [workload]
        age = 0.25
        "mood+age" = 0.75
        [subsets]
        include = "workload"
        [targets]
        build = ["host", "armv7-neon"]
        [passes]
        pipeline = ["remove-dead-code"]
        [gates]
        max_library = "6MB"
        max_workspace = "512KiB"
        max_flops = { "age" = "40M" }
        max_output_drift = 0.5
        [evaluation]
        data = "labels.npz"
        metric = { age = "mae", mood = "mine:score" }
        """
    )
    assert config.tasks["age"].inputs == {"data": "image"}
    assert config.tasks["age"].adapter[0]["offset"] == -1.0
    assert config.workload == {frozenset({"age"}): 0.25, frozenset({"age", "mood"}): 0.75}
    assert config.subsets == (frozenset({"age"}), frozenset({"age", "mood"}))
    assert (config.gates.max_library, config.gates.max_workspace) == (6_000_000, 524_288)
    assert config.gates.max_flops == {frozenset({"age"}): 40_000_000}
    assert config.gates.max_output_drift == {"age": 0.5, "mood": 0.5}
    assert parse_config(tomllib.loads(config.resolved()), config.folder) == config


def test_all_problems_come_at_once_with_their_keys():
    found = problems(
        BASE.replace("schema = 1", "schema = 7").replace('"faces"', '"Face s"')
        + """
        [tasks.smile__wide]
        modle = "x"
        [workload]
        age = 0.5
        [subsets]
        include = ["age+age", "mod"]
        [gates]
        max_output_drfit = 1
        max_library = "big"
        [evaluation.metric]
        mood = "acuracy"
        """
    )
    text = "\n".join(found)
    for part in (
        "schema: is 7",
        "name: 'Face s'",
        "tasks.smile__wide: 'smile__wide' becomes part of C names",
        "tasks.smile__wide.model: is missing",
        "tasks.smile__wide.modle: unknown key; did you mean 'model'?",
        "workload: the probabilities sum to 0.5",
        "subsets.include: 'age+age' names a task twice",
        "subsets.include: there is no task 'mod'; the tasks are age, mood, smile__wide",
        "gates.max_output_drfit: unknown key; did you mean 'max_output_drift'?",
        "gates.max_library: 'big' is not an amount",
        "evaluation.metric.mood: unknown metric 'acuracy'",
        "evaluation.data: is missing",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    "line,problem",
    [
        ("seed = -1", "seed: expected a non-negative whole number, found -1"),
        (f"seed = {2**32}", "seed: expected at most 4294967295, found 4294967296"),
        ('output = "di\\u0000st"', "output: 'di\\x00st' holds a character NUL"),
        ("seed = true", "seed: expected a non-negative whole number, found True"),
        ("targets = 3", "targets: expected a table, found an integer"),
        ("zzz = 1", "zzz: unknown key; known keys are calibration"),
    ],
)
def test_wrong_values(line, problem):
    assert any(problem in p for p in problems(line + "\n" + BASE))


@pytest.mark.parametrize("output,problem", [("[]", "lists nothing"), ('["y", "y"]', "an output is listed twice")])
def test_outputs_that_name_nothing_or_one_twice(output, problem):
    text = BASE.replace("[tasks.age]", f"[tasks.age]\noutput = {output}")
    assert any(p.strip().startswith(f"tasks.age.output: {problem}") for p in problems(text))


def test_a_workload_combination_twice_in_another_order():
    assert any("listed twice" in p for p in problems(BASE + '[workload]\n"age+mood" = 0.5\n"mood+age" = 0.5\n'))


@pytest.mark.parametrize(
    "gate, missing", [("0.1", "mood"), ("{ age = 0.1, mood = 0.1 }", "mood"), ("{ age = 0.1 }", "")]
)
def test_a_gate_on_accuracy_needs_a_metric_of_its_task(gate, missing):
    text = BASE + f'[evaluation]\ndata = "x.npz"\nmetric = {{ age = "mae" }}\n[gates]\nmax_accuracy_drop = {gate}\n'
    if not missing:
        assert parse(text).gates.max_accuracy_drop == {"age": 0.1}
        return
    (found,) = problems(text)
    assert f"gates.max_accuracy_drop: nothing measures {missing}; name a metric" in found


def test_a_gate_that_no_drop_can_miss_is_refused():
    metrics = '{ age = "mae", mood = "accuracy" }'
    text = BASE + f'[evaluation]\ndata = "x.npz"\nmetric = {metrics}\n[gates]\nmax_accuracy_drop = '
    assert parse(text + "{ age = 2, mood = 0.02 }").gates.max_accuracy_drop == {"age": 2, "mood": 0.02}
    (found,) = problems(text + "2")
    assert found.endswith("limits nothing for mood: accuracy lies from 0 to 1; two per cent are 0.02")


def test_overrides(tmp_path):
    (tmp_path / "r.toml").write_text(BASE)
    config = load_config(tmp_path / "r.toml", ["seed=7", "targets.build=['host']", "tasks.age.model=other.onnx"])
    assert (config.seed, config.targets, config.tasks["age"].model) == (7, ("host",), "other.onnx")
    with pytest.raises(ConfigError, match=r"write key\.path=value"):
        load_config(tmp_path / "r.toml", ["seed"])
    with pytest.raises(ConfigError, match="'seed' is not a table"):
        load_config(tmp_path / "r.toml", ["seed=1", "seed.more=2"])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("a = [1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")


def test_a_byte_order_mark_in_front_of_a_file_is_none_of_its_text(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + write_release(tmp_path).read_bytes())
    assert load_config(tmp_path / "r.toml") == load_config(tmp_path / "release.toml")


@pytest.mark.parametrize(
    "text,value", [("40M", 40e6), ("6MB", 6e6), ("1.5k", 1500), ("2 GiB", 2 << 30), (12, 12), ("7", 7)]
)
def test_amounts(text, value):
    assert amount(text) == value


def test_written_toml_reads_back():
    data = {"a": 1, "b c": [1.5, 'x"y', True], "t": {"k": {"deep": 1e-05}, "u": "v", "e": {}}}
    assert tomllib.loads(dumps(data)) == {"a": 1, "b c": [1.5, 'x"y', True], "t": {"k": {"deep": 1e-05}, "u": "v"}}


@pytest.mark.parametrize("name", ["\U0001f600/a.onnx", 'caf\u00e9 "x"\\.onnx', "a\x7f\tb"])
def test_any_name_of_a_file_survives_the_resolved_form(name):
    config = parse_config({"schema": 1, "name": "n", "tasks": {"a": {"model": name}}}, Path("somewhere"))
    assert config.resolved().isascii()
    assert tomllib.loads(config.resolved())["tasks"]["a"]["model"] == name


def test_numbers_beyond_every_float_are_refused_as_any_other():
    found = problems(BASE + f"[gates]\nmax_output_drift = {10**400}")
    assert len(found) == 1 and "max_output_drift: expected a non-negative number" in found[0]
    assert amount("9" * 400 + "M") == int("9" * 400) * 10**6


def test_a_step_of_an_adapter_takes_plain_values():
    found = problems(BASE + "adapter = [{ scale = 2020-01-01 }]")
    assert found == [
        "  tasks.mood.adapter: scale = 2020-01-01: a step takes numbers, strings, booleans and arrays of them"
    ]


def test_the_own_name_of_an_input_needs_a_shared_one():
    found = problems('schema = 1\nname = "n"\n[tasks.a]\nmodel = "a.onnx"\ninput = "data"')
    assert found == [
        '  tasks.a.input: no shared input is declared as [input.NAME]; write inputs = { own_name = "shared_name" }'
    ]


def test_every_combination_of_many_tasks_and_of_too_many():
    def named(count: int) -> str:
        return BASE.split("[tasks")[0] + "".join(f'[tasks.t{i}]\nmodel = "m.onnx"\n' for i in range(count))

    config = parse(named(8) + '[subsets]\ninclude = "every"')
    assert len(config.subsets) == len(set(config.subsets)) == 255
    assert config.subsets[0] == {"t0"} and config.subsets[-1] == set(config.tasks)
    (found,) = problems(named(11) + '[subsets]\ninclude = "every"')
    assert "2,047 functions of 11 tasks; it serves up to 10" in found


def test_lists_that_leave_nothing_to_build_are_refused():
    found = problems(BASE + "[subsets]\ninclude = []\n[targets]\nbuild = []")
    assert len(found) == 2
    (misspelt,) = problems(BASE + '[subsets]\ninclude = "evry"')
    assert """expected "all", "every", "workload" or an array of combinations, found 'evry'""" in misspelt
    assert found[0].startswith("  subsets.include: lists nothing") and found[1].startswith(
        "  targets.build: lists nothing"
    )
