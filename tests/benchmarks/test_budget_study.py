"""The study of random budgets: what it takes for a budget that held, and for a refusal that is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from benchmarks import __main__, pruning
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
