"""Portfolios: the networks of several levels as tasks of their own, so that code is generated for them as for any.

Bit k * tasks + i of a mask then stands for task i at level k; a program of some tasks at a level is one of those
bits, and what several levels have in common is in the pool, and in the table of calls, once.
"""

from __future__ import annotations

from compiler.codegen.interface import MOST_TASKS
from compiler.cost.combine import MOST_TASKS as MOST_COMBINED
from compiler.errors import ConfigError
from compiler.ir.graph import Graph
from compiler.ir.levels import is_portfolio, level_count


def flattened(graph: Graph) -> Graph:
    """The graph with a task for every task and level of a portfolio, level by level; any other graph as it is.

    ConfigError where a library cannot hold as many.
    """
    if not is_portfolio(graph):
        return graph
    levels = level_count(graph)
    refuse_too_large(graph.name, len(graph.tasks), levels)
    flat = graph.copy()
    for task in graph.tasks.values():
        flat.drop_task(task.name)
    for level in range(levels):
        for task in graph.tasks.values():
            flat.set_task(f"{task.name}@{level}", task.ladder[level], task.labels)
    return flat.freeze()


def refuse_too_large(name: str, tasks: int, levels: int) -> None:
    """ConfigError where a library cannot hold a portfolio of so many tasks and networks."""
    if tasks > MOST_COMBINED:
        raise ConfigError(
            f"'{name}' is a portfolio for {tasks} tasks; at most {MOST_COMBINED} are possible, since its "
            "library knows the cheapest level of every combination. Extract the tasks of interest first"
        )
    if tasks * levels > MOST_TASKS:
        raise ConfigError(
            f"'{name}' is a portfolio of {levels} networks for {tasks} tasks; a library holds at most "
            f"{MOST_TASKS} tasks of all levels together. Leave out networks that are rarely the cheapest"
        )


def level_of(task: str) -> int:
    """The level of a task of a flattened graph; 0 for one of any other graph."""
    return int(task.partition("@")[2] or 0)
