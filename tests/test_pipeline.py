from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import ConfigError, VerifyError
from compiler.ir.graph import Graph
from compiler.ir.types import DType, ValueRef
from compiler.passes import REGISTRY, find
from compiler.passes.base import NewNames, Pass, Refusal, Resources, names_of
from compiler.pipeline import Pipeline, parse
from compiler.settings import DEFAULT_PASSES
from tests.graphs import Builder
from tests.passes.merge.families import joined, plain


@dataclass(frozen=True)
class Example(Pass):
    name: ClassVar[str] = "tests.test_pipeline:Example"
    exact: ClassVar[bool] = False

    count: int = 3
    share: float = 0.5
    label: str = "plain"
    on: bool = False
    limit: float | None = None
    words: tuple[str, ...] = ()
    sizes: tuple[float, ...] = (1.0,)
    mode: Literal["local", "global"] = "local"

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        return ()


@dataclass(frozen=True)
class Wrong(Pass):
    """Claims to be exact and is not."""

    name: ClassVar[str] = "wrong"
    exact: ClassVar[bool] = True

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        for value in graph.parameters():
            graph.update(value.ref, data=value.constant * np.float32(1.01))
        return (Refusal("nowhere", "no reason"),)


options = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(-5, 10**12),
        "share": st.floats(allow_nan=False),
        "label": st.text(),
        "on": st.booleans(),
        "limit": st.none() | st.floats(allow_nan=False),
        "words": st.lists(st.text()).map(tuple),
        "sizes": st.lists(st.floats(allow_nan=False)).map(tuple),
        "mode": st.sampled_from(["local", "global"]),
    },
)


@settings(max_examples=300, deadline=None)
@given(options)
def test_spec_strings_read_back(chosen):
    one = Example(**chosen)
    assert parse(str(one)) == one


def test_numbers_of_numpy_and_any_sequence_of_options_are_those_of_the_spec():
    given = Example(
        count=np.int64(4),
        share=np.float64(0.25),
        limit=np.float32(0.5),
        on=np.True_,
        words=["b", "a+b"],
        sizes=np.array([0.5, 2.0]),
    )
    assert given == Example(4, 0.25, "plain", True, 0.5, ("b", "a+b"), (0.5, 2.0))
    assert parse(str(given)) == given and hash(parse(str(given))) == hash(given)
    once = Example(words=iter(["x", "y"]))
    assert [once.words, once.words] == [("x", "y")] * 2
    assert Example(words={"y", "x"}).words == ("x", "y")


def test_passes_of_an_iterator_run_every_time():
    graph = plain("a", 0, (8, 12))
    pipeline = Pipeline(iter([parse("fold-constants"), parse("deduplicate")]))
    for _ in range(2):
        assert [r.name for r in pipeline.run(graph)[1]] == ["fold-constants", "deduplicate"]


@pytest.mark.parametrize(
    "spec,printed",
    [
        (" fold-constants ", "fold-constants"),
        ("fold-constants{limit=1024}", "fold-constants{limit=1024}"),
        (f"fold-constants{{limit={64 << 20}}}", "fold-constants"),
        ("extract-tasks{tasks=age+gender}", "extract-tasks{tasks=age+gender}"),
    ],
)
def test_printed_form(spec, printed):
    assert str(parse(spec)) == printed


