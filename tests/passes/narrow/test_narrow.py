"""narrow: which channels go, in which order, and what the pass keeps to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compiler import cost_report, parse_pass
from compiler.errors import BudgetError, ConfigError, PassError
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.narrow.bill import Bill
from compiler.passes.narrow.copies import Copies
from compiler.passes.narrow.feeding import LEAST, Feeding
from compiler.passes.narrow.narrowing import Narrow, Narrowing, dearness, pushed
from compiler.passes.narrow.relabel import relabelled
from compiler.passes.narrow.steps import SETS, Gradients, Sensitivity, Taking, losses
from tests.passes.merge import families
from tests.passes.narrow.test_relabel import beside, drawn, shared


def parts(family=families.plain, tasks="ab"):
    graph, _ = shared(family, tasks)
    copies = Copies(graph)
    streams = [copies.numbers(s) for s in copies.streams.streams]
    return copies, Bill(copies), streams


def by_readers(bill, loss):
    """Losses of nobody's are none."""
    loss[:, 0] = 0
    return loss


def least_read(bill, labels):
    """The fewest channels that a task reads in a layer it has a part in."""
    found = []
    for layer in bill.layers:
        _, made = layer.labels(labels, bill.every)
        read = np.unique(layer.inward[layer.inward >= 0])
        for task in range(bill.tasks if len(read) else 0):
            if np.any(made >> task & 1):
                found.append(int((labels[read] >> task & 1).sum()))
    return min(found)


@pytest.mark.parametrize("whole", [True, False])
def test_enough_is_taken_and_every_task_keeps_channels_of_every_layer(whole):
    copies, bill, _ = parts(families.residual, "abc")
    runs = bill.runs({})
    loss = by_readers(bill, np.random.default_rng(0).random((copies.count, 8)))
    labels = copies.full()
    wanted = 0.4 * float(bill.by_label(labels) @ runs)
    found = Taking(bill, whole).down_to(labels, loss, runs, wanted)
    assert 0.6 * wanted < bill.by_label(found) @ runs <= wanted
    assert least_read(bill, found) >= LEAST
    assert not np.any(found & ~labels)
    assert (set(found) <= {0, *labels}) == whole


@pytest.mark.parametrize("seed", range(4))
def test_every_label_finds_something_to_read(seed):
    """Random losses far apart split labels in many ways; after each choice no label may read nothing."""
    copies, bill, _ = parts(families.residual, "abc")
    runs = bill.runs({frozenset("a"): 1.0, frozenset("b"): 1.0, frozenset("c"): 1.0})
    loss = 10 ** np.random.default_rng(seed).uniform(-6, 0, (copies.count, 8))
    start = copies.full()
    found = Taking(bill, False).down_to(start, loss, runs, 0.35 * float(bill.by_label(start) @ runs))
    assert found is not None and len(set(found)) > 3
    for layer in bill.layers:
        inward, outward = layer.labels(found, bill.every)
        assert all(np.any((inward & label) == label) for label in outward if label)


def starved(layer, bill, labels, channel, gone):
    """Whether a label of the layer reads nothing, or a task of `gone` that read the channel too little."""
    read, made = layer.labels(labels, bill.every)
    if not all(np.any((read & label) == label) for label in made if label):
        return True
    channels = np.unique(layer.inward[layer.inward >= 0])
    tasks = [t for t in range(bill.tasks) if gone >> t & 1 and np.any(made >> t & 1)] if channel in channels else []
    return any((labels[channels] >> t & 1).sum() < LEAST for t in tasks)


@pytest.mark.parametrize("family", [families.residual, families.stacked], ids=lambda f: f.__name__)
def test_taking_is_refused_where_it_starves_and_counted_where_it_does_not(family):
    """What is kept up to date equals what is counted anew, and starving means that a count falls to nothing."""
    copies, bill, _ = parts(family, "abc")
    labels = copies.full()
    feeding = Feeding(bill, labels)
    rng = np.random.default_rng(5)
    refused = 0
    for channel in rng.permutation(np.tile(np.arange(copies.count), 3)):
        before, after = int(labels[channel]), int(labels[channel] & rng.integers(0, 8))
        if after == before:
            continue
        tried = labels.copy()
        tried[channel] = after
        starving = any(starved(layer, bill, tried, channel, before & ~after) for layer in bill.layers)
        assert feeding.starves(int(channel), before, after) == starving
        refused += starving
        if not starving:
            feeding.take(int(channel), before, after)
            labels = tried
    assert 0 < refused < copies.count


