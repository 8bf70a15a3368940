"""What a network may cost, in which quantity, and what it costs: expected values under the workload."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from compiler.cost.count import node_cost, parameter_cost
from compiler.errors import ConfigError, PassError
from compiler.ir.graph import Graph, Ref
from compiler.ir.types import TaskSet
from compiler.passes.base import Resources

Quantity = Literal["flops", "weight_bytes", "latency_us"]
QUANTITIES: tuple[Quantity, ...] = ("flops", "weight_bytes", "latency_us")
UNITS: Mapping[Quantity, str] = {"flops": "FLOPs", "weight_bytes": "bytes of weights", "latency_us": "us predicted"}
MICRO = 1e6

LEAST_AMOUNT = 100
"""FLOPs and bytes above 1 and up to here are refused: no network is so small, but shares in per cent are."""

MOST_PERCENT = 100
"""How many times a budget is told in per cent; beyond, as that number."""


class Budgeted(Protocol):
    """A pass with the options of a budget."""

    @property
    def flops(self) -> float | None:
        """A share of the original's up to 1, else FLOPs of the expected call, above LEAST_AMOUNT."""

    @property
    def weight_bytes(self) -> float | None:
        """A share of the original's up to 1, else bytes of all weights with their positions, above LEAST_AMOUNT."""

    @property
    def latency_us(self) -> float | None:
        """Microseconds of the expected call, as the planner of `target` predicts."""

    @property
    def target(self) -> str:
        """The target whose time is meant."""

    @property
    def accuracy_drop(self) -> float | None:
        """How much worse any task may become on the evaluation data, in its metric."""


