"""A first release file for a set of ONNX files: the shared input found, adapters proposed, tasks named.

Only the files' own declarations are read. What they do not say - value ranges, channel order, which data to
calibrate with - is left as a comment, never guessed.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from compiler.codegen.interface import is_macro
from compiler.errors import ConfigError, UnsupportedModelError, listed, printable
from compiler.ir.levels import LEVELS_KEY, ORDER_KEY
from compiler.ir.names import c_name
from compiler.ir.onnx_nodes import declared_shape, dtype_of
from compiler.ir.safety import read_model, shown
from compiler.ir.types import TensorType
from compiler.settings import DEFAULT_PASSES, LEVEL_PASSES
from compiler.toml_table import dumps

Step = Mapping[str, object]

_TOKENS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Network:
    """One file, `inputs` and `outputs` in its own order."""

    task: str
    path: Path
    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    free: frozenset[str] = frozenset()
    """Inputs with free axes, or without a shape; `inputs` has what was put in their place."""
    levels: bool = False
    """Whether the file has sparsity levels, or is one that was taken from others."""


@dataclass(frozen=True)
class Proposal:
    """A release: `shared` inputs by name; for every network, own input -> (shared input, adapter)."""

    name: str
    networks: tuple[Network, ...]
    shared: Mapping[str, TensorType]
    bindings: Mapping[str, Mapping[str, tuple[str, tuple[Step, ...]]]]

    def adapted(self) -> tuple[str, ...]:
        """Tasks whose network needs an adapter."""
        return tuple(t for t, found in self.bindings.items() if any(steps for _, steps in found.values()))


def propose(
    files: Sequence[Path],
    name: str,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    allow_external_data: bool = False,
) -> Proposal:
    """A release of these networks. `shapes` binds inputs with free axes; an open first axis alone is one sample.

    ConfigError where a binding names no input; UnsupportedModelError lists inputs that stay open, or says that
    there are none; what reading a model raises.
    """
    given = dict(shapes or {})
    tasks = task_names(files)
    problems: list[str] = []
    networks = []
    for task, path in zip(tasks, files, strict=True):
        model = read_model(path, allow_external_data=allow_external_data)
        networks.append(_network(task, path, model, given, problems))
    if problems:
        advice = "bind free axes with --input NAME:SIZE,SIZE,..."
        raise UnsupportedModelError(
            f"inputs without a fixed shape and a known element type; {advice}{listed(problems)}"
        )
    unknown = sorted(set(given) - {i for n in networks for i in n.inputs})
    if unknown:
        raise ConfigError(f"--input {unknown[0]}: no model has an input of this name")
    if not any(n.inputs for n in networks):
        raise UnsupportedModelError("none of the models reads an input; a release has one that they share")
    shared, bindings = _shared(networks)
    return Proposal(name, tuple(networks), shared, bindings)


# ---------------------------------------------------------------------- names
def task_names(files: Sequence[Path]) -> tuple[str, ...]:
    """A C name per file, from its stem: words that all files begin or end with are left out. One that the header
    has a macro for begins with `task`.
    """
    words = [[w for w in _TOKENS.split(path.stem.lower()) if w] or ["task"] for path in files]
    while len(words) > 1 and all(len(w) > 1 for w in words) and len({w[0] for w in words}) == 1:
        words = [w[1:] for w in words]
    while len(words) > 1 and all(len(w) > 1 for w in words) and len({w[-1] for w in words}) == 1:
        words = [w[:-1] for w in words]
    found: list[str] = []
    for parts in words:
        base = c_name("_".join(parts), "task")
        base = f"task_{base}" if is_macro(base) else base
        numbers = (base if n == 1 else f"{base}_{n}" for n in range(1, len(files) + 2))
        found.append(next(n for n in numbers if n not in found))
    return tuple(found)


# ---------------------------------------------------------------------- reading
def _network(
    task: str, path: Path, model: ModelProto, given: Mapping[str, tuple[int, ...]], problems: list[str]
) -> Network:
    constants = {t.name for t in model.graph.initializer}
    inputs, free = {}, set()
    for info in model.graph.input:
        if info.name in constants:
            continue
        declared, dtype = declared_shape(info.type), dtype_of(info.type.tensor_type.elem_type)
        shape: Sequence[int | None] | None = given.get(info.name, _one_sample(declared))
        if dtype is None:
            problems.append(f"{path.name}: input {shown(info.name)} is no tensor of numbers or bools")
        elif shape is None or None in shape or not _fits(shape, declared):
            asked = f", which --input {info.name} does not fit" if info.name in given else ""
            problems.append(f"{path.name}: input {shown(info.name)} {_has(declared)}{asked}")
        else:
            inputs[info.name] = TensorType(dtype, tuple(n for n in shape if n is not None))
            if declared is None or None in declared:
                free.add(info.name)
    levels = any(p.key in (LEVELS_KEY, ORDER_KEY) for p in model.metadata_props)
    return Network(task, path, inputs, tuple(o.name for o in model.graph.output), frozenset(free), levels)


def _one_sample(declared: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    """The batch is 1 where only it is open."""
    return (1, *declared[1:]) if declared and declared[0] is None else declared


def _fits(shape: Sequence[int | None], declared: tuple[int | None, ...] | None) -> bool:
    """Whether a shape has the sizes that are declared."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(b in (None, a) for a, b in zip(shape, declared, strict=True))


