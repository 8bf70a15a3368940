"""The study of random budgets: what it takes for a budget that held, and for a refusal that is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from benchmarks import __main__, pruning, pruning_gates
from compiler.errors import PassError
from compiler.passes.budget.limits import Limit


@dataclass
class Fake:
    """A pass whose network costs `reach` or what is allowed, whichever is more; it refuses below `stated`."""

    flops: float
    target: str
    reach: ClassVar[float] = 0.0
    stated: ClassVar[float] = 0.0
    quantity: ClassVar[str] = "flops"

    def __call__(self, graph: float, use: object) -> float:
        if self.flops < self.stated:
            raise Limit(self.quantity, self.flops).missed(self.stated, "when all is gone")
        return max(self.reach, self.flops)


@pytest.fixture(autouse=True)
def _networks_are_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit, "cost", lambda self, graph, use: graph)


def verdict(kind: type[Fake]) -> tuple[str, float | None]:
    found, cost, message = pruning.judged(kind, 100.0, Limit("flops", 50.0), None)
    assert bool(message) == (found in ("refused", "unexplained"))
    return found, cost


def test_a_budget_holds_or_is_exceeded():
    assert verdict(Fake) == ("held", 50.0)
    assert verdict(type("Heavy", (Fake,), {"reach": 51.0})) == ("exceeded", 51.0)


def test_a_refusal_states_a_cost_that_can_be_had():
    assert verdict(type("Honest", (Fake,), {"stated": 70.0, "reach": 70.0})) == ("refused", 70.0)
    assert verdict(type("Promising", (Fake,), {"stated": 70.0, "reach": 71.0})) == ("unexplained", 70.0)


def test_a_refusal_of_what_another_quantity_costs_explains_nothing():
    assert verdict(type("Other", (Fake,), {"stated": 70.0, "quantity": "weight_bytes"})) == ("unexplained", None)


def test_a_refusal_without_a_cost_explains_nothing(monkeypatch):
    def refuse(self, graph, use):
        raise PassError("no")

    monkeypatch.setattr(Fake, "__call__", refuse)
    assert verdict(Fake) == ("unexplained", None)


def test_the_study_covers_five_networks_and_ends_by_its_verdicts(monkeypatch, capsys):
    assert __main__.STUDIES["pruning"] == "benchmarks.pruning" and len(pruning.CHOSEN) == 5
    assert set(pruning.CHOSEN) <= set(pruning.NETWORKS)
    for good, status in (("held", 0), ("exceeded", 1), ("unexplained", 1)):
        row = pruning.Row("lstm", "p", 2.0, 1.0, 1.0, good, 0.0)
        monkeypatch.setattr(pruning, "rows", lambda name, count, seed, row=row: iter([row] * count))
        assert pruning.main(["--quick", "--only", "lstm"]) == status
        assert len(capsys.readouterr().out.splitlines()) == 5


@dataclass
class Gate:
    """A pass whose network costs 40, or which refuses in these words."""

    words: ClassVar[str] = ""

    def __call__(self, graph: float, use: object) -> float:
        if self.words:
            raise PassError(self.words)
        return 40.0


def gate(kind: type[Gate], drop: float = 0.0) -> tuple[str, float | None, float | None]:
    """Verdict where 50 and a drop of 0.02 are allowed."""
    judge = {"a": drop, "b": -1.0}
    found = pruning_gates.gated(kind(), 100.0, Limit("flops", 50.0), 0.02, None, lambda graph: judge)
    assert bool(found[3]) == (found[0] in ("refused", "unexplained"))
    return found[:3]


def test_a_limit_on_accuracy_holds_where_the_worst_task_is_within_it():
    assert gate(Gate, 0.02) == ("held", 40.0, 0.02)
    assert gate(Gate, 0.021) == ("exceeded", 40.0, 0.021)


@pytest.mark.parametrize(
    ("words", "verdict", "drop"),
    [
        ("accuracy_drop: task 'a' loses 0.5 where 0.02 is allowed, 0.48 too much", "refused", 0.5),
        ("accuracy_drop: task 'a' loses 0.01 where 0.02 is allowed, 0.48 too much", "unexplained", 0.01),
        ("accuracy_drop: task 'a' loses 0.5 where 0.3 is allowed, 0.2 too much", "unexplained", 0.5),
    ],
)
def test_a_refusal_names_the_drop_that_was_allowed_and_a_larger_one(words, verdict, drop):
    assert gate(type("Refusing", (Gate,), {"words": words})) == (verdict, None, drop)


def test_limits_on_accuracy_are_a_study():
    assert __main__.STUDIES["pruning-gates"] == "benchmarks.pruning_gates"
    assert all((pruning_gates.MODELS / name / "release.toml").exists() for name in pruning_gates.CHOSEN)