class OverBudget(PassError):
    """A budget that cannot be met. `found`: the least cost there is, in the unit of the budget."""

    def __init__(self, found: float, message: str) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `value` of a quantity, in its own unit."""

    quantity: Quantity
    value: float
    target: str = ""

    def cost(self, graph: Graph, use: Resources) -> float:
        """What `graph` costs in this quantity."""
        return math.fsum(prices(graph, self.quantity, self.target, use).values())

    def missed(self, found: float, why: str) -> OverBudget:
        """The error for a budget that cannot be met; `found` is the least cost there is."""
        unit, over, times = UNITS[self.quantity], found - self.value, found / self.value
        ratio = f"{times - 1:.1%}" if times < MOST_PERCENT else f"{times:.4g} times as many"
        return OverBudget(
            found,
            f"{self.quantity}: at most {self.value:.6g} {unit} are allowed and {found:.6g} remain {why}, "
            f"{over:.4g} too many ({ratio}); allow more, or free more layers (options exclude, "
            "dense, floor, pattern)" + self._no_share,
        )

    @property
    def _no_share(self) -> str:
        """What a limit may have been meant as, where that is likely."""
        if self.quantity != "latency_us" or self.value > 1:
            return ""
        return "; latency_us is in microseconds, never a share: for that take flops"


def shares(graph: Graph, workload: Mapping[TaskSet, float]) -> dict[Ref, float]:
    """Probability that a call needs each vertex; 1 without a workload."""
    needed = graph.needed_by()
    if not workload:
        return dict.fromkeys(needed, 1.0)
    total = math.fsum(workload.values())
    return {ref: math.fsum(p for q, p in workload.items() if q & tasks) / total for ref, tasks in needed.items()}


def prices(graph: Graph, quantity: Quantity, target: str, use: Resources) -> dict[Ref, float]:
    """Cost of every node, or of every parameter for `weight_bytes`, which are there whether called or not.

    PassError for `latency_us` where `use` has no clock.
    """
    if quantity == "weight_bytes":
        return {v.ref: float(parameter_cost(v).weight_bytes) for v in graph.parameters()}
    share = shares(graph, use.workload)
    if quantity == "flops":
        return {s.node.ref: node_cost(s).flops * share.get(s.node.ref, 0.0) for s in graph.sites()}
    times = use.timer(target).graph(graph)
    return {ref: seconds * MICRO * share.get(ref, 0.0) for ref, seconds in times.items()}


def problems_of(options: Budgeted, use: Resources) -> list[str]:
    """What is wrong with the options of a budget."""
    given = [q for q in QUANTITIES if getattr(options, q) is not None]
    found = [f"give one of {', '.join(given)}: a budget is in one quantity"] if len(given) > 1 else []
    found += [problem for q in given if (problem := amount_problem(q, getattr(options, q)))]
    if options.accuracy_drop is not None:
        found += _drop_problems(options.accuracy_drop, use)
    if options.latency_us is not None and use.clock is None:
        found.append("latency_us needs predictions of a planner; a release has them, and Resources(clock=...)")
    return [*found, *_target_problems(options, use)]


def _target_problems(options: Budgeted, use: Resources) -> list[str]:
    """A target that is not known, whether or not a budget of time asks for it."""
    if use.clock is None or (options.latency_us is None and options.target == "host"):
        return []
    try:
        use.clock(options.target)
    except ConfigError as error:
        return [str(error)]
    return []


def amount_problem(quantity: Quantity, value: float) -> str:
    """What is wrong with the number given for a budget; empty where nothing is."""
    if not value > 0:
        return f"{quantity} must be above 0, not {value}"
    if math.isinf(value):
        return f"{quantity}={value} limits nothing; leave it out"
    if quantity == "latency_us" or not 1 < value <= LEAST_AMOUNT:
        return ""
    return (
        f"{quantity}={value:g} is neither a share, which is at most 1, nor an amount of {UNITS[quantity]}, "
        f"which is above {LEAST_AMOUNT}; half of the original is 0.5"
    )


def _drop_problems(drop: float, use: Resources) -> list[str]:
    found = [] if drop >= 0 else [f"accuracy_drop must be 0 or more, not {drop}"]
    if use.judge is None:
        return [*found, "accuracy_drop needs evaluation data with a metric"]
    most = getattr(use.judge, "most_drop", math.inf)
    if drop >= most:
        found.append(
            f"accuracy_drop={drop:g} limits nothing: metrics drop by {most:g} at most; two per cent are 0.02"
        )
    return found


def limit_of(options: Budgeted, graph: Graph, use: Resources) -> Limit | None:
    """The limit that options set for `graph`; None where they set none."""
    for quantity in QUANTITIES:
        value = getattr(options, quantity)
        if value is not None:
            return amount_of(quantity, value, graph, use, options.target)
    return None


def amount_of(quantity: Quantity, value: float, graph: Graph, use: Resources, target: str = "host") -> Limit:
    """The limit that a number sets for `graph`: up to 1 it is a share of what that costs, but for times."""
    if quantity == "latency_us":
        return Limit(quantity, float(value), target)
    return Limit(quantity, value * Limit(quantity, 0.0).cost(graph, use) if value <= 1 else float(value))


def worst(drops: Mapping[str, float]) -> str:
    """The task that loses most; one whose metric is no number any more has lost everything.

    PassError where no task that is left has a metric.
    """
    if not drops:
        raise PassError(
            "accuracy_drop: none of the tasks that are left has a metric; name one in [evaluation.metric]"
        )
    return max(drops, key=lambda t: (math.isnan(drops[t]), drops[t]))


def check_drop(options: Budgeted, graph: Graph, use: Resources) -> None:
    """PassError that names the task where a network within its budget loses more accuracy than is allowed."""
    if options.accuracy_drop is None or use.judge is None:
        return
    drops = use.judge(graph)
    task = worst(drops)
    over = drops[task] - options.accuracy_drop
    if math.isnan(over):
        raise PassError(
            f"accuracy_drop: the metric of task '{task}' is no number, so nothing says what is lost; look at its "
            "metric and labels, and at outputs that are no numbers"
        )
    if over > 0:
        given = [f"{q}={getattr(options, q):g}" for q in QUANTITIES if getattr(options, q) is not None]
        raise PassError(
            f"accuracy_drop: task '{task}' loses {drops[task]:.4g} where {options.accuracy_drop:g} is allowed, "
            f"{over:.4g} too much, at the best found for {', '.join(given)}; allow more of either"
        )
