"""Every operator as a torch function, on the cases of the registry, for a batch of two."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")

from compiler.ir.graph import Graph, Site  # noqa: E402
from compiler.ir.reference import evaluate  # noqa: E402
from compiler.ir.types import DType, TensorType  # noqa: E402
from compiler.training.module import TorchNet  # noqa: E402
from tests.graphs import Builder  # noqa: E402
from tests.ir.op_case import OpCase, site_of  # noqa: E402
from tests.ir.op_cases import CASES  # noqa: E402
from tests.ir.oracles import assert_close  # noqa: E402

UNSIGNED = {DType.UINT16, DType.UINT32, DType.UINT64}  # torch has hardly any arithmetic for them
AGREES = 1e-4


def graph_of(site: Site) -> Graph:
    graph, refs = Graph("one"), []
    for i in range(len(site.operands)):
        value = site.operands.optional(i)
        if value is None:
            refs.append(None)
        elif value.data is None:
            refs.append(graph.add_input(value.ref.name, value.type).ref)
        else:
            refs.append(graph.add_parameter(value.ref.name, value.data).ref)
    outputs = [graph.add_value(v.ref.name, v.type).ref for v in site.results]
    graph.add_node("node", site.node.op, site.attrs, refs, outputs)
    graph.set_task("task", outputs)
    return graph.freeze()


def has_unsigned(site: Site) -> bool:
    values = [*(v for _, v in site.operands.present()), *site.results]
    return any(v.dtype in UNSIGNED for v in values)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.id}")
def test_every_operator_is_a_torch_function_of_a_batch(case: OpCase):
    site = site_of(case)
    if has_unsigned(site) or not case.lowers:
        pytest.skip("torch cannot compute with this element type, or the operator does not lower")
    arrays = {v.ref.name: case.arrays()[i] for i, v in site.operands.present() if v.data is None}
    net = TorchNet(graph_of(site))
    with torch.no_grad():
        found = net.run({n: torch.from_numpy(np.stack([a, a])) for n, a in arrays.items()} or {})
    expected = site.node.op.evaluate(site, case.arrays())
    for value, want in zip(site.results, expected, strict=True):
        for sample in found[value.ref]:
            assert_close(sample.numpy(), want, max(case.tolerance, AGREES), f"result {value.ref}")


def test_types_of_the_graph_are_kept():
    graph = Graph("types")
    x = graph.add_input("x", TensorType(DType.FLOAT32, (1, 3)))
    graph.set_task("t", [x.ref])
    net = TorchNet(graph.freeze())
    assert net.run(net.feeds({"x": np.ones((2, 1, 3), np.float32)}))[x.ref].dtype == torch.float32


def test_common_layers_are_run_by_functions_of_torch_and_not_by_their_lowering():
    """A lowered convolution takes many times as long and as much memory to train."""
    b = Builder(seed=1)
    h = b.apply("MaxPool", b.apply("Relu", b.conv(b.input("x", 1, 4, 8, 8), 8, 3)), kernel_shape=(2, 2))
    gemm = b.apply("Gemm", b.apply("Flatten", h), b.weight(5, 8 * 25), b.weight(5), transB=1)
    b.task("t", b.apply("Add", b.apply("MatMul", b.apply("Relu", gemm), b.weight(5, 3)), b.weight(3)))
    net = TorchNet(b.graph.freeze())
    x = np.random.default_rng(2).normal(size=(2, 1, 4, 8, 8)).astype(np.float32)
    (output,) = b.graph.tasks["t"].outputs
    net._emit = None  # type: ignore[assignment]
    found = net.run(net.feeds({"x": x}))[output].detach()
    for sample, made in zip(x, found, strict=True):
        assert_close(made.numpy(), evaluate(b.graph, {"x": sample})[output.name], AGREES, "output")


def test_mixed_products_have_fewer_bits_and_everything_else_keeps_its_own():
    b = Builder(seed=1)
    x = b.input("x", 1, 4, 8, 8)
    h = b.apply("Relu", b.conv(x, 8, 3))
    b.task("t", b.apply("Softmax", b.apply("Gemm", b.apply("Flatten", h), b.weight(3, 8 * 36), transB=1), axis=-1))
    net = TorchNet(b.graph.freeze())
    feeds = net.feeds({"x": np.random.default_rng(2).normal(size=(5, 1, 4, 8, 8)).astype(np.float32)})
    (whole,) = net.run(feeds).values()
    net.mixed = True
    (mixed,) = net.run(feeds).values()
    assert mixed.dtype == torch.float32 and all(w.dtype == torch.float32 for w in net.weights.values())
    assert 1e-5 < float((mixed - whole).detach().abs().max()) < 0.05
    mixed.square().sum().backward()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in net.weights.values())
