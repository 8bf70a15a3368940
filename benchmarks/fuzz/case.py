"""A case: networks that become one library, how they read inputs, what is done to them. On disk a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from compiler.ir.types import DType, TensorType

RECORD = "case.json"


@dataclass(frozen=True)
class Member:
    """One network. `shared`: the input it reads (empty: its inputs by their own names), through `adapter`."""

    model: onnx.ModelProto
    shared: str = ""
    adapter: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Case:
    """Networks by task, the inputs they share, spec strings of passes, and the target they are compiled for."""

    name: str
    seed: int
    members: Mapping[str, Member]
    inputs: Mapping[str, TensorType] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    target: str = "host"

    @property
    def nodes(self) -> int:
        """ONNX nodes of all networks."""
        return sum(len(m.model.graph.node) for m in self.members.values())

    def without(self, task: str) -> Case:
        """The case less one network, and less the inputs that only it reads."""
        left = {t: m for t, m in self.members.items() if t != task}
        read = {m.shared for m in left.values()}
        return replace(self, members=left, inputs={i: t for i, t in self.inputs.items() if i in read})

    def with_model(self, task: str, model: onnx.ModelProto) -> Case:
        """The case with another network in place of one."""
        return replace(self, members={**self.members, task: replace(self.members[task], model=model)})

    def save(self, folder: Path) -> None:
        """Write `case.json` and one ONNX file per network into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for task, member in self.members.items():
            (folder / f"{task}.onnx").write_bytes(member.model.SerializeToString(deterministic=True))
        record = {
            "name": self.name,
            "seed": self.seed,
            "passes": list(self.passes),
            "target": self.target,
            "inputs": {n: [t.dtype.value, list(t.shape)] for n, t in self.inputs.items()},
            "members": {t: {"shared": m.shared, "adapter": list(m.adapter)} for t, m in self.members.items()},
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Case:
        """Read what `save` wrote; OSError and ValueError where it is not there or not whole."""
        record = json.loads((folder / RECORD).read_text())
        members = {
            task: Member(onnx.load(folder / f"{task}.onnx"), row["shared"], tuple(row["adapter"]))
            for task, row in record["members"].items()
        }
        inputs = {n: TensorType(DType(kind), tuple(shape)) for n, (kind, shape) in record["inputs"].items()}
        return cls(record["name"], record["seed"], members, inputs, tuple(record["passes"]), record["target"])
