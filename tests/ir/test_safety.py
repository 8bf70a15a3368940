"""The input guard: every limit, every place a tensor can hide, external data; and bytes broken at random.

tests/broken_inputs runs the same doors through the command line.
"""

import errno
import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import CompilerError, ConfigError, UnsafeInputError
from compiler.ir import safety
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.safety import Limits, check_size, guard, read_inside, read_model, shown
from compiler.ir.types import DType, TensorType
from tests.ir.onnx_models import parse

RELU = "net (float[1,4] x) => (float[1,4] z) { z = Relu(x) }"


def tensor(name="w", dims=(4,), data=bytes(16), code=TensorProto.FLOAT, **fields):
    return TensorProto(name=name, data_type=code, dims=list(dims), raw_data=data, **fields)


def refused(model: onnx.ModelProto, words: str, limits: Limits | None = None, folder: Path | None = None) -> None:
    with pytest.raises(UnsafeInputError) as caught:
        guard(model, where="here", folder=folder, limits=limits or Limits())
    assert str(caught.value).startswith("here: ")
    assert words in str(caught.value)


# ---------------------------------------------------------------------- disks that fail
def test_a_file_that_fails_while_it_is_read_is_told_by_name():
    """The kernel gives EIO at the start of a process's memory, which calls itself a regular file."""
    memory = Path("/proc/self/mem")
    with pytest.raises(ConfigError, match=r"^/proc/self/mem: cannot be read: Input/output error; copy it anew"):
        load(memory)


def test_external_data_that_fail_while_they_are_read_are_told_by_name(tmp_path, monkeypatch):
    weight = tensor(data=b"", data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    model = parse(RELU)
    model.graph.initializer.append(weight)
    (tmp_path / "w.bin").write_bytes(bytes(16))

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(safety, "_slice", fails)
    refused(model, "cannot be read: Input/output error", folder=tmp_path)
    refused(model, "is in a folder that cannot be read", folder=tmp_path / "gone")


# ---------------------------------------------------------------------- where tensors hide
def initializer(model, bad):
    model.graph.initializer.append(bad)


def sparse_values(model, bad):
    model.graph.sparse_initializer.add(values=bad, indices=numpy_helper.from_array(np.arange(4)), dims=[9])


def sparse_indices(model, bad):
    model.graph.sparse_initializer.add(values=tensor(), indices=bad, dims=[9])


def attribute(model, bad):
    model.graph.node[0].attribute.append(helper.make_attribute("t", bad))


def attribute_list(model, bad):
    model.graph.node[0].attribute.append(helper.make_attribute("ts", [tensor(), bad]))


def sparse_attribute(model, bad):
    sparse = onnx.SparseTensorProto(values=bad, indices=numpy_helper.from_array(np.arange(4)), dims=[9])
    model.graph.node[0].attribute.append(helper.make_attribute("s", sparse))


def subgraph(model, bad):
    inner = helper.make_graph([], "inner", [], [], [bad])
    model.graph.node[0].attribute.append(helper.make_attribute("g", inner))


def subgraph_list(model, bad):
    inner = helper.make_graph([helper.make_node("Constant", [], ["k"], value=bad)], "inner", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("gs", [inner]))


def function(model, bad):
    constant = helper.make_node("Constant", [], ["k"], value=bad)
    model.functions.append(helper.make_function("own", "f", [], ["k"], [constant], [helper.make_opsetid("", 21)]))


def function_default(model, bad):
    function(model, tensor())
    model.functions[0].attribute_proto.append(helper.make_attribute("t", bad))


PLACES = [
    initializer,
    sparse_values,
    sparse_indices,
    attribute,
    attribute_list,
    sparse_attribute,
    subgraph,
    subgraph_list,
    function,
    function_default,
]


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_walked(place):
    model = parse(RELU)
    place(model, tensor())
    guard(model, where="here")
    model = parse(RELU)
    place(model, tensor(dims=(5,)))
    refused(model, "tensor 'w' claims 5 elements and holds 4")
    model = parse(RELU)
    outside = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    place(model, outside)
    refused(model, "keeps its data in another file")
    outside.external_data.add(key="location", value="../w")
    model = parse(RELU)
    place(model, outside)
    refused(model, "is not a plain path inside the model's folder", folder=Path())


# ---------------------------------------------------------------------- what a tensor holds
@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3), np.float32),
        np.ones((2, 3), np.float16),
        np.ones(3, np.int64),
        np.ones(3, np.uint8),
        np.ones(2, np.complex64),
        np.ones((0, 5), np.float32),
        np.asarray(3.0),
        np.asarray([True, False]),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