@pytest.mark.parametrize(
    "spec,message",
    [
        ("fold-constant", "unknown pass 'fold-constant'; the passes are fold-constants"),
        ("fold-constants{limits=1,size=2}", "no option limits.*no option size"),
        ("fold-constants{limit=many}", "'many' is not a whole number"),
        ("prune-channels{flops=nan}", "'nan' is not none or a number"),
        ("fold-constants{limit}", "cannot read 'limit'"),
        ("fold-constants{limit=1", "is not a pass"),
        ("fold-constants{limit=1,limit=2}", "given twice"),
        ("tests.test_pipeline:Example{mode=other}", "'other' is not one of local, global"),
        ("tests.nowhere:Thing", "cannot be imported"),
        (":Thing", "':Thing' cannot be imported: Empty module name"),
        (".:Thing", "cannot be imported"),
        ("os:system", "'os:system' is no pass: needed is a dataclass"),
        ("compiler.passes.base:Pass", "it leaves out"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec, message):
    with pytest.raises(ConfigError, match=message):
        parse(spec)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_registered_pass_loads_under_its_name(name):
    assert find(name).name == name
    assert find(name).__doc__


def network():
    net = Builder()
    x = net.input("x", 1, 3, 6, 6)
    for task in "ab":
        net.rng = np.random.default_rng(0)
        y = net.conv(x, 4, 3)
        vectors = [net.const(net.rng.uniform(0.5, 2, 4).astype(np.float32)) for _ in range(4)]
        net.task(task, net.apply("BatchNormalization", y, *vectors))
    return net.done()


def test_records_observers_and_order():
    graph, seen = network(), []
    pipeline = Pipeline.parse(DEFAULT_PASSES[:4], numerics=True)
    after, records = pipeline.run(graph, observers=[lambda b, p, a, r: seen.append((b, str(p), a, r))])
    assert [r.spec for r in records] == list(DEFAULT_PASSES[:4])
    assert [s[1] for s in seen] == list(DEFAULT_PASSES[:4])
    assert seen[0][0] is graph
    assert seen[-1][2] is after
    assert all(a[2] is b[0] for a, b in itertools.pairwise(seen))
    assert [r.before.digest for r in records[1:]] == [r.after.digest for r in records[:-1]]
    assert (records[0].before.nodes, records[-1].after.nodes) == (4, 1)
    assert records[0].before.digest == records[0].after.digest
    assert all(max(r.drift.values()) <= 1e-5 for r in records)
    assert records[1].record()["after"]["nodes"] == 2


def test_stop_after():
    _, records = Pipeline.parse(DEFAULT_PASSES[:4]).run(network(), stop_after="fold-batch-norm")
    assert [r.name for r in records] == ["fold-constants", "fold-batch-norm"]
    with pytest.raises(ConfigError, match="no pass 'nest'"):
        Pipeline.parse(DEFAULT_PASSES[:4]).run(network(), stop_after="nest")


def test_an_exact_pass_that_changes_outputs_is_caught():
    with pytest.raises(VerifyError, match=r"wrong: task '.' differs by"):
        Pipeline((Wrong(),), numerics=True).run(network())
    _, (record,) = Pipeline((Wrong(),)).run(network())
    assert record.refusals == (Refusal("nowhere", "no reason"),)
    assert record.drift is None


def test_outputs_that_are_never_finite_have_no_drift():
    """And hide nothing of the other tasks."""
    b = Builder()
    x = b.input("x", 4)
    b.task("a", b.apply("Log", b.apply("Sub", x, x)))
    b.task("b", b.apply("Relu", x))
    _, (record,) = Pipeline.parse(["remove-dead-code"], numerics=True).run(b.done())
    assert np.isnan(record.drift["a"]) and record.drift["b"] == 0
    assert record.record()["drift"] == {"a": None, "b": 0.0}


def test_an_error_names_the_pass():
    with pytest.raises(ConfigError) as caught:
        Pipeline.parse(["nest{levels=0.0+0.5,min_inputs=5000}"]).run(network())
    assert "while running nest{levels=0.0+0.5,min_inputs=5000}" in caught.value.__notes__


def test_half_floats_are_held_to_their_own_rounding() -> None:
    """A unit in the last place is 8,192 times as large as in float32."""
    b = Builder(seed=1)

    def half(*shape: int) -> ValueRef:
        return b.const(b.rng.normal(size=shape).astype(np.float16))  # type: ignore[no-any-return]

    h = b.apply("Conv", b.input("x", 1, 3, 6, 6, dtype=DType.FLOAT16), half(8, 3, 3, 3), half(8))
    h = b.apply("BatchNormalization", h, half(8), half(8), half(8), b.const(np.ones(8, np.float16)))
    b.task("t", b.apply("Conv", b.apply("Relu", h), half(4, 8, 1, 1)))
    graph, records = Pipeline.parse([*DEFAULT_PASSES, "join-siblings"], numerics=True).run(b.done())
    assert [n.op.name for n in graph.nodes()] == ["Conv", "Relu", "Conv"]
    assert 1e-5 < max(r.drift["t"] for r in records if r.drift) < 1e-2
    assert len(parse("prune-channels{flops=0.6}")(graph).nodes()) == 3


@dataclass(frozen=True)
class Slow(Pass):
    """A pass that takes its time."""

    name: ClassVar[str] = "slow"
    exact: ClassVar[bool] = True

    def rewrite(self, graph, use):
        raise AssertionError("hours of work")


def test_what_is_wrong_with_any_pass_is_told_before_the_first_one_runs():
    graph = joined(plain("a", 0), plain("b", 1))
    specs = (
        "prune-channels{flops=0}",
        "sparsify{density=2}",
        "merge{policy=mtz,max_loss=0.1,limits=c:0.1}",
        "nest",
    )
    specs += ("narrow{flops=2}", "distil{loss=xl}", "compress", "extract-tasks{tasks=c}")
    passes = [parse(s) for s in specs]
    with pytest.raises(ConfigError) as caught:
        Pipeline((Slow(), *passes)).run(graph)
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(p) for p in passes]
    assert "limits: 'c:0.1' is not TASK:SHARE with one of a, b" in lines[2]
    with pytest.raises(AssertionError, match="hours of work"):  # what would not run is not asked
        Pipeline((Slow(), *passes)).run(graph, stop_after="slow")


@dataclass(frozen=True)
class Keeping(Slow):
    """The same, and it says that it adds no names."""

    new_names: ClassVar[NewNames] = NewNames.NONE


@dataclass(frozen=True)
class Deriving(Slow):
    """The same for names that are derived."""

    new_names: ClassVar[NewNames] = NewNames.DERIVED


@pytest.mark.parametrize(
    ("first", "pattern", "told"),
    [
        (Keeping(), "conv.*", True),
        (Keeping(), "*conv", False),
        (Deriving(), "conv.*", False),
        (Deriving(), "conv_bias", False),
        (Deriving(), "convolution", True),
        (Deriving(), "con", True),
        (Deriving(), "conv2*", True),
        (Deriving(), "co*2", False),
        (Deriving(), "*2", False),
        (Deriving(), "[z]onv", False),
        (Slow(), "convolution", False),
    ],
)
def test_a_pattern_that_will_name_nothing_is_told_before_the_passes_in_front_of_it_run(
    first: Pass, pattern: str, told: bool
) -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 4, 3)))
    graph = b.done()
    assert "conv" in names_of(graph)
    last = parse(f'sparsify{{density=0.5,exclude="{pattern}"}}')
    with pytest.raises(ConfigError if told else AssertionError) as caught:
        Pipeline((first, last)).run(graph)
    if told:
        problem, advice = str(caught.value).splitlines()
        assert problem.startswith(f"{last}: exclude {pattern}: no value and no node of 'net' has such a name")
        assert advice == "`taskgraft inspect --text` lists the names, and * stands for any characters"
    with pytest.raises(AssertionError, match="hours of work"):
        Pipeline((first, last)).run(graph, stop_after="slow")


