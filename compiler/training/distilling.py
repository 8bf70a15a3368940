"""Distillation of one graph from another: data, objective and training put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compiler.errors import ConfigError, PassError, plural
from compiler.ir.graph import Graph
from compiler.ir.types import ValueRef
from compiler.training.answers import answer, measured
from compiler.training.loop import History, Recipe, Say, Training, predict
from compiler.training.losses import Objective, divergence, squared, variance
from compiler.training.module import TorchNet, check_agrees
from compiler.training.samples import Answered, Data

CHECKED = 2
"""Inputs on which the torch function is compared with the reference, before and after training."""

HELD_OUT = 5
"""One sample in this many judges the training and is not trained on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every task is trained for. `weights` of tasks; `classes`: tasks whose outputs tell of classes, compared
    as distributions softened by `temperature`; `labels`: weight of the cross entropy with class labels.
    """

    weights: Mapping[str, float]
    classes: frozenset[str]
    temperature: float
    labels: float


@dataclass(frozen=True, slots=True)
class Material:
    """What it is trained on: the original networks as one graph with the same tasks, feeds, and class labels
    [samples, ...] by task (may be empty).
    """

    teacher: Graph
    feeds: Sequence[Mapping[str, np.ndarray]]
    labels: Mapping[str, np.ndarray]


def chosen_device(name: str) -> torch.device:
    """`auto` is a GPU where torch sees one, else the CPU; ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used: {error}") from None


def distil(
    graph: Graph,
    material: Material,
    wanted: Wanted,
    recipe: Recipe,
    device: str = "auto",
    checkpoint: Path | None = None,
    say: Say = lambda line: None,
) -> History:
    """Train the weights of `graph`, which is mutable, towards the teacher's outputs.

    VerifyError where the torch function and the reference disagree, before or after. ConfigError where labels do
    not fit the outputs.
    """
    where = chosen_device(device)
    net = TorchNet(graph, where)
    check_agrees(net, material.feeds[:CHECKED])
    data, objective = prepared(net, material, wanted, recipe.batch)
    history = Training(net, objective, recipe, *divided(data), checkpoint, say).run()
    net.store(graph)
    check_agrees(TorchNet(graph, where), material.feeds[:CHECKED])
    return history


def prepared(net: TorchNet, material: Material, wanted: Wanted, batch: int) -> tuple[Data, Objective]:
    """Inputs with the teacher's answers to them, and what a network loses against these. PassError where an answer
    is no number.
    """
    teacher = TorchNet(material.teacher, net.device)
    arrays = {n: np.stack([f[n] for f in material.feeds]) for n in material.feeds[0]}
    answers = predict(teacher, teacher.feeds(arrays), batch)
    wished = {a: answers[ref] for a, ref in outputs(material.teacher, net.graph.tasks)}
    for (task, _), found in wished.items():
        _check_finite(task, found)
    data = Data(net.feeds(arrays), wished, _labels(net, material))
    return data, _objective(net.graph, data, wanted)


def _check_finite(task: str, answers: Tensor) -> None:
    """PassError unless all answers of a task [feeds, ...] are numbers: others take every weight with them."""
    sound = torch.isfinite(answers)[:, None].flatten(1).all(1)
    if not bool(sound.all()):
        first, count = int((~sound).nonzero()[0]), int((~sound).sum())
        raise PassError(
            f"the original network of task '{task}' answers NaN or infinity to {count} of {len(sound)} calibration "
            f"batches, the first of them number {first}: nothing can be learned from these; leave them out, or "
            f"give inputs such as it was trained on"
        )


def divided(data: Data) -> tuple[Data, Data]:
    """What is trained on, and what judges the training."""
    held = torch.arange(len(data), device=next(iter(data.inputs.values())).device) % HELD_OUT == HELD_OUT - 1
    return data.at(~held), data.at(held)


def outputs(graph: Graph, tasks: Iterable[str] | None = None) -> Iterator[tuple[Answered, ValueRef]]:
    """Task and number of every `measured` output of some tasks (all of them), and the value it is; values may come
    twice.
    """
    for name in graph.tasks if tasks is None else tasks:
        for number, ref in measured(graph, name):
            yield (name, number), ref


def _labels(net: TorchNet, material: Material) -> dict[str, Tensor]:
    """Labelled task -> class numbers [feeds, decisions] of its first `measured` output."""
    found = {}
    rows = {1, *(v.shape[0] for v in net.graph.inputs if v.rank)}
    for task, given in material.labels.items():
        labels = np.atleast_1d(given)
        value = net.graph.value(measured(net.graph, task)[0][1])
        width = value.shape[-1] if value.rank else 1
        wanted = (len(material.feeds), value.size // width)
        if labels.dtype.kind not in "iu":
            raise ConfigError(f"distil: labels of task '{task}' are {labels.dtype}, not class numbers")
        if not any(math.prod(labels.shape[1:]) * n == wanted[1] for n in rows):
            raise ConfigError(
                f"distil: labels of task '{task}' have shape {list(labels.shape)}; its outputs {list(value.shape)} "
                f"make {plural(wanted[1], 'decision')} a call; give the number of a class for each"
            )
        part = labels.reshape(-1)[: wanted[0] * wanted[1]]
        if part.size != wanted[0] * wanted[1]:
            raise ConfigError(
                f"distil: task '{task}' has {labels.size} labels; its outputs on {wanted[0]} "
                f"calibration batches make {wanted[0] * wanted[1]} decisions"
            )
        classes = max(width, 2)
        strange = part[(part < 0) | (part >= classes)]
        if strange.size:
            raise ConfigError(
                f"distil: label {strange[0]} of task '{task}' is no class; its outputs tell of 0 to {classes - 1}"
            )
        found[task] = torch.from_numpy(part.astype(np.int64).reshape(wanted)).to(net.device)
    return found


def _objective(graph: Graph, data: Data, wanted: Wanted) -> Objective:
    terms, labelled = {}, {}
    for (name, number), ref in outputs(graph):
        if name in wanted.classes:
            loss = divergence(wanted.temperature, answer(graph, ref))
        else:
            loss = squared(variance(data.teacher[name, number]))
        terms[name, number] = (ref, wanted.weights[name], loss)
    for name in (t for t in graph.tasks if wanted.labels and t in data.labels):
        first = measured(graph, name)[0][1]
        labelled[name] = (first, wanted.weights[name] * wanted.labels, answer(graph, first))
    return Objective(terms, labelled)