def _has(declared: tuple[int | None, ...] | None) -> str:
    if declared is None:
        return "has no shape"
    return "is [" + ",".join("?" if n is None else str(n) for n in declared) + "]"


# ---------------------------------------------------------------------- the shared inputs
def _shared(
    networks: Sequence[Network],
) -> tuple[dict[str, TensorType], dict[str, dict[str, tuple[str, tuple[Step, ...]]]]]:
    """Networks with one input share one where an adapter leads to theirs; other inputs share by name and type."""
    shared: dict[str, TensorType] = {}
    bindings: dict[str, dict[str, tuple[str, tuple[Step, ...]]]] = {n.task: {} for n in networks}
    single = [n for n in networks if len(n.inputs) == 1]
    if single:
        types = {n.task: next(iter(n.inputs.values())) for n in single}
        common = _common(types.values())
        name = _input_name(single, common)
        for network in single:
            (own,) = network.inputs
            steps = adapter(common, types[network.task])
            if steps is None:
                bindings[network.task][own] = _own_input(shared, own, types[network.task], {name: common}), ()
            else:
                shared[name] = common
                bindings[network.task][own] = name, steps
    for network in networks:
        if len(network.inputs) != 1:
            for own, type_ in network.inputs.items():
                bindings[network.task][own] = _own_input(shared, own, type_, {}), ()
    return shared, bindings


def _common(types: Iterable[TensorType]) -> TensorType:
    """The type that most networks want; of several, the one with most elements."""
    counts = Counter(types)
    return max(counts, key=lambda t: (counts[t], t.size, str(t)))


def _input_name(networks: Sequence[Network], common: TensorType) -> str:
    names = {next(iter(n.inputs)) for n in networks}
    if len(names) == 1:
        return names.pop()
    return "image" if common.rank == 4 else "signal"


def _own_input(shared: dict[str, TensorType], own: str, type_: TensorType, taken: Mapping[str, TensorType]) -> str:
    """A shared input of this name and type; the name gets a number where another type has it."""
    known = {**taken, **shared}
    number = 1
    while known.get(name := own if number == 1 else f"{own}_{number}", type_) != type_:
        number += 1
    shared[name] = type_
    return name


def adapter(given: TensorType, wanted: TensorType) -> tuple[Step, ...] | None:
    """Steps from one type to another: element type, layout, grey, size, shape. None where no steps lead there."""
    if given == wanted:
        return ()
    steps: list[Step] = [] if given.dtype == wanted.dtype else [{"cast": wanted.dtype.value}]
    if given.shape == wanted.shape:
        return tuple(steps)
    images = _image_steps(given.shape, wanted.shape)
    if images is not None:
        return (*steps, *images)
    if given.size == wanted.size:
        return (*steps, {"reshape": list(wanted.shape)})
    return None


def _image_steps(given: tuple[int, ...], wanted: tuple[int, ...]) -> list[Step] | None:
    """Between images of one batch in NCHW or NHWC, with the same channels or from three to one."""
    if len(given) != 4 or len(wanted) != 4 or given[0] != wanted[0]:
        return None
    pairs = itertools.product(_layouts(given), _layouts(wanted))
    found = [steps for here, there in pairs if (steps := _steps_between(given, here, wanted, there)) is not None]
    return min(found, key=len, default=None)


def _layouts(shape: tuple[int, ...]) -> list[str]:
    """The layouts in which an image has one, three or four channels."""
    return [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if shape[axis] in (1, 3, 4)]


def _steps_between(given: tuple[int, ...], here: str, wanted: tuple[int, ...], there: str) -> list[Step] | None:
    (channels, *size), (other, *other_size) = _channels_and_size(given, here), _channels_and_size(wanted, there)
    if channels != other and (channels, other) != (3, 1):
        return None
    steps: list[Step] = [{"layout": "NCHW"}] if here == "NHWC" else []
    steps += [{"gray": True}] if channels != other else []
    steps += [{"resize": other_size}] if size != other_size else []
    return steps + ([{"layout": "NHWC"}] if there == "NHWC" else [])


