"""Conversion of older and newer opsets to the pinned one; the oracle is onnxruntime on the original."""

import numpy as np
import pytest
from onnx import defs

from compiler.errors import UnsafeInputError, UnsupportedModelError
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.op import OPSET
from tests.ir.onnx_models import assert_same_outputs, noise, outputs_by_label, parse

CONVERSIONS = {
    "clip": (10, "net (float[2,3] x) => (float[2,3] z) { z = Clip <min = -0.5, max = 0.25> (x) }"),
    "clip-open": (9, "net (float[2,3] x) => (float[2,3] z) { z = Clip <min = 0.0> (x) }"),
    "pad": (10, "net (float[2,3] x) => (float[4,4] z) { z = Pad <pads = [1,0,1,1], value = 2.0> (x) }"),
    "slice": (9, "net (float[4,6] x) => (float[2,6] z) { z = Slice <starts = [1], ends = [3]> (x) }"),
    "slice-axes": (9, "net (float[4,6] x) => (float[4,4] z) { z = Slice <starts=[1], ends=[-1], axes=[1]> (x) }"),
    "split": (11, "net (float[6,2] x) => (float[2,2] a, float[4,2] b) { a, b = Split <split = [2, 4]> (x) }"),
    "split-even": (13, "net (float[6,2] x) => (float[3,2] a, float[3,2] b) { a, b = Split <axis = 0> (x) }"),
    "squeeze": (12, "net (float[1,3,1] x) => (float[1,3] z) { z = Squeeze <axes = [2]> (x) }"),
    "unsqueeze": (11, "net (float[3] x) => (float[1,3,1] z) { z = Unsqueeze <axes = [0, 2]> (x) }"),
    "reduce-sum": (12, "net (float[2,3] x) => (float[2,1] z) { z = ReduceSum <axes = [1]> (x) }"),
    "reduce-all": (12, "net (float[2,3] x) => (float z) { z = ReduceMean <keepdims = 0> (x) }"),
    "reduce-max": (17, "net (float[2,3] x) => (float[2] z) { z = ReduceMax <axes = [-1], keepdims = 0> (x) }"),
    "softmax-matrix": (12, "net (float[2,3,4] x) => (float[2,3,4] z) { z = Softmax <axis = 1> (x) }"),
    "softmax-last": (12, "net (float[2,3] x) => (float[2,3] z) { z = Softmax (x) }"),
    "softmax-column": (11, "net (float[2,3,1,1] x) => (float[2,3,1,1] z) { z = LogSoftmax <axis = 1> (x) }"),
    "top-k": (9, "net (float[2,5] x) => (float[2,2] v, int64[2,2] i) { v, i = TopK <k = 2> (x) }"),
    "upsample": (
        7,
        "net (float[1,2,3,4] x) => (float[1,2,6,8] z) {"
        " z = Upsample <mode = 'nearest', scales = [1.0, 1.0, 2.0, 2.0]> (x) }".replace("'", '"'),
    ),
    "upsample-linear": (
        9,
        "net (float[1,2,3,4] x) => (float[1,2,6,8] z) <float[4] s = {1.0, 1.0, 2.0, 2.0}> {"
        ' z = Upsample <mode = "linear"> (x, s) }',
    ),
    "resize-10": (
        10,
        "net (float[1,2,4,4] x) => (float[1,2,6,6] z) <float[4] s = {1.0, 1.0, 1.5, 1.5}> {"
        ' z = Resize <mode = "nearest"> (x, s) }',
    ),
    "resize-10-smaller": (
        10,
        "net (float[1,2,7,10] x) => (float[1,2,7,6] z) <float[4] s = {1.0, 1.0, 1.0, 0.6}> {"
        ' z = Resize <mode = "nearest"> (x, s) }',
    ),
    "resize-10-both": (
        10,
        "net (float[1,2,7,10] x) => (float[1,2,11,6] z) <float[4] s = {1.0, 1.0, 1.6, 0.6}> {"
        ' z = Resize <mode = "nearest"> (x, s) }',
    ),
    "resize-10-linear": (
        10,
        "net (float[1,2,7,10] x) => (float[1,2,11,6] z) <float[4] s = {1.0, 1.0, 1.6, 0.6}> {"
        ' z = Resize <mode = "linear"> (x, s) }',
    ),
    "resize-11": (
        11,
        "net (float[1,2,4,4] x) => (float[1,2,6,6] z)"
        " <float[0] r = {}, float[0] s = {}, int64[4] n = {1, 2, 6, 6}> {"
        ' z = Resize <mode = "linear"> (x, r, s, n) }',
    ),
    "batch-norm": (
        8,
        "net (float[1,2,3,3] x) => (float[1,2,3,3] z)"
        " <float[2] s = {1, 2}, float[2] b = {0, 1}, float[2] m = {0.5, 0}, float[2] v = {1, 4}> {"
        " z = BatchNormalization (x, s, b, m, v) }",
    ),
    "dropout": (11, "net (float[2,3] x) => (float[2,3] z) { y, m = Dropout <ratio = 0.3> (x) z = Relu(y) }"),
    "grid-sample": (
        16,
        "net (float[1,1,3,3] x, float[1,2,2,2] g) => (float[1,1,2,2] z) {"
        ' z = GridSample <mode = "bilinear"> (x, g) }',
    ),
    "group-norm": (
        18,
        "net (float[1,4,3,3] x) => (float[1,4,3,3] z) <float[2] s = {1, 2}, float[2] b = {0, 1}> {"
        " z = GroupNormalization <num_groups = 2> (x, s, b) }",
    ),
    "dft-of-a-constant": (
        17,
        "net (float[4,3,2] x) => (float[4,3,2] z)"
        " <float[4,3,1] c = {1, 2, 4, 0, 3, -1, 2, 5, 1, 0, 2, 7}, int64 n = {4}> {"
        " d = DFT <axis = 0> (c, n) z = Add (x, d) }",
    ),
    "scatter": (
        10,
        "net (float[3,3] x) => (float[3,3] z) <int64[1,2] i = {1, 2}, float[1,2] u = {5, 6}> {"
        " z = Scatter <axis = 0> (x, i, u) }",
    ),
    "reshape": (5, "net (float[2,3] x) => (float[3,2] z) <int64[2] s = {3, -1}> { z = Reshape (x, s) }"),
    "gemm": (9, "net (float[2,3] x) => (float[2,1] z) <float[3,1] w={1,2,3}, float[1] c={5}> { z = Gemm(x,w,c) }"),
    "clip-11": (
        11,
        "net (float[2,3] x) => (float[2,3] z) <float a = {-0.5}, float b = {0.25}> { z = Clip (x, a, b) }",
    ),
    "pad-11": (
        11,
        "net (float[2,3] x) => (float[4,4] z) <int64[4] p = {1, 0, 1, 1}, float v = {2}> { z = Pad (x, p, v) }",
    ),
    "slice-10": (
        10,
        "net (float[4,6] x) => (float[2,6] z) <int64[1] s = {1}, int64[1] e = {3}> { z = Slice (x, s, e) }",
    ),
    "split-13": (
        13,
        "net (float[6,2] x) => (float[2,2] a, float[4,2] b) <int64[2] s = {2, 4}> { a, b = Split (x, s) }",
    ),
    "squeeze-13": (13, "net (float[1,3,1] x) => (float[1,3] z) <int64[1] a = {2}> { z = Squeeze (x, a) }"),
    "unsqueeze-13": (13, "net (float[3] x) => (float[1,3,1] z) <int64[2] a = {0, 2}> { z = Unsqueeze (x, a) }"),
    "reduce-sum-13": (13, "net (float[2,3] x) => (float[2,1] z) <int64[1] a = {1}> { z = ReduceSum (x, a) }"),
    "reduce-max-18": (18, "net (float[2,3] x) => (float[2,1] z) <int64[1] a = {-1}> { z = ReduceMax (x, a) }"),
    "top-k-10": (
        10,
        "net (float[2,5] x) => (float[2,2] v, int64[2,2] i) <int64[1] k = {2}> { v, i = TopK (x, k) }",
    ),
    "newer": (22, "net (float[2,3] x) => (float[2,3] z) { y = Elu (x) z = Round (y) }"),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversion_keeps_the_values(name):
    opset, text = CONVERSIONS[name]
    model = parse(text, opset, ir_version=8)
    feeds = {
        i.name: noise(tuple(d.dim_value for d in i.type.tensor_type.shape.dim), seed=k)
        for k, i in enumerate(model.graph.input)
    }
    assert_same_outputs(model, feeds)


def test_old_broadcasting_aligns_at_the_axis():
    model = parse(
        "net (float[2,3,4] x, float[3] y) => (float[2,3,4] z) { z = Add <broadcast=1, axis=1> (x, y) }", 6
    )
    graph = load(model)
    x, y = noise((2, 3, 4)), noise((3,), seed=1)
    got = outputs_by_label(to_onnx(graph), graph, {"x": x, "y": y})["z"]
    assert np.array_equal(got, x + y[:, None])


OLD = {
    "reshape": (
        4,
        "(float[2,3] x) => (float[3,2] z) { z = Reshape <shape = [3,2]> (x) }",
        lambda x: x.reshape(3, 2),
    ),
    "concat": (3, "(float[2,3] x) => (float[2,6] z) { z = Concat (x, x) }", lambda x: np.tile(x, (1, 2))),
    "concat-rows": (
        3,
        "(float[2,3] x) => (float[4,3] z) { z = Concat <axis = 0> (x, x) }",
        lambda x: np.tile(x, (2, 1)),
    ),
    "cast": (5, '(float[2,3] x) => (int32[2,3] z) { z = Cast <to = "INT32"> (x) }', lambda x: x.astype(np.int32)),
    "tile": (
        5,
        "(float[2,3] x) => (float[2,9] z) <float n = {3}, float axis = {1}> { z = Tile (x, n, axis) }",
        lambda x: np.tile(x, (1, 3)),
    ),
    "slope": (
        6,
        "(float[2,3,4] x) => (float[2,3,4] z) <float[3] s = {0.5, 0.25, 2}> { z = PRelu (x, s) }",
        lambda x: np.where(x < 0, x * np.array([0.5, 0.25, 2], np.float32)[:, None], x),
    ),
    "norm": (
        1,
        "(float[1,2,3,4] x) => (float[1,2,1,1] z) { z = GlobalLpPool <p = 1.0> (x) }",
        lambda x: np.abs(x).sum(axis=(2, 3), keepdims=True),
    ),
    "upsample": (
        1,
        "(float[1,1,2,3] x) => (float[1,1,4,9] z) {"
        ' z = Upsample <height_scale = 2.0, width_scale = 3.0, mode = "nearest"> (x) }',
        lambda x: x.repeat(2, axis=2).repeat(3, axis=3),
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_operators_older_than_other_implementations_mean_what_they_say(name):
    opset, text, expected = OLD[name]
    graph = load(parse("net " + text, opset))
    x = noise(graph.inputs[0].shape)
    np.testing.assert_allclose(outputs_by_label(to_onnx(graph), graph, {"x": x})["z"], expected(x), rtol=1e-6)


def test_the_old_misspelling_of_a_direction_is_forward():
    text = "net (float[3,1,2] x, float[1,4,2] w, float[1,4,4] r) => (float[3,1,1,4] y) {{ y = RNN <{}> (x, w, r) }}"
    graphs = [load(parse(text.format(f'hidden_size = 4, direction = "{d}"'), 6)) for d in ("foward", "forward")]
    assert [n.attrs["direction"] for g in graphs for n in g.nodes()] == ["forward"] * 2


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_a_retired_way_to_resize_is_another_one_or_refused(rounding):
    attrs = (
        f'mode = "nearest", coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "{rounding}"'
    )
    text = f"""net (float[1,1,4,5] x) => (float[1,1,6,3] z)
        <float[0] r = {{}}, float[0] s = {{}}, int64[4] n = {{1, 1, 6, 3}}> {{
        z = Resize <{attrs}> (x, r, s, n) }}"""
    if rounding == "floor":
        assert_same_outputs(parse(text, 11, ir_version=8), {"x": noise((1, 1, 4, 5))})
        return
    with pytest.raises(UnsupportedModelError, match="tf_half_pixel_for_nn other than nearest, rounded down"):
        load(parse(text, 11))


def test_parts_that_are_equal_only_by_name_are_refused():
    with pytest.raises(UnsupportedModelError, match="splits 7 entries into 2 equal parts"):
        load(parse("net (float[7] x) => (float[3] a, float[4] b) { a, b = Split <axis = 0> (x) }", 13))


@pytest.mark.parametrize(
    ("opset", "attrs", "outputs", "message"),
    [
        (6, "is_test = 0", "z", "batch statistics"),
        (8, "", "z, e, f, g, h", "batch statistics"),
        (7, "spatial = 0", "z", "statistics per position"),
    ],
)
def test_normalisation_by_the_batch_or_by_position_is_refused(opset, attrs, outputs, message):
    text = f"""net (float[1,2,3] x) => (float[1,2,3] z)
        <float[2] s = {{1, 2}}, float[2] b = {{0, 1}}, float[2] m = {{0.5, 0}}, float[2] v = {{1, 4}}> {{
        {outputs} = BatchNormalization <{attrs}> (x, s, b, m, v) }}"""
    with pytest.raises(UnsupportedModelError, match=message):
        load(parse(text.replace("<>", ""), opset))


def test_training_mode_of_old_operators_is_refused():
    model = parse("net (float[2,3] x) => (float[2,3] z) { z = Dropout <is_test = 0> (x) }", 6)
    with pytest.raises(UnsupportedModelError, match="random dropping"):
        load(model)


def test_an_attribute_a_newer_opset_added_is_refused_when_used():
    text = 'net (float[1,4,2,2] x) => (float[1,16,1,1] z) { z = SpaceToDepth <blocksize = 2, mode = "CRD"> (x) }'
    newest = defs.onnx_opset_version()
    if "mode" not in defs.get_schema("SpaceToDepth", newest).attributes:
        pytest.skip("this onnx has no such attribute")
    with pytest.raises(UnsupportedModelError, match=f"opset {newest} to {OPSET}: attribute mode='CRD'"):
        load(parse(text, newest))


def test_an_opset_that_is_not_known_is_refused():
    newer = defs.onnx_opset_version() + 1
    with pytest.raises(UnsupportedModelError, match=f"opset {newer} is newer"):
        load(parse("net (float[2] x) => (float[2] z) { z = Relu(x) }", newer))


# ---------------------------------------------------------------------- contradictions of older opsets
AXIS = "out of range for an operand of rank {}"


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [6, 11, 13])
@pytest.mark.parametrize("axis", [-4, -3, 2, 3])
def test_an_axis_lies_within_the_rank_at_every_opset(operator, opset, axis):
    model = parse(f"net (float[2,3,4] x) => (float[2,3,4] z) {{ z = {operator} <axis = {axis}> (x) }}", opset)
    if -3 <= axis < 3:
        assert load(model).outputs[0].shape == (2, 3, 4)
        return
    with pytest.raises(UnsafeInputError, match=f"attribute axis={axis} is {AXIS.format(3)}"):
        load(model)


ONE_BEYOND = {
    "Flatten": "net (float[2,3] x) => (float z) {{ z = Flatten <axis = {}> (x) }}",
    "OneHot": """net (int64[2,3] x) => (float z) <int64 depth = {{4}}, float[2] v = {{0, 1}}> {{
        z = OneHot <axis = {}> (x, depth, v)
    }}""",
}


@pytest.mark.parametrize("operator", ONE_BEYOND)
def test_an_axis_in_front_of_which_or_that_is_put_may_lie_one_beyond_the_rank(operator):
    for axis in (-2, 2):
        load(parse(ONE_BEYOND[operator].format(axis)))
    for axis in (-4, 3):
        with pytest.raises(UnsafeInputError, match=f"attribute axis={axis} is {AXIS.format(2)}"):
            load(parse(ONE_BEYOND[operator].format(axis)))


def test_the_default_axis_of_old_opsets_wants_two_axes():
    """It is 1 before opset 13, and -1 since."""
    text = "net (float[3] x) => (float[3] z) { z = Softmax (x) }"
    assert [n.op.name for n in load(parse(text, 13)).nodes()] == ["Softmax"]
    with pytest.raises(UnsafeInputError, match=f"attribute axis=1 is {AXIS.format(1)}"):
        load(parse(text, 12))


@pytest.mark.parametrize(
    ("axis", "message"),
    [(3, AXIS.format(3)), (-4, AXIS.format(3)), (2, "rank 2 does not fit an operand of rank 3 from axis 2 on")],
)
def test_old_broadcasting_from_an_axis_that_cannot_be(axis, message):
    text = "net (float[2,4,4] x, float[4,4] y) => (float[2,4,4] z) {{ z = Add <broadcast=1, axis={}> (x, y) }}"
    assert load(parse(text.format(-2), 6)).outputs[0].shape == (2, 4, 4)
    with pytest.raises(UnsafeInputError, match=message):
        load(parse(text.format(axis), 6))


@pytest.mark.parametrize("opset", [6, 16])
@pytest.mark.parametrize("slope", ["5,2,3,4", "2,3,5", "1,2,3,4"])
def test_a_slope_broadcasts_to_its_operand_and_not_the_reverse(opset, slope):
    text = "net (float[2,3,4] x, float[{}] s) => (float[2,3,4] z) {{ z = PRelu (x, s) }}"
    assert load(parse(text.format("3,1"), opset)).outputs[0].shape == (2, 3, 4)
    with pytest.raises(UnsafeInputError, match=r"does not broadcast to float32\[2,3,4\]"):
        load(parse(text.format(slope), opset))