@pytest.mark.parametrize("family", [families.plain, families.stacked], ids=lambda f: f.__name__)
def test_what_starves_is_counted_from_any_labels(family):
    copies, bill, _ = parts(family, "abc")
    labels = drawn(copies, bill, 1)
    feeding = Feeding(bill, labels)
    for channel, after in itertools.product(range(0, copies.count, 2), (0, 1, 2, 6)):
        before = int(labels[channel])
        if before & after == after != before:
            tried = labels.copy()
            tried[channel] = after
            starving = any(starved(layer, bill, tried, channel, before & ~after) for layer in bill.layers)
            assert feeding.starves(channel, before, after) == starving


def test_what_must_stay_costs_more_than_is_wanted():
    copies, bill, _ = parts()
    loss = np.ones((copies.count, 4))
    taking = Taking(bill, False)
    assert taking.down_to(copies.full(), loss, bill.runs({}), 1.0) is None


def test_what_counts_is_the_share_of_calls_and_not_their_number():
    """Down to savings of far less than one multiply-add per call."""
    copies, bill, _ = parts(families.residual, "abc")
    runs, start = bill.runs({}), copies.full()
    loss = by_readers(bill, np.random.default_rng(2).random((copies.count, 8)))
    wanted, rare = 0.5 * float(bill.by_label(start) @ runs), 2.0**-30
    often = Taking(bill, False).down_to(start, loss, runs, wanted)
    assert often is not None and np.array_equal(
        often, Taking(bill, False).down_to(start, loss, runs * rare, wanted * rare)
    )


def test_the_least_loss_per_saving_goes_first():
    copies, bill, _ = parts(families.residual, "abc")
    runs = bill.runs({})
    start = copies.full()
    loss = 1 + np.random.default_rng(3).random((copies.count, 8))
    cost = float(bill.by_label(start) @ runs)
    found = Taking(bill, False).down_to(start, loss, runs, cost - 1)
    taken = np.arange(1, 8)
    lost = np.stack([loss[:, [t for t in range(8) if t & s]].sum(axis=1) for s in taken], axis=1)
    ratio = lost / bill.savings(start, runs, taken)
    best = np.unravel_index(np.argmin(np.where(ratio > 0, ratio, np.inf)), ratio.shape)
    changed = np.flatnonzero(found != start)
    assert changed.tolist() == [best[0]]
    assert found[best[0]] == start[best[0]] & ~int(taken[best[1]])


@pytest.mark.parametrize("family", [families.residual, families.mlp], ids=lambda f: f.__name__)
def test_of_channels_that_only_common_nodes_read_no_single_task_lets_go(family):
    """They are lost to all tasks with the first one, for the same loss: so all of what they cost is to be saved."""
    copies, bill, _ = parts(family, "abc")
    runs = bill.runs({})
    start = copies.full()
    loss = np.zeros((copies.count, 8))
    for layer in bill.layers:
        _, made = layer.labels(start, bill.every)
        np.add.at(loss, (layer.inward[layer.inward >= 0][:, None], made[None]), 1.0)
    common = np.all(loss[:, : bill.every] == 0, axis=1)
    loss[common] /= 100  # they go first
    found = Taking(bill, False).down_to(start, loss, runs, 0.6 * float(bill.by_label(start) @ runs))
    assert np.any(found[common] == 0)
    assert set(found[common]) <= {0, bill.every}


@pytest.mark.parametrize("tasks", [SETS, SETS + 1])
def test_with_more_tasks_fewer_sets_are_tried(tasks):
    bill = Bill(Copies(shared(families.mlp, "abcdefg"[:tasks])[0]))
    start = bill.copies.full()
    loss = np.random.default_rng(0).random((bill.copies.count, bill.every + 1))
    runs = bill.runs({})
    found = Taking(bill, False).down_to(start, loss, runs, 0.5 * float(bill.by_label(start) @ runs))
    assert found is not None and len(set(found)) > 4


@pytest.mark.parametrize(
    "graph", [lambda: shared(families.plain)[0], lambda: beside("ab")], ids=["plain", "beside"]
)
def test_gradients_are_of_the_readers_of_a_label(graph):
    """Given by hand as ones, the gradient of a gate is the number of weights behind it."""
    copies = Copies(graph())
    bill = Bill(copies)
    labels = copies.full()
    ones = {layer.weight: np.ones([len(layer.outward), len(layer.inward)]) for layer in bill.layers}
    ones |= {layer.weight: ones[layer.weight].T for layer in bill.layers if layer.dims != (1, 0)}
    found = Sensitivity(bill, labels).add([ones, ones])
    for layer in bill.layers:
        for channel in layer.inward[layer.inward >= 0]:
            readers = [r for r in bill.layers if channel in r.inward]

            def weights(wanted, readers=readers, channel=channel):
                made = [(r.labels(labels, bill.every)[1], (r.inward == channel).sum()) for r in readers]
                return 2**0.5 * sum(int(wanted(m).sum()) * int(n) for m, n in made)

            for label in range(1, 4):
                assert found.by_label[channel, label] == pytest.approx(weights(lambda m, s=label: m == s))
            assert found.by_task[channel, 0] == pytest.approx(weights(lambda m: m & 1 > 0))


