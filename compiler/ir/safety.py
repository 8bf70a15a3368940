"""The guard before everything else that touches a model file.

It reads the file by descriptor, decodes it, and walks every tensor (initializers, sparse values and indices,
attributes, subgraphs, functions) against fixed limits. Tensors must hold what they claim, so nothing later can
be made to allocate more than the file is large. External data is refused unless allowed, and then confined to
the model's folder: no absolute path, no link of either kind, no byte outside the file.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto

from compiler.errors import ConfigError, UnsafeInputError, printable
from compiler.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may ask for. Sizes in bytes."""

    file_bytes: int = 2 << 30
    """Model file and external data, each."""
    tensor_bytes: int = 2 << 30
    """Any one tensor, activations and implied constants included."""
    folded_bytes: int = 64 << 20
    """Operands and results of a node evaluated while importing."""
    nodes: int = 100_000
    """Nodes after functions and branches are unfolded."""
    tensors: int = 200_000
    nesting: int = 16
    name_length: int = 4096
    rank: int = 32
    axis: int = 1 << 24
    """Entries along one axis of an activation."""


DEFAULT_LIMITS = Limits()


def check_size(what: str, type_: TensorType, limits: Limits) -> None:
    """UnsafeInputError where a tensor's bytes or an axis pass the limits, an empty tensor's axes included."""
    size = math.prod(max(n, 1) for n in type_.shape) * type_.dtype.bytes
    if size > limits.tensor_bytes:
        empty = ", empty axes counted as one entry" if 0 in type_.shape else ""
        raise UnsafeInputError(
            f"{what} would take {size:,} bytes ({type_}{empty}); the limit is {limits.tensor_bytes:,}"
        )
    if max(type_.shape, default=0) > limits.axis:
        raise UnsafeInputError(f"{what} has {max(type_.shape):,} entries along one axis; at most {limits.axis:,}")


def shown(name: str) -> str:
    """A name from a model as it may stand in a message: quoted, printable, short."""
    text = name if len(name) <= 80 else f"{name[:60]}...{name[-16:]}"
    return f"'{printable(text)}'"


def read_model(
    path: str | os.PathLike[str], *, allow_external_data: bool = False, limits: Limits = DEFAULT_LIMITS
) -> onnx.ModelProto:
    """Read and guard an ONNX file; external data, where allowed, is read in.

    Raises ConfigError where there is no such file or it cannot be read, UnsafeInputError where it is damaged or
    passes a limit.
    """
    file = Path(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(_contents(file, limits.file_bytes))
    except DecodeError:
        raise UnsafeInputError(
            f"{file}: not a readable ONNX file; it is truncated, damaged or nested too deeply. Export it again"
        ) from None
    folder = file.parent if allow_external_data else None
    guard(model, where=str(file), folder=folder, limits=limits)
    return model


def _contents(file: Path, limit: int) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeInputError(f"{file}: not a regular file")
        if status.st_size > limit:
            raise UnsafeInputError(f"{file}: {status.st_size:,} bytes; the limit is {limit:,}")
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}; copy it anew, and look after its disk"
        ) from None
    finally:
        os.close(descriptor)


