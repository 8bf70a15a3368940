from __future__ import annotations

import io
import re

import pytest

from compiler.commands import Tree
from compiler.commands.pictures import outline_records, outline_tree
from compiler.outline import arranged, stages
from compiler.tables import show
from tests.graphs import Builder


def residual(b, x, channels=4):
    """Two convolutions beside what they read."""
    inner = b.apply("Relu", b.conv(x, channels, 3, pads=(1, 1, 1, 1)))
    return b.apply("Add", b.conv(inner, channels, 3, pads=(1, 1, 1, 1)), x)


def two_blocks_and_two_heads():
    b = Builder("faces")
    x = b.apply("Relu", b.conv(b.input("image", 1, 3, 8, 8), 4, 3, pads=(1, 1, 1, 1)))
    for _ in range(2):
        x = residual(b, x)
    b.task("age", b.apply("Sigmoid", b.conv(x, 2, 1)))
    b.task("gender", b.conv(x, 3, 1))
    return b.done()


def names(branches):
    """Numbers alone: a list per series, a stage with branches as (number, branches)."""
    return [
        [(p.stage.number, names(p.branches)) if p.branches else p.stage.number for p in series]
        for series in branches
    ]


def test_chains_fold_blocks_follow_each_other_and_heads_branch_off():
    graph = two_blocks_and_two_heads()
    found = stages(graph)
    assert [dict(s.operators) for s in found] == [
        {"Conv": 1, "Relu": 1},
        {"Conv": 2, "Relu": 1},
        {"Add": 1},
        {"Conv": 2, "Relu": 1},
        {"Add": 1},
        {"Conv": 1, "Sigmoid": 1},
        {"Conv": 1},
    ]
    assert [s.after for s in found] == [(), (1,), (1, 2), (3,), (3, 4), (5,), (5,)]
    assert [s.tasks for s in found[4:]] == [("age", "gender"), ("age",), ("gender",)]
    assert [s.gives for s in found[4:]] == [(), ("age",), ("gender",)]
    assert found[0].reads == ("image",)
    assert found[1].macs == 2 * 8 * 8 * 4 * 4 * 9
    assert names(arranged(found)) == [[(1, [[2]]), (3, [[4]]), (5, [[6], [7]])]]


def test_an_output_in_the_middle_ends_a_stage_and_branches_do_not_join_behind_it():
    b = Builder()
    middle = b.conv(b.input("x", 1, 3, 4, 4), 4, 1)
    b.task("a", b.apply("Relu", b.conv(middle, 4, 1)), middle)
    found = stages(b.done())
    assert [(dict(s.operators), s.gives) for s in found] == [
        ({"Conv": 1}, ("a",)),
        ({"Conv": 1, "Relu": 1}, ("a",)),
    ]
    assert names(arranged(found)) == [[(1, [[2]])]]


def test_a_part_that_only_some_branches_join_in_stays_among_them():
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 4, 1))
    left, right, other = (b.conv(x, 4, 1) for _ in range(3))
    b.task("a", b.apply("Add", left, right))
    b.task("b", other)
    graph = b.done()
    found = stages(graph)
    assert names(arranged(found)) == [[(1, [[2], [3], [4], [5]])]]
    assert next(s for s in found if s.operators.get("Add")).after == (2, 3)


def test_skips_over_several_joins_nest_like_the_network():
    """A small U: the outer skip meets what the inner one gave."""
    b = Builder()
    outer = b.conv(b.input("x", 1, 3, 8, 8), 4, 1)
    inner = b.conv(outer, 4, 1)
    deep = b.apply("Relu", inner)
    met = b.apply("Relu", b.apply("Add", deep, inner))
    b.task("a", b.apply("Add", met, outer))
    assert names(arranged(stages(b.done()))) == [[(1, [[(2, [[3]]), 4]]), 5]]


def test_inputs_that_meet_are_told_and_every_stage_is_drawn_once():
    b = Builder("two")
    image, state = b.input("image", 1, 4), b.input("state", 1, 4)
    b.task("a", b.apply("Add", b.apply("Relu", image), state))
    tree = outline_tree(b.done())
    assert [child.label for child in tree.children] == [
        "1  Relu  float32[1,4]  a  reads image",
        "2  Add  float32[1,4]  a  reads state  after 1  gives a",
    ]


def test_the_record_is_the_picture():
    graph = two_blocks_and_two_heads()
    records = outline_records(graph)
    assert [r["stage"] for r in records] == list(range(1, 8))
    assert sorted(n for r in records for n in r["nodes"]) == sorted(n.ref.name for n in graph.nodes())
    assert sum(r["macs"] for r in records) == 45056


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self):
        return True

    def shown(self):
        """What was written, without styles."""
        self.flush()
        return re.sub(r"\x1b\[\d*m", "", self.buffer.getvalue().decode(self.encoding))


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_box_characters_on_a_terminal_that_has_them_folded_at_its_width(narrow):
    stream = Terminal("utf-8")
    show([outline_tree(two_blocks_and_two_heads())], stream)
    text = stream.shown()
    assert "├── 1  Conv, Relu" in text
    assert "│   └── 2  2 x Conv, Relu" in text
    assert max(len(line) for line in text.splitlines()) <= 40
    assert " ".join(text.split()).endswith("gender gives gender")


@pytest.mark.parametrize("stream", [Terminal("ascii"), io.StringIO()], ids=["ascii terminal", "no terminal"])
def test_plain_ascii_elsewhere(narrow, stream):
    show([Tree("größe", (Tree("first", (Tree("inner"),)), Tree("last", kind=1)))], stream)
    text = stream.shown() if isinstance(stream, Terminal) else stream.getvalue()
    assert text.split("\n")[:4] == ["gr\\xf6\\xdfe", "+-- first", "|   `-- inner", "`-- last"]


def test_long_outlines_say_what_is_left_out(monkeypatch):
    monkeypatch.setattr("compiler.commands.pictures.MOST_STAGES", 3)
    tree = outline_tree(two_blocks_and_two_heads())
    stream = io.StringIO()
    show([tree], stream)
    assert stream.getvalue().count("MACs (") == 2
    assert "and 4 more stages; --json prints all" in stream.getvalue()
