"""plan.json: what runs for every call of the full program, who chose it, and what else could run. JSON-ready.

Everything in it follows from graph, target and choices, so that the plan of a rebuild is the plan it was made from.
"""

from __future__ import annotations

from compiler.codegen.kernels import Builder, Built, Slot
from compiler.codegen.layout import Plain
from compiler.codegen.planner import Decision
from compiler.codegen.program import PLAN_SCHEMA
from compiler.codegen.steps import Step, Steps, Symbols
from compiler.codegen.strategies import STRATEGIES
from compiler.codegen.strategies.base import Choice, weight_form
from compiler.codegen.target import Target
from compiler.ir.encoding import Dense
from compiler.ir.graph import Graph
from compiler.ir.types import NodeRef

OWN_OTHERS = 2
"""Other tiles of the chosen algorithm that are recorded; of every other algorithm it is the best one."""


def plan_record(steps: Steps, symbols: Symbols, target: Target, database: str) -> dict[str, object]:
    """What was chosen, call by call; `database`: digest of the measurements, empty where there are none."""
    return {
        "schema": PLAN_SCHEMA,
        "target": target.preset,
        "lanes": target.lanes,
        "database": database or None,
        "steps": [_call_record(steps, step, symbols[step.built.key][1]) for step in steps.calls],
    }


def _call_record(steps: Steps, step: Step, symbol: str) -> dict[str, object]:
    """A kernel call: whose it is, and what was chosen for it."""
    chosen = {} if step.decision is None else _step_record(steps.builder, step.built, step.nodes, step.decision)
    return {
        "nodes": list(step.nodes),
        "kernel": symbol,
        "template": step.built.template,
        "tasks": steps.names(step.mask),
        **({"members": [steps.names(mask) for mask in step.members]} if step.members else {}),
        "units": step.built.parts,
        "shared": steps.shared(step),
        **chosen,
        **step.built.note,
    }


def _step_record(builder: Builder, built: Built, nodes: tuple[str, ...], decision: Decision) -> dict[str, object]:
    """What a kernel of these nodes does, how, and what else could."""
    return {
        **_decision_record(decision),
        **_work_record(builder, built, nodes),
        **_weights_record(builder.graph, nodes, decision),
    }


def _decision_record(decision: Decision) -> dict[str, object]:
    """The choice, its source, its times, and the best of what was not chosen."""
    return {
        **_timed(decision, decision.choice),
        "chosen_by": decision.source,
        "ways": len(decision.candidates),
        "others": [_timed(decision, c) for c in _others(decision)],
    }


def _timed(decision: Decision, choice: Choice) -> dict[str, object]:
    """A choice with its predicted and measured nanoseconds; null where they are not known."""
    predicted = next(c.seconds for c in decision.candidates if c.choice == choice)
    return {
        "algorithm": choice.algorithm,
        "tile": list(choice.tile),
        "predicted_ns": round(predicted * 1e9) or None,
        "measured_ns": decision.measured.get(choice),
    }


def _others(decision: Decision) -> list[Choice]:
    """Next best tiles of the chosen algorithm, then the best of every other one: measured ones first.

    Taken again from a plan that holds only these measurements, they are the same.
    """
    predicted = {c.choice: c.seconds for c in decision.candidates}

    def rank(choice: Choice) -> tuple[bool, float, tuple[int, ...]]:
        measured = decision.measured.get(choice)
        return measured is None, predicted[choice] if measured is None else measured, choice.tile

    by_algorithm: dict[str, list[Choice]] = {}
    for choice in sorted(predicted, key=rank):
        if choice != decision.choice:
            by_algorithm.setdefault(choice.algorithm, []).append(choice)
    own = by_algorithm.pop(decision.choice.algorithm, [])[:OWN_OTHERS]
    return [*own, *(found[0] for _, found in sorted(by_algorithm.items()))]


def _work_record(builder: Builder, built: Built, nodes: tuple[str, ...]) -> dict[str, object]:
    """What a kernel of these nodes reads and writes (name, shape, layout), FLOPs, bytes of constants."""
    sites = [builder.graph.site(builder.graph.node(NodeRef(n))) for n in nodes]
    made = {v.ref for site in sites for v in site.results}
    slots = [s for s in dict.fromkeys(built.slots) if s.ref is not None]
    offsets = {s.at for s in built.slots if s.kind == "pool"}
    return {
        "reads": [_value_record(builder, s) for s in slots if s.ref not in made],
        "writes": [_value_record(builder, s) for s in slots if s.ref in made],
        "flops": sum(site.node.op.flops(site) for site in sites),
        "weight_bytes": sum({e.offset: e.bytes for e in builder.pool.table if e.offset in offsets}.values()),
    }


def _weights_record(graph: Graph, nodes: tuple[str, ...], decision: Decision) -> dict[str, object]:
    """Form of sparse weights, and whether the kernel leaves their zeros out or multiplies with them."""
    operands = graph.operands(graph.node(NodeRef(nodes[0]))).present()
    sparse = {i: v for i, v in operands if v.data is not None and v.type.encoding != Dense()}
    if not sparse:
        return {}
    strategy = STRATEGIES[decision.choice.algorithm]
    multiplied = [strategy.multiplies_zeros(decision.choice, i) for i in sparse]
    zeros = "multiplied" if all(multiplied) else "left out in part" if any(multiplied) else "left out"
    return {"weights": ", ".join(dict.fromkeys(map(weight_form, sparse.values()))), "zeros": zeros}


def _value_record(builder: Builder, slot: Slot) -> dict[str, object]:
    assert slot.ref is not None
    layout = Plain() if slot.kind == "plain" else builder.layout(slot.ref)
    return {"name": slot.ref.name, "shape": list(builder.graph.value(slot.ref).shape), "layout": str(layout)}
