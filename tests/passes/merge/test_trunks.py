"""The search for blocks to share by its parts: prices, choices, phrases by hand, cuts against removal of nodes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from compiler.ir.graph import Graph, NodeRef
from compiler.ir.types import ValueRef
from compiler.passes.merge import trunks
from compiler.passes.merge.cuts import Cut, _exits
from compiler.passes.merge.lattice import Limits
from compiler.passes.merge.match import align
from compiler.passes.merge.relevance import Runs
from compiler.passes.merge.solve import Fit, Freedom, measure
from compiler.passes.merge.stitch import Samples, Stitch, Stitcher, _order, _placed, readers
from compiler.passes.merge.trunks import CHEAPER, NEAR, Attachment, Bill, Trial, Trunks
from compiler.passes.prune.fit import POSITIONS, spread
from tests.graphs import Builder


# ---------------------------------------------------------------------- where networks can be cut
def random_network(seed: int) -> Graph:
    """Layers and sums in random order, all of which reach the outputs, or most of them."""
    rng, b = np.random.default_rng(seed), Builder(seed=seed)
    values = [b.apply("MatMul", b.input("x", 1, 3), b.weight(3, 3))]
    for _ in range(rng.integers(3, 9)):
        recent = values[-int(rng.integers(1, 4)) :]
        if rng.random() < 0.4:
            values.append(b.apply("Add", *(recent[i] for i in rng.integers(0, len(recent), 2))))
        elif rng.random() < 0.2:
            parts = b.apply("Split", recent[0], b.const([1, 2]), axis=1, results=2)
            values.append(b.apply("Concat", *parts, axis=1))
        else:
            values.append(b.apply("MatMul", recent[0], b.weight(3, 3)))
    ends = [v for v in values if not b.graph.uses(v)]
    if rng.random() < 0.5:
        ends = [b.apply("MatMul", b.apply("Concat", *ends, axis=1), b.weight(3 * len(ends), 3))]
        ends = [b.apply("MatMul", ends[0], b.weight(3, 2))]
    b.task("t", *ends, *([values[2]] if rng.random() < 0.2 else []))
    return b.done()


def reaches(graph: Graph, start: NodeRef, without: NodeRef | None = None) -> set[NodeRef]:
    """The nodes that read what a node makes, over others but one."""
    found, waiting = set[NodeRef](), [start]
    while waiting:
        ref = waiting.pop()
        if ref in found or ref == without:
            continue
        found.add(ref)
        waiting += [n.ref for v in graph.results(graph.node(ref)) for n, _ in graph.uses(v.ref)]
    return found


@pytest.mark.parametrize("seed", range(30))
def test_a_network_is_cut_at_nodes_without_which_nothing_reaches_its_outputs(seed: int) -> None:
    graph = random_network(seed)
    nodes = graph.nodes()
    ends = {n.ref for n in nodes if any(graph.is_output(v.ref) for v in graph.results(n))}
    expected = []
    for node in nodes:
        above = {n.ref for n in nodes if node.ref in reaches(graph, n.ref)}
        below = reaches(graph, node.ref)
        through = all(not reaches(graph, r, node.ref) & ends for r in above - {node.ref})
        whole = above | below == {n.ref for n in nodes}
        if through and whole and node.ref not in ends and len(graph.results(node)) == 1:
            macs = {n.ref: n.op.macs(graph.site(n)) for n in nodes}
            paid = sum(macs[r] for r in above)
            expected.append((node.ref, paid, sum(macs.values()) - paid, nodes[0].ref in above))
    found = _exits(graph, nodes, lambda name: name in (nodes[0].ref.name, graph.results(nodes[0])[0].ref.name))
    assert [(e.node.ref, e.macs, e.left, e.stays) for e in found] == expected


def test_most_networks_of_the_test_above_have_cuts() -> None:
    graphs = [random_network(seed) for seed in range(30)]
    counts = [len(_exits(g, g.nodes(), lambda name: False)) for g in graphs]
    assert sum(n > 1 for n in counts) > 8 and len(set(counts)) > 4


@pytest.mark.parametrize("which", ["node", "value", None])
def test_what_is_excluded_holds_what_is_behind_it(which: str | None) -> None:
    b = Builder()
    first = b.apply("MatMul", b.input("x", 1, 3), b.weight(3, 3))
    second = b.apply("Relu", first)
    b.task("t", b.apply("MatMul", second, b.weight(3, 2)))
    graph = b.done()
    name = {"node": graph.producer(second).ref.name, "value": second.name, None: ""}[which]
    stays = [e.stays for e in _exits(graph, graph.nodes(), lambda n: n == name)]
    assert stays == [False, which is not None]


# ---------------------------------------------------------------------- what is paid
def shared_network() -> Graph:
    """12 multiply-adds for both tasks, 6 more for a and 15 for b."""
    b = Builder()
    h = b.apply("MatMul", b.input("x", 1, 4), b.weight(4, 3))
    b.task("b", b.apply("MatMul", h, b.weight(3, 5)))
    b.task("a", b.apply("MatMul", h, b.weight(3, 2)))
    return b.done()


def test_a_call_costs_what_its_tasks_need_and_caps_are_of_combinations() -> None:
    graph = shared_network()
    runs = Runs("ab", {frozenset("a"): 3.0, frozenset("ab"): 1.0})
    assert Bill(runs, {}).expected(graph) == pytest.approx(12 + 6 + 15 / 4)
    assert Bill(runs, {}).over(graph) == set()
    caps = {frozenset("a"): 17.9, frozenset("b"): 27.0, frozenset("ab"): 32.0}
    assert Bill(runs, caps).over(graph) == {frozenset("a"), frozenset("ab")}


CUTS = [Cut(n, ValueRef(f"mine{n}"), ValueRef(f"theirs{n}"), 1) for n in range(6)]


def stitch(residual: float = 0.0, position: int = 0, **options: object) -> Stitch:
    return Stitch(CUTS[position], residual, **options)  # type: ignore[arg-type]


def trial(cost: float, residual: float = 0.0, position: int = 0, task: str = "b", owner: str = "a") -> Trial:
    return Trial(cost, Graph("trial"), (Attachment(task, owner, stitch(residual, position)),))


def test_of_equal_costs_what_loses_less_is_cheaper() -> None:
    both = Trial(5.0, Graph("t"), (*trial(0, 0.25).added, *trial(0, 0.5).added))
    assert both.price == (5.0, 0.75) and trial(5.0, 0.5).price < both.price < trial(5.1).price


# ---------------------------------------------------------------------- what is taken
class Search(Trunks):
    """A search over trials that are given; `good`: those that keep the limits."""

    def __init__(self, offers: list[list[list[Trial]]], good: list[Trial]) -> None:
        self.attached, self._given, self._good, self.tried = [], offers, good, list[Trial]()

    def _offers(self) -> list[list[list[Trial]]]:
        taken = {a.task for a in self.attached}
        return [o for o in self._given if o[0][0].added[0].task not in taken]

    def _kept(self, trial: Trial) -> Trial | None:
        self.tried.append(trial)
        return trial if trial in self._good else None

    def _accept(self, trial: Trial) -> None:
        self.attached += trial.added


@pytest.mark.parametrize("deepest", range(-1, 5))
def test_of_the_cuts_of_two_networks_the_deepest_is_taken_that_keeps_the_limits(deepest: int) -> None:
    """Ways at each cut are tried in order: the first one of every second cut loses too much."""
    offers = [[trial(9.0 - n, 0.5, n), trial(9.5 - n, 0.1, n)] for n in range(5)]
    good = [ways[n % 2] for n, ways in enumerate(offers) if n <= deepest]
    search = Search([], good)
    found = search._deepest(offers)
    assert found is (good[-1] if good else None)
    assert search.tried[0] is offers[-1][0] and len(search.tried) <= 8


def test_the_cheapest_attachment_goes_first_and_dearer_ones_are_not_looked_at() -> None:
    to_a, to_b, late = trial(5.0, task="c"), trial(4.0, task="d"), trial(4.0, 0.1, task="e")
    dear = trial(6.0, task="f")
    search = Search([[[dear]], [[to_a]], [[late]], [[to_b]]], [to_a, to_b, late, dear])
    search.grow()
    assert [a.task for a in search.attached] == ["d", "e", "c", "f"]
    assert search.tried[0] is to_b and dear not in search.tried[:3]
    nothing = Search([[[to_a]]], [])
    nothing.grow()
    assert nothing.attached == []


def test_offers_are_compared_by_what_is_kept_of_them() -> None:
    """The deeper cuts, which cost less, lose too much; of the others d's costs more, although d's deeper one would
    cost less than what is kept of c.
    """
    c, d = trial(5.0, 0.0, 0, task="c"), trial(6.0, 0.0, 0, task="d")
    search = Search([[[c], [trial(3.0, 0.0, 1, task="c")]], [[d], [trial(4.0, 0.0, 1, task="d")]]], [c, d])
    search.grow()
    assert [a.task for a in search.attached] == ["c", "d"] and d in search.tried[:4]


class Ways(Trunks):
    """Trials of one pair at one cut; `costs`: of the graph with each of the ways."""

    def __init__(self, ways: list[Stitch], costs: list[float], over: list[set], drift: float = 0.2) -> None:
        graph = shared_network()
        self.graph, self._limits, self._why = graph, Limits(drift, {}), {}
        self._found, self._costs, self._over = ways, iter(costs), over
        self._bill = SimpleNamespace(
            expected=lambda g: 10.0, over=lambda g: set() if g is graph else self._over.pop(0)
        )

    def _ways(self, cut: Cut) -> list[Stitch]:
        return self._found

    def _trial(self, added) -> Trial:
        return Trial(next(self._costs), Graph("trial"), tuple(added))

    def found(self) -> list[float]:
        values = [v.ref for v in self.graph.values() if v.data is None and v.shape == (1, 3)]
        cut = Cut(0, values[0], values[0], 1)
        return [t.cost for t in self._trials("b", "a", cut)]


def test_ways_must_lose_little_save_something_and_break_no_cap_that_held() -> None:
    near, far = stitch(0.2), stitch(0.201)
    search = Ways([near, far, near, near], [9.0, 10.0, 8.0], [set(), {frozenset("a")}])
    assert search.found() == [9.0]
    (why,) = search._why.values()
    assert why == "'b' would read what 'a' has as it is, which costs more than it saves"
    search = Ways([far, stitch(0.5)], [], [])
    assert search.found() == []
    (why,) = search._why.values()
    assert why == (
        "20.1% of the variance of what 'b' has there cannot be told from what 'a' has, 20.0% may be lost"
    )
    search = Ways([], [], [])
    assert search.found() == [] and "cannot be compared channel by channel" in search._why["b", "a", 0]
    assert Ways([stitch(1e-6)], [9.0], [set()], drift=0.0).found() == [9.0]  # to rounding
    assert Ways([near], [10 * CHEAPER], [set()]).found() == []


def test_what_is_not_computed_by_itself_any_more_is_no_offer() -> None:
    search = Ways([stitch()], [1.0], [set()])
    by_b = next(v.ref for v in search.graph.values() if v.shape == (1, 5))
    common = next(v.ref for v in search.graph.values() if v.data is None and v.shape == (1, 3))
    assert list(search._trials("b", "a", Cut(0, common, by_b, 1))) == []  # 'a' does not compute it
    assert list(search._trials("b", "a", Cut(0, ValueRef("gone"), common, 1))) == []
    assert search._why == {} and len(list(search._trials("a", "b", Cut(0, common, by_b, 1)))) == 1


class Near(Trunks):
    """`losses`: of b before and behind a fit of the layers behind the cut."""

    def __init__(self, *losses: float, fits: bool = True) -> None:
        self._limits, self._fits_behind, self._why, self._now = Limits(0.1, {"a": 0.0, "b": 0.1}), fits, {}, {}
        self._left = list(losses)

    def _changed(self, trial: Trial, known: dict) -> SimpleNamespace:
        return SimpleNamespace(outputs={})

    def _losses(self, outputs: dict) -> dict[str, float]:
        return {"a": 0.0, "b": self._left.pop(0)}

    def _fitted(self, trial: Trial) -> Trial:
        return Trial(5.0, trial.graph, trial.added)


@pytest.mark.parametrize(
    ("losses", "fits", "cost", "lost"),
    [
        ((0.1,), True, 1.0, ""),
        ((0.1 * NEAR, 0.1), True, 5.0, ""),
        ((0.1 * NEAR, 0.15), True, None, "15.0%"),
        ((0.1 * NEAR + 0.01,), True, None, f"{0.1 * NEAR + 0.01:.1%}"),
        ((0.15,), False, None, "15.0%"),
    ],
)
def test_layers_behind_are_fitted_where_a_little_too_much_is_lost(losses, fits, cost, lost) -> None:
    search = Near(*losses, fits=fits)
    kept = search._kept(trial(1.0, task="b"))
    assert not search._left and (None if kept is None else kept.cost) == cost
    told = f"'b' would lose {lost} of its outputs' variance, 10.0% may be lost"
    assert list(search._why.values()) == ([told] if lost else [])


class Refit(Trunks):
    """Networks b and c, which go on from a; `losses`: what tasks lose, which stands for outputs too."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.attached = [*trial(1.0, task="b").added, *trial(1.0, task="c").added]
        self.graph, self._now, self._feeds, self._fits_behind = Graph("before"), losses, [], True

    def _fitted(self, trial: Trial) -> Trial:
        return Trial(0.0, Graph(trial.added[0].task), ())

    def _losses(self, outputs: dict[str, float]) -> dict[str, float]:
        return outputs


