"""Union over shared inputs, and adapters; the oracle is onnxruntime on the separate networks."""

import numpy as np
import pytest

from compiler.errors import ConfigError
from compiler.ir.adapters import _natural
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.text import digest
from compiler.ir.types import DType, TensorType, ValueRef
from compiler.ir.union import Binding, Member, union
from tests.ir.onnx_models import noise, parse, run

IMAGE = TensorType(DType.FLOAT32, (1, 3, 4, 6))
A = parse("a (float[1,3,4,6] data) => (float[1,3,4,6] y) { h = Relu(data) y = Exp(h) }")
B = parse(
    "b (float[1,3,4,6] pixels) => (float[1,3,4,6] y, float[1,3,1,1] m) { y = Abs(pixels) m = GlobalMaxPool(y) }"
)


def identity_of(shape, dtype="float"):
    """A network that returns its input: what an adapter gives it."""
    dims = ",".join(map(str, shape))
    return load(parse(f"n ({dtype}[{dims}] x) => ({dtype}[{dims}] y) {{ y = Identity(x) }}"))


def adapted(steps, shape, source=IMAGE, feed=None, dtype="float"):
    """What `steps` make of one input, by onnxruntime."""
    member = Member(identity_of(shape, dtype), {"x": Binding("image", steps)})
    graph = union({"n": member}, {"image": source})
    feed = noise(source.shape, source.dtype.value) if feed is None else feed
    return run(to_onnx(graph), {"image": feed})[0], feed


# ---------------------------------------------------------------------- union
def test_members_share_the_input_and_compute_what_they_did():
    graph = union({"a": load(A), "b": load(B)}, input="image")
    assert [v.ref.name for v in graph.inputs] == ["image"]
    assert {k: t.labels for k, t in graph.tasks.items()} == {"a": ("y",), "b": ("y", "m")}
    assert {n.ref.name for n in graph.nodes()} == {"a/Relu_h", "a/Exp_y", "b/Abs_y", "b/GlobalMaxPool_m"}
    x = noise((1, 3, 4, 6))
    got = run(to_onnx(graph), {"image": x})
    want = run(A, {"data": x}) + run(B, {"pixels": x})
    assert all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
    assert digest(load(to_onnx(graph))) == digest(graph)
    assert graph.frozen


def test_several_inputs_are_bound_one_by_one():
    two = load(parse("n (float[2] p, float[2] q) => (float[2] y) { y = Sub(p, q) }"))
    swapped = Member(two, {"p": Binding("q"), "q": Binding("p")})
    graph = union({"one": two, "two": swapped})
    assert [v.ref.name for v in graph.inputs] == ["p", "q"]
    p, q = noise((2,)), noise((2,), seed=1)
    one, other = run(to_onnx(graph), {"p": p, "q": q})
    assert np.array_equal(one, -other)


def test_a_task_may_be_called_like_the_input_and_its_values_like_steps_of_an_adapter():
    net = parse("n (float[1,3,4,6] x) => (float[1,3,4,6] scale) { scale_by = Relu(x) scale = Exp(scale_by) }")
    graph = union({"image": Member(load(net), {"x": Binding("image", [{"scale": 2.0}])})}, {"image": IMAGE})
    assert {k: t.labels for k, t in graph.tasks.items()} == {"image": ("scale",)}
    x = noise((1, 3, 4, 6))
    assert np.array_equal(run(to_onnx(graph), {"image": x})[0], run(net, {"x": 2 * x})[0])


def test_two_tasks_of_one_name_are_refused():
    both = union({"x": load(A), "y": load(B)}, input="image")
    for members in ({"n": both, "n_x": load(A)}, {"n_x": load(A), "n": both}):
        with pytest.raises(ConfigError, match="two tasks would be called 'n_x'"):
            union(members, input="image")


def test_outputs_can_be_chosen_by_label():
    graph = union({"a": load(A), "b": Member(load(B), outputs=["m"])}, input="image")
    assert graph.tasks["b"].labels == ("m",)
    with pytest.raises(ConfigError, match="task 'b': there is no output 'n'; there are 'y', 'm'"):
        union({"a": load(A), "b": Member(load(B), outputs=["n"])}, input="image")


def test_a_multitask_member_keeps_its_tasks():
    inner = union({"a": load(A), "b": load(B)}, input="image")
    graph = union({"face": inner, "c": load(A)}, {"image": IMAGE})
    assert list(graph.tasks) == ["face_a", "face_b", "c"]


