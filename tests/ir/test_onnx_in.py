"""Import: binding, conversion, folding, dissolving, refusals; the oracle is onnxruntime on the original."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.errors import ConfigError, UnsafeInputError, UnsupportedModelError, plural
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.op import OPSET, Op
from compiler.ir.text import digest
from compiler.ir.types import ValueRef, splat_value
from tests.ir.onnx_models import assert_same_outputs, noise, parse
from tests.shared import shared_path


def operators(graph):
    return [n.op.name for n in graph.nodes()]


# ---------------------------------------------------------------------- inputs
FREE = "net (float[batch, 3, H, 4] x, float[2] y) => (float[batch, 3, H, 4] z) { z = Relu(x) }"


def test_free_axes_are_refused_with_the_sentence_that_binds_them():
    with pytest.raises(UnsupportedModelError) as caught:
        load(parse(FREE))
    assert "input 'x' has shape [batch, 3, H, 4]" in str(caught.value)
    assert "--input x:1,3,1,4" in str(caught.value)
    assert "'y'" not in str(caught.value)


def test_all_free_inputs_are_listed():
    model = parse("net (float[n] x, float[m, 2] y) => (float[k] z) { z = Relu(x) }")
    with pytest.raises(UnsupportedModelError) as caught:
        load(model)
    assert "--input x:1" in str(caught.value)
    assert "--input y:1,2" in str(caught.value)


def test_outputs_need_no_shape():
    """It is inferred here, as by onnxruntime; ONNX's checker wants one."""
    for kind in (onnx.TypeProto(), helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)):
        model = parse("net (float[2, 3] x) => (float[2, 3] z) { z = Relu(x) }")
        model.graph.output[0].type.CopyFrom(kind)
        assert load(model).outputs[0].shape == (2, 3)
        assert_same_outputs(model, {"x": noise((2, 3))})
        assert model.graph.output[0].type == kind, "the caller's model stays as it is"


def test_an_output_whose_shape_cannot_be_inferred_is_told_by_what_makes_it():
    model = parse("net (float[2, 3] x, int64[1] s) => (float[6] z) { z = Reshape(x, s) }")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(
        UnsupportedModelError, match=r"'Reshape_z': 'shape' .* must be constant .*; export the model"
    ):
        load(model)


def test_inputs_without_a_shape_are_bound_or_named():
    model = parse("net (float[2, 3] x) => (float[2, 3] z) { z = Relu(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert load(model, inputs={"x": (4, 5)}).outputs[0].shape == (4, 5)
    with pytest.raises(
        UnsupportedModelError, match=r"input 'x' has no shape; bind its free axes, as in --input x:1"
    ):
        load(model)
    model.graph.input[0].ClearField("type")
    with pytest.raises(UnsupportedModelError, match="input 'x' has no type; export the model with types"):
        load(model, inputs={"x": (4, 5)})


def test_bound_axes_become_static():
    graph = load(parse(FREE), inputs={"x": (2, 3, 5, 4)})
    assert graph.outputs[0].shape == (2, 3, 5, 4)
    assert graph.frozen


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": (1, 4, 5, 4)}, "axis 1 cannot have size 4"),
        ({"x": (1, 3, 5)}, "has 4 axes"),
        ({"x": (1, 3, -5, 4)}, "axis 2 cannot have size -5"),
        ({"x": (1, 3, 5, 4), "w": (1,)}, "there is no input 'w'"),
    ],
)
def test_wrong_bindings(inputs, words):
    with pytest.raises(ConfigError, match="wrong input shapes") as caught:
        load(parse(FREE), inputs=inputs)
    assert words in str(caught.value)


def test_initializers_listed_as_inputs_are_constants():
    model = parse("net (float[2] x, float[2] w) => (float[2] z) { z = Mul(x, w) }", ir_version=3, opset=8)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    graph = load(model)
    assert [v.ref.name for v in graph.inputs] == ["x"]
    assert [v.ref.name for v in graph.parameters()] == ["w"]


