"""A merged network as the merge pass makes it, with random weights: a convolution per layer and set of tasks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import onnx

from benchmarks.networks import Net

LABELS = {"abc": 2, "ab": 1, "ac": 1, "bc": 1, "a": 1, "b": 1, "c": 1}
"""Set of tasks (a letter each) -> its channels in every layer, in quarters of a stage's width."""
STAGES = (32, 64, 128)
"""Widths: two layers each, halved in size behind them."""
SIDE = 64


class _Labelled(Net):
    """The layers that one task needs; weights depend on layer and label alone, so that all networks agree."""

    def __init__(self, task: str) -> None:
        super().__init__(task, (1, 3, SIDE, SIDE))
        self.labels = {label: quarters for label, quarters in LABELS.items() if task in label}
        self.layers = 0

    def layer(self, x: Mapping[str, str], width: int) -> dict[str, str]:
        """One convolution per label, each on the channels whose labels contain its own; `x` by label."""
        made = {}
        for label, quarters in self.labels.items():
            self.reseed(f"{self.layers} {label}")
            read = [value for other, value in x.items() if set(other) >= set(label)]
            seen = read[0] if len(read) == 1 else self.concat(*read)
            made[label] = self.relu(self.conv(seen, width * quarters // 4))
        self.layers += 1
        return made

    def reseed(self, name: str) -> None:
        """Weights from here on depend on `name` only."""
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))


def labelled(task: str) -> onnx.ModelProto:
    """The network of task `a`, `b` or `c`; all three share what their labels say."""
    net = _Labelled(task)
    x = {"abc": "x"}
    for width in STAGES:
        x = net.layer(net.layer(x, width), width)
        x = {label: net.pool(value) for label, value in x.items()}
    net.reseed(f"head {task}")
    return net.model(net.head(net.concat(*x.values())))
