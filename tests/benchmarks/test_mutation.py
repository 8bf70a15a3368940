"""The mutation study: what it draws, which tests it asks, what it keeps and counts, and who notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.mutation.choice import LOOKING, Chooser, Spans
from benchmarks.mutation.mutants import Mutant, Place, draw, meaning, mutant_of
from benchmarks.mutation.recording import MOST, Recorder, Recording, own
from benchmarks.mutation.study import Kept, interval, record, text
from benchmarks.mutation.trial import Bench, Outcome

SOURCE = '''"""A file."""

LIMIT = 3


class Door:
    def height(self, steps: int) -> int:
        if steps > 0:
            return steps + 1
        return LIMIT
'''


class Signs:
    """Changes `+` and `>` as cosmic-ray would, and annotations too."""

    def places(self, module: str, source: str) -> list[Place]:
        return list(self._places(module, source))

    def _places(self, module: str, source: str) -> Iterator[Place]:
        for number, line in enumerate(source.splitlines(), 1):
            for found in re.finditer(r"[+>]|(?<=: )int", line):
                yield Place(module, (number, found.start()), (number, found.end()), "height", ((found[0], number),))

    def changed(self, source: str, operator: str, occurrence: int) -> str | None:
        lines = source.splitlines(keepends=True)
        new = {"+": "-", ">": "<", "int": "str"}[operator]
        lines[occurrence - 1] = lines[occurrence - 1].replace(operator, new)
        return "".join(lines)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one file in each of the packages."""
    for name in ("compiler/ir/door.py", "compiler/passes/gate.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(SOURCE)
    for folder in ("compiler", "compiler/ir", "compiler/passes"):
        (tmp_path / folder / "__init__.py").touch()
    return tmp_path


# ---------------------------------------------------------------------- changes
def test_a_sample_is_of_distinct_places_and_comes_again(root: Path) -> None:
    drawn, found = draw(root, 3, 0, Signs())
    again, _ = draw(root, 3, 0, Signs())
    assert [m.key for m in drawn] == [m.key for m in again]
    assert len({(m.module, m.line) for m in drawn}) == 3
    assert {m: n for m, n in found.items() if n} == {"compiler/ir/door.py": 4, "compiler/passes/gate.py": 4}
    every = {m.key for seed in range(9) for m in draw(root, 3, seed, Signs())[0]}
    assert len(every) == 4 > len({m.key for m in drawn})


def test_a_single_file_can_be_drawn_from(root: Path) -> None:
    drawn, found = draw(root, 99, 0, Signs(), ["compiler/passes/gate.py", "compiler/ir"])
    assert list(found) == ["compiler/ir/__init__.py", "compiler/ir/door.py", "compiler/passes/gate.py"]
    assert len(draw(root, 99, 0, Signs(), ["compiler/passes/gate.py"])[0]) == 2 and len(drawn) == 4


def test_annotations_are_no_changes(root: Path) -> None:
    drawn, _ = draw(root, 99, 0, Signs())
    assert sorted((m.before, m.after) for m in drawn) == [
        *[("if steps > 0:", "if steps < 0:")] * 2,
        *[("return steps + 1", "return steps - 1")] * 2,
    ]


def test_edits_elsewhere_leave_the_sample_alone(root: Path) -> None:
    before = [m.before for m in draw(root, 1, 5, Signs())[0]]
    path = root / "compiler/ir/door.py"
    path.write_text("import os\n\n" + path.read_text() + "\n\ndef more(x):\n    return x\n")
    assert [m.before for m in draw(root, 1, 5, Signs())[0]] == before


def test_what_is_evaluated_is_the_meaning() -> None:
    assert meaning("def f(x: int | None) -> int:\n    y: int = x\n    return y\n") == meaning(
        "def f(x: str) -> str:\n    y: float = x\n    return y\n"
    )
    assert meaning("x = 1\n") != meaning("x = 2\n")
    assert meaning("if TYPE_CHECKING:\n    import os\n") == meaning("if TYPE_CHECKING:\n    import re\n")
    assert meaning("x = (\n") is None


def test_operators_of_cosmic_ray_find_and_make_changes() -> None:
    cosmic = pytest.importorskip("benchmarks.mutation.cosmic", reason="needs pip install 'taskgraft[mutation]'")
    found = cosmic.places("door.py", SOURCE)
    by_line = {p.start[0]: p for p in found}
    assert sorted(by_line) == [3, 8, 9]
    assert all(p.function == ("height" if p.start[0] > 3 else "") for p in found)
    mutant = mutant_of(by_line[3], SOURCE, 0, cosmic)
    assert mutant is not None and mutant.after.replace(" ", "") == "LIMIT=4"


# ---------------------------------------------------------------------- tests of a change
RECORDING = Recording(
    {"tests/a.py::one[1]": 1.0, "tests/a.py::one[2]": 2.0, "tests/a.py::two": 3.0, "tests/b.py::three": 9.0},
    {
        "compiler/ir/door.py": {
            3: [],
            7: [],
            8: ["tests/a.py::one[1]", "tests/a.py::one[2]", "tests/a.py::two", "tests/b.py::three"],
            9: ["tests/a.py::two"],
        }
    },
    {"tests/a.py::one[1]": 10, "tests/a.py::one[2]": 20, "tests/a.py::two": 30, "tests/b.py::three": 90},
)


@pytest.mark.parametrize(
    ("line", "most", "wanted"),
    [
        (9, 20, ["two"]),
        (8, 20, ["one[1]", "two", "three", "one[2]"]),
        (8, 5, ["one[1]", "two"]),
        (7, 4, ["one[1]", "two"]),  # runs on import alone: the function around it, whose other lines are run
        (3, 4, ["one[1]", "two"]),  # stands in no body: the file
        (9, 2, []),
    ],
)
def test_tests_run_the_statement_within_the_time(line: int, most: float, wanted: list[str]) -> None:
    chooser = Chooser(RECORDING, {"compiler/ir/door.py": SOURCE}, most)
    assert [t.partition("::")[2] for t in chooser.tests("compiler/ir/door.py", line)] == wanted


def test_what_looks_at_modules_from_outside_is_asked_first_where_only_importing_runs_a_line() -> None:
    looking = f"{LOOKING}::golden"
    recording = Recording({**RECORDING.seconds, looking: 0.5}, RECORDING.lines, {**RECORDING.reach, looking: 5})
    chooser = Chooser(recording, {"compiler/ir/door.py": SOURCE}, 4.5)
    assert chooser.tests("compiler/ir/door.py", 3) == [looking, "tests/a.py::one[1]", "tests/a.py::two"]
    assert looking not in chooser.tests("compiler/ir/door.py", 8)


def test_long_tests_are_not_asked() -> None:
    chooser = Chooser(RECORDING, {"compiler/ir/door.py": SOURCE}, 20, longest=2.5)
    assert chooser.tests("compiler/ir/door.py", 8) == ["tests/a.py::one[1]", "tests/a.py::one[2]"]
    assert chooser.tests("compiler/ir/door.py", 9) == ["tests/a.py::one[1]", "tests/a.py::one[2]"]


def test_a_statement_over_several_lines_is_one() -> None:
    spans = Spans.of("@deco\ndef f(x):\n y = (\n  x\n )\n for i in (\n  y\n ):\n  z = i\n")
    assert next(spans.around(4)) == range(3, 6)
    assert next(spans.around(7)) == range(6, 9)
    assert next(spans.around(1)) == range(1, 3)


def test_functions_take_turns_and_what_runs_fewer_lines_comes_first() -> None:
    made = Recording(
        {"f[1]": 2.0, "f[2]": 1.0, "f[3]": 1.0, "g": 5.0}, {}, {"f[1]": 7, "f[2]": 9, "f[3]": 9, "g": 8}
    )
    assert made.ranked(["f[3]", "f[2]", "g", "f[1]"]) == ["f[1]", "g", "f[2]", "f[3]"]


def test_tests_of_the_modules_own_files_come_before_all_others() -> None:
    files = ["tests/test_door.py", "tests/test_small.py", "tests/test_steel_door_parts.py", "tests/test_doors.py"]
    tests = [f"{name}::test[{i}]" for name in files for i in range(2)]
    made = Recording(dict.fromkeys(tests, 1.0), {}, {t: 9 if own(t, "door.py") else 1 for t in tests})
    ranked = made.ranked(tests, "compiler/ir/door.py")
    assert {t.partition("::")[0] for t in ranked[:4]} == {files[0], files[2]}
    assert [own(t, "door.py") for t in ranked] == [True] * 4 + [False] * 4


def test_what_does_not_fit_leaves_its_time_to_the_next() -> None:
    chooser = Chooser(RECORDING, {"compiler/ir/door.py": SOURCE}, 6.5)
    assert [t.partition("::")[2] for t in chooser.tests("compiler/ir/door.py", 8)] == ["one[1]", "two", "one[2]"]


class Noted:
    """What coverage.py tells of one file: line -> contexts."""

    def __init__(self, path: Path, lines: dict[int, list[str]]) -> None:
        self.path, self.lines = path, lines

    def get_data(self) -> Noted:
        return self

    def measured_files(self) -> list[str]:
        return [str(self.path)]

    def contexts_by_lineno(self, path: str) -> dict[int, list[str]]:
        return self.lines


def test_a_line_keeps_the_most_specific_tests_of_every_file(tmp_path: Path) -> None:
    many = [f"tests/a.py::t{n}" for n in range(MOST + 5)]
    lines = {1: ["", *many, "fixture tests/b.py big"], 2: many[:9], 3: ["tests/b.py::failed"]}
    recorder = Recorder(Noted(tmp_path / "compiler/ir/door.py", lines))  # type: ignore[arg-type]
    recorder.fixtures = {"fixture tests/b.py big": ["tests/b.py::x", "tests/b.py::failed"]}
    recorder.seconds = dict.fromkeys([*many, "tests/b.py::x", "tests/b.py::failed"], 1.0)
    recorder.passed = {*many, "tests/b.py::x"}
    made = recorder.recording(tmp_path)
    kept = made.lines["compiler/ir/door.py"]
    assert len(kept[1]) == MOST + 1 and kept[1][-1] == "tests/b.py::x"
    assert set(kept[1][MOST - 4 : MOST]) == set(many[:4])  # nine run two lines, so of these only four are kept
    assert sorted(kept[2]) == many[:9] and kept[3] == []
    assert (made.reach[many[0]], made.reach[many[9]], made.reach["tests/b.py::x"]) == (2, 1, 1)


def test_recordings_are_saved_reduced_and_joined(tmp_path: Path) -> None:
    RECORDING.save(tmp_path / "recording.json")
    assert Recording.read(tmp_path / "recording.json") == RECORDING
    rest, only = RECORDING.without(["tests/b.py"]), RECORDING.without(["tests/a.py"])
    assert list(only.seconds) == ["tests/b.py::three"]
    joined = rest.with_(only)
    assert joined.seconds == RECORDING.seconds
    assert joined.lines == RECORDING.lines


# ---------------------------------------------------------------------- outcomes
@pytest.fixture
def bench(root: Path) -> Bench:
    """A copy of a repository with two tests of the door."""
    (root / "tests").mkdir()
    lines = [
        "import sys; sys.path.insert(0, '.')",
        "from compiler.ir.door import Door",
        "def test_low(): assert Door().height(0) == 3",
        "def test_high(): assert Door().height(2) == 3",
    ]
    (root / "tests" / "test_door.py").write_text("\n".join(lines) + "\n")
    return Bench(root, preloaded=("pytest",))


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("steps + 1", "steps - 1", Outcome("killed", "tests/test_door.py::test_high")),
        ("steps > 0", "steps > 1", Outcome("survived")),
        ("LIMIT = 3", "LIMIT = LOST", Outcome("killed", "import")),
    ],
)
def test_a_trial_tells_who_noticed_and_leaves_the_file_whole(
    bench: Bench, old: str, new: str, wanted: Outcome
) -> None:
    tests = ["tests/test_door.py::test_low", "tests/test_door.py::test_high"]
    changed = SOURCE.replace(old, new)
    assert bench.run("compiler/ir/door.py", changed, tests, 1.0) == wanted
    assert (bench.tree / "compiler/ir/door.py").read_text() == SOURCE