# ---------------------------------------------------------------------- what dissolves
SHAPES = """net (float[2,3,4] x) => (float[2,12] z) <int64[1] one = {1}, int64[1] zero = {0}, int64 first = {0}> {
    s = Shape(x)
    n = Gather(s, first)
    rows = Unsqueeze(n, zero)
    rest = Constant <value_ints = [-1]> ()
    target = Concat <axis = 0> (rows, rest)
    z = Reshape(x, target)
}"""


def test_shape_arithmetic_dissolves():
    graph = load(parse(SHAPES))
    assert operators(graph) == ["Reshape"]
    assert graph.value(ValueRef("target")).constant.tolist() == [2, -1]


def test_identity_and_dropout_disappear_and_labels_stay():
    graph = load(parse("net (float[2] x) => (float[2] z) { a = Relu(x) b = Identity(a) z, m = Dropout(b) }"))
    assert operators(graph) == ["Relu"]
    task = next(iter(graph.tasks.values()))
    assert (task.labels, task.outputs) == (("z",), (ValueRef("a"),))


def test_results_left_out_before_the_last_are_no_contradiction():
    w = [numpy_helper.from_array(noise((1, 8, n), seed=n), name) for n, name in ((3, "w"), (2, "r"))]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], hidden_size=2)
    x, c = (helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (4, 1, 3)), ("c", (1, 1, 2))))
    model = helper.make_model(helper.make_graph([node], "net", [x], [c], w), ir_version=10)
    model.opset_import[0].version = 21
    assert_same_outputs(model, {"x": noise((4, 1, 3))})


def test_dropout_without_a_mask_disappears():
    graph = load(parse("net (float[2] x) => (float[2] z) { a = Relu(x) z = Dropout(a) }"))
    assert operators(graph) == ["Relu"]


def test_an_old_mask_of_dropout_has_the_type_of_the_data():
    graph = load(parse("net (float[2] x) => (float[2] z) { y, m = Dropout(x) z = Add(y, m) }", 7))
    assert operators(graph) == ["Add"]


def test_outputs_that_are_inputs_or_constants_get_a_node():
    text = (
        "net (float[2] x) => (float[2] a, float[2] b) <float[2] b0 = {1, 2}> { a = Identity(x) b = Identity(b0) }"
    )
    assert operators(load(parse(text))) == ["Identity", "Identity"]
    assert_same_outputs(parse(text), {"x": noise((2,))})


def test_constant_of_shape_stays_one_element():
    text = """net (float[64,4096] x) => (float[64,4096] z) <int64[2] s = {4096, 4096}> {
        w = ConstantOfShape <value = float[1] {0.5}> (s)
        t = Transpose <perm = [1, 0]> (w)
        z = MatMul(x, t)
    }"""
    graph = load(parse(text))
    assert operators(graph) == ["MatMul"]
    (weight,) = graph.parameters()
    assert splat_value(weight.constant) == np.float32(0.5)
    assert len(to_onnx(graph).SerializeToString()) < 2000


def test_large_constants_are_not_folded():
    weight = numpy_helper.from_array(noise((2048, 2048, 5)), "w")  # 84 MB
    model = parse("net (float[2] x) => (float[2,2] z) { a = Abs(w) b = ReduceMax <keepdims=0> (a) z = Mul(x, b) }")
    model.graph.initializer.append(weight)
    model.graph.output[0].type.tensor_type.shape.dim.pop()
    assert operators(load(model)) == ["Abs", "ReduceMax", "Mul"]


def test_constant_condition_selects_a_branch():
    text = """net (float[2] x) => (float[2] z) <int64 two = {2}> {
        s = Shape(x)
        n = Squeeze(s)
        c = Equal(n, two)
        z = If (c) <
            then_branch = yes () => (float[2] a) { k = Constant <value_float = 3.0> () a = Mul(x, k) },
            else_branch = no () => (float[2] b) { b = Neg(x) }
        >
    }"""
    assert operators(load(parse(text))) == ["Mul"]
    assert_same_outputs(parse(text), {"x": noise((2,))})