def test_losses_of_layers_are_comparable():
    copies, _, streams = parts()
    rng = np.random.default_rng(0)
    found = Gradients(rng.random((copies.count, 4)), rng.random((copies.count, 2)))
    scaled = Gradients(found.by_label.copy(), found.by_task.copy())
    for made in (scaled.by_label, scaled.by_task):
        made[streams[0]] *= 1000
    weights = np.array([1.0, 3.0])
    first, second = (losses(f, copies.full(), streams, weights) for f in (found, scaled))
    assert np.allclose(first, second)
    size = np.sqrt((found.by_task[streams[0]] ** 2).sum(axis=0))
    assert np.allclose(first[streams[0], 3], found.by_label[streams[0], 3] * (1 / size[0] + 3 / size[1]))


def test_a_task_that_has_lost_nothing_yet_is_not_free():
    """At the start the losses of networks that were not merged are rounding, of either sign."""
    assert np.allclose(dearness(np.array([3e-9, -4e-9, 0.0])), 1)
    found = dearness(np.array([0.0, 0.06, 0.0]))
    assert np.allclose(found, [0.6, 1.8, 0.6])


def test_networks_that_lost_nothing_do_not_pay_for_one_that_lost_a_trace():
    pytest.importorskip("torch")
    teacher = families.joined(*(families.plain(task, seed) for seed, task in enumerate("abc")))
    graph = teacher.copy()
    value = next(v for v in graph.parameters() if v.ref.name.startswith("c/") and v.rank > 1)
    graph.update(value.ref, data=value.constant * np.float32(1.001))
    rng = np.random.default_rng(1)
    feeds = [{v.ref.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs} for _ in range(64)]
    use = Resources(calibration=lambda: feeds, teacher=teacher)
    made = parse_pass("narrow{flops=0.8,step=0.2,between=0,drawn=64}")(graph.freeze(), use)
    before, after = ({tuple(r.tasks): r.cost.macs for r in cost_report(g).combinations} for g in (graph, made))
    assert all(after[task,] < before[task,] for task in "abc")


def test_combinations_over_their_caps_count_more():
    _, bill, _ = parts()
    now = {frozenset("a"): 200.0, frozenset("b"): 50.0}
    runs = pushed(bill, now, {frozenset("a"): 100.0, frozenset("b"): 100.0})
    a, b = (1 << bill.copies.tasks.index(t) for t in "ab")
    assert runs[a] > 100 * runs[b] > 0


class Stepping(Narrowing):
    """Steps that cost what they aim at; notes the costs at which channels that nobody has are taken out."""

    def __init__(self, step):
        self._options = Narrow(step=step, between=0)
        self.first = self._compacted = self.now = 100.0
        self.steps, self.compacted = [], []

    def cost(self):
        return self.now

    def _step(self, aim, caps):
        self.now = aim
        self.steps.append(aim)

    def _compact(self):
        self._compacted = self.now
        self.compacted.append(self.now)


def test_a_step_saves_its_share_of_what_is_left_and_each_third_that_is_gone_is_taken_out():
    narrowing = Stepping(0.2)
    narrowing.down_to(0.4, {})
    assert narrowing.steps == pytest.approx([80, 64, 51.2, 40.96, 40])
    assert narrowing.compacted == pytest.approx([64, 40.96])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"flops": wrong}, "flops lies") for wrong in (0.0, 1.5)),
        *(({"step": wrong}, "step in") for wrong in (0.0, 1e-300, 1.0)),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        *(({name: -1}, "between and samples at 0") for name in ("between", "samples")),
        *(({"between": wrong}, "between goes up to 1,000 epochs after every step") for wrong in (1000.5, 1e300)),
        *(({name: 1.1e6}, "rate and temperature go up to 1,000,000") for name in ("rate", "temperature")),
        *(({name: float("inf")}, "go") for name in ("between", "rate", "temperature")),
        ({"temperature": 1e-7}, "temperature starts at 1e-06"),
        *(({name: 0}, "must be above 0, drawn starts at 1") for name in ("rate", "temperature", "drawn")),
        ({"caps": ("a:x",)}, "caps"),
        ({"caps": ("z:5",)}, "caps"),
    ],
)
def test_wrong_options(options, message):
    graph, feeds = shared(families.plain)
    with pytest.raises(ConfigError, match=message):
        Narrow(**options)(graph, Resources(calibration=lambda: feeds, teacher=graph))


