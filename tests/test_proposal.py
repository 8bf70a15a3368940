"""init: names, shared inputs, adapters; the file compiles as it stands."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from compiler import parse_pass, save
from compiler.cli import main
from compiler.codegen.bundle import read_bundle
from compiler.config import load_config
from compiler.errors import ConfigError, UnsupportedModelError
from compiler.ir.levels import at_level
from compiler.ir.text import digest
from compiler.ir.types import DType, TensorType
from compiler.pipeline import Pipeline
from compiler.proposal import adapter, propose, release_text, task_names
from compiler.release import load_release
from compiler.settings import DEFAULT_PASSES, LEVEL_PASSES
from tests.graphs import Builder
from tests.shared import shared_path
from tests.small_models import model, network


@pytest.mark.parametrize(
    ("stems", "wanted"),
    [
        (["face_age_v2", "face_gender_v2"], ["age", "gender"]),
        (["face-age", "face-age"], ["age", "age_2"]),
        (["Age Net", "gender.net"], ["age", "gender"]),
        (["model", "model_small"], ["model", "model_small"]),
        (["1_class", "2_class"], ["task_1", "task_2"]),
        (["resnet18"], ["resnet18"]),
        (["___"], ["task"]),
        (["a__b", "c"], ["a_b", "c"]),
        (["all", "cpu_load", "h"], ["task_all", "task_cpu_load", "task_h"]),
    ],
)
def test_tasks_are_named_by_what_differs(stems, wanted):
    assert list(task_names([Path(f"{s}.onnx") for s in stems])) == wanted


@pytest.mark.parametrize("alone", [False, True])
def test_what_comes_with_levels_gets_passes_that_keep_them(tmp_path, alone):
    b = Builder()
    x = b.apply("Relu", b.conv(b.input("x", 1, 16, 4, 4), 32, 1))
    b.task("t", b.conv(x, 16, 1))
    graph = parse_pass("nest{levels=0+0.5,dense=()}")(b.done())
    if alone:
        graph = at_level(graph, 1, alone=True)
    file, path = tmp_path / "nested.onnx", tmp_path / "release.toml"
    save(graph, file)
    assert main(["init", str(file), "-o", str(path), "-q"]) == 0
    config = load_config(path)
    assert config.passes == LEVEL_PASSES != DEFAULT_PASSES
    assert [p for p in DEFAULT_PASSES if parse_pass(p).keeps_levels] == list(LEVEL_PASSES)
    loaded = load_release(config)
    assert digest(Pipeline.parse(config.passes).run(loaded.graph)[0]) == digest(loaded.graph)
    assert main(["explain", "plan", str(file), "--seconds", "0", "-q"]) == 0


def image(*shape, dtype=DType.FLOAT32):
    return TensorType(dtype, shape)


@pytest.mark.parametrize(
    ("given", "wanted", "steps"),
    [
        (image(1, 3, 8, 8), image(1, 3, 8, 8), ()),
        (image(1, 3, 8, 8), image(1, 8, 8, 3), ({"layout": "NHWC"},)),
        (image(1, 8, 8, 3), image(1, 3, 4, 6), ({"layout": "NCHW"}, {"resize": [4, 6]})),
        (image(1, 3, 8, 8), image(1, 1, 4, 4), ({"gray": True}, {"resize": [4, 4]})),
        (image(1, 8, 8, 3), image(1, 4, 4, 3), ({"layout": "NCHW"}, {"resize": [4, 4]}, {"layout": "NHWC"})),
        (image(1, 3, 8, 8, dtype=DType.UINT8), image(1, 3, 8, 8), ({"cast": "float32"},)),
        (image(1, 12), image(1, 3, 4), ({"reshape": [1, 3, 4]},)),
        (image(1, 1, 8, 8), image(1, 3, 8, 8), None),  # colours cannot be made up
        (image(1, 16), image(1, 3, 8, 8), None),
        (image(2, 3, 8, 8), image(1, 3, 4, 4), None),
    ],
)
def test_adapters_follow_from_types(given, wanted, steps):
    assert adapter(given, wanted) == steps


def other_network(name, shape):
    """Global mean of each channel as `mean`."""
    nodes = [helper.make_node("GlobalAveragePool", [name], ["mean"])]
    return model(nodes, {name: shape}, {"mean": (1, shape[1], 1, 1)})


@pytest.fixture
def files(tmp_path):
    """Two networks on colour images of 8 x 8, one on grey ones of 6 x 4."""
    onnx.save(network("image", 3), tmp_path / "face_age.onnx")
    onnx.save(network("pixels", 2, seed=1), tmp_path / "face_sex.onnx")
    onnx.save(other_network("grey", (1, 1, 6, 4)), tmp_path / "face_light.onnx")
    return sorted(tmp_path.glob("*.onnx"))


def test_the_file_compiles_as_it_stands(files, tmp_path, capsys):
    path = tmp_path / "sub" / "faces.toml"
    path.parent.mkdir()
    assert main(["init", *map(str, files), "-o", str(path), "-q"]) == 0
    out = capsys.readouterr().out
    assert "check the adapters of light" in out
    assert "named 'faces' after the file" in out
    assert "with the values and the order of colours that age, sex were trained on" in path.read_text()
    config = load_config(path)
    assert list(config.tasks) == ["age", "light", "sex"]
    assert config.tasks["light"].adapter == ({"gray": True}, {"resize": [6, 4]})
    assert config.tasks["age"].model == "../face_age.onnx"
    assert dict(config.inputs or {}) == {"image": image(1, 3, 8, 8)}
    assert main(["compile", str(path), "-o", str(tmp_path / "out"), "-q"]) == 0
    told = capsys.readouterr().out
    assert f"see: {tmp_path / 'out/host/reports/report.html'}" in told
    assert f"use: {tmp_path / 'out/host/example/main.c'} says how" in told
    bundle = read_bundle(tmp_path / "out")
    assert [t["name"] for t in bundle.manifest["tasks"]] == ["age", "light", "sex"]
    assert (bundle.path / "reports" / "report.html").stat().st_size < 1_000_000
    assert main(["init", *map(str, files), "-o", str(path), "-q"]) == 2
    assert "--force" in capsys.readouterr().err


def test_networks_no_adapter_leads_to_keep_their_own_input(tmp_path):
    for name, made in (("a", network("x", 3)), ("b", network("x", 2)), ("c", other_network("x", (1, 5, 8, 8)))):
        onnx.save(made, tmp_path / f"{name}.onnx")
    found = propose(sorted(tmp_path.glob("*.onnx")), "three")
    assert found.shared == {"x": image(1, 3, 8, 8), "x_2": image(1, 5, 8, 8)}
    assert {t: b["x"] for t, b in found.bindings.items()} == {"a": ("x", ()), "b": ("x", ()), "c": ("x_2", ())}
    (tmp_path / "r.toml").write_text(release_text(found, tmp_path))
    graph = load_release(load_config(tmp_path / "r.toml")).graph
    assert [v.ref.name for v in graph.inputs] == ["x", "x_2"]


def test_open_axes(tmp_path):
    open_batch = network("x", 3)
    open_batch.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(open_batch, tmp_path / "a.onnx")
    assert propose([tmp_path / "a.onnx"], "one").shared == {"x": image(1, 3, 8, 8)}
    open_batch.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(open_batch, tmp_path / "a.onnx")
    with pytest.raises(UnsupportedModelError, match=r"a.onnx: input 'x' is \[\?,3,\?,8\]"):
        propose([tmp_path / "a.onnx"], "one")
    assert propose([tmp_path / "a.onnx"], "one", shapes={"x": (2, 3, 8, 8)}).shared == {"x": image(2, 3, 8, 8)}
    with pytest.raises(UnsupportedModelError):
        propose([tmp_path / "a.onnx"], "one", shapes={"x": (2, 4, 8, 8)})
    with pytest.raises(ConfigError, match="no model has an input"):
        propose([tmp_path / "a.onnx"], "one", shapes={"x": (2, 3, 8, 8), "y": (1,)})


def test_axes_below_zero_are_open(tmp_path):
    """Some exporters write -1 for a size that is not known."""
    made = network("x", 3)
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(made, tmp_path / "a.onnx")
    proposal = propose([tmp_path / "a.onnx"], "one")
    assert proposal.shared == {"x": image(1, 3, 8, 8)}
    (tmp_path / "r.toml").write_text(release_text(proposal, tmp_path))
    assert load_release(load_config(tmp_path / "r.toml")).graph.inputs[0].shape == (1, 3, 8, 8)


def test_inputs_without_a_shape_are_bound_or_named(tmp_path):
    made, other = network("x", 3), network("x", 2)
    made.graph.input[0].type.tensor_type.ClearField("shape")
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    onnx.save(made, files[0])
    onnx.save(other, files[1])
    with pytest.raises(
        UnsupportedModelError, match=r"bind .* with --input NAME.*\n  a.onnx: input 'x' has no shape$"
    ):
        propose(files, "two")
    proposal = propose(files, "two", shapes={"x": (1, 3, 8, 8)})
    (tmp_path / "r.toml").write_text(release_text(proposal, tmp_path))
    graph = load_release(load_config(tmp_path / "r.toml")).graph
    assert [v.shape for v in graph.inputs] == [(1, 3, 8, 8)] and list(graph.tasks) == ["a", "b"]
    made.graph.input[0].ClearField("type")
    onnx.save(made, files[0])
    with pytest.raises(UnsupportedModelError, match=r"a.onnx: input 'x' is no tensor of numbers or bools"):
        propose(files, "two")


def test_networks_with_several_inputs_share_by_name_and_type(tmp_path):
    def two(second, shape):
        nodes = [helper.make_node("Add", ["x", second], ["sum"])]
        return model(nodes, {"x": (1, 4), second: shape}, {"sum": (1, 4)})

    onnx.save(two("y", (1, 4)), tmp_path / "a.onnx")
    onnx.save(two("y", (1, 1)), tmp_path / "b.onnx")
    found = propose([tmp_path / "a.onnx", tmp_path / "b.onnx"], "two")
    assert found.shared == {"x": image(1, 4), "y": image(1, 4), "y_2": image(1, 1)}
    (tmp_path / "r.toml").write_text(release_text(found, tmp_path))
    release = load_release(load_config(tmp_path / "r.toml"))
    assert [v.ref.name for v in release.graph.inputs] == ["x", "y", "y_2"]


def test_models_without_inputs_share_none(tmp_path):
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Constant", [], ["y"], value_floats=[1.0])],
            "alone",
            [],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
    )
    onnx.save(model, tmp_path / "alone.onnx")
    with pytest.raises(UnsupportedModelError, match="none of the models reads an input"):
        propose([tmp_path / "alone.onnx"], "alone")


def test_names_that_toml_would_read_otherwise(tmp_path):
    name = 'in "put".0\n[tasks]'
    onnx.save(network(name, 3), tmp_path / 'odd "name".onnx')
    onnx.save(network("x", 3), tmp_path / "b.onnx")
    found = propose(sorted(tmp_path.glob("*.onnx")), "odd")
    (tmp_path / "r.toml").write_text(release_text(found, tmp_path))
    assert list(load_release(load_config(tmp_path / "r.toml")).graph.tasks) == ["b", "odd_name"]


def test_names_that_are_no_text_are_refused(tmp_path, capsys):
    file = tmp_path / os.fsdecode(b"caf\xe9.onnx")
    onnx.save(network("x", 3), file)
    assert main(["init", str(file), "-o", str(tmp_path / "r.toml"), "-q"]) == 2
    assert "a release file cannot say this name, which is not UTF-8; rename it" in capsys.readouterr().err
    assert not (tmp_path / "r.toml").exists()


def test_element_types_without_a_form_here(tmp_path):
    info = helper.make_tensor_value_info("x", TensorProto.STRING, (1,))
    out = helper.make_tensor_value_info("y", TensorProto.STRING, (1,))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [info], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "a.onnx")
    with pytest.raises(UnsupportedModelError, match="input 'x'"):
        propose([tmp_path / "a.onnx"], "strings")


def test_networks_by_other_people_share_one_image(tmp_path):
    """SSR-Net, mini-XCEPTION and FSA-Net: NHWC, grey NHWC and NCHW."""
    files = [shared_path("models", f"{n}.onnx") for n in ("ssrnet_age_imdb", "minixc_emotion_fer", "fsanet_1x1")]
    path = tmp_path / "faces.toml"
    assert main(["init", *map(str, files), "-o", str(path), "-q"]) == 0
    config = load_config(path)
    assert dict(config.inputs or {}) == {"input": image(1, 64, 64, 3)}
    assert [task.adapter for task in config.tasks.values()] == [
        (),
        ({"layout": "NCHW"}, {"gray": True}, {"layout": "NHWC"}),
        ({"layout": "NCHW"},),
    ]


def test_a_network_in_place_of_a_release_file_is_told_what_to_do(files, capsys):
    assert main(["compile", str(files[0]), "-q"]) == 2
    assert f"`taskgraft init {files[0].name}` writes a release file for it" in capsys.readouterr().err


def test_a_folder_that_holds_bundles_is_told_from_one(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "none"), "-q"]) == 2
    (tmp_path / "dist" / "faces").mkdir(parents=True)
    assert main(["bench", str(tmp_path / "dist"), "-q"]) == 4
    (tmp_path / "dist" / "faces" / "index.json").touch()
    assert main(["bench", str(tmp_path / "dist"), "-q"]) == 4
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("is no bundle")[2] for line in told] == [
        ": there is no such folder",
        ": it has no index.json",
        f"; there are bundles in {tmp_path / 'dist/faces'}",
    ]