def guard(
    model: onnx.ModelProto, *, where: str, folder: Path | None = None, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Check a decoded model against `limits`; read external data from `folder` (None: refuse it).

    Raises UnsafeInputError with the first problem found; `where` names the model in the message.
    """
    _Guard(where, folder, limits).model(model)


class _Guard:
    """One walk over a model, counting nodes and tensors."""

    def __init__(self, where: str, folder: Path | None, limits: Limits) -> None:
        self._where = where
        self._folder = folder
        self._limits = limits
        self._nodes = 0
        self._tensors = 0
        self._external = 0

    def model(self, model: onnx.ModelProto) -> None:
        if not model.HasField("graph"):
            raise self._error("it holds no graph")
        for opset in model.opset_import:
            self._name(opset.domain)
        for entry in model.metadata_props:
            self._name(entry.key)
        self._graph(model.graph, 0)
        for function in model.functions:
            self._function(function)

    def _function(self, function: onnx.FunctionProto) -> None:
        domains = [o.domain for o in function.opset_import]
        for name in (
            function.name,
            function.domain,
            function.overload,
            *domains,
            *function.input,
            *function.output,
            *function.attribute,
        ):
            self._name(name)
        self._node_list(function.node, 0)
        for attribute in function.attribute_proto:
            self._attribute(attribute, 0)

    def _error(self, problem: str) -> UnsafeInputError:
        return UnsafeInputError(f"{self._where}: {problem}")

    def _name(self, name: str | bytes) -> None:
        if isinstance(name, bytes):  # what protobuf gives for text that does not decode
            raise self._error(f"name {name[:60]!r} is not valid UTF-8")
        if len(name) > self._limits.name_length:
            raise self._error(f"name {shown(name)} has {len(name)} characters; at most {self._limits.name_length}")

    def _graph(self, graph: onnx.GraphProto, depth: int) -> None:
        if depth > self._limits.nesting:
            raise self._error(f"subgraphs are nested more than {self._limits.nesting} deep")
        self._name(graph.name)
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._name(info.name)
            for axis in info.type.tensor_type.shape.dim:
                self._name(axis.dim_param)
        for tensor in graph.initializer:
            self._tensor(tensor)
        for sparse in graph.sparse_initializer:
            self._sparse(sparse)
        self._node_list(graph.node, depth)

    def _node_list(self, nodes: Iterator[onnx.NodeProto], depth: int) -> None:
        for node in nodes:
            self._nodes += 1
            if self._nodes > self._limits.nodes:
                raise self._error(f"more than {self._limits.nodes} nodes")
            for name in (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output):
                self._name(name)
            for attribute in node.attribute:
                self._attribute(attribute, depth)

    def _attribute(self, attribute: AttributeProto, depth: int) -> None:
        self._name(attribute.name)
        self._name(attribute.ref_attr_name)
        for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
            self._tensor(tensor)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()
        for value in (*sparse, *attribute.sparse_tensors):
            self._sparse(value)
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            self._graph(graph, depth + 1)

    def _sparse(self, sparse: onnx.SparseTensorProto) -> None:
        self._dims(sparse.values.name, sparse.dims, 1)
        self._tensor(sparse.values)
        self._tensor(sparse.indices)

    # ------------------------------------------------------------------ tensors
    def _dims(self, name: str, dims: Iterator[int], bits: int) -> int:
        sizes = list(dims)
        if len(sizes) > self._limits.rank:
            raise self._error(f"tensor {shown(name)} has {len(sizes)} axes; at most {self._limits.rank}")
        if any(n < 0 for n in sizes):
            raise self._error(f"tensor {shown(name)} has a negative size: {sizes}")
        count = math.prod(sizes)
        if count * bits > 8 * self._limits.tensor_bytes:
            raise self._error(
                f"tensor {shown(name)} claims shape {sizes}, {count * bits // 8:,} bytes; "
                f"the limit is {self._limits.tensor_bytes:,}"
            )
        return count

    def _tensor(self, tensor: TensorProto) -> None:
        self._tensors += 1
        if self._tensors > self._limits.tensors:
            raise self._error(f"more than {self._limits.tensors} tensors")
        self._name(tensor.name)
        bits = _BITS.get(tensor.data_type)
        if bits is None:
            raise self._error(f"tensor {shown(tensor.name)} has the unknown element type {tensor.data_type}")
        count = self._dims(tensor.name, tensor.dims, bits)
        external = tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0
        if external:
            self._read_external(tensor, -(-count * bits // 8))
        held = _held(tensor, bits)
        if held != count:
            raise self._error(f"tensor {shown(tensor.name)} claims {count:,} elements and holds {held:,}")

    def _read_external(self, tensor: TensorProto, size: int) -> None:
        name = shown(tensor.name)
        if self._folder is None:
            raise self._error(
                f"tensor {name} keeps its data in another file; allow it (allow_external_data) only for models you "
                f"trust, or save the model as one file"
            )
        if tensor.data_type == TensorProto.STRING:
            raise self._error(f"tensor {name}: strings cannot be external")
        entries = {e.key: e.value for e in tensor.external_data}
        offset, length = (self._number(name, entries, key) for key in ("offset", "length"))
        if length not in (None, size):
            raise self._error(f"tensor {name}: external data has {length:,} bytes, its shape needs {size:,}")
        self._external += size
        if self._external > self._limits.file_bytes:
            raise self._error(f"external data passes {self._limits.file_bytes:,} bytes")
        try:
            data = read_inside(self._folder, entries.get("location", ""), offset or 0, size)
        except ValueError as error:
            raise self._error(
                f"tensor {name}: external data {shown(entries.get('location', ''))} {error}"
            ) from None
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = data

    def _number(self, name: str, entries: dict[str, str], key: str) -> int | None:
        text = entries.get(key)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise self._error(f"tensor {name}: external {key} {shown(text)} is not a number")
        return int(text)


def read_inside(folder: Path, location: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of the file `location` below `folder`, following no link on the way.

    Raises ValueError ("is ...") where the location leaves the folder, is not a regular file with one name, or is
    too short. Every component is opened relative to its parent's descriptor, so a later swap changes nothing.
    """
    parts = location.split("/")
    if not location or location.startswith("/") or "\\" in location or "\0" in location:
        raise ValueError("is not a relative path")
    if any(p in ("", ".", "..") for p in parts):
        raise ValueError("is not a plain path inside the model's folder")
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"is in a folder that cannot be read: {error.strerror}") from None
    try:
        for i, part in enumerate(parts):
            kind = os.O_DIRECTORY if i + 1 < len(parts) else os.O_NONBLOCK
            try:
                inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=at)
            except OSError as error:
                raise ValueError(f"cannot be opened without following links: {error.strerror}") from None
            os.close(at)
            at = inner
        return _slice(at, offset, size)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(at)


def _slice(descriptor: int, offset: int, size: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    if status.st_nlink != 1:
        raise ValueError(f"has {status.st_nlink} names (hard links); copy it")
    if offset + size > status.st_size:
        raise ValueError(f"has {status.st_size:,} bytes; bytes {offset:,} to {offset + size:,} are asked for")
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(offset)
        return stream.read(size)


# ---------------------------------------------------------------------- what a tensor holds
_WIDTHS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
    "STRING": 8,
}
_BITS = {code: _WIDTHS[name] for name, code in TensorProto.DataType.items() if name in _WIDTHS}
_PAIRS = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def _held(tensor: TensorProto, bits: int) -> int:
    """How many elements the tensor really stores; sub-byte elements are counted up to the claim's last byte."""
    claimed = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data)
    if tensor.HasField("raw_data"):
        whole = len(tensor.raw_data)
        return claimed if whole * 8 - claimed * bits in range(8) else whole * 8 // bits
    lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    stored = sum(map(len, lists))
    if bits < 8:
        return claimed if stored == -(-claimed * bits // 8) else stored * 8 // bits
    return stored // 2 if tensor.data_type in _PAIRS else stored
