"""Who is to blame for a loss, and what is told of every layer, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from compiler.ir.types import ValueRef
from compiler.passes.merge.channels import Role
from compiler.passes.merge.facts import _shares, _why, facts
from compiler.passes.merge.labels import Channel, Unit, average, own
from compiler.passes.merge.lattice import (
    CLOSED,
    Lattice,
    Limits,
    Reaching,
    Round,
    drifted_layers,
    exceeds,
    lost_share,
    own_for,
)

FIRST, SECOND = 0, 1
"""Streams: groups 0 (of a) and 1 (of b), and groups 2 (of a), 3 (of b) and 4 (of c)."""
MASKS = {0: 1, 1: 2, 2: 1, 3: 2, 4: 4}


def mask_of(groups):
    return int(np.bitwise_or.reduce([MASKS[g] for g in groups], initial=0))


def source(mask, *groups, reads=()):
    operand = SimpleNamespace(ref=ValueRef(f"read{mask}"), parts=reads)
    site = SimpleNamespace(operands=[operand], node=SimpleNamespace(op=SimpleNamespace(name="Conv")))
    return SimpleNamespace(mask=mask, groups=groups, site=site, ref=f"conv{mask}")


def place(index, *sources, role=Role.LAYER):
    def holding(groups):
        return [s for s in sources if set(s.groups) & set(groups)]

    return SimpleNamespace(
        index=index, role=role, sources=sources, holding=holding, mask_of=lambda g: sum(s.mask for s in holding(g))
    )


PLACES = [
    place(0, source(1, 0), source(2, 1)),
    place(1, source(1, 2, reads=(0,)), source(2, 3, reads=(1,)), source(4, 4)),
    place(2, source(1, 2), role=Role.EACH),
]


def streams(**more):
    made = [
        SimpleNamespace(index=FIRST, groups=(0, 1), makers=()),
        SimpleNamespace(index=SECOND, groups=(2, 3, 4), makers=()),
    ]
    names = lambda mask: tuple(t for i, t in enumerate("abc") if mask >> i & 1)  # noqa: E731
    return SimpleNamespace(
        streams=made,
        of_group={g: s for s in made for g in s.groups},
        mask_of=mask_of,
        places=PLACES,
        channels=SimpleNamespace(parts=lambda value: value.parts),
        alignment=SimpleNamespace(tasks=tuple("abc"), names=names, apart=(), masks={}),
        group=lambda g: SimpleNamespace(width=3 + g, split=True, reason=""),
        group_masks=MASKS,
        **more,
    )


def assembly(residuals=(), unread=(), labelling=(FIRST, SECOND)):
    findings = SimpleNamespace(residuals=dict(residuals), unread=list(unread))
    return SimpleNamespace(findings=findings, streams=streams(), labelling=dict.fromkeys(labelling, ()))


# ---------------------------------------------------------------------- blame
def test_layers_of_networks_that_drifted() -> None:
    residuals = {(0, 1): 0.11, (0, 3): 0.9, (1, 2): 0.1, (1, 4): np.nan, (2, 1): 0.5}
    found = [(p.index, mask) for p, mask in drifted_layers(assembly(residuals), 0.1)]
    assert found == [(0, 1), (1, 4)]  # shared results, and nodes that are no layers, have no limit of their own
    assert [(p.index, m) for p, m in drifted_layers(assembly({(0, 1): 1e-6, (0, 2): 2e-6}), 0.0)] == [(0, 2)]


@pytest.mark.parametrize(
    ("residuals", "losses", "unread", "over"),
    [
        ({(0, 1): 0.1}, {"a": 0.2}, [], False),
        ({(0, 1): 0.2}, {"a": 0.2}, [], True),
        ({(0, 1): 0.1}, {"a": 0.3}, [], True),
        ({}, {}, [("x", (0,))], True),
    ],
)
def test_a_merge_exceeds_its_limits_by_drift_by_loss_or_by_a_layer_that_reads_nothing(
    residuals, losses, unread, over
) -> None:
    made = assembly(residuals, unread)
    assert exceeds(Round(made, made.findings, losses), Limits(0.1, {"a": 0.2})) == over


def lattice(limits=None, shares=(1.0, 1.0), build=None) -> Lattice:
    made = Lattice.__new__(Lattice)
    made._streams, made._limits = streams(), limits or Limits(0.1, {"a": 0.2, "b": 0.2, "c": 0.2})
    made._shares, made._build, made._originals = dict(enumerate(shares)), build, None
    return made


def test_what_a_layer_reads_is_to_blame_for_its_drift() -> None:
    made = lattice()
    assert made._blamed(assembly({(1, 1): 0.2}), {}) == [FIRST]
    assert made._blamed(assembly({(1, 4): 0.2}), {}) == []  # it reads no channels
    assert made._blamed(assembly({(1, 1): 0.1}), {"a": 0.2}) == []


def test_all_streams_of_a_task_are_to_blame_for_its_loss_as_far_as_they_are_labelled() -> None:
    made = lattice()
    assert made._blamed(assembly(), {"a": 0.1, "b": 0.3, "c": 0.1}) == [FIRST, SECOND]
    assert made._blamed(assembly(), {"c": 0.3}) == [SECOND]
    assert made._blamed(assembly(labelling=[SECOND]), {"a": 0.3}) == [SECOND]
    assert made._blamed(assembly(unread=[("layer", (3, 4))]), {}) == [SECOND]


def test_rounds_halve_the_budgets_of_what_is_to_blame_until_nothing_is(monkeypatch) -> None:
    """Task c loses too much as long as its stream may join much."""
    made = lattice()
    made._build = lambda decide: assembly()
    monkeypatch.setattr(
        "compiler.passes.merge.lattice.task_losses",
        lambda *_: {"a": 0.0, "b": 0.0, "c": 0.5 if made._shares[SECOND] > 0.2 else 0.1},
    )
    found = made.run()
    assert made._shares == {FIRST: 1.0, SECOND: 0.125} and found.losses["c"] == 0.1


def test_streams_of_one_network_and_closed_ones_are_not_labelled() -> None:
    made = lattice(shares=(0.0, CLOSED))
    joins = {FIRST: (average([Unit(0, 0), Unit(1, 0)]),), SECOND: (average([Unit(2, 0), Unit(3, 0)]),)}
    asked = []
    made._joined = lambda a, p, s: asked.append(s.index) or joins[s.index]  # type: ignore[method-assign]
    alone = SimpleNamespace(index=FIRST, groups=(0,))
    assert made._decide(None, None, made._streams.streams) == {FIRST: joins[FIRST]} and asked == [FIRST]
    assert made._decide(None, None, [alone]) == {}
    joins[FIRST] = (own(Unit(0, 0)),)  # nothing was joined
    assert made._decide(None, None, made._streams.streams) == {}


def test_channels_that_a_larger_label_may_read() -> None:
    assert own_for(2, 5, (2,)) == own(Unit(2, 5))
    assert own_for(2, 5, (2, 3)) == Channel((2, 3), (Unit(2, 5),), (1.0,), (1.0,))


def test_how_well_channels_can_be_computed_is_asked_once_for_each_label() -> None:
    asked = []

    def reach(sources, channels, entries):
        asked.append((len(sources), channels, entries))
        return np.arange(len(channels))

    def readable(place, groups):
        return [] if groups == (2, 4) else ["entry"]

    work = SimpleNamespace(fit=lambda p: SimpleNamespace(reach=reach), readable=readable)
    reaching = Reaching(streams(), work, PLACES[1])
    assert reaching(2, (2, 3)).tolist() == [0, 1, 2, 3, 4] == reaching(2, (2, 3)).tolist()
    assert len(asked) == 1 and asked[0][0] == 1 and asked[0][2] == ["entry"]
    assert asked[0][1] == [own_for(2, i, (2, 3)) for i in range(5)]
    assert reaching(4, (2, 4)).tolist() == [np.inf] * 7  # nothing can be read
    assert reaching(0, (0, 1)).tolist() == [0.0] * 3  # it is not written here


def test_what_is_lost_is_counted_on_one_sample_in_four() -> None:
    before = np.array([[9.0], [9.0], [9.0], [1.0], [9.0], [9.0], [9.0], [3.0]])
    after = before + np.array([[5.0], [5.0], [5.0], [1.0], [5.0], [5.0], [5.0], [-2.0]])
    assert lost_share(before, after) == pytest.approx((1 + 4) / 2)
    assert lost_share(before[:3], after[:3]) == pytest.approx(75 / (1e-12 * 243))  # of too few all, which are equal
    assert lost_share(before[2:4], after[2:4]) == pytest.approx((25 + 1) / 32)


# ---------------------------------------------------------------------- facts
def test_shared_channels_are_told_by_label_with_what_is_lost() -> None:
    channels = [average([Unit(2, i), Unit(3, i)]) for i in range(2)]
    channels += [average([Unit(2, 3), Unit(4, 0)], [3]), own(Unit(4, 5)), *(own(Unit(3, i)) for i in (4, 5, 6))]
    findings = SimpleNamespace(residuals={(1, 1): 0.021, (1, 2): 1e-6, (1, 4): 0.5, (0, 1): 0.9})
    work = SimpleNamespace(labelling={SECOND: channels}, findings=findings)
    assert _shares(streams(), work, PLACES[1], SECOND) == (  # type: ignore[arg-type]
        "channels 1 for a and b and c, 2 for a and b, 3 for b, 1 for c (before 5 + 6 + 7); "
        "its results lose c 50.0%, a 2.1%"
    )
    findings.residuals = {}
    assert _shares(streams(), work, PLACES[1], SECOND).endswith("(before 5 + 6 + 7)")  # type: ignore[arg-type]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("attached", [None, [], ["one"]])
def test_losses_are_told_where_something_is_shared(labelled: bool, attached) -> None:
    made = streams()
    made.places = ()
    work = SimpleNamespace(labelling={SECOND: ()} if labelled else {})
    trunks = None
    if attached is not None:
        trunks = SimpleNamespace(attached=attached, shared=set, losses=lambda: {"b": 0.25})
    found = [str(told) for told in facts(made, work, trunks, {"a": 0.125})]  # type: ignore[arg-type]
    loss = "task 'a': loses 12.50% of its outputs' variance on held-out inputs"
    assert found == ([loss] if labelled or attached else [])
    if attached:
        assert [str(t) for t in facts(made, None, trunks)] == [loss.replace("'a'", "'b'").replace("12.5", "25.0")]  # type: ignore[arg-type]


def test_why_nothing_of_a_layer_is_shared(monkeypatch) -> None:
    monkeypatch.setattr("compiler.passes.merge.facts.lacking", lambda s, stream: None)
    made = streams()
    three = PLACES[1]
    made.alignment.masks = {s.site.operands[0].ref: 7 for s in three.sources}
    much = "not shared by a and b and c: sharing any of its channels would lose more than allowed"
    assert _why(made, three) == much  # type: ignore[arg-type]
    depthwise = SimpleNamespace(sources=[SimpleNamespace(ref="dw")])
    monkeypatch.setattr("compiler.passes.merge.facts.lacking", lambda s, stream: depthwise)
    assert _why(made, three) == f"{much}, or leave it without weights in 'dw'"  # type: ignore[arg-type]
    made.group = lambda g: SimpleNamespace(width=1, split=g != 3, reason=f"reason {g}")
    assert _why(made, three) == "not shared: reason 3"  # type: ignore[arg-type]


def test_a_network_whose_input_is_its_own_is_named(monkeypatch) -> None:
    monkeypatch.setattr("compiler.passes.merge.facts.lacking", lambda s, stream: None)
    made = streams()
    stem = PLACES[0]
    refs = [s.site.operands[0].ref for s in stem.sources]
    made.alignment.masks = dict(zip(refs, (1, 3), strict=True))
    text = "not shared by a and b: what {} reads there is its own, and read whole"
    assert _why(made, stem) == text.format("a")  # type: ignore[arg-type]
    made.alignment.masks = dict(zip(refs, (3, 2), strict=True))
    assert _why(made, stem) == text.format("b")  # type: ignore[arg-type]
    made.alignment.masks = dict(zip(refs, (1, 2), strict=True))
    assert _why(made, stem) == text.format("each of them")  # type: ignore[arg-type]


def test_layers_of_one_network_are_told_apart_from_common_ones() -> None:
    made = streams()
    alone, common = place(5, source(2, 1)), place(6, source(7, 1))
    assert _why(made, common) == "is common to all tasks already"  # type: ignore[arg-type]
    assert "their maps or operands differ" in _why(made, alone)  # type: ignore[arg-type]
    reasons = [SimpleNamespace(node=n, reason=r) for n, r in (("conv2", "one"), ("conv4", "no"), ("conv2", "two"))]
    made.alignment.apart = reasons
    assert _why(made, alone) == "only in b: one; two"  # type: ignore[arg-type]