def _channels_and_size(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    return (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])


# ---------------------------------------------------------------------- the file
def release_text(proposal: Proposal, folder: Path) -> str:
    """The commented release file, for `folder`: paths are relative to it. ConfigError where one is no text."""
    first = next(iter(proposal.networks)).task
    parts = [
        "# A release of taskgraft; docs/cli.md lists every key. Lines behind # are for you to fill in.\n",
        dumps({"schema": 1, "name": proposal.name, "output": "dist"}),
        "\n# What the application gives once for all tasks" + _as_read(proposal),
        dumps({"input": {k: _input_table(t) for k, t in proposal.shared.items()}}),
    ]
    parts += [_task_text(proposal, network, folder) for network in proposal.networks]
    levels = any(n.levels for n in proposal.networks)
    passes = _LEVELS if levels else _PASSES
    pipeline = json.dumps(LEVEL_PASSES if levels else DEFAULT_PASSES)
    shared = _quoted(next(iter(proposal.shared)))
    parts.append(_REST.format(shared=shared, task=first, passes=passes, pipeline=pipeline))
    return "\n".join(parts)


def _quoted(name: str) -> str:
    """A name of a file or a model on one line, whatever is in it."""
    return json.dumps(name)


def _input_table(type_: TensorType) -> dict[str, object]:
    return {"shape": list(type_.shape), "dtype": type_.dtype.value}


def _task_text(proposal: Proposal, network: Network, folder: Path) -> str:
    own = proposal.bindings[network.task]
    steps = next((s for _, s in own.values() if s), ())
    inputs = {name: shared for name, (shared, _) in own.items() if name != shared}
    table = {
        "model": _relative(network.path, folder),
        "adapter": [dict(s) for s in steps] or None,
        "inputs": inputs,
        "shapes": {n: list(network.inputs[n].shape) for n in network.inputs if n in network.free and own[n][1]},
    }
    lines = [dumps({"tasks": {network.task: table}}).strip("\n")]
    wants = ", ".join(f"{_quoted(n)} {t}" for n, t in network.inputs.items())
    gives = ", ".join(map(_quoted, network.outputs))
    lines.insert(0, f"# {_quoted(network.path.name)} reads {wants}; gives {gives}")
    if steps:
        lines.append(_ADAPTED)
    return "\n".join(lines) + "\n"


def _relative(path: Path, folder: Path) -> str:
    """A path as the release file says it; ConfigError where it is no text: Python has its bytes as surrogates."""
    name = Path(os.path.relpath(path, folder)).as_posix()
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise ConfigError(
            f"{printable(str(path))}: a release file cannot say this name, which is not UTF-8; rename it"
        )
    return name


def _as_read(proposal: Proposal) -> str:
    """Whose values the shared input has."""
    plain = [n.task for n in proposal.networks if not any(s for _, s in proposal.bindings[n.task].values())]
    if not plain:
        return "."
    trained = f"{', '.join(plain)} {'were' if len(plain) > 1 else 'was'} trained on"
    return f", with the values and the order of colours that {trained}."


_ADAPTED = """\
# The adapter follows from shapes only; what values this network was trained on is not in its file. Where they are
# others than the shared input's, add steps in the order in which they happen: { scale = 0.0078, offset = -1.0 } is
# x * scale + offset, { bgr = true } lets red and blue change places; gray = true expects RGB.\
"""
_PASSES = """\
# Exact passes: outputs stay what they were up to rounding. Add "merge" to share channels of networks trained apart,
# or "prune-channels{flops=0.7}": both need calibration data, cost accuracy, and are held to the gates below.\
"""
_LEVELS = """\
# Passes that keep sparsity levels: a model has some, or is one of several. Others come before nest.\
"""
_REST = """\
# [calibration]                    # unlabelled samples: for merging, pruning, and to measure drift
# data = "calibration.npz"         # array {shared} [samples, ...]
# [evaluation]                     # labelled samples: every task's metric before and after
# data = "evaluation.npz"          # the same array, and one of labels per task
# [evaluation.metric]
# {task} = "accuracy"              # accuracy, f1, mae, rmse, or "package.module:function"

[passes]
{passes}
pipeline = {pipeline}

[targets]
build = ["host"]                   # for a board: "aarch64-cortex-a72" and others, see `taskgraft targets`

# [gates]                          # limits that fail a compile
# max_library = "6MB"
# max_output_drift = 0.02          # needs calibration data
"""