@pytest.mark.parametrize("raw", [True, False])
def test_honest_tensors_pass(array, raw):
    model = parse(RELU)
    if raw:
        model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    else:
        code = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.initializer.append(helper.make_tensor("w", code, array.shape, array.reshape(-1).tolist()))
    guard(model, where="here")
    model.graph.initializer[0].dims[:] = [array.size + 1]
    refused(model, f"tensor 'w' claims {array.size + 1} elements and holds {array.size}")


def test_sub_byte_and_string_tensors_are_counted():
    model = parse(RELU)
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [5], [1, 2, 3, 4, 5]))
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]))
    guard(model, where="here")
    model.graph.initializer[0].dims[0] = 9
    refused(model, "tensor 'w' claims 9 elements")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (tensor(dims=(1 << 40,), data=b""), "the limit is"),
        (tensor(dims=(1 << 62, 1 << 62)), "the limit is"),
        (tensor(dims=(-1,)), "has a negative size"),
        (tensor(dims=(1,) * 40), "has 40 axes; at most 32"),
        (tensor(code=99), "unknown element type 99"),
        (tensor(code=0), "unknown element type 0"),
        (tensor(data=bytes(20)), "claims 4 elements and holds 5"),
        (tensor(name="n" * 5000), "has 5000 characters"),
    ],
)
def test_dishonest_tensors_are_refused(bad, words):
    model = parse(RELU)
    initializer(model, bad)
    refused(model, words)


# ---------------------------------------------------------------------- names
NAMED = {
    "opset": (lambda m: m.opset_import[0], "domain"),
    "metadata": (lambda m: m.metadata_props.add(), "key"),
    "graph": (lambda m: m.graph, "name"),
    "input": (lambda m: m.graph.input[0], "name"),
    "output": (lambda m: m.graph.output[0], "name"),
    "value": (lambda m: m.graph.value_info.add(), "name"),
    "axis": (lambda m: m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param"),
    "node": (lambda m: m.graph.node[0], "name"),
    "operator": (lambda m: m.graph.node[0], "op_type"),
    "domain of a node": (lambda m: m.graph.node[0], "domain"),
    "operand": (lambda m: m.graph.node[0], "input"),
    "result": (lambda m: m.graph.node[0], "output"),
    "attribute": (lambda m: m.graph.node[0].attribute.add(), "name"),
    "attribute of a function": (lambda m: m.graph.node[0].attribute.add(), "ref_attr_name"),
    "function": (lambda m: m.functions.add(), "name"),
    "domain of a function": (lambda m: m.functions.add(), "domain"),
    "opset of a function": (lambda m: m.functions.add().opset_import.add(), "domain"),
    "operand of a function": (lambda m: m.functions.add(), "input"),
    "result of a function": (lambda m: m.functions.add(), "output"),
    "option of a function": (lambda m: m.functions.add(), "attribute"),
}


@pytest.mark.parametrize("place", NAMED)
def test_names_are_short_wherever_they_are(place):
    for length in (4096, 4097):
        model = parse(RELU)
        holder, field = NAMED[place][0](model), NAMED[place][1]
        if isinstance(getattr(holder, field), str):
            setattr(holder, field, "n" * length)
        else:
            getattr(holder, field).append("n" * length)
        if length == 4096:
            guard(model, where="here")
        else:
            refused(model, "has 4097 characters; at most 4096")


# ---------------------------------------------------------------------- limits
def test_limits_on_counts():
    model = parse("net (float[4] x) => (float[4] z) { a = Relu(x) b = Relu(a) z = Relu(b) }")
    guard(model, where="here", limits=Limits(nodes=3))
    refused(model, "more than 2 nodes", Limits(nodes=2))
    for _ in range(3):
        initializer(model, tensor())
    refused(model, "more than 2 tensors", Limits(tensors=2))


def test_limit_on_the_file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(parse(RELU), path)
    assert read_model(path).graph.name == "net"
    with pytest.raises(UnsafeInputError, match="bytes; the limit is 10"):
        read_model(path, limits=Limits(file_bytes=10))


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(UnsafeInputError, match="not a regular file"):
        read_model(tmp_path)


def test_size_of_results_counts_empty_tensors_axes():
    f32 = DType.FLOAT32
    check_size("x", TensorType(f32, (1000, 1000)), Limits())
    for shape, words in [
        ((1 << 15, 1 << 15, 2), "x would take 8,589,934,592 bytes"),
        ((0, 1 << 40), r"x would take 4,398,046,511,104 bytes \(.*, empty axes counted as one entry\)"),
        ((1 << 25,), "x has 33,554,432 entries along one axis"),
    ]:
        with pytest.raises(UnsafeInputError, match=words):
            check_size("x", TensorType(f32, shape), Limits())


def test_import_honours_the_limits_of_the_caller():
    text = "net (float[100] x) => (float[100,100] z) <int64[2] s = {100, 100}> { z = Expand(x, s) }"
    assert load(parse(text)).outputs[0].shape == (100, 100)
    with pytest.raises(UnsafeInputError, match="model 'net': tensor 'z' would take 40,000 bytes"):
        load(parse(text), limits=Limits(tensor_bytes=39_999))


def test_shown_names_are_short_and_printable():
    assert shown("a\x1b[31m\n") == "'a\\x1b[31m\\x0a'"
    assert len(shown("n" * 1_000_000)) < 100


# ---------------------------------------------------------------------- external data
def external(location="data/w.bin", **entries):
    found = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        found.external_data.add(key=key, value=str(value))
    model = parse("net (float[1,4] x, float[4] w) => (float[1,4] z) { z = Mul(x, w) }")
    del model.graph.input[1]
    initializer(model, found)
    return model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    return tmp_path


def test_external_data_is_read_in(folder):
    path = folder / "net.onnx"
    onnx.save(external(offset=8, length=16), path)
    graph = load(path, allow_external_data=True)
    assert graph.parameters()[0].constant.tolist() == [2, 3, 4, 5]
    assert to_onnx(graph).graph.initializer[0].data_location == TensorProto.DEFAULT
    with pytest.raises(UnsafeInputError, match="keeps its data in another file"):
        load(path)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc/hostname",
        "../w.bin",
        "data/../data/w.bin",
        "./data/w.bin",
        "data//w.bin",
        "data\\w.bin",
        "data",
        "w\0",
    ],
)
def test_locations_that_are_refused(folder, location):
    with pytest.raises(ValueError, match=r"is not|cannot be opened"):
        read_inside(folder, location, 0, 16)


