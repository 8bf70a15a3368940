"""Shrinks a case that fails, as long as it fails the same way: fewer passes, networks, outputs and nodes.

Delta debugging by halves. Nodes go in two ways: a result becomes a network's output and everything after it goes,
or it becomes an input and everything before it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import onnx
from onnx import TensorProto, helper, shape_inference

from benchmarks.fuzz.case import Case

Fails = Callable[[Case], bool]
MOST_TRIES = 200


def minimise(case: Case, fails: Fails, tries: int = MOST_TRIES) -> Case:
    """The smallest case found that still `fails`, after at most `tries` trials."""
    left = tries
    while left > 0:
        for smaller in _smaller(case):
            left -= 1
            if fails(smaller):
                case = smaller
                break
            if left <= 0:
                return case
        else:
            return case
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Cases a step smaller, the large steps first."""
    if len(case.members) > 1:
        yield from (case.without(task) for task in case.members)
    for some in _shorter(case.passes):
        yield replace(case, passes=some)
    for task, member in case.members.items():
        yield from (case.with_model(task, model) for model in _cut(member.model, keep_inputs=bool(member.shared)))


def _shorter(passes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    size = len(passes)
    while size:
        yield from (passes[:i] + passes[i + size :] for i in range(0, len(passes), size))
        size //= 2


def _cut(model: onnx.ModelProto, keep_inputs: bool) -> Iterator[onnx.ModelProto]:
    """Networks with fewer nodes; only valid ones."""
    model = shape_inference.infer_shapes(model, data_prop=True)
    known = {v.name: v for v in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    made = [o for n in model.graph.node for o in n.output if o in known]
    ends = [o.name for o in model.graph.output]
    if len(ends) > 1:
        yield from _valid(_between(model, known, set(), [e]) for e in ends)
    middle = sorted(range(len(made)), key=lambda i: abs(i - len(made) // 2))
    yield from _valid(_between(model, known, set(), [made[i]]) for i in middle if made[i] not in ends)
    if not keep_inputs:
        floats = [i for i in middle if known[made[i]].type.tensor_type.elem_type == TensorProto.FLOAT]
        yield from _valid(_between(model, known, {made[i]}, ends) for i in floats if made[i] not in ends)


def _valid(models: Iterator[onnx.ModelProto]) -> Iterator[onnx.ModelProto]:
    for model in models:
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError):
            continue
        yield model


def _between(
    model: onnx.ModelProto, known: dict[str, onnx.ValueInfoProto], starts: set[str], ends: list[str]
) -> onnx.ModelProto:
    """The part of the network from its inputs and `starts` to `ends`."""
    needed, nodes = set(ends), []
    for node in reversed(model.graph.node):
        if any(o in needed and o not in starts for o in node.output):
            nodes.append(node)
            needed.update(i for i in node.input if i)
    weights = [t for t in model.graph.initializer if t.name in needed]
    constant = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name in needed and i.name not in constant]
    inputs += [known[s] for s in sorted(starts & needed)]
    graph = helper.make_graph(nodes[::-1], model.graph.name, inputs, [known[e] for e in ends], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
