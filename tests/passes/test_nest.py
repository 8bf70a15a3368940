"""nest: levels by magnitude, their density and order; what other passes do with them."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler import Resources, parse_pass
from compiler.errors import ConfigError, PassError
from compiler.ir.encoding import BlockSparse
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.sparsify.level_biases import HELD_OUT
from compiler.pipeline import Pipeline
from tests.graphs import Builder


def network(seed: int = 0) -> Graph:
    b = Builder(seed=seed)
    y = b.apply("Relu", b.conv(b.input("x", 1, 16, 6, 6), 32, 3))
    b.task("a", b.conv(b.apply("Relu", b.conv(y, 24, 1)), 40, 3))
    flat = b.apply("Flatten", y)
    b.task("b", b.apply("Gemm", flat, b.weight(20, b.graph.value(flat).shape[1]), b.weight(20), transB=1))
    return b.done()


def nested(graph: Graph) -> dict[str, list[np.ndarray]]:
    return {v.ref.name: [v.constant, *v.sparser] for v in graph.parameters() if v.sparser}


@hypothesis.given(
    levels=st.lists(st.integers(0, 19), min_size=2, max_size=5, unique=True),
    scope=st.sampled_from(["layer", "global"]),
    height=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 100),
)
@hypothesis.settings(max_examples=12, deadline=None)
def test_every_level_is_nested_in_the_one_before(levels: list[int], scope: str, height: int, seed: int) -> None:
    shares = "+".join(str(n / 20) for n in sorted(levels))
    before = network(seed)
    after = parse_pass(f"nest{{levels={shares},scope={scope},pattern=block{height}x1,dense=()}}")(before)
    weights = nested(after)
    assert len(weights) == 4
    for name, data in weights.items():
        original = next(v.constant for v in before.parameters() if v.ref.name == name)
        for denser, sparser in zip([original, *data], data, strict=False):
            kept = sparser != 0
            assert np.array_equal(sparser[kept], denser[kept])
    form = BlockSparse(0, (height, 1))
    blocks = [sum(form.alive(d[k]).sum() for d in weights.values()) for k in range(len(levels))]
    total = sum(form.alive(d[0]).size for d in weights.values())
    floor = sum(-(-form.alive(d[0]).size // 64) for d in weights.values()) if scope == "global" else 0
    for share, count in zip(sorted(levels), blocks, strict=True):
        assert abs(count - max(total * (1 - share / 20), floor)) <= 2 * len(weights)


def test_levels_are_ranked_by_norm() -> None:
    after = parse_pass("nest{levels=0+0.9,dense=(),pattern=block4x1}")(network())
    for dense, sparse in nested(after).values():
        squares = dense.reshape(len(dense), -1) ** 2
        norms = np.add.reduceat(squares, np.arange(0, len(dense), 4), axis=0)
        kept = np.add.reduceat(sparse.reshape(len(dense), -1) ** 2, np.arange(0, len(dense), 4), axis=0) > 0
        assert norms[kept].min() >= norms[~kept].max()


def test_a_sparse_network_keeps_its_blocks() -> None:
    sparse = parse_pass("sparsify{pattern=block8x1,sparsity=0.5,dense=()}")(network())
    after = parse_pass("nest{levels=0+0.25+0.75,dense=()}")(sparse)
    for name, (first, second, third) in nested(after).items():
        value = next(v for v in sparse.parameters() if v.ref.name == name)
        form = BlockSparse(0, (8, 1))
        assert np.array_equal(first, value.constant)
        assert np.array_equal(second, first), "half is stored: leaving out a quarter changes nothing"
        assert 0 < form.alive(third).sum() <= 0.26 * form.alive(third).size


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nest", "give 2 to 16 rising shares"),
        ("nest{levels=0.5}", "give 2 to 16 rising shares"),
        ("nest{levels=0.5+0.25}", "give 2 to 16 rising shares"),
        ("nest{levels=0.5+1}", "from 0 on and below 1"),
        ("nest{levels=0+0.5,dense=middle}", "dense is 'middle'"),
        ("nest{levels=0+0.5,min_inputs=5000}", "no layer can have levels"),
    ],
)
def test_what_cannot_be_nested_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pass(spec)(network())


def test_a_network_without_weights_is_told_apart() -> None:
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", 1, 4)))
    told = r"there would be one only: there is none with constant weights \(Conv, Gemm, MatMul, LSTM, GRU, RNN\)$"
    with pytest.raises(ConfigError, match=told):
        parse_pass("nest{levels=0+0.5}")(b.done())


def test_options_are_spelled_back() -> None:
    spec = "nest{levels=0.0+0.5,pattern=block8x1,scope=global}"
    assert str(parse_pass(spec)) == spec


@pytest.mark.parametrize(
    "spec",
    ["fold-constants", "fold-batch-norm", "dead-channels", "prune-channels{flops=0.5}", "nest{levels=0+0.5}"],
)
def test_passes_that_would_lose_levels_refuse_them(spec: str) -> None:
    after = parse_pass("nest{levels=0+0.5}")(network())
    with pytest.raises(ConfigError, match="there are 2 levels here, which this pass would not keep"):
        parse_pass(spec)(after)


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        ("fold-constants", "fold-constants: there are 2 levels here, which this pass would not keep"),
        ("nest{levels=0+0.5}", "nest.*: there are 2 levels here"),
        ("extract-level{level=2}", r"extract-level\{level=2\}: there is no level 2; there are levels 0 to 1"),
    ],
)
def test_what_cannot_follow_nest_is_refused_before_the_first_pass(behind: str, message: str) -> None:
    told: list[str] = []
    pipeline = Pipeline.parse(["fold-constants", "nest{levels=0+0.5}", behind])
    with pytest.raises(ConfigError, match=message):
        pipeline.run(network(), Resources(say=told.append))
    assert not told
    pipeline.run(network(), stop_after="nest")


def test_a_pass_may_follow_a_level_that_was_taken_alone() -> None:
    specs = ["nest{levels=0+0.5}", "extract-level{level=1,alone=true}", "fold-constants"]
    assert level_count(Pipeline.parse(specs).run(network())[0]) == 1


@pytest.mark.parametrize("spec", ["remove-dead-code", "deduplicate", "extract-tasks{tasks=a+b}"])
def test_passes_that_keep_levels(spec: str) -> None:
    after = parse_pass("nest{levels=0+0.5}")(network())
    assert digest(parse_pass(spec)(after)) == digest(after)


def test_extract_level_is_the_level() -> None:
    graph = parse_pass("nest{levels=0+0.5+0.75,dense=()}")(network())
    for level in range(3):
        found = parse_pass(f"extract-level{{level={level}}}")(graph)
        assert digest(found) == digest(at_level(graph, level))
        assert level_count(parse_pass(f"extract-level{{level={level},alone=true}}")(graph)) == 1
    with pytest.raises(ConfigError, match="no level 3"):
        parse_pass("extract-level{level=3}")(graph)


# ---------------------------------------------------------------------- biases by level
def inputs(count: int = 48) -> Resources:
    """Inputs with a mean, so that lost weights shift the layers behind them."""
    x = np.random.default_rng(1).normal(0.7, 1.0, (count, 16, 6, 6)).astype(np.float32)
    return Resources(calibration={"x": x})


def without_bias() -> Graph:
    """One layer without a bias, one whose bias is scaled, two that share one."""
    b = Builder(seed=3)
    y = b.apply("Relu", b.apply("Conv", b.input("x", 1, 16, 6, 6), b.weight(32, 16, 3, 3)))
    shared = b.weight(32)
    y = b.apply(
        "Conv", b.apply("Relu", b.apply("Conv", y, b.weight(32, 32, 1, 1), shared)), b.weight(32, 32, 1, 1), shared
    )
    flat = b.apply("Flatten", b.apply("Relu", y))
    weight = b.weight(20, b.graph.value(flat).shape[1])
    b.task("t", b.apply("Gemm", flat, weight, b.weight(20), transB=1, beta=0.5))
    return b.done()


@pytest.mark.parametrize("make", [network, without_bias])
def test_corrected_biases_keep_the_means_of_every_level(make: Callable[[], Graph]) -> None:
    before, use = make(), inputs()
    spec = "nest{levels=0+0.5+0.8,dense=(),pattern=block8x1"
    shared, corrected = parse_pass(spec + "}")(before), parse_pass(spec + ",biases=corrected}")(before, use)
    for value in shared.parameters():
        if isinstance(value.type.encoding, BlockSparse):
            other = corrected.value(value.ref)
            assert all(np.array_equal(a, b) for a, b in zip(value.sparser, other.sparser, strict=True))
    fitted = [f for i, f in enumerate(use.batches(before)) if i % HELD_OUT]
    for level in range(3):
        gaps = [_mean_gap(before, at_level(g, level), fitted) for g in (shared, corrected)]
        assert gaps[1] < 1e-5
        assert level == 0 or gaps[0] > 1e-2


def _mean_gap(original: Graph, part: Graph, feeds: list[dict[str, np.ndarray]]) -> float:
    """Largest difference of the means of the outputs over their largest value."""
    found = []
    for task in original.tasks.values():
        name = task.outputs[0].name
        a, b = (np.mean([evaluate(g, f)[name] for f in feeds], axis=0, dtype=np.float64) for g in (original, part))
        axes = tuple(d for d in range(a.ndim) if d != 1)
        found.append(np.abs(a.mean(axis=axes) - b.mean(axis=axes)).max() / np.abs(a).max())
    return float(max(found))


def test_biases_need_inputs() -> None:
    with pytest.raises(ConfigError, match="biases=corrected needs calibration inputs"):
        parse_pass("nest{levels=0+0.5,biases=corrected}")(network())
    with pytest.raises(PassError, match="3 calibration inputs; biases=corrected needs 4 or more"):
        parse_pass("nest{levels=0+0.5,biases=corrected}")(network(), inputs(3))
    with pytest.raises(ConfigError, match="samples is 1"):
        parse_pass("nest{levels=0+0.5,samples=1}")(network())


def test_a_product_of_a_vector_keeps_what_follows_it() -> None:
    b = Builder(seed=3)
    h = b.apply("MatMul", b.input("x", 16), b.weight(16, 32))
    b.task("t", b.apply("MatMul", b.apply("Relu", h), b.weight(32, 16)))
    use = Resources(calibration={"x": np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)})
    outcome = parse_pass("nest{levels=0+0.5,dense=(),biases=corrected}").run(b.done(), use)
    assert level_count(outcome.graph) == 2
    assert [r.reason for r in outcome.refusals if "MatMul" in r.where] == ["it has no bias vector of its own"] * 2