def test_links_are_refused(folder):
    (folder / "soft.bin").symlink_to("data/w.bin")
    (folder / "dir").symlink_to("data")
    for location in ("soft.bin", "dir/w.bin"):
        with pytest.raises(ValueError, match="without following links"):
            read_inside(folder, location, 0, 16)
    os.link(folder / "data" / "w.bin", folder / "hard.bin")
    for location in ("hard.bin", "data/w.bin"):
        with pytest.raises(ValueError, match="has 2 names"):
            read_inside(folder, location, 0, 16)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 9}, "bytes 9 to 25 are asked for"),
        ({"offset": 1 << 62}, "is not a number"),
        ({"offset": -1}, "is not a number"),
        ({"length": 12}, "external data has 12 bytes, its shape needs 16"),
    ],
)
def test_ranges_that_are_refused(folder, entries, words):
    refused(external(**entries), words, folder=folder)


def test_no_descriptor_stays_open(folder):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    assert len(read_inside(folder, "data/w.bin", 0, 16)) == 16
    for location in ("data", "none", "../x"):
        with pytest.raises(ValueError, match=r"is not|cannot be opened"):
            read_inside(folder, location, 0, 16)
    assert len(list(descriptors.iterdir())) == before


# ---------------------------------------------------------------------- broken at random
SEEDS = [
    parse(RELU),
    parse(
        "net (float[1,2,5,5] x, float[3,2,3,3] w) => (float[1,3,5,5] z) <float[3] b = {1, 2, 3}> {"
        ' a = Conv <auto_pad = "SAME_UPPER"> (x, w, b) z = Clip (a) }'
    ),
    parse(
        "net (float[2,3,4] x) => (float[6,4] z) <int64[2] s = {-1, 4}> {"
        " a = Softmax <axis = 1> (x) b = ReduceMean <keepdims = 1> (a) c = Add(a, b) z = Reshape(c, s) }"
    ),
    parse("net (float[4,6] x) => (float[2,6] a, float[2,6] b) { a, b = Split <axis = 0, num_outputs = 2> (x) }"),
]


def broken(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed or inserted."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found))
        kind = rng.randrange(4)
        if kind == 0:
            found[at] = rng.randrange(256)
        elif kind == 1:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del found[at]
        else:
            found.insert(at, rng.randrange(256))
    return bytes(found)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_broken_at_random_give_a_graph_or_our_error(seed, tmp_path):
    rng = random.Random(seed)
    original = SEEDS[seed].SerializeToString()
    path, outcomes = tmp_path / "net.onnx", set()
    for _ in range(400):
        path.write_bytes(broken(original, rng))
        try:
            to_onnx(load(path))
            outcomes.add("graph")
        except CompilerError as error:
            assert 2 <= error.exit_code <= 4, f"{type(error).__name__}: {error}"
            outcomes.add(type(error).__name__)
    assert {"graph", "UnsafeInputError"} <= outcomes