def test_patterns_are_looked_at_again_as_soon_as_the_names_behind_a_pass_are_known() -> None:
    """Folding might have made a name such as *2, the slow pass behind it cannot."""
    b = Builder()
    b.task("t", b.apply("Relu", b.conv(b.input("x", 1, 3, 6, 6), 4, 3)))
    done: list[str] = []
    passes = tuple(parse(s) for s in ("fold-batch-norm", 'sparsify{density=0.5,exclude="*2"}'))
    with pytest.raises(ConfigError, match=r"^sparsify.*: exclude \*2: no value and no node"):
        Pipeline((passes[0], Keeping(), passes[1])).run(b.done(), observers=[lambda *a: done.append(str(a[1]))])
    assert done == ["fold-batch-norm"]


@dataclass(frozen=True)
class Renaming(Pass):
    """Adds a parameter of some name, and says that it does not."""

    name: ClassVar[str] = "renaming"
    exact: ClassVar[bool] = True
    new_names: ClassVar[NewNames] = NewNames.DERIVED

    added: str = ""

    def rewrite(self, graph: Graph, use: Resources) -> Iterable[Refusal]:
        made = graph.add_parameter(self.added, np.zeros((1,), np.float32))
        graph.set_operand(graph.nodes()[0].ref, 1, made.ref)
        return ()


def test_a_pass_is_held_to_what_it_says_of_its_names() -> None:
    b = Builder()
    b.task("t", b.apply("Add", b.input("x", 1), b.const(np.ones(1, np.float32))))
    graph = b.done()
    known = min(n.ref.name for n in graph.nodes())
    for name in (f"{known}.1", f"{known}_bias", f"{known}/a.b"):
        Renaming(name).run(graph)
    for name in ("other", f"{known}2", f"{known[:-1]}/a"):
        with pytest.raises(VerifyError, match=f"after renaming: '{name}' is a name that its new_names rules out"):
            Renaming(name).run(graph)


def test_passes_are_asked_about_the_tasks_that_are_left_for_them():
    graph = joined(plain("a", 0), plain("b", 1), plain("c", 2))
    specs = ("extract-tasks{tasks=a+b}", "merge{policy=exact,caps=a/c:5}")
    with pytest.raises(ConfigError, match=r"^merge{.*}: .*caps: 'a/c:5' is not TASK/TASK:MACS with tasks of a, b$"):
        Pipeline(tuple(parse(s) for s in specs)).run(graph)
