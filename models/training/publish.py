"""Writes what a family consists of besides its networks: manifest entries and data files."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from models.training.export import OPSET, measure_size, predict_onnx
from models.training.fit import Inputs, predict
from models.training.tasks import Labels, Task

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Training:
    """How a network came about, as the manifest records it."""

    module: str
    architecture: str
    seed: int
    epochs: int
    minutes: float
    arguments: argparse.Namespace


@dataclass(frozen=True)
class Holdout:
    """Held-out inputs [n, 1, h, w], their labels [n] for one task, and which of them evaluation.npz holds."""

    inputs: Inputs
    labels: Labels
    evaluation: npt.NDArray[np.intp]


def argument_parser(module: str, only: Sequence[str], seed: int) -> argparse.ArgumentParser:
    """Return the command line that the training scripts share."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the family to write")
    parser.add_argument("--seed", type=int, default=seed, help="base seed; every network adds its own offset")
    parser.add_argument("--only", action="append", choices=only, help="train only this; repeatable")
    parser.add_argument("--epochs", type=int, help="override the number of epochs")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training")
    return parser


def task_entry(task: Task, net: nn.Module, path: Path, training: Training, test: Holdout) -> dict[str, Any]:
    """Measure the exported network at ``path``, compare it with ``net`` and return its manifest entry."""
    predicted = predict_onnx(path, test.inputs)
    differing = int(np.count_nonzero(predicted != predict(net, test.inputs)))
    correct = predicted == test.labels
    size = measure_size(path)
    entry = {
        "model": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": training.architecture,
        "classes": {name: list(group) for name, group in zip(task.classes, task.members, strict=True)},
        "accuracy": round(float(correct.mean()), 4),
        "test_samples": len(correct),
        "accuracy_on_evaluation_npz": round(float(correct[test.evaluation].mean()), 4),
        "predictions_that_differ_from_torch": differing,
        "parameters": size.parameters,
        "macs": size.macs,
        "seed": training.seed,
        "epochs": training.epochs,
        "training_minutes": round(training.minutes, 1),
        "command": command_line(training.module, task.name, training.arguments),
        "versions": _versions(),
        "opset": OPSET,
        "ir_version": onnx.load(path).ir_version,
    }
    print(f"{task.name}: accuracy {entry['accuracy']}, {size.parameters} parameters, {size.macs} MACs")
    return entry


def update_manifest(path: Path, header: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the header's keys and the entries of ``tasks`` in the manifest at ``path``; keep the others."""
    previous: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    merged = {**previous.pop("tasks", {}), **tasks}
    document = {**previous, **header, "tasks": {name: merged[name] for name in sorted(merged)}}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_data(folder: Path, name: str, calibration: Inputs, evaluation: Arrays, sample: Inputs) -> None:
    """Write calibration.npz, evaluation.npz and sample.npz, all of them compressed."""
    files: dict[str, Arrays] = {
        "calibration.npz": {name: calibration},
        "evaluation.npz": evaluation,
        "sample.npz": {name: sample},
    }
    for file, arrays in files.items():
        np.savez_compressed(folder / file, allow_pickle=False, **arrays)


def command_line(module: str, only: str, arguments: argparse.Namespace) -> str:
    """Return the command that repeats one training."""
    command = f"python -m {module} --data DATA --out OUT --only {only} --seed {arguments.seed}"
    if arguments.epochs is not None:
        command += f" --epochs {arguments.epochs}"
    return f"{command} --threads {arguments.threads}"


def _versions() -> dict[str, str]:
    """Return the versions of what trained, exported and measured the network."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
