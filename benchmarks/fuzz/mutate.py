"""Damage done to files: to bytes, to lines of text, to JSON values, to fields of an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

Mutator = Callable[[bytes, np.random.Generator], bytes]

WHOLES = (0, 1, -1, 2, 3, 7, 16, 127, 255, 2**16, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
TEXTS = (
    *("", ".", "..", "../secret", "/etc/hostname", "x/y", "a" * 300, "a" * 5000, "\0", "é€😀", "%n%s", "[", "{"),
    *("-1", "true", "nan", "1e999", "Conv", "Relu", "Loop", "If", "Reshape", "ai.onnx.ml", "x", "manifest.json"),
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "../x",
    [],
    {},
    [[]],
    {"a": {}},
    [1, "x", None],
    "sha256",
)
BYTES = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\n",
    b'"',
    b"[",
    b"]]",
    b"{{",
    b"=",
    b"'''",
    b"1e9999",
    b"\\u0000",
)


def one_of(rng: np.random.Generator, options: Any) -> Any:
    """Any of the options."""
    return options[int(rng.integers(len(options)))]


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, pieces removed, repeated, moved or replaced."""
    changed = bytearray(data or b"\0")
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(len(changed) + 1))
        stop = min(len(changed), start + int(rng.geometric(0.1)))
        kind = int(rng.integers(6))
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[start:stop]
        elif kind == 2:
            changed[start:start] = changed[start:stop] * int(rng.integers(1, 20))
        elif kind == 3:
            changed[start:stop] = one_of(rng, BYTES)
        elif kind == 4:
            changed[start:stop] = rng.bytes(int(rng.integers(1, 9)))
        else:
            del changed[int(rng.integers(1, len(changed) + 1)) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def mutate_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Lines dropped, doubled or moved, and the value behind `=` replaced."""
    lines = data.split(b"\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        key, equals, _ = lines[at].partition(b"=")
        kind = int(rng.integers(5))
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(int(rng.integers(len(lines))), lines[at])
        elif kind == 2 and equals:
            lines[at] = key + b"= " + json.dumps(one_of(rng, (*VALUES, *WHOLES, *TEXTS))).encode()
        elif kind == 3:
            lines[at] = b"[" * int(rng.integers(1, 4)) + one_of(rng, TEXTS).encode() + b"]"
        else:
            lines[at] = mutate_bytes(lines[at], rng)
    return b"\n".join(lines)


def mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Values replaced, dropped or wrapped at random places; bytes where it is no JSON."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(int(rng.integers(1, 4))):
        record = _changed(record, rng)
    made = json.dumps(record).encode()
    if rng.random() < 0.03:
        depth = one_of(rng, (100, 2_000, 100_000))
        made = made.replace(b"[]", b"[" * depth + b"]" * depth, 1)
    return made if rng.random() < 0.97 else mutate_bytes(made, rng)


def _changed(value: Any, rng: np.random.Generator) -> Any:
    children = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if len(children) and rng.random() < 0.85:
        key = one_of(rng, list(children))
        if isinstance(value, dict) and rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if isinstance(value, dict) and rng.random() < 0.05:
            return {one_of(rng, TEXTS) if k == key else k: v for k, v in value.items()}
        changed = value.copy()
        changed[key] = _changed(value[key], rng)
        return changed
    return one_of(rng, (*VALUES, *WHOLES, *TEXTS))


def mutate_onnx(data: bytes, rng: np.random.Generator) -> bytes:
    """Fields of the model changed, messages dropped or doubled; bytes where it does not decode."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    for _ in range(int(rng.integers(1, 5))):
        _change(model, rng, 0)
    made = bytes(model.SerializeToString())
    return made if rng.random() < 0.95 else mutate_bytes(made, rng)


def _change(message: Message, rng: np.random.Generator, depth: int) -> None:
    fields = [f for f in message.DESCRIPTOR.fields if _present(message, f)]
    if not fields or rng.random() < 0.05:
        fields = list(message.DESCRIPTOR.fields)
    field = one_of(rng, fields)
    held = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        _change_message(message, field, held, rng, depth)
    elif _repeated(field):
        if len(held) and rng.random() < 0.6:
            at = int(rng.integers(len(held)))
            if rng.random() < 0.3:
                del held[at]
            else:
                held[at] = _scalar(field, rng)
        else:
            held.extend([_scalar(field, rng)])
    else:
        setattr(message, field.name, _scalar(field, rng))


def _change_message(message: Message, field: Any, held: Any, rng: np.random.Generator, depth: int) -> None:
    if not _repeated(field):
        if rng.random() < 0.05:
            message.ClearField(field.name)
        else:
            _change(held, rng, depth + 1)
        return
    if not len(held):
        if depth < 6:
            _change(held.add(), rng, depth + 1)
        return
    at, kind = int(rng.integers(len(held))), rng.random()
    if kind < 0.08:
        del held[at]
    elif kind < 0.16:
        held.add().CopyFrom(held[at])
    elif kind < 0.22:
        held[at].CopyFrom(one_of(rng, held))
    else:
        _change(held[at], rng, depth + 1)


def _present(message: Message, field: Any) -> bool:
    return len(getattr(message, field.name)) > 0 if _repeated(field) else message.HasField(field.name)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _scalar(field: Any, rng: np.random.Generator) -> Any:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return one_of(rng, TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return one_of(rng, (rng.bytes(int(rng.integers(20))), one_of(rng, TEXTS).encode()))
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return one_of(rng, (0.0, -1.0, 1e30, -1e-30, float("inf"), float("nan")))
    if kind == FieldDescriptor.TYPE_ENUM:
        return one_of(rng, [v.number for v in field.enum_type.values])
    value = one_of(rng, (*WHOLES, int(rng.integers(-4, 30))))
    if kind == FieldDescriptor.TYPE_UINT64:
        return abs(value)
    return max(-(2**31), min(2**31 - 1, value)) if kind == FieldDescriptor.TYPE_INT32 else value
