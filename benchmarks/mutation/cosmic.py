"""The operators of cosmic-ray (only importer, extra `mutation`): where they change a file, and what they make."""

from __future__ import annotations

import re

import parso.python.tree  # noqa: F401  before cosmic_ray, which imports parso in a circle otherwise
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code

from benchmarks.mutation.mutants import Place, Spot

CONFUSED = re.compile(r"_(Eq_Is|Is_Eq|NotEq_IsNot|IsNot_NotEq)$")
"""Operators left out: whether equal values are one object is up to the interpreter as often as not."""
LOOKED_AT = {
    "binary_operator_replacement": "operator",
    "comparison_operator_replacement": "comparison",
}
"""Module of cosmic-ray -> the only type of node that its many operators change; others are asked of all nodes."""


def places(module: str, source: str) -> list[Place]:
    """Every place of a file that an operator changes, in the order of the file."""
    nodes = list(ast_nodes(get_ast(source)))
    by_kind = {kind: [n for n in nodes if n.type == kind] for kind in ("operator", "comparison")}
    found: dict[tuple[Spot, Spot], list[tuple[str, int]]] = {}
    within: dict[tuple[Spot, Spot], str] = {}
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments() or CONFUSED.search(name):
            continue
        operator = kind()
        asked = by_kind.get(LOOKED_AT.get(kind.__module__.rpartition(".")[2], ""), nodes)
        spots = ((node, spot) for node in asked for spot in operator.mutation_positions(node))
        for occurrence, (node, spot) in enumerate(spots):
            found.setdefault(spot, []).append((name, occurrence))
            if spot not in within:
                within[spot] = ASTQuery(node).get_definition_name() or ""
    return [Place(module, *spot, within[spot], tuple(changes)) for spot, changes in sorted(found.items())]


def changed(source: str, operator: str, occurrence: int) -> str | None:
    """The file after one change; None where the operator makes none of it."""
    made: str | None = mutate_code(source, plugins.get_operator(operator)(), occurrence)
    return made