def test_condition_that_is_not_constant_is_refused():
    text = """net (float[2] x, bool c) => (float[2] z) {
        z = If (c) <
            then_branch = y () => (float[2] a) { a = Neg(x) }, else_branch = n () => (float[2] b) { b = Abs(x) }
        >
    }"""
    with pytest.raises(UnsupportedModelError, match="If x1, first at 'If_z': control flow"):
        load(parse(text))


def test_model_functions_dissolve():
    text = """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
    net (float[2,3] x) => (float[2,3] z) { y = own.twice <by = 3.0> (x) z = own.twice (y) }
    <domain: "own", opset_import: ["" : 18]>
    twice <by: float = 2.0> (a) => (c) { k = Constant <value_float: float = @by> () c = Mul(a, k) }"""
    model = onnx.parser.parse_model(text)
    assert operators(load(model)) == ["Mul", "Mul"]
    assert_same_outputs(model, {"x": noise((2, 3))})


def test_each_overload_of_a_model_function_is_its_own():
    text = """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
    net (float[2,3] x) => (float[2,3] z) { y = own.twice (x) z = own.twice (y) }
    <domain: "own", opset_import: ["" : 18]>
    twice (a) => (c) { k = Constant <value_float: float = 2.0> () c = Mul(a, k) }
    <domain: "own", opset_import: ["" : 18]>
    twice (a) => (c) { c = Add(a, a) }"""
    model = onnx.parser.parse_model(text)
    for things in (model.graph.node, model.functions):
        for thing, name in zip(things, ("by product", "by sum"), strict=True):
            thing.overload = name
    assert operators(load(model)) == ["Mul", "Add"]
    assert_same_outputs(model, {"x": noise((2, 3))})


def test_operators_with_a_function_body_are_decomposed():
    text = "net (float[2,3] x) => (float z) <int64[2] t = {0, 2}> { z = SoftmaxCrossEntropyLoss (x, t) }"
    assert "SoftmaxCrossEntropyLoss" not in Op.registry
    assert_same_outputs(parse(text), {"x": noise((2, 3))}, limit=1e-5)


def test_dead_nodes_are_left_out():
    graph = load(parse("net (float[2] x) => (float[2] z) { dead = Exp(x) deader = Log(dead) z = Relu(x) }"))
    assert operators(graph) == ["Relu"]
    assert [v.ref.name for v in graph.values()] == ["x", "z"]


def test_unnamed_nodes_are_named_after_operator_and_result():
    graph = load(parse("net (float[2] x) => (float[2] z) { y = Relu(x) z = Exp(y) }"))
    assert [n.ref.name for n in graph.nodes()] == ["Relu_y", "Exp_z"]


def test_attributes_are_complete():
    text = (
        "net (float[1,2,5,5] x) => (float[1,1,3,3] z) <float[1,2,3,3] w = {1,1,1,1,1,1,1,1,1,2,2,2,2,2,2,2,2,2}> {"
    )
    (node,) = load(parse(text + " z = Conv(x, w) }")).nodes()
    assert dict(node.attrs) == {
        "auto_pad": "NOTSET",
        "dilations": (1, 1),
        "group": 1,
        "kernel_shape": (3, 3),
        "pads": (0, 0, 0, 0),
        "strides": (1, 1),
    }


