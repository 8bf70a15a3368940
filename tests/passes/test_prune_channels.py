"""prune-channels: budgets, scores, rounding, refusals, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from benchmarks.networks import NETWORKS
from benchmarks.pruning_coverage import BUDGET, LIMIT, prune
from compiler.errors import ConfigError, PassError, VerifyError
from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.onnx_out import to_onnx
from compiler.ir.text import digest
from compiler.ir.types import ValueRef
from compiler.passes.base import Resources
from compiler.passes.prune import channels, surgery
from compiler.passes.prune.budget import Meter
from compiler.passes.prune.channels import PruneChannels
from tests.graphs import Builder
from tests.ir.onnx_models import noise, parse


def share(before: Graph, after: Graph, quantity: str) -> float:
    kind = "flops" if quantity == "flops" else "parameters"
    return Meter(after, kind).total / Meter(before, kind).total  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return load(NETWORKS["resnet-folded"]())


def small(width: int = 16) -> Graph:
    b = Builder(seed=4)
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 8, 8), width, 3, pads=(1, 1, 1, 1)))
    h = b.apply("Relu", b.conv(h, width, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.apply("Gemm", b.apply("Flatten", h), b.weight(64 * width, 5), b.weight(5)))
    return b.done()


def images(count: int = 24) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {"x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_half_the_parameters_of_every_kind_of_network(name: str) -> None:
    _, row = prune(NETWORKS[name](), PruneChannels(parameters=BUDGET))
    assert BUDGET - row["step"] <= row["kept"] <= BUDGET and row["step"] < 0.02
    assert row["error"] <= LIMIT
    assert row["reachable"] > (0.75 if name == "lstm" else 0.85)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(("quantity", "target"), [("flops", 0.7), ("flops", 0.3), ("parameters", 0.4)])
def test_budgets_are_met_within_one_step(resnet: Graph, quantity: str, target: float, scope: str) -> None:
    pass_ = PruneChannels(**{quantity: target}, scope=scope)  # type: ignore[arg-type]
    selection = pass_.select(resnet, pass_.closure(resnet, Resources()), Resources())
    after = pass_(resnet)
    kept = share(resnet, after, quantity)
    assert kept == pytest.approx(selection.kept)
    assert target - selection.step < kept <= target


def test_the_same_options_give_the_same_graph() -> None:
    graph = small()
    assert digest(PruneChannels(flops=0.5)(graph)) == digest(PruneChannels(flops=0.5)(graph))


def test_a_budget_of_one_removes_nothing() -> None:
    graph = small()
    assert digest(PruneChannels(flops=1.0)(graph)) == digest(graph)


@pytest.mark.parametrize("score", ["l1", "l2", "rms", "obs", "random", "auto"])
def test_every_score_reaches_the_budget(score: str) -> None:
    graph, use = small(), Resources(calibration=images(), seed=1)
    after = PruneChannels(flops=0.5, score=score)(graph, use)
    assert 0.4 < share(graph, after, "flops") <= 0.5


def test_random_depends_on_the_seed_only() -> None:
    graph = small()
    digests = [digest(PruneChannels(flops=0.5, score="random")(graph, Resources(seed=s))) for s in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_scores_remove_what_matters_least() -> None:
    """One channel is made tiny: every informed score removes it first."""
    b = Builder(seed=4)
    x = b.input("x", 1, 3, 8, 8)
    weight = b.weight(8, 3, 3, 3)
    data = b.graph.value(weight).constant.copy()
    data[5] *= 1e-3
    b.graph.update(weight, data=data)
    h = b.apply("Relu", b.apply("Conv", x, weight, b.const(np.zeros(8, np.float32)), pads=(1, 1, 1, 1)))
    out = b.weight(4, 8, 1, 1)
    data = b.graph.value(out).constant.copy()
    data[:, 5] *= 1e-3
    b.graph.update(out, data=data)
    b.task("t", b.apply("Conv", h, out))
    graph, use = b.done(), Resources(calibration=images())
    for score in ("l1", "l2", "rms", "obs"):
        pass_ = PruneChannels(flops=0.99, score=score)
        (atom,) = pass_.select(graph, pass_.closure(graph, use), use).atoms
        assert [int(e[0]) for a, e in atom.entries.items() if a.owner == ValueRef("conv:0")] == [5], score


@pytest.mark.parametrize("multiple", [4, 8])
def test_widths_stay_multiples(resnet: Graph, multiple: int) -> None:
    after = PruneChannels(parameters=0.5, multiple=multiple)(resnet)
    widths = [s.results[0].shape[1] for s in after.sites() if s.node.op.name == "Conv"]
    assert all(w % multiple == 0 and w >= multiple for w in widths)
    assert share(resnet, after, "parameters") <= 0.5


def test_no_group_falls_below_its_floor(resnet: Graph) -> None:
    after = PruneChannels(flops=0.3, floor=0.25)(resnet)
    pairs = [
        (resnet.value(v.ref).shape[1], v.shape[1])
        for s in after.sites()
        if s.node.op.name == "Conv"
        for v in s.results
    ]
    assert all(new >= 0.25 * old for old, new in pairs)


def test_excluded_layers_keep_their_width() -> None:
    graph = small()
    for pass_, use in (
        (PruneChannels(flops=0.7, exclude=("conv:*",)), Resources()),
        (PruneChannels(flops=0.7), Resources(exclude=("conv",))),
    ):
        after = pass_(graph, use)
        assert after.value(ValueRef("conv:0")).shape[1] == 16
        assert after.value(ValueRef("conv.1:0")).shape[1] < 16


def test_bounds_of_a_slice_keep_their_type() -> None:
    """That of its axes and steps, or no other program reads the network."""
    b = Builder()
    bounds = [b.const(np.array([n], np.int32)) for n in (2, 14, 1, 1)]
    h = b.apply("Slice", b.conv(b.input("x", 1, 3, 4, 4), 16, 1), *bounds)
    b.task("t", b.conv(h, 4, 1))
    after = PruneChannels(flops=0.6)(b.done())
    assert after.value(h).shape[1] < 12
    to_onnx(after)


def test_a_squeeze_of_everything_keeps_a_channel_that_is_left_alone() -> None:
    """Which axes go is settled when the network is imported."""
    conv, head = noise((4, 3, 1, 1)), noise((4, 5))
    model = parse("""net (float[1,3,4,4] x, float[4,3,1,1] w, float[4,5] v) => (float[5] z) {
        c = Conv (x, w) p = GlobalAveragePool (c) s = Squeeze (p) z = MatMul (s, v)
    }""")
    del model.graph.input[1:]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in ((conv, "w"), (head, "v")))
    after = PruneChannels(flops=0.3)(load(model))
    assert after.value(ValueRef("s")).shape == (1,)


def test_patterns_that_exclude_nothing_are_told_with_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as caught:
        PruneChannels(flops=0.7, exclude=("conv", "*cnv.1", "head/*"))(small())
    first, second, advice = str(caught.value).splitlines()
    assert first.startswith(
        "prune-channels: exclude *cnv.1: no value and no node of 'net' has such a name; did you mean"
    )
    assert "'conv.1'" in first and advice.startswith("`taskgraft inspect --text` lists")
    assert second == "prune-channels: exclude head/*: no value and no node of 'net' has such a name"


def test_refusals_name_the_pin() -> None:
    outcome = PruneChannels(flops=0.5).run(small())
    assert [str(r) for r in outcome.refusals] == [
        "5 channels of 'gemm:0' axis 1: cannot remove channel 0 of 'gemm:0': 'gemm:0' axis 1 is a task output",
        "3 channels of 'x' axis 1: cannot remove channel 0 of 'x': 'x' axis 1 is a graph input",
    ]


def test_an_unreachable_budget_is_refused_with_reasons() -> None:
    b = Builder()
    x = b.input("x", 1, 3, 8, 8)
    b.task("age", b.conv(b.apply("Relu", b.conv(x, 4, 1)), 64, 3))
    with pytest.raises(PassError, match=r"0\.010 cannot be reached: 0\.\d+ of the original remains") as caught:
        PruneChannels(parameters=0.01)(b.done())
    assert "'conv.1:0' axis 1 is a task output" in str(caught.value)
    assert len(caught.value.refusals) == 2


def test_mixed_axes_shrink_only_when_allowed() -> None:
    graph = load(NETWORKS["transformer"]())
    plain, allowed = PruneChannels(flops=0.6), PruneChannels(flops=0.6, allow_mixed=True)
    stream = ValueRef("t2")
    assert plain(graph).value(stream).shape[-1] == 64
    outcome = allowed.run(graph)
    assert outcome.graph.value(stream).shape[-1] < 64
    assert any("statistics of mixed axes changed" in str(r) for r in outcome.refusals)


def test_workload_weighs_the_price() -> None:
    """A head that is rarely asked for is not where operations are saved."""
    b = Builder(seed=1)
    x = b.input("x", 1, 3, 8, 8)
    for name in ("often", "rarely"):
        h = b.apply("Relu", b.conv(x, 16, 3))
        b.task(name, b.conv(b.apply("Relu", b.conv(h, 16, 3)), 4, 1))
    graph = b.done()
    use = Resources(workload={frozenset(["often"]): 99.0, frozenset(["rarely"]): 1.0})
    after = PruneChannels(flops=0.6)(graph, use)
    assert after.value(ValueRef("conv:0")).shape[1] < 16
    assert after.value(ValueRef("conv.3:0")).shape[1] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either flops or parameters"),
        ({"flops": 0.5, "parameters": 0.5}, "give either flops or parameters"),
        ({"flops": 0.0}, "flops must be above 0, not 0.0"),
        ({"parameters": 1.5}, "parameters is a share, above 0 and at most 1, not 1.5"),
        ({"flops": 0.5, "score": "best"}, "score is 'best'; it can be auto, l1, l2, rms, obs, fisher, random"),
        ({"flops": 0.5, "scope": "here"}, "scope is 'here'"),
        ({"flops": 0.5, "recover": "hope"}, "recover is 'hope'; it can be none, least-squares"),
        ({"flops": 0.5, "multiple": 0}, "multiple and samples start at 1"),
        ({"flops": 0.5, "score": "obs"}, "need calibration inputs"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PruneChannels(**options)(small())  # type: ignore[arg-type]


def test_the_masked_original_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept weight that surgery changes leaves all sizes right."""
    taken = surgery.taken

    def scaled(*args: object) -> object:
        type_, data = taken(*args)  # type: ignore[arg-type]
        return type_, data * np.float32(1.01)

    monkeypatch.setattr(surgery, "taken", scaled)
    with pytest.raises(VerifyError, match=r"differ by .* from the masked original .* first at 'conv:0'"):
        PruneChannels(flops=0.5)(small())


