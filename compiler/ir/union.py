"""Disjoint union of networks over shared inputs.

The inputs of each network are bound to shared inputs by an explicit map, through an adapter where a network wants
the same signal differently. Values and nodes are prefixed with the task's name. Adapters become ordinary nodes;
equal beginnings of adapters on one input are built once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import ConfigError
from compiler.ir.adapters import Adapter
from compiler.ir.graph import Graph, Value
from compiler.ir.levels import is_portfolio
from compiler.ir.types import NodeRef, TensorType, ValueRef


@dataclass(frozen=True, slots=True)
class Binding:
    """Where one input of a network comes from: a shared input, and the steps that turn it into what is wanted."""

    shared: str
    steps: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One network of a union. `inputs`: own input name -> binding. `outputs`: labels to keep (default all)."""

    graph: Graph
    inputs: Mapping[str, Binding] = field(default_factory=dict)
    outputs: Sequence[str] = ()


def union(
    members: Mapping[str, Graph | Member],
    inputs: Mapping[str, TensorType] | None = None,
    *,
    input: str | None = None,
    name: str = "union",
) -> Graph:
    """One graph with every member's tasks; a member with one task gives it the member's name.

    `inputs` declares the shared inputs. Left out, they are taken from the members: every input name that occurs is
    one shared input, or all members' single input is the one called `input`. A member's input without a binding
    reads the shared input of its own name, or the only one there is.

    Raises ConfigError with every input that is unbound, unknown or of another type than its binding gives.
    """
    found = {key: m if isinstance(m, Member) else Member(m) for key, m in members.items()}
    if not found:
        raise ConfigError("a union needs at least one network")
    bindings, problems = _bindings(found, inputs, input)
    problems += [
        f"'{key}' is a portfolio of several networks; take one of them (extract-level{{level=0,alone=true}}) first"
        for key, member in found.items()
        if is_portfolio(member.graph)
    ]
    types = dict(inputs) if inputs is not None else _types(found, bindings)
    problems += [
        f"{_where(task, own)} reads shared input '{b.shared}'; there are {_list(types)}"
        for (task, own), b in bindings.items()
        if b.shared not in types
    ]
    unused = set(types) - {b.shared for b in bindings.values()}
    problems += [f"shared input '{i}' is read by no network" for i in sorted(unused)]
    _report(problems)
    return _joined(found, types, bindings, name)


Bindings = dict[tuple[str, str], Binding]
"""(member, own input name) -> binding."""


def _bindings(
    members: Mapping[str, Member], inputs: Mapping[str, TensorType] | None, only: str | None
) -> tuple[Bindings, list[str]]:
    bindings: Bindings = {}
    problems = []
    for task, member in members.items():
        own = [v.ref.name for v in member.graph.inputs]
        problems += [
            f"{_where(task, i)} does not exist; its inputs are {_list(own)}"
            for i in sorted(set(member.inputs) - set(own))
        ]
        for i in own:
            binding = member.inputs.get(i) or _default(i, len(own), inputs, only)
            if binding is None:
                problems.append(
                    f"{_where(task, i)} is not bound to a shared input; there are {_list(inputs or ())}"
                )
            else:
                bindings[task, i] = binding
    return bindings, problems


def _default(own: str, count: int, inputs: Mapping[str, TensorType] | None, only: str | None) -> Binding | None:
    if only is not None and count == 1:
        return Binding(only)
    if inputs is None or own in inputs:
        return Binding(own)
    return Binding(next(iter(inputs))) if count == len(inputs) == 1 else None


def _types(members: Mapping[str, Member], bindings: Bindings) -> dict[str, TensorType]:
    """Types of undeclared shared inputs: those of the first network that reads them without an adapter."""
    types: dict[str, TensorType] = {}
    for (task, own), binding in bindings.items():
        if not binding.steps:
            types.setdefault(binding.shared, members[task].graph.value(ValueRef(own)).type)
    return types


def _joined(members: Mapping[str, Member], types: Mapping[str, TensorType], bindings: Bindings, name: str) -> Graph:
    graph = Graph(name)
    shared = {i: graph.add_input(i, t) for i, t in types.items()}
    adapter = Adapter(graph)
    problems: list[str] = []
    for task, member in members.items():
        sources: dict[ValueRef, Value] = {}
        for value in member.graph.inputs:
            binding = bindings[task, value.ref.name]
            try:
                sources[value.ref] = adapter.apply(shared[binding.shared], binding.steps)
            except ConfigError as error:
                problems.append(f"{_where(task, value.ref.name)}: {error}")
                continue
            problems += _mismatch(_where(task, value.ref.name), value, binding, sources[value.ref])
        if not problems:
            names = copied(graph, task, member.graph, sources)
            problems += _tasks(graph, task, member, names)
    _report(problems)
    return graph.freeze()


def _mismatch(where: str, wanted: Value, binding: Binding, given: Value) -> Iterator[str]:
    if wanted.type != given.type:
        after = " after its adapter" if binding.steps else ""
        yield f"{where} wants {wanted.type}; shared input '{binding.shared}'{after} is {given.type}"


def copied(
    graph: Graph, prefix: str, network: Graph, sources: Mapping[ValueRef, Value]
) -> Mapping[ValueRef, ValueRef]:
    """Copy everything of a network behind its inputs, for which `sources` stand; what its values are called there.

    Names are prefixed, and get a number where something else has them: a task may be called like an input.
    """
    names = {ref: value.ref for ref, value in sources.items()}
    for value in network.values():
        if value.ref not in names:
            made = graph.add_value(
                graph.fresh(f"{prefix}/{value.ref}"), value.type, value.data, value.sparser, value.order
            )
            names[value.ref] = made.ref
    for site in network.sites():
        reads = [site.operands.optional(i) for i in range(len(site.operands))]
        graph.add_node(
            _unused(graph, f"{prefix}/{site.node.ref}"),
            site.node.op,
            site.node.attrs,
            [None if v is None else names[v.ref] for v in reads],
            [names[v.ref] for v in site.results],
            tuple(f"{prefix}/{o}" for o in site.node.origin),
        )
    return names


def _unused(graph: Graph, name: str) -> str:
    """A name for a node; values have names of their own."""
    return name if NodeRef(name) not in graph else graph.fresh(name)


def _tasks(graph: Graph, prefix: str, member: Member, names: Mapping[ValueRef, ValueRef]) -> Iterator[str]:
    tasks = member.graph.tasks
    for task in tasks.values():
        kept = [
            (r, label)
            for r, label in zip(task.outputs, task.labels, strict=True)
            if label in (member.outputs or (label,))
        ]
        if kept:
            name = prefix if len(tasks) == 1 else f"{prefix}_{task.name}"
            if name in graph.tasks:
                yield f"two tasks would be called '{name}': '{task.name}' of '{prefix}' and another; rename one"
            graph.set_task(name, [names[r] for r, _ in kept], [label for _, label in kept])
    labels = [label for t in tasks.values() for label in t.labels]
    for missing in sorted(set(member.outputs) - set(labels)):
        yield f"task '{prefix}': there is no output '{missing}'; there are {_list(labels)}"


def _where(task: str, own: str) -> str:
    return f"task '{task}': input '{own}'"


def _list(names: object) -> str:
    return ", ".join(f"'{n}'" for n in names) or "none"  # type: ignore[attr-defined]


def _report(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("the networks cannot share their inputs:\n  " + "\n  ".join(problems))