# ---------------------------------------------------------------------- refusals
def test_every_operator_that_is_not_compiled_is_listed_once_with_its_count():
    model = parse(
        "net (float[2] x) => (float[2] z) { a = Foo(x) b = Foo(a) c = Bar(b) d = Relu(c) z = NonZero(x) }"
    )
    model.graph.node[2].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    with pytest.raises(UnsupportedModelError) as caught:
        load(model)
    text = str(caught.value)
    assert "3 kinds of nodes" in text
    assert f"Foo x2, first at 'Foo_a': no operator of opset {OPSET}" in text
    assert "com.example::Bar x1, first at 'Bar_c': an operator of a foreign domain" in text
    assert "NonZero x1, first at 'NonZero_z': the shape of its result depends on data" in text
    with pytest.raises(UnsupportedModelError, match=": 1 kind of nodes cannot be compiled:"):
        load(parse("net (float[2] x) => (float[2] z) { a = Foo(x) z = Foo(a) }"))


def test_numbers_of_things_in_words():
    assert [plural(n, "network") for n in (0, 1, 2)] == ["0 networks", "1 network", "2 networks"]
    assert (plural(2, "pass"), plural(2, "batch"), plural(1, "batch")) == ("2 passes", "2 batches", "1 batch")
    assert plural(1000, "kind of nodes", "kinds of nodes") == "1,000 kinds of nodes"


def test_quantised_operators_are_refused():
    text = "net (float[2] x) => (uint8[2] z) <float s = {0.1}, uint8 p = {3}> { z = QuantizeLinear(x, s, p) }"
    with pytest.raises(UnsupportedModelError, match="QuantizeLinear x1"):
        load(parse(text))


@pytest.mark.parametrize("kind", ["string", "bfloat16", "complex64", "seq(float[2])"])
def test_inputs_of_other_kinds_are_refused(kind):
    declared = kind if "(" in kind else f"{kind}[2]"
    with pytest.raises(UnsupportedModelError, match="only tensors of numbers and bools"):
        load(parse(f"net ({declared} x) => ({declared} z) {{ z = Identity(x) }}"))