def test_all_mismatches_are_reported_together():
    small = load(parse("n (float[1,3,2,2] data) => (float[1,3,2,2] y) { y = Relu(data) }"))
    wrong = {
        "a": Member(load(A), {"nothing": Binding("image"), "data": Binding("sound")}),
        "b": Member(load(B)),
    }
    with pytest.raises(ConfigError) as caught:
        union(wrong, {"image": IMAGE, "depth": IMAGE})
    text = str(caught.value)
    assert "task 'a': input 'nothing' does not exist; its inputs are 'data'" in text
    assert "task 'a': input 'data' reads shared input 'sound'; there are 'image', 'depth'" in text
    assert "task 'b': input 'pixels' is not bound to a shared input" in text
    assert "shared input 'depth' is read by no network" in text
    with pytest.raises(ConfigError) as caught:
        union({"a": small, "b": small}, {"image": IMAGE})
    assert "task 'a': input 'data' wants float32[1,3,2,2]; shared input 'image' is float32[1,3,4,6]" in str(
        caught.value
    )
    assert "task 'b'" in str(caught.value)


# ---------------------------------------------------------------------- adapters
def test_layout_channels_scale():
    steps = [{"bgr": True}, {"scale": 0.5, "offset": [1.0, 2.0, 3.0]}, {"layout": "NHWC"}]
    got, x = adapted(steps, (1, 4, 6, 3))
    want = x[:, ::-1] * np.float32(0.5) + np.asarray([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    assert np.allclose(got, want.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_a_signal_starts_in_the_layout_its_first_layout_step_leaves():
    nhwc = TensorType(DType.UINT8, (1, 4, 6, 3))
    got, x = adapted([{"bgr": True}, {"cast": "float32"}, {"layout": "NCHW"}], (1, 3, 4, 6), nhwc)
    assert np.array_equal(got, x[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize(("shape", "axis"), [((1, 6, 4, 3), 3), ((1, 3, 6, 4), 1), ((1, 3, 6, 3), 1)])
def test_without_a_layout_step_colours_are_where_their_number_is(shape, axis):
    got, x = adapted([{"bgr": True}], shape, TensorType(DType.FLOAT32, shape))
    assert np.array_equal(got, np.flip(x, axis))


@pytest.mark.parametrize("shape", [(1, 4, 6, 5), (1, 1, 4, 6)])
def test_only_three_colours_are_reversed(shape):
    with pytest.raises(
        ConfigError, match=r"bgr reverses three colours, and axis 1, of channels in NCHW, has another"
    ):
        adapted([{"bgr": True}], shape, TensorType(DType.FLOAT32, shape))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *(((1, colours, 8, 8), "NCHW") for colours in (1, 3, 4)),
        *(((1, 8, 8, colours), "NHWC") for colours in (1, 3, 4)),
        *((shape, "NCHW") for shape in ((1, 3, 8, 3), (1, 8, 8, 8), (1, 8, 8, 2), (1, 8, 3), (8,))),
    ],
)
def test_the_layout_of_an_image_is_that_of_its_colours(shape, layout):
    assert _natural(shape) == layout


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gray_is_luma_and_knows_reversed_channels(layout):
    luma = np.asarray([0.299, 0.587, 0.114], np.float32)
    steps = [{"bgr": True}, {"gray": True}]
    shape, source, axis = (1, 1, 4, 6), IMAGE, 1
    if layout == "NHWC":
        shape, source, axis = (1, 1, 4, 6), TensorType(DType.FLOAT32, (1, 4, 6, 3)), 3
        steps.append({"layout": "NCHW"})
    got, x = adapted(steps, shape, source)
    want = np.tensordot(x, luma, axes=([axis], [0])).reshape(shape)
    assert np.allclose(got, want, rtol=0, atol=1e-5)


def test_gray_takes_weights():
    got, x = adapted([{"gray": [1.0, 0.0, 0.0]}], (1, 1, 4, 6))
    assert np.allclose(got, x[:, :1], rtol=0, atol=1e-6)


def test_resize_uses_half_pixel_centres():
    got, x = adapted([{"resize": [8, 3]}], (1, 3, 8, 3))
    assert got[0, 0, 0, 0] == pytest.approx((x[0, 0, 0, 0] + x[0, 0, 0, 1]) / 2, abs=1e-6)
    nearest, x = adapted([{"resize": [8, 12], "mode": "nearest"}], (1, 3, 8, 12))
    assert np.array_equal(nearest, x.repeat(2, 2).repeat(2, 3))


def test_reshape():
    got, x = adapted([{"reshape": [1, 72]}], (1, 72))
    assert np.array_equal(got, x.reshape(1, 72))


def test_equal_beginnings_are_built_once():
    first = [{"scale": 2.0}, {"bgr": True}]
    members = {
        "a": Member(identity_of((1, 3, 4, 6)), {"x": Binding("image", first)}),
        "b": Member(identity_of((1, 3, 4, 6)), {"x": Binding("image", first)}),
        "c": Member(identity_of((1, 4, 6, 3)), {"x": Binding("image", [*first, {"layout": "NHWC"}])}),
    }
    graph = union(members, {"image": IMAGE})
    shared = sorted(n.op.name for n in graph.nodes() if n.op.name != "Identity")
    assert shared == ["Gather", "Mul", "Transpose"]


def test_steps_that_change_nothing_leave_no_node():
    graph = union(
        {"n": Member(identity_of(IMAGE.shape), {"x": Binding("image", [{"cast": "float32"}, {"resize": [4, 6]}])})},
        {"image": IMAGE},
    )
    assert [n.op.name for n in graph.nodes()] == ["Identity"]
    assert graph.operands(graph.nodes()[0])[0].ref == ValueRef("image")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"rotate": 90}, "not a step"),
        ({"resize": [2, 2], "filter": "lanczos"}, "not a step"),
        ({"resize": [2, -2]}, "-2 is not a size"),
        ({"resize": [2, 2], "mode": "cubic"}, "'cubic' is none of linear, nearest"),
        ({"resize": [4, 6], "mode": "cubic"}, "'cubic' is none of linear, nearest"),  # the size it has
        ({"resize": [2]}, "resize takes [height, width]"),
        ({"resize": 2}, "2 is not an array of sizes"),
        ({"reshape": "72"}, "'72' is not an array of sizes"),
        ({"scale": True}, "True is neither a number nor an array of numbers"),
        ({"offset": [True, False, True]}, "neither a number nor an array of numbers"),
        ({"gray": False}, "False is neither a number nor an array of numbers"),
        ({"gray": 1.0}, "gray takes true, or an array of one weight per channel"),
        ({"gray": [1.0, 2.0]}, "2 weights for 3 channels"),
        ({"layout": "CHWN"}, "'CHWN' is none of NCHW, NHWC"),
        ({"cast": "float33"}, "'float33' is no element type; there are float16, float32"),
        ({"scale": [1.0, 2.0]}, "give one number, or one for each of the 3 channels, not 2"),
        ({"scale": 0.0}, "a scale of 0 leaves nothing of the input"),
        ({"scale": [0, 0, 0]}, "a scale of 0 leaves nothing of the input"),
        ({"scale": 2.0, "offset": float("nan")}, "offset has to be finite in float32"),
        ({"scale": 1e39}, "scale has to be finite in float32"),
        ({"reshape": [5]}, "does not fit float32[1,3,4,6]"),
    ],
)
def test_steps_that_do_not_fit_are_refused(step, words):
    with pytest.raises(ConfigError) as caught:
        adapted([step], (1, 3, 4, 6))
    assert "task 'n': input 'x': step 1" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("step", [{"scale": 2.0}, {"offset": 1.0}, {"gray": True}])
@pytest.mark.parametrize("dtype", [DType.UINT8, DType.INT32])
def test_arithmetic_on_integers_needs_a_cast(step, dtype):
    with pytest.raises(ConfigError, match="put a cast before"):
        adapted([step], (1, 5, 6, 3), TensorType(dtype, (1, 5, 6, 3)))


def test_numbers_per_channel_need_an_axis_of_channels():
    with pytest.raises(ConfigError, match=r"step 2 .* no axis of channels"):
        adapted([{"reshape": [72]}, {"scale": [1.0, 2.0, 3.0]}], (72,), TensorType(DType.FLOAT32, (1, 3, 4, 6)))


def test_numbers_of_numpy_are_numbers():
    scale, offset = np.float32(2), np.array([1, 2, 3])
    source = TensorType(DType.FLOAT32, (1, 3, 4, 6))
    found, x = adapted([{"scale": scale, "offset": offset}], source.shape, source)
    np.testing.assert_allclose(found, 2 * x + offset.reshape(1, 3, 1, 1), rtol=1e-6)
    with pytest.raises(ConfigError, match="steps take numbers"):
        adapted([{"scale": object()}], (1, 3, 4, 6), source)