@pytest.mark.parametrize(
    ("fitted", "name"),
    [
        ([(0.0, 0.1, 0.2), (0.0, 0.1, 0.2)], "b"),
        ([(0.0, 0.1, 0.3), (0.0, 0.3, 0.1)], "before"),
        ([(0.0, 0.2, 0.1), (0.0, 0.1, 0.1)], "c"),
    ],
)
def test_a_fit_behind_a_cut_stays_where_its_task_loses_less_and_no_other_more(monkeypatch, fitted, name) -> None:
    """`fitted`: what a, b and c lose with the layers of b fitted, then with those of c."""
    outcomes = iter(dict(zip("abc", losses, strict=True)) for losses in fitted)
    monkeypatch.setattr(trunks, "Samples", lambda *_: SimpleNamespace(outputs=next(outcomes)))
    search = Refit({"a": 0.0, "b": 0.2, "c": 0.2})
    search.refit()
    assert search.graph.name == name and next(outcomes, None) is None
    exact = Refit({"a": 0.0, "b": 0.0, "c": 0.0})
    exact.refit()
    assert exact.graph.name == "before"
    outcomes = iter([{"a": 0.0, "b": 0.0, "c": 0.1}])
    half = Refit({"a": 0.0, "b": 0.0, "c": 0.2})
    half.refit()
    assert half.graph.name == "c"