# ---------------------------------------------------------------------- contradictions
CONTRADICTIONS = {
    "conv-channels": "net (float[1,8,5,5] x, float[2,5,3,3] w) => (float[1,2,3,3] z) { z = Conv(x, w) }",
    "matmul": "net (float[2,3] x, float[4,5] y) => (float[2,5] z) { z = MatMul(x, y) }",
    "axis": "net (float[2,3] x) => (float[2,3] z) { z = Softmax <axis = 7> (x) }",
    "split": "net (float[7] x) => (float[2] a, float[2] b, float[3] c) { a, b, c = Split <num_outputs = 2> (x) }",
    "split-into-too-many": "net (float[5] x) => (float[2] a, float[2] b, float[1] c, float[0] d)"
    " { a, b, c, d = Split <num_outputs = 4> (x) }",
    "groups": "net (float[1,4,5,5] x, float[2,2,3,3] w) => (float[1,2,3,3] z) { z = Conv <group = 3> (x, w) }",
    "lstm": "net (float[2,1,3] x, float[1,8] w, float[1,8,2] r) => (float[2,1,1,2] z)"
    " { z = LSTM <hidden_size = 2> (x, w, r) }",
    "negative": "net (float[2] x) => (float[2] z) <int64[1] s = {-4}> { y = ConstantOfShape(s) z = Add(x, y) }",
    "reshape": "net (float[2,3] x) => (float[4] z) <int64[1] s = {4}> { z = Reshape(x, s) }",
    "reads-nothing": "net (float[2] x) => (float[2] z) { z = Add(x, nowhere) }",
    "defined-twice": "net (float[2] x) => (float[2] z) { z = Relu(x) z = Exp(x) }",
    "cycle": "net (float[2] x) => (float[2] z) { a = Add(x, z) z = Relu(a) }",
    "no-output": "net (float[2] x) => (float[2] z) { y = Relu(x) }",
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_are_refused(name):
    model = parse(CONTRADICTIONS[name])
    with pytest.raises(UnsafeInputError) as caught:
        load(model)
    assert "model 'net'" in str(caught.value)


def test_several_contradictions_are_listed_together():
    text = "net (float[2,3] x, float[4,5] y) => (float[2,5] z) { a = MatMul(x, y) b = MatMul(y, x) z = Add(a, b) }"
    with pytest.raises(UnsafeInputError) as caught:
        load(parse(text))
    assert "MatMul 'MatMul_a'" in str(caught.value)
    assert "MatMul 'MatMul_b'" in str(caught.value)


# ---------------------------------------------------------------------- tasks
def test_the_task_is_named_after_the_file(tmp_path):
    model = parse("net (float[2] x) => (float[2] a, float[2] b) { a = Relu(x) b = Exp(x) }")
    path = tmp_path / "age.onnx"
    onnx.save(model, path)
    assert load(path).tasks["age"].labels == ("a", "b")
    assert list(load(path, task="years").tasks) == ["years"]
    assert list(load(model).tasks) == ["net"]


def test_task_metadata_that_does_not_fit_is_refused():
    model = to_onnx(load(parse("net (float[2] x) => (float[2] z) { z = Relu(x) }")))
    model.metadata_props[0].value = json.dumps([["net", ["elsewhere"], ["z"]]])
    with pytest.raises(UnsafeInputError, match="does not fit the model's outputs"):
        load(model)
    assert list(load(model, task="net").tasks) == ["net"]


# ---------------------------------------------------------------------- real networks
def real_networks():
    path = shared_path("models", "manifest.json")
    return {row["file"]: row for row in json.loads(path.read_text())}


REFUSED = {"superres.onnx", "silero_vad.onnx"}


def test_real_networks_are_the_same_graph_after_export_and_import():
    """What the exported file computes is compared in tests/test_real_networks.py."""
    for file, row in real_networks().items():
        if file not in REFUSED:
            graph = load(shared_path("models", *file.split("/")), inputs=row["input_shapes"])
            assert digest(load(to_onnx(graph))) == digest(graph), file


def test_real_networks_that_are_refused_say_why():
    with pytest.raises(UnsupportedModelError, match=r"com.microsoft.extensions::\w+ x1, .* a foreign domain"):
        load(shared_path("models", "superres.onnx"), inputs={"image": (1000,)})
    rows = real_networks()
    with pytest.raises(UnsupportedModelError, match=r"If x1, .* the condition is not constant"):
        load(shared_path("models", "silero_vad.onnx"), inputs=rows["silero_vad.onnx"]["input_shapes"])


def test_a_kernel_shorter_than_its_stride_makes_less_than_same():
    text = """net (float[1, 1, 4, 3] x, float[1, 2, 2, 1] w) => (float[1, 2, 11, 5] y) {
        y = ConvTranspose <strides = [3, 2], auto_pad = "SAME_UPPER"> (x, w) }"""
    assert_same_outputs(parse(text), {"x": noise((1, 1, 4, 3)), "w": noise((1, 2, 2, 1), seed=1)})


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 3)])
def test_same_covers_the_output_padding(auto: str, kernel: int, stride: int):
    text = f"""net (float[1, 1, 4] x, float[1, 2, {kernel}] w) => (float[1, 2, {4 * stride}] y) {{
        y = ConvTranspose <strides = [{stride}], auto_pad = "{auto}", output_padding = [1]> (x, w) }}"""
    assert_same_outputs(parse(text), {"x": noise((1, 1, 4)), "w": noise((1, 2, kernel), seed=1)})


def test_an_element_is_gathered_by_its_position():
    text = "net (float[2, 3] x, int64[2] at) => (float y) { y = GatherND (x, at) }"
    model = parse(text)
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    assert_same_outputs(model, {"x": noise((2, 3)), "at": np.array([1, -2])})


def test_an_empty_tensor_that_is_resized_is_unsupported_and_no_contradiction():
    model = parse(
        "net (float[1, 2, 0, 4] x) => (float[1, 2, 3, 4] y) <int64[4] s = {1, 2, 3, 4}> { y = Resize(x, , , s) }"
    )
    with pytest.raises(UnsupportedModelError, match=r"Resize x1.*an empty tensor has nothing to take values from"):
        load(model)