def test_pass_is_registered() -> None:
    from compiler.passes import find

    assert find("prune-channels") is channels.PruneChannels


@pytest.mark.parametrize(
    "options", [{}, {"score": "fisher"}, {"score": "rms"}, {"score": "l1", "recover": "least-squares"}], ids=str
)
def test_data_of_less_than_a_batch_are_refused(options: dict[str, str]) -> None:
    b = Builder()
    h = b.apply("Relu", b.apply("MatMul", b.input("x", 4, 6), b.weight(6, 8)))
    b.task("t", b.apply("MatMul", h, b.weight(8, 2)))
    use = Resources(calibration={"x": np.ones((3, 6), np.float32)})
    if options.get("score") == "fisher":
        pytest.importorskip("torch")
    with pytest.raises(PassError, match="no complete batch"):
        PruneChannels(parameters=0.5, **options)(b.done(), use)  # type: ignore[arg-type]


def test_fisher_scores_of_a_network_without_channels_to_remove_need_no_gradients() -> None:
    """No channel of it can go, so that no gradient is asked for."""
    pytest.importorskip("torch")
    b = Builder()
    h = b.apply("Relu", b.conv(b.input("x", 1, 3, 4, 4), 1, 3))
    b.task("t", b.apply("GlobalAveragePool", h))
    use = Resources(calibration={"x": np.ones((8, 3, 4, 4), np.float32)})
    with pytest.raises(PassError, match="cannot be reached"):
        PruneChannels(flops=0.5, score="fisher")(b.done(), use)