# ---------------------------------------------------------------------- what is told
class Attached(Trunks):
    """Networks c, which goes on from b at cut 3, and b, which goes on from a at cut 1; d is alone."""

    def __init__(self) -> None:
        self.attached = [
            Attachment("c", "b", stitch(0.031, 3, order=np.arange(2))),
            Attachment("b", "a", stitch(0.0, 1)),
        ]
        nodes = {t: SimpleNamespace(op=SimpleNamespace(name="Add"), ref=f"{t}/add") for t in "abcd"}
        members = tuple(SimpleNamespace(node=n, mask=1 << i) for i, n in enumerate(nodes.values()))
        positions = [SimpleNamespace(members=members)] * 6
        self._alignment = SimpleNamespace(tasks=tuple("abcd"), positions=positions)  # type: ignore[assignment]
        self._cuts = SimpleNamespace(between=lambda t, o: CUTS[1:5:2] if {t, o} <= set("abc") else CUTS[3:4])
        self._why = {("c", "a", 3): "why not"}


def test_roots_and_who_computes_what() -> None:
    search = Attached()
    assert [search._root(t) for t in "abcd"] == ["a", "a", "a", "d"]
    assert [search._computes("c", p) for p in (0, 1, 2, 3, 4)] == ["a", "a", "b", "b", "c"]
    assert [search._computes("b", p) for p in (0, 1, 2)] == ["a", "a", "b"]
    assert search._positions() == {1: ["a", "b", "c"], 3: ["a", "b", "c", "d"]}


