"""Broken and hostile inputs: how each is made, which exit status and words it must end in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Arguments = list[str]


@dataclass(frozen=True)
class Case:
    """`make` fills a folder and returns the command's arguments; `words` stand in the message."""

    name: str
    what: str
    make: Callable[[Path], Arguments]
    status: int
    words: str


CASES: list[Case] = []


def case(
    what: str, status: int, words: str
) -> Callable[[Callable[[Path], Arguments]], Callable[[Path], Arguments]]:
    """Add the decorated function as a case called after it."""

    def add(make: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
        CASES.append(Case(make.__name__.replace("_", "-"), what, make, status, words))
        return make

    return add


# ---------------------------------------------------------------------- pieces
def parsed(text: str, opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


RELU = "net (float[1,4] x) => (float[1,4] z) { z = Relu(x) }"


def saved(folder: Path, model: onnx.ModelProto | bytes, *more: str) -> Arguments:
    """Write the file and inspect it."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "net.onnx").write_bytes(data)
    return ["inspect", "net.onnx", "--quiet", *more]


def claiming(dims: list[int], data: bytes, name: str = "w") -> TensorProto:
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, raw_data=data)


def external(location: str, name: str = "w", **entries: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_weight(tensor: TensorProto) -> onnx.ModelProto:
    model = parsed("net (float[1,4] x, float[4] w) => (float[1,4] z) { z = Mul(x, w) }")
    del model.graph.input[1]
    model.graph.initializer.append(tensor)
    return model


# ---------------------------------------------------------------------- files
@case("a file of no bytes", 4, "it holds no graph")
def empty(folder: Path) -> Arguments:
    return saved(folder, b"")


@case("half of a valid file", 4, "truncated, damaged or nested too deeply")
def truncated(folder: Path) -> Arguments:
    data = parsed(RELU).SerializeToString()
    return saved(folder, data[: len(data) // 2])


@case("a text file", 4, "not a readable ONNX file")
def text_file(folder: Path) -> Arguments:
    return saved(folder, b"# weights\n" * 50)


@case("no file", 2, "No such file")
def missing(folder: Path) -> Arguments:
    return ["inspect", "none.onnx", "--quiet"]


@case("a named pipe", 4, "not a regular file")
def pipe(folder: Path) -> Arguments:
    os.mkfifo(folder / "net.onnx")
    return ["inspect", "net.onnx", "--quiet"]


@case("subgraphs nested 20 deep", 4, "nested more than 16 deep")
def nested(folder: Path) -> Arguments:
    return saved(folder, _nest(20))


@case("subgraphs nested 60 deep", 4, "nested too deeply")
def nested_deeper(folder: Path) -> Arguments:
    return saved(folder, _nest(60))


def _nest(depth: int) -> bytes:
    """Graphs within attributes of nodes, put together byte by byte: protobuf itself refuses to write them."""
    graph = b""
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + b"\xa0\x01\x05" + _field(6, graph)
        graph = _field(1, _field(4, b"If") + _field(5, attribute))
    return b"\x08\x0a" + _field(7, graph) + _field(8, b"\x10\x15")


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes((size & 127 | 128,)), size >> 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + content


@case("a name of one million characters", 4, "has 1000000 characters")
def long_name(folder: Path) -> Arguments:
    model = parsed(RELU)
    model.graph.node[0].name = "n" * 1_000_000
    return saved(folder, model)


@case("a name that is not UTF-8", 4, "is not valid UTF-8")
def not_utf8(folder: Path) -> Arguments:
    model = parsed(RELU)
    model.graph.node[0].name = "QQQQ"
    return saved(folder, model.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xff\xfe"))


# ---------------------------------------------------------------------- sizes
@case("an initializer that claims 10 GB and holds nothing", 4, "claims shape [50000, 50000], 10,000,000,000 bytes")
def ten_gigabytes(folder: Path) -> Arguments:
    return saved(folder, with_weight(claiming([50_000, 50_000], b"")))


@case("an initializer that claims 4 MB and holds 16 bytes", 4, "claims 1,000,000 elements and holds 4")
def claims_more(folder: Path) -> Arguments:
    return saved(folder, with_weight(claiming([1000, 1000], bytes(16))))


@case("sizes whose product overflows 64 bits", 4, "claims shape")
def overflow(folder: Path) -> Arguments:
    return saved(folder, with_weight(claiming([1 << 62, 1 << 62, 4], bytes(16))))


@case("a tensor with a negative size", 4, "has a negative size")
def negative_size(folder: Path) -> Arguments:
    return saved(folder, with_weight(claiming([-4], bytes(16))))


@case("a 16 GiB constant in about 100 bytes (ConstantOfShape)", 4, "the limit is 2,147,483,648")
def constant_bomb(folder: Path) -> Arguments:
    text = "n () => (float[a,b] y) <int64[2] s = {65536, 65536}> { y = ConstantOfShape(s) }"
    return saved(folder, parsed(text))


@case("a constant that folds to 256 MB in about 100 bytes: kept as nodes", 0, "")
def folding_bomb(folder: Path) -> Arguments:
    text = "n () => (float[a,b] z) <int64[2] s = {8192, 8192}> { y = ConstantOfShape(s) z = Exp(y) }"
    return saved(folder, parsed(text))


@case("constants that double 40 times (Concat)", 4, "entries along one axis; at most 16,777,216")
def doubling(folder: Path) -> Arguments:
    model = parsed("n () => (float[a] c40) <float[4] c0 = {1, 2, 3, 4}> { c40 = Relu(c0) }")
    del model.graph.node[:]
    for i in range(40):
        model.graph.node.append(helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0))
    return saved(folder, model)


@case("functions that call functions: 2^30 nodes", 4, "unfolds to more than 100000 nodes")
def function_bomb(folder: Path) -> Arguments:
    model = parsed("n (float[2] x) => (float[2] z) { z = Relu(x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "f30", "own"
    model.opset_import.add(domain="own", version=1)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    for i in range(31):
        call = (lambda a, b, i=i: helper.make_node(f"f{i - 1}", [a], [b], domain="own")) if i else None
        nodes = [call("x", "y"), call("y", "z")] if call else [helper.make_node("Relu", ["x"], ["z"])]
        model.functions.append(helper.make_function("own", f"f{i}", ["x"], ["z"], nodes, opsets))
    return saved(folder, model)


@case("an input of 4 TB", 4, "would take 4,398,046,511,104 bytes")
def huge_input(folder: Path) -> Arguments:
    return saved(folder, parsed("n (float[1048576,1048576] x) => (float[1048576,1048576] z) { z = Relu(x) }"))


# ---------------------------------------------------------------------- contradictions
@case("a Conv whose weight expects 5 channels on 8", 4, "Conv 'Conv_z'")
def wrong_dimensions(folder: Path) -> Arguments:
    text = "net (float[1,8,5,5] x, float[2,5,3,3] w) => (float[1,2,3,3] z) { z = Conv(x, w) }"
    return saved(folder, parsed(text))


@case("an axis that makes ONNX's own inference read out of bounds", 4, "is out of range for an operand of rank 2")
def axis_out_of_range(folder: Path) -> Arguments:
    text = "n (float[2,3] x, float[2,3] s) => (float[2,3] z) { z = LayerNormalization <axis = 2147483648> (x, s) }"
    return saved(folder, parsed(text))


@case("a Split whose attribute names fewer parts than it has outputs", 4, "speak of another number")
def split_parts(folder: Path) -> Arguments:
    text = "n (float[7] x) => (float[2] a, float[2] b, float[3] c) { a, b, c = Split <num_outputs = 2> (x) }"
    return saved(folder, parsed(text))


@case("a cycle", 4, "not a valid ONNX model")
def cycle(folder: Path) -> Arguments:
    return saved(folder, parsed("net (float[2] x) => (float[2] z) { a = Add(x, z) z = Relu(a) }"))


@case("task metadata that names an output that is not there", 4, "does not fit the model's outputs")
def task_metadata(folder: Path) -> Arguments:
    model = parsed(RELU)
    model.metadata_props.add(key="taskgraft.tasks", value='[["t", ["elsewhere"], ["z"]]]')
    return saved(folder, model)


@case(
    "an equation of Einsum that ONNX's inference never comes back from",
    4,
    "'ab1c' is no equation: a term is letters",
)
def einsum_equation(folder: Path) -> Arguments:
    return saved(folder, parsed('net (float[2,3] x) => (float[3] z) { z = Einsum <equation = "ab1c"> (x) }'))


@case("200,000 letters and a digit as an equation of Einsum", 4, "is no equation: a term is letters")
def einsum_long(folder: Path) -> Arguments:
    equation = "a" * 200_000 + "1"
    return saved(
        folder, parsed(f'net (float[2,3] x) => (float[3] z) {{ z = Einsum <equation = "{equation}"> (x) }}')
    )


@case("two ellipses in a term of Einsum, likewise", 4, "'i....' is no equation")
def einsum_dots(folder: Path) -> Arguments:
    return saved(folder, parsed('net (float[2,3] x) => (float[3] z) { z = Einsum <equation = "i...."> (x) }'))


# ---------------------------------------------------------------------- external data
@case("external data, not allowed", 4, "keeps its data in another file")
def external_refused(folder: Path) -> Arguments:
    return saved(folder, with_weight(external("weights.bin")))


@case("external data outside the folder: ../", 4, "is not a plain path inside the model's folder")
def external_parent(folder: Path) -> Arguments:
    return saved(folder, with_weight(external("../secret.bin")), "--allow-external-data")


@case("external data outside the folder: absolute path", 4, "is not a relative path")
def external_absolute(folder: Path) -> Arguments:
    return saved(folder, with_weight(external("/etc/hostname")), "--allow-external-data")


@case("external data outside the folder, in the values of a sparse initializer", 4, "'../secret.bin'")
def external_sparse_values(folder: Path) -> Arguments:
    model = parsed(RELU)
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64))
    model.graph.sparse_initializer.add(values=external("../secret.bin", "s"), indices=indices, dims=[8])
    return saved(folder, model, "--allow-external-data")


@case("external data outside the folder, in the indices of a sparse initializer", 4, "'../secret.bin'")
def external_sparse_indices(folder: Path) -> Arguments:
    model = parsed(RELU)
    values = claiming([4], bytes(16), "s")
    model.graph.sparse_initializer.add(values=values, indices=external("../secret.bin"), dims=[8])
    return saved(folder, model, "--allow-external-data")


@case("external data outside the folder, in a subgraph", 4, "'../secret.bin'")
def external_subgraph(folder: Path) -> Arguments:
    text = """n (float[4] x, bool c) => (float[4] z) { z = If (c) <
        then_branch = y () => (float[4] a) { a = Neg(x) }, else_branch = n () => (float[4] b) { b = Abs(x) } > }"""
    model = parsed(text)
    model.graph.node[0].attribute[1].g.initializer.append(external("../secret.bin"))
    return saved(folder, model, "--allow-external-data")


@case("external data outside the folder, in a node's attribute", 4, "'../secret.bin'")
def external_attribute(folder: Path) -> Arguments:
    model = parsed("n (float[4] x) => (float[4] z) { z = Add(x, k) }")
    constant = helper.make_node("Constant", [], ["k"], value=external("../secret.bin"))
    model.graph.node.insert(0, constant)
    return saved(folder, model, "--allow-external-data")


@case("external data outside the folder, in a function", 4, "'../secret.bin'")
def external_function(folder: Path) -> Arguments:
    model = parsed(RELU)
    constant = helper.make_node("Constant", [], ["k"], value=external("../secret.bin"))
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("own", "f", [], ["k"], [constant], opsets))
    return saved(folder, model, "--allow-external-data")


@case("external data through a symbolic link", 4, "without following links")
def external_symlink(folder: Path) -> Arguments:
    (folder / "real.bin").write_bytes(bytes(16))
    (folder / "weights.bin").symlink_to("real.bin")
    return saved(folder, with_weight(external("weights.bin")), "--allow-external-data")


@case("external data below a symbolic link to a folder", 4, "without following links")
def external_symlinked_folder(folder: Path) -> Arguments:
    (folder / "up").symlink_to("..")
    return saved(folder, with_weight(external("up/secret.bin")), "--allow-external-data")


@case("external data through a hard link", 4, "has 2 names (hard links)")
def external_hardlink(folder: Path) -> Arguments:
    (folder / "real.bin").write_bytes(bytes(16))
    os.link(folder / "real.bin", folder / "weights.bin")
    return saved(folder, with_weight(external("weights.bin")), "--allow-external-data")


@case("external data in a named pipe", 4, "is not a regular file")
def external_pipe(folder: Path) -> Arguments:
    os.mkfifo(folder / "weights.bin")
    return saved(folder, with_weight(external("weights.bin")), "--allow-external-data")


@case("external data beyond the end of its file", 4, "bytes 8 to 24 are asked for")
def external_too_short(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(16))
    return saved(folder, with_weight(external("weights.bin", offset=8)), "--allow-external-data")


@case("external data with a negative offset", 4, "is not a number")
def external_negative(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(16))
    return saved(folder, with_weight(external("weights.bin", offset=-8)), "--allow-external-data")


@case("external data in order and allowed", 0, "")
def external_allowed(folder: Path) -> Arguments:
    (folder / "weights.bin").write_bytes(bytes(24))
    return saved(folder, with_weight(external("weights.bin", offset=8, length=16)), "--allow-external-data")


# ---------------------------------------------------------------------- models that are not compiled
@case("an unknown operator", 3, "Foo x1, first at 'Foo_z': no operator of opset 21")
def unknown_operator(folder: Path) -> Arguments:
    return saved(folder, parsed("net (float[2] x) => (float[2] z) { z = Foo(x) }"))


@case("control flow on an input", 3, "control flow: the condition is not constant")
def control_flow(folder: Path) -> Arguments:
    text = """n (float[4] x, bool c) => (float[4] z) { z = If (c) <
        then_branch = y () => (float[4] a) { a = Neg(x) }, else_branch = n () => (float[4] b) { b = Abs(x) } > }"""
    return saved(folder, parsed(text))


@case("a free axis", 3, "--input x:1,4")
def free_axis(folder: Path) -> Arguments:
    return saved(folder, parsed("net (float[n,4] x) => (float[n,4] z) { z = Relu(x) }"))


@case("strings", 3, "input 'x' is a STRING")
def strings(folder: Path) -> Arguments:
    return saved(folder, parsed("net (string[2] x) => (string[2] z) { z = Identity(x) }"))


@case("an opset from the future", 3, "is newer than the installed onnx knows")
def future_opset(folder: Path) -> Arguments:
    return saved(folder, parsed(RELU, opset=999))


# ---------------------------------------------------------------------- configuration
RELEASE = """schema = 1
name = "small"
output = "dist"
[input.x]
shape = [1, 4]
dtype = "float32"
[tasks.one]
model = "net.onnx"
[targets]
build = ["host"]
"""


def release(folder: Path, text: str, *more: str) -> Arguments:
    saved(folder, parsed(RELU))
    (folder / "release.toml").write_text(text)
    return ["compile", "release.toml", "--quiet", *more]


@case("an unknown configuration key", 2, "outptu")
def unknown_key(folder: Path) -> Arguments:
    return release(folder, RELEASE.replace("output", "outptu"))


@case("a task whose output its model does not have", 2, "there is no output 'age'")
def contradictory_output(folder: Path) -> Arguments:
    return release(folder, RELEASE.replace('model = "net.onnx"', 'model = "net.onnx"\noutput = "age"'))


@case("a shared input of another shape than the model's", 2, "wants float32[1,4]")
def contradictory_shape(folder: Path) -> Arguments:
    return release(folder, RELEASE.replace("[1, 4]", "[1, 5]"))


@case("a task declared twice", 2, "release.toml")
def task_twice(folder: Path) -> Arguments:
    return release(folder, RELEASE + '[tasks.one]\nmodel = "net.onnx"\n')


@case("an output folder that cannot be made", 2, "net.onnx")
def unwritable(folder: Path) -> Arguments:
    return release(folder, RELEASE, "-o", "net.onnx/dist")
