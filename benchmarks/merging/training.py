"""Single networks from labels, graphs from the single networks, and how well either does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.merging.families import Effort, Family, Part
from compiler import Graph, load, to_onnx, union
from compiler.calibration.moments import content_key
from compiler.files import replace_whole
from compiler.passes.base import Resources
from compiler.passes.dedupe import Deduplicate
from compiler.passes.distil import Distil
from compiler.passes.fold import FoldConstants
from compiler.training.answers import answer
from compiler.training.distilling import chosen_device
from compiler.training.loop import Recipe, Training, predict
from compiler.training.losses import Objective
from compiler.training.module import TorchNet, weights
from compiler.training.samples import Data

BATCH = 64
RATE, DISTILLED = 2e-3, 4e-3
"""Learning rates of single networks, and of every training after that."""


def singles(family: Family, part: Part, effort: Effort, seed: int, kept: Path) -> dict[str, Graph]:
    """A trained network per task; each is trained once and then read from the folder `kept`."""
    return {task: single(family, task, part, effort, seed, kept) for task in family.tasks}


def single(family: Family, task: str, part: Part, effort: Effort, seed: int, kept: Path) -> Graph:
    """One of them. Weights are kept at half precision, so that folders of them pack to half their size."""
    model = family.network(task, 100 * seed + list(family.tasks).index(task))
    key = content_key(model.SerializeToString(), part.inputs, part.labels[task], str((effort.single, seed)))
    file = kept / f"{family.name}-{task}-{seed}-{key[:12]}.onnx"
    if not file.exists():
        graph = load(model, task=task).copy()
        train_on_labels(graph, part, task, effort.single, seed)
        for value in weights(graph):
            graph.update(value.ref, data=value.constant.astype(np.float16).astype(np.float32))
        kept.mkdir(parents=True, exist_ok=True)
        replace_whole(file, to_onnx(graph).SerializeToString())
    return load(file, task=task)


def train_on_labels(graph: Graph, part: Part, task: str, epochs: int, seed: int) -> None:
    """Cross entropy on the samples that have a label; one in ten chooses the epoch and is not trained on."""
    net = TorchNet(graph, chosen_device("auto"))
    output = graph.tasks[task].outputs[0]
    rows = (part.labels[task].reshape(len(part.inputs), -1) >= 0).all(axis=1)
    inputs = net.feeds({graph.inputs[0].ref.name: part.inputs[rows][:, None]})
    data = Data(inputs, {}, {task: torch.from_numpy(part.labels[task][rows]).to(net.device)})
    held = torch.arange(len(data), device=net.device) % 10 == 9
    recipe = Recipe(epochs, BATCH, RATE, 0, seed)
    objective = Objective({}, {task: (output, 1.0, answer(graph, output))})
    Training(net, objective, recipe, data.at(~held), data.at(held)).run()
    net.store(graph)


def joined(networks: dict[str, Graph]) -> Graph:
    """The single networks as one graph over their common input; what they compute alike is there once."""
    return Deduplicate()(FoldConstants()(union(networks, input="x", name="family")))


def distilled(graph: Graph, use: Resources, epochs: int) -> Graph:
    """The graph after training towards the single networks, without labels."""
    return Distil(epochs=epochs, batch=BATCH, rate=DISTILLED, loss="kl")(graph, use)


def accuracy(graph: Graph, part: Part) -> dict[str, float]:
    """Percent of the decisions with a label that every task gets right."""
    net = TorchNet(graph, chosen_device("auto"))
    made = predict(net, net.feeds({graph.inputs[0].ref.name: part.inputs[:, None]}), 500)
    found = {}
    for name, task in graph.tasks.items():
        labels = part.labels[name]
        decided = made[task.outputs[0]].reshape(*labels.shape, -1).argmax(-1).cpu().numpy()
        found[name] = 100 * float(np.mean((decided == labels)[labels >= 0]))
    return found