def test_blocks_are_told_with_who_shares_them_and_why_not_more_do() -> None:
    where = "block up to Add '"
    assert [str(told) for told in Attached().facts()] == [
        f"{where}a/add': shared by a and b and c, computed by the nodes of 'a'; 'b' goes on from 'a' here as it is",
        f"{where}b/add': shared by b and c, computed by the nodes of 'b'; "
        "'c' goes on from 'b' here in its own order of channels, which loses 3.1%",
        f"{where}b/add': apart, a from b and c: sharing up to here would lose more than allowed",
        f"{where}d/add': apart, a from d: sharing up to here would lose more than allowed",
        f"{where}d/add': apart, b and c from d: sharing up to here would lose more than allowed",
    ]


def fit_of(inputs: int, outputs: int, refitted: bool = True) -> Fit:
    return Fit(np.zeros((1, inputs, outputs)), np.zeros((1, outputs)), np.zeros(1), np.ones(1), refitted)


def test_ways_to_go_on_have_names() -> None:
    layer = NodeRef("layer")
    assert [
        stitch().how,
        stitch(order=np.array([1, 0])).how,
        stitch(map=fit_of(4, 3)).how,
        stitch(readers={layer: fit_of(4, 3, False)}).how,
        stitch(readers={layer: fit_of(4, 3, False), NodeRef("other"): fit_of(4, 3)}).how,
    ] == [
        "as it is",
        "in its own order of channels",
        "through a map of 4 to 3 channels",
        "as it is",
        "by new weights of the layers that read it",
    ]