def test_more_tasks_than_have_tables_are_refused():
    names = "abcdefghijklm"
    graph, feeds = shared(families.plain, names[:2])
    copy = graph.copy()
    for name in names:
        copy.set_task(name, graph.tasks["a"].outputs)
    crowd = copy.freeze()
    told = r"13 tasks have 4\^13 pairs of sets, all of which are priced; it takes up to 12 tasks"
    with pytest.raises(ConfigError, match=told):
        Narrow()(crowd, Resources(calibration=lambda: feeds, teacher=crowd))


def test_the_ends_of_what_is_allowed_are_allowed():
    pytest.importorskip("torch")
    graph, feeds = shared(families.plain)
    use = Resources(calibration=lambda: feeds, teacher=graph)
    assert not Narrow(flops=1.0, between=0, drawn=1, samples=0).wrong(graph, use)
    assert not Narrow(between=1000, temperature=1e-6, rate=1e6).wrong(graph, use)


def trained(family, spec, tasks="ab"):
    pytest.importorskip("torch")
    graph, feeds = shared(family, tasks)
    rng = np.random.default_rng(1)
    more = [{n: rng.standard_normal(a.shape).astype(np.float32) for n, a in feeds[0].items()} for _ in range(256)]
    use = Resources(calibration=lambda: more, teacher=graph)
    return graph, parse_pass(spec)(graph, use)


@pytest.mark.parametrize(
    "family", [families.plain, families.residual, families.mlp, families.stacked], ids=lambda f: f.__name__
)
def test_the_pass_keeps_its_budget_and_repeats(family):
    graph, made = trained(family, "narrow{flops=0.5,step=0.2,drawn=64}")
    before, after = (np.mean([r.cost.macs for r in cost_report(g).combinations]) for g in (graph, made))
    assert 0.2 * before < after <= 0.5 * before
    _, again = trained(family, "narrow{flops=0.5,step=0.2,drawn=64}")
    assert all(
        np.array_equal(a.constant, b.constant) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


def test_networks_that_share_nothing_narrow_alike_task_by_task_or_whole():
    pytest.importorskip("torch")
    graph = families.joined(families.plain("a", 0), families.plain("b", 1))
    rng = np.random.default_rng(1)
    feeds = [{v.ref.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs} for _ in range(64)]
    use = Resources(calibration=lambda: feeds, teacher=graph)
    spec = "narrow{{flops=0.5,step=0.2,drawn=64,whole={}}}"
    made = [parse_pass(spec.format(whole))(graph, use) for whole in ("true", "false")]
    assert digest(made[0]) == digest(made[1]) != digest(graph)


def test_a_capped_combination_ends_nearer_to_its_cap():
    graph, plain = trained(families.plain, "narrow{flops=0.6,step=0.2,drawn=64}")
    cap = 0.4 * cost_report(graph).combinations[0].cost.macs
    _, capped = trained(families.plain, f"narrow{{flops=0.6,step=0.2,drawn=64,caps=a:{cap:.0f}}}")
    costs = [{frozenset(r.tasks): r.cost.macs for r in cost_report(g).combinations} for g in (plain, capped)]
    assert costs[1][frozenset("a")] < costs[0][frozenset("a")]


def test_a_budget_below_what_must_stay_is_refused():
    with pytest.raises(BudgetError, match="cannot be reached"):
        trained(families.plain, "narrow{flops=0.001,step=0.5,drawn=64}")


def test_what_has_one_unit_left_is_named_with_what_to_do():
    pytest.importorskip("torch")
    graph, feeds = shared(families.stacked, "ab")
    copies = Copies(graph)
    assert copies.used_up() == ""
    narrowed = relabelled(copies, drawn(copies, Bill(copies), 3), feeds[:2])
    use = Resources(calibration=lambda: feeds, teacher=narrowed)
    with pytest.raises(
        PassError, match=r"from a task: .*\nLSTM 'lstm.*' and 1 more have one channel left.* once and"
    ):
        parse_pass("narrow")(narrowed, use)


def test_training_that_diverges_is_refused_with_what_to_do():
    with np.errstate(all="ignore"), pytest.raises(PassError, match="training between the steps diverged"):
        trained(families.plain, "narrow{flops=0.3,step=0.2,drawn=64,rate=1e6,between=1}")