def test_nobody_runs_a_change_without_tests_and_lost_tests_are_said(bench: Bench) -> None:
    assert bench.run("compiler/ir/door.py", "", [], 0.0) == Outcome("untested")
    with pytest.raises(RuntimeError, match="record them again"):
        bench.run("compiler/ir/door.py", SOURCE, ["tests/test_door.py::test_gone"], 1.0)


def mutant(source: str = "x") -> Mutant:
    return Mutant("compiler/ir/door.py", 8, "height", "Add_Sub", "steps + 1", "steps - 1", source)


def test_outcomes_hold_while_the_tests_they_rest_on_do(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("1")
    tests = ["a.py::one", "b.py::two"]
    killed, survived = Outcome("killed", "a.py::one"), Outcome("survived")
    first = Kept(tmp_path / "kept", tmp_path)
    first.keep(mutant("k"), tests, killed)
    first.keep(mutant("s"), tests, survived)
    (tmp_path / "b.py").write_text("2")
    again = Kept(tmp_path / "kept", tmp_path)
    assert again.outcome(mutant("k"), tests) == killed
    assert again.outcome(mutant("s"), tests) is None
    (tmp_path / "b.py").write_text("1")
    assert again.outcome(mutant("s"), tests) == survived
    assert again.outcome(mutant("s"), tests[:1]) is None
    (tmp_path / "a.py").write_text("2")
    assert again.outcome(mutant("k"), tests) is None
    assert again.outcome(mutant("other"), tests) is None


def test_counts_and_survivors() -> None:
    outcomes = [Outcome("killed", "import"), Outcome("timeout"), Outcome("survived"), Outcome("untested")]
    made = record([(mutant(), o) for o in outcomes], {"compiler/ir/door.py": 7, "compiler/passes/gate.py": 0})
    assert (made["places"], made["drawn"], made["killed"], made["score"]) == (7, 4, 2, 0.5)
    assert made["noticed_while_importing"] == 1
    counts = {"places": 7, "killed": 1, "timeout": 1, "survived": 1, "untested": 1}
    assert made["modules"] == {"compiler/ir/door.py": counts}
    assert [s["verdict"] for s in made["survivors"]] == ["survived", "untested"]
    shown = text(made)
    assert "2 of 4 changes noticed, drawn from 7 places: 50.0% (95 %: 15.0% to 85.0%)" in shown
    assert "  compiler/ir: 2 of 4\n" in shown and "compiler/passes" not in shown
    assert "  - steps + 1\n  + steps - 1" in shown


@pytest.mark.parametrize(
    ("killed", "drawn", "low", "high"), [(8, 10, 0.490, 0.943), (10, 10, 0.722, 1.0), (0, 0, 0.0, 1.0)]
)
def test_wilsons_interval(killed: int, drawn: int, low: float, high: float) -> None:
    assert interval(killed, drawn) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))