# ---------------------------------------------------------------------- values at cuts
def test_rows_and_outputs_of_some_tasks() -> None:
    b = Builder(seed=3)
    x = b.input("x", 1, 2, 7, 8)
    y = b.conv(x, 3, 2)
    z = b.apply("Relu", x)
    b.task("a", b.apply("Tanh", y))
    b.task("b", z, b.const(np.array([1.0, 2.0], np.float32)))
    graph = b.done()
    feeds = [{"x": v} for v in np.random.default_rng(0).normal(size=(5, 1, 2, 7, 8)).astype(np.float32)]
    found = Samples(graph, ["b"], {y: 1, z: 1}, feeds)
    assert found.rows.keys() == {z} and found.outputs.keys() == set(graph.tasks["b"].outputs)
    kept = [np.maximum(f["x"], 0)[0].reshape(2, -1).T[spread(56, n)] for n, f in enumerate(feeds)]
    np.testing.assert_allclose(found.rows[z], np.concatenate(kept))
    np.testing.assert_allclose(found.outputs[z], [np.maximum(f["x"], 0) for f in feeds])
    assert found.outputs[graph.tasks["b"].outputs[1]].tolist() == [[1.0, 2.0]] * 5
    both = Samples(graph, "ab", {y: 1}, feeds)
    assert both.rows[y].shape == (5 * POSITIONS, 3) and len(both.outputs) == 3
    constant = Samples(graph, [], {y: 1}, feeds)
    assert constant.rows == {} and constant.outputs == {}


def test_readers_are_layers_on_the_last_axis_and_nothing_else() -> None:
    def of(make, axis=1, excluded=""):
        b = Builder()
        mine = b.apply("Relu", b.input("x", 2, 3))
        b.task("t", *make(b, mine))
        found = readers(b.done(), Cut(0, mine, mine, axis), lambda name: name == excluded)
        return None if found is None else sorted(s.node.op.name for s in found)

    def product(b, mine):
        return b.apply("MatMul", mine, b.weight(3, 2))

    def gemm(b, mine):
        return b.apply("Gemm", mine, b.weight(4, 3), b.weight(4), transB=1)

    assert of(lambda b, m: [product(b, m)]) == ["MatMul"]
    assert of(lambda b, m: [product(b, m), gemm(b, m)]) == ["Gemm", "MatMul"]
    assert of(lambda b, m: [product(b, m), b.apply("Tanh", m)]) is None
    assert of(lambda b, m: [b.apply("MatMul", b.weight(4, 2), m)]) is None
    assert of(lambda b, m: [product(b, m)], axis=0) is None
    assert of(lambda b, m: [product(b, m)], excluded="matmul") is None
    assert of(lambda b, m: [m]) is None


