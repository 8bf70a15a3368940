"""Several networks for the same tasks in one graph, one per level: a portfolio.

What is cheapest for all tasks together is rarely cheapest for each alone: a network merged for all of them makes a
single task pay for channels that only others need, and a network of its own costs most where tasks are called
together. A library of both answers every combination from whichever is cheaper, call by call, and holds what they
have in common once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.levels import MOST_LEVELS, level_count
from compiler.ir.types import Task, ValueRef
from compiler.ir.union import copied
from compiler.ir.verify import verify


def portfolio(networks: Sequence[Graph], *, names: Sequence[str] = ()) -> Graph:
    """A graph whose level k answers its tasks by `networks[k]`; names of later ones are prefixed, as `level1/conv`.

    Each needs inputs of the first one's names and types, and of its tasks at least one, with outputs of the same
    types; what it lacks is answered as at the level before. What is computed twice stays so until `deduplicate`.

    Raises ConfigError with everything that does not fit. `names`: what it calls the networks, `network 0` and so on
    unless they are given.
    """
    names = names or [f"network {k}" for k in range(len(networks))]
    if len(names) != len(networks):
        raise ConfigError(f"{len(networks)} networks and {len(names)} names: {', '.join(names)}")
    problems = list(_problems(networks, names))
    if problems:
        raise ConfigError("the networks are no portfolio:\n  " + "\n  ".join(problems))
    made = networks[0].copy()
    ladders = {name: [task.outputs] for name, task in made.tasks.items()}
    for level, network in enumerate(networks[1:], 1):
        copies = copied(made, f"level{level}", network, {v.ref: made.value(v.ref) for v in network.inputs})
        for name, ladder in ladders.items():
            ladder.append(_renamed(network.tasks.get(name), copies) or ladder[-1])
    for name, (outputs, *variants) in ladders.items():
        made.set_task(name, outputs, made.tasks[name].labels, variants)
    verify(made)
    return made.freeze()


def _renamed(task: Task | None, names: Mapping[ValueRef, ValueRef]) -> tuple[ValueRef, ...]:
    return () if task is None else tuple(names[r] for r in task.outputs)


def _problems(networks: Sequence[Graph], names: Sequence[str]) -> Iterator[str]:
    if not 2 <= len(networks) <= MOST_LEVELS:
        yield f"{len(networks)} given; a portfolio has 2 to {MOST_LEVELS}"
        return
    first = networks[0]
    for name, network in zip(names, networks, strict=True):
        if (count := level_count(network)) > 1:
            yield f"{name} has {count} levels of its own; take one (extract-level{{level=0,alone=true}})"
        if not set(network.tasks) & set(first.tasks):
            yield f"{name} has no task of the first: {', '.join(network.tasks)}"
        types = {v.ref: v.type for v in first.inputs}
        for value in network.inputs:
            if types.get(value.ref) != value.type:
                known = types.get(value.ref, "no such input")
                yield f"{name} reads '{value.ref}' {value.type}; the first has {known}"
        for task in network.tasks.values():
            yield from _task_problems(name, network, task, first)


def _task_problems(name: str, network: Graph, task: Task, first: Graph) -> Iterator[str]:
    if task.name not in first.tasks:
        yield f"{name} has the task '{task.name}', which the first has not"
        return
    wanted, found = ([str(g.value(r).type) for r in g.tasks[task.name].outputs] for g in (first, network))
    if wanted != found:
        yield f"{name} gives {', '.join(found)} for '{task.name}'; the first gives {', '.join(wanted)}"
