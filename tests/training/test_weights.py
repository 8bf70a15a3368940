"""Which parameters are weights, how a network keeps zeros and takes gates, and what it is trained on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.errors import ConfigError, VerifyError  # noqa: E402
from compiler.ir.encoding import BlockSparse  # noqa: E402
from compiler.ir.graph import Graph  # noqa: E402
from compiler.ir.reference import evaluate  # noqa: E402
from compiler.ir.types import DType, TensorType, ValueRef  # noqa: E402
from compiler.training.answers import Answer  # noqa: E402
from compiler.training.distilling import Material, Wanted, chosen_device, divided, outputs, prepared  # noqa: E402
from compiler.training.module import TorchNet, check_agrees, terms, weights  # noqa: E402
from compiler.training.nesting import own_vectors  # noqa: E402
from compiler.training.samples import Data  # noqa: E402
from tests.graphs import Builder  # noqa: E402


def names(graph: Graph) -> list[str]:
    return [v.ref.name for v in weights(graph)]


def vector(b: Builder, name: str, *shape: int) -> ValueRef:
    return b.const(b.rng.normal(size=shape).astype(np.float32), name)


# ---------------------------------------------------------------------- which parameters
def test_products_norms_and_what_is_added_to_products_are_learnt():
    b = Builder()
    x = b.apply("Mul", b.input("x", 1, 3, 5, 5), vector(b, "adapter", 1, 3, 1, 1))
    x = b.apply("Add", x, vector(b, "mean", 1, 3, 1, 1))
    h = b.apply("Conv", x, vector(b, "kernel", 4, 3, 3, 3))
    h = b.apply("Add", h, vector(b, "added", 1, 4, 1, 1))
    norm = [vector(b, name, 4) for name in ("scale", "shift", "running")] + [b.const(np.ones(4, np.float32), "var")]
    h = b.apply("BatchNormalization", h, *norm)
    h = b.apply("Mul", b.apply("Relu", h), vector(b, "factor", 1, 4, 1, 1))
    h = b.apply("MatMul", b.apply("Flatten", h), vector(b, "matrix", 36, 2))
    h = b.apply("Add", vector(b, "front", 2), h)
    b.task("t", b.apply("Gemm", h, vector(b, "dense", 2, 2), vector(b, "bias", 2)))
    assert names(b.done()) == ["added", "bias", "dense", "front", "kernel", "matrix", "scale", "shift"]


def test_tables_that_are_looked_up_are_learnt_and_whole_numbers_and_states_are_not():
    b = Builder()
    at = b.input("at", 3, 1, dtype=DType.INT64)
    looked = b.apply("Gather", vector(b, "table", 7, 4), at, axis=0)
    looked = b.apply("Gather", looked, b.const(np.array([0, 2]), "chosen"), axis=0)
    w, r, bias = vector(b, "w", 1, 20, 4), vector(b, "r", 1, 20, 5), vector(b, "b", 1, 40)
    states = [vector(b, "h0", 1, 1, 5), vector(b, "c0", 1, 1, 5)]
    lengths = b.const(np.array([2], np.int32), "lengths")
    y = b.apply("LSTM", looked, w, r, bias, lengths, *states, vector(b, "peep", 1, 15), hidden_size=5, results=3)
    fixed = b.apply("Gather", vector(b, "constant", 3, 5), b.const(np.array([1]), "one"), axis=0)
    b.task("t", b.apply("Mul", b.apply("Squeeze", y[1], b.const(np.array([0]), "axes")), fixed))
    assert names(b.done()) == ["b", "peep", "r", "table", "w"]


def test_terms_are_the_products_of_one_result_and_the_most_where_several_read_a_matrix():
    b = Builder()
    x, shared = b.input("x", 1, 4, 6, 6), vector(b, "shared", 8, 2, 3, 3)
    h = b.apply("Conv", x, shared, vector(b, "bias", 8), group=2)
    y = b.apply("Flatten", b.apply("GlobalAveragePool", h))
    for name, turned in (("down", 0), ("up", 1)):
        matrix = vector(b, name, *((8, 4), (4, 8))[turned])
        y = b.apply("Gemm", b.apply("Gemm", y, matrix, transB=turned), matrix, transB=1 - turned)
    b.task("t", y, b.apply("Conv", h, vector(b, "column", 1, 8, 1, 1)))
    alone = b.apply("Conv", x, vector(b, "whole", 1, 4, 6, 6))  # one result
    b.task("u", alone)
    assert {r.name: n for r, n in terms(b.done()).items()} == {"shared": 18, "down": 8, "up": 8, "whole": 144}


# ---------------------------------------------------------------------- zeros
DATA = np.array([[1, 2, 0], [3, 0, 0]], np.float32)


def plain(sparse: bool = False) -> Graph:
    b = Builder()
    w = b.const(DATA, "w")
    if sparse:
        b.graph.update(w, type=TensorType(DType.FLOAT32, DATA.shape, BlockSparse(0, (2, 1))), data=DATA)
    b.task("t", b.apply("Gemm", b.input("x", 1, 3), w, b.const(np.zeros(2, np.float32), "bias"), transB=1))
    return b.done()


def moved(net: TorchNet) -> list[list[bool]]:
    """Which elements of the matrix a step changes, all of whose gradients are ones."""
    for weight in net.weights.values():
        weight.grad = torch.ones_like(weight)
    net.keep_zeros()
    assert bool(net.weights[ValueRef("bias")].grad.all())
    return (net.weights[ValueRef("w")].grad != 0).tolist()


YES, NO = True, False


def test_zeros_stay_where_an_encoding_or_a_mask_leaves_them_out():
    assert moved(TorchNet(plain())) == [[YES] * 3] * 2
    sparse = TorchNet(plain(sparse=True))
    assert moved(sparse) == [[YES, YES, NO], [YES, NO, NO]]
    sparse.keep({ValueRef("w"): np.array([[YES, NO, YES]])})
    assert sparse.array(ValueRef("w")).tolist() == [[1, 0, 0], [3, 0, 0]]
    assert moved(sparse) == [[YES, NO, NO], [YES, NO, NO]]
    sparse.keep({ValueRef("w"): np.array([[NO], [YES]])})
    assert sparse.array(ValueRef("w")).tolist() == [[0, 0, 0], [3, 0, 0]] and moved(sparse) == [
        [NO] * 3,
        [YES, NO, NO],
    ]


def test_what_is_free_is_told_anew_and_changes_no_values():
    for sparse, rest in ((False, [[YES] * 3] * 2), (True, [[YES, YES, NO], [YES, NO, NO]])):
        net = TorchNet(plain(sparse))
        net.free({ValueRef("w"): np.array([[NO, YES, NO], [NO, NO, YES]])})
        assert moved(net) == [[NO, YES, NO], [NO, NO, YES]]
        net.free({})
        assert moved(net) == rest and net.array(ValueRef("w")).tolist() == DATA.tolist()


def test_weights_are_copied_out_and_in():
    net, graph = TorchNet(plain()), plain().copy()
    state, array = net.state(), net.array(ValueRef("w"))
    net.put(ValueRef("w"), 2 * DATA)
    assert array.tolist() == DATA.tolist() and state["w"].tolist() == DATA.tolist()
    net.store(graph)
    assert graph.value(ValueRef("w")).constant.tolist() == (2 * DATA).tolist()
    net.load(state)
    assert net.array(ValueRef("w")).tolist() == DATA.tolist()


def test_a_function_that_differs_from_the_reference_is_refused():
    net, feeds = TorchNet(plain()), [{"x": np.full((1, 3), n, np.float32)} for n in (0, 1)]
    check_agrees(net, feeds)
    net.put(ValueRef("w"), DATA * np.float32(1 + 1e-6))
    check_agrees(net, feeds)
    net.put(ValueRef("w"), DATA * np.float32(1.01))
    check_agrees(net, feeds[:1])  # on zeros they are the same
    with pytest.raises(VerifyError, match=r"differs by 1\.0e-02 of scale from the reference"):
        check_agrees(net, feeds)


# ---------------------------------------------------------------------- gates
def test_gates_multiply_entries_of_values_and_inputs_for_each_sample():
    b = Builder(seed=1)
    x = b.input("x", 1, 2, 3, 3)
    h = b.apply("Relu", b.conv(x, 3, 2))
    b.task("t", b.apply("Concat", b.apply("Flatten", h), b.apply("Flatten", x), axis=1))
    b.task("u", h)
    graph, rng = b.done(), np.random.default_rng(0)
    data = rng.normal(size=(2, 1, 2, 3, 3)).astype(np.float32)
    factors, columns = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    net = TorchNet(graph)
    found = net.run(net.feeds({"x": data}), {h: (1, torch.tensor(factors)), x: (3, torch.tensor(columns))})
    for sample in range(2):
        gates = {h: factors[sample][None, :, None, None], x: columns[sample]}
        feed = {"x": data[sample] * gates[x]}
        expected = evaluate(graph, feed, edit=lambda r, a, g=gates: a * g[r] if r == h else a)
        for ref, values in found.items():
            np.testing.assert_allclose(values[sample].detach(), expected[ref.name], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- samples and labels
def test_every_fifth_sample_judges_and_is_not_trained_on():
    x = torch.arange(12)
    train, held_out = divided(Data({"x": x}, {("t", 0): x}, {"t": x}))
    assert held_out.inputs["x"].tolist() == [4, 9]
    assert train.labels["t"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]


def test_devices_are_chosen_by_name_and_unknown_ones_refused():
    assert chosen_device("cpu").type == "cpu"
    assert chosen_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device 'tpu9' cannot be used"):
        chosen_device("tpu9")


def answers(*shape: int, end: str | None = None, seed: int = 0) -> Graph:
    """One task with two outputs: the first of some shape for each of `shape[0]` positions, and half of it."""
    b = Builder(seed=seed)
    y = b.apply("MatMul", b.input("x", *shape[:-1], 4), b.weight(4, shape[-1]))
    y = b.apply(end, y) if end else y
    b.task("t", y, b.apply("Mul", y, b.const(np.float32(0.5))))
    return b.done()


FEEDS = [{"x": x} for x in np.random.default_rng(0).normal(size=(6, 1, 2, 4)).astype(np.float32)]


def material(teacher: Graph, labels: object = None) -> Material:
    return Material(teacher, FEEDS, {} if labels is None else {"t": np.asarray(labels)})


def test_answers_are_the_teachers_and_what_they_lose_is_weighted():
    teacher, student = answers(1, 2, 3, seed=1), answers(1, 2, 3)
    data, objective = prepared(TorchNet(student), material(teacher), Wanted({"t": 2.0}, frozenset(), 3.0, 0.0), 4)
    refs = teacher.tasks["t"].outputs
    assert list(outputs(teacher)) == [(("t", 0), refs[0]), (("t", 1), refs[1])] and list(outputs(teacher, [])) == []
    wanted = {("t", n): np.stack([evaluate(teacher, f)[r.name] for f in FEEDS]) for n, r in enumerate(refs)}
    found = {
        r: torch.tensor(np.stack([evaluate(student, f)[r.name] for f in FEEDS])) for r in student.tasks["t"].outputs
    }
    assert data.teacher.keys() == wanted.keys() and not data.labels and not objective.labelled
    for (output, expected), ref in zip(wanted.items(), student.tasks["t"].outputs, strict=True):
        np.testing.assert_allclose(data.teacher[output], expected, rtol=1e-5, atol=1e-6)
        loss = 2 * ((found[ref].numpy() - expected) ** 2).mean() / expected.var(0).mean()
        assert float(objective.term(output, found, data.teacher)) == pytest.approx(loss, rel=1e-4)


def test_tasks_of_classes_are_compared_as_distributions_and_labels_count_for_the_first_output():
    graph = answers(1, 2, 3, end="Softmax")
    wanted = Wanted({"t": 2.0}, frozenset("t"), 3.0, 0.25)
    data, objective = prepared(TorchNet(graph), material(graph, np.arange(12).reshape(6, 2) % 3), wanted, 4)
    assert data.labels["t"].shape == (6, 2) and data.labels["t"].dtype == torch.int64
    assert data.labels["t"].reshape(-1).tolist() == [n % 3 for n in range(12)]
    assert objective.labelled == {"t": (graph.tasks["t"].outputs[0], 0.5, Answer.PROBABILITIES)}
    uniform = {r: torch.full((6, 1, 2, 3), 1 / 3) for r in graph.tasks["t"].outputs}
    p = data.teacher["t", 0].double() ** (1 / 3)
    p = p / p.sum(-1, keepdim=True)
    expected = 2 * 9 * float((p * (p * 3).log()).sum(-1).mean())
    assert float(objective.term(("t", 0), uniform, data.teacher)) == pytest.approx(expected, rel=1e-3)


def test_labels_are_only_used_where_they_have_a_weight():
    graph = answers(1, 2, 3)
    _, objective = prepared(
        TorchNet(graph), material(graph, np.zeros((6, 2), int)), Wanted({"t": 1.0}, frozenset(), 2.0, 0), 4
    )
    assert not objective.labelled


@pytest.mark.parametrize(
    ("width", "labels", "message"),
    [
        (3, np.zeros((6, 2), np.float32), "labels of task 't' are float32, not class numbers"),
        (
            3,
            np.zeros((5, 2), int),
            "task 't' has 10 labels; its outputs on 6 calibration batches make 12 decisions",
        ),
        (3, np.zeros(12, int), r"have shape \[12\]; its outputs \[1, 2, 3\] make 2 decisions a call"),
        (3, [[0, 0]] * 5 + [[0, 3]], "label 3 of task 't' is no class; its outputs tell of 0 to 2"),
        (3, [[0, 0]] * 5 + [[0, -1]], "label -1 of task 't' is no class"),
        (1, [[0, 0]] * 5 + [[0, 2]], "label 2 of task 't' is no class; its outputs tell of 0 to 1"),
        (1, [[0, 1]] * 6, None),
        (3, [[0, 1], [2, 0], [1, 2]] * 2 + [[99, 99]], None),  # more than there are inputs
        (3, np.zeros((6, 2), np.uint8), None),
    ],
)
def test_labels_that_do_not_fit_the_outputs_are_refused(width, labels, message):
    graph = answers(1, 2, width)
    wanted = Wanted({"t": 1.0}, frozenset(), 2.0, 1.0)
    if message is None:
        assert prepared(TorchNet(graph), material(graph, labels), wanted, 4)[0].labels["t"].shape == (6, 2)
        return
    with pytest.raises(ConfigError, match=message):
        prepared(TorchNet(graph), material(graph, labels), wanted, 4)


# ---------------------------------------------------------------------- levels
def test_vectors_of_levels_are_those_that_have_some_and_biases_that_only_their_layers_read():
    b = Builder()
    x, full = b.input("x", 1, 4), np.ones((4, 4), np.float32)

    def nested(name: str) -> ValueRef:
        ref = b.const(full, name)
        form = TensorType(DType.FLOAT32, full.shape, BlockSparse(0, (2, 1)))
        b.graph.update(ref, type=form, data=full, sparser=[full * np.array([1, 1, 0, 0], np.float32)])
        return ref

    own, common, other, added = (vector(b, n, 4) for n in ("own", "common", "other", "added"))
    column, square = vector(b, "column", 1, 4), vector(b, "square", 2, 2)
    h = b.apply("Gemm", x, nested("w0"), own, transB=1)
    h = b.apply("Gemm", h, nested("w1"), common, transB=1)
    h = b.apply("Gemm", h, vector(b, "dense", 4, 4), other, transB=1)
    h = b.apply("Add", b.apply("Gemm", h, vector(b, "last", 4, 4), common, transB=1), added)
    h = b.apply("Gemm", h, nested("w2"), column, transB=1)
    levelled = vector(b, "levelled", 4)
    b.graph.update(levelled, data=np.ones(4, np.float32), sparser=[np.zeros(4, np.float32)])
    answered = vector(b, "answered", 4)
    b.task("t", b.apply("Mul", h, levelled), b.apply("Gemm", x, nested("w3"), answered, transB=1), answered)
    b.task("u", b.apply("Mul", b.apply("Reshape", square, b.const(np.array([1, 4]))), h))
    assert {r.name for r in own_vectors(b.done())} == {"own", "column", "levelled"}