def test_values_without_an_axis_of_channels_cannot_be_compared_and_maps_are_only_on_some_axes() -> None:
    rng = np.random.default_rng(0)

    def ways(shape, axis, freedom=Freedom.WEIGHTS, own=None, known=True):
        b = Builder()
        mine = b.apply("Relu", b.input("y", *shape))
        b.task("t", b.apply("Exp", mine))
        width = shape[axis or 0]
        rows = rng.normal(size=(40, width)).astype(np.float32)
        stitcher = Stitcher(b.done(), {mine: rng.normal(size=(40, own or width))}, 40, freedom, lambda name: False)
        return [w.how.split(" of ")[0] for w in stitcher.ways(Cut(0, mine, mine, axis), rows if known else None)]

    assert ways((1, 3), 1)[-1].startswith("through a map") and ways((1, 3), 1)[0] == "as it is"
    assert ways((1, 3), None) == ways((1, 3), 1, known=False) == []
    assert ways((1, 3, 1, 1), 1)[-1].startswith("through a map")
    assert not any("map" in how for how in ways((1, 1, 3, 1), 2) + ways((1, 3, 1, 1), 1, Freedom.CONSTANTS))
    assert ways((1, 3), 1, own=2) == ["through a map"] and ways((1, 3), 1, Freedom.CONSTANTS, own=2) == []


def test_layers_that_read_another_number_of_channels_are_fitted_from_nothing() -> None:
    """Against least squares over the samples that are not held out, with a ridge towards zero."""
    rng, b = np.random.default_rng(1), Builder()
    mine = b.apply("Relu", b.input("y", 1, 4))
    made = b.apply("MatMul", mine, b.weight(4, 2))
    b.task("t", made)
    rows = rng.normal(size=(60, 3))
    targets = {mine: rng.normal(size=(60, 4)), made: rows @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2))}
    (way,) = Stitcher(b.done(), targets, 60, Freedom.WEIGHTS, lambda name: False).ways(Cut(0, mine, mine, 1), rows)
    (fit,) = way.readers.values()
    kept = np.arange(60) % 4 != 3
    g, c = rows[kept].T @ rows[kept], rows[kept].T @ targets[made][kept]
    np.testing.assert_allclose(
        fit.weights[0], np.linalg.solve(g + 1e-4 * np.trace(g) / 3 * np.eye(3), c), atol=1e-6
    )


def test_channels_are_matched_one_to_one_by_likeness() -> None:
    """Against all orders; where nothing is alike, everything stays where it is."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 4)), rng.normal(size=(200, 4))
    y += x[:, [2, 0, 3, 1]]

    def measured(x, y):
        return measure([x[None]], y[None], np.arange(len(x)) % 4 == 3)

    train = np.arange(200) % 4 != 3
    alike = np.corrcoef(x[train].T, y[train].T)[:4, 4:]
    best = max(itertools.permutations(range(4)), key=lambda p: sum(alike[i, n] for n, i in enumerate(p)))
    assert _order(measured(x, y)).tolist() == list(best) == [2, 0, 3, 1]
    np.testing.assert_array_equal(x @ _placed(np.array(best)), x[:, [2, 0, 3, 1]])
    assert _order(measured(np.zeros((8, 3)), np.ones((8, 3)))).tolist() == [0, 1, 2]
    assert _order(measured(x, y[:, :3])) is None


def test_tasks_of_masks_have_names() -> None:
    found = align(shared_network())
    assert [found.names(mask) for mask in range(4)] == [(), ("a",), ("b",), ("a", "b")]
