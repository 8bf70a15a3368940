"""Printing, digests, signatures."""

import numpy as np

from compiler.ir.graph import Graph
from compiler.ir.onnx_in import load
from compiler.ir.op import operator
from compiler.ir.text import digest, parameter_digest, signature, text
from compiler.ir.types import DType, TensorType, ValueRef
from tests.ir.onnx_models import parse


def parameter(array):
    return Graph().add_parameter("w", array)


def chain(reverse: bool = False, slope: float = 0.1, weight: float = 1.0, name: str = "graph") -> Graph:
    graph = Graph(name)
    type_ = TensorType(DType.FLOAT32, (2,))
    x = graph.add_input("x", type_)
    for value in ("z", "y") if reverse else ("y", "z"):
        graph.add_value(value, type_)
    w = graph.add_parameter("w", np.full(2, weight, np.float32))
    nodes = [
        ("leaky", operator("LeakyRelu"), {"alpha": slope}, [x.ref], [ValueRef("y")]),
        ("mul", operator("Mul"), {}, [ValueRef("y"), w.ref], [ValueRef("z")]),
    ]
    for node in reversed(nodes) if reverse else nodes:
        graph.add_node(*node)
    graph.set_task("t", [ValueRef("z")], ["out"])
    return graph


def test_text():
    assert text(chain()) == (
        'input %"x": float32[2]\n'
        f'parameter %"w": float32[2] = {parameter_digest(parameter(np.ones(2, np.float32)))[:12]}\n'
        '%"y": float32[2] = LeakyRelu(%"x") {alpha=0.10000000149011612} "leaky"\n'
        '%"z": float32[2] = Mul(%"y", %"w") "mul"\n'
        'task "t": %"z" as "out"\n'
    )


def test_digest_ignores_order_of_insertion_and_the_graphs_name():
    assert digest(chain(reverse=True, name="other")) == digest(chain())


def test_digest_sees_attributes_data_and_tasks():
    renamed = chain()
    renamed.set_task("t", [ValueRef("z")], ["other"])
    different = [chain(), chain(slope=0.2), chain(weight=2.0), renamed]
    assert len({digest(g) for g in different}) == len(different)


def test_attributes_count_as_float32():
    assert digest(chain(slope=0.1)) == digest(chain(slope=float(np.float32(0.1))))


def test_hostile_names_stay_on_one_line():
    model = parse("net (float[2] x) => (float[2] z) { z = Relu(x) }")
    model.graph.node[0].name = 'a"\ninput %"b'
    assert len(text(load(model)).splitlines()) == 3


def test_parameter_digest_of_a_splat_is_that_of_its_written_form():
    splat = Graph().add_value("w", TensorType(DType.FLOAT32, (3, 4)), np.broadcast_to(np.float32(2), (3, 4)))
    assert parameter_digest(splat) == parameter_digest(parameter(np.full((3, 4), 2, np.float32)))


def test_parameter_digest_of_a_huge_splat_is_immediate():
    shape = (1 << 20, 1 << 12)  # 16 GiB if written out
    splat = Graph().add_value("w", TensorType(DType.FLOAT32, shape), np.broadcast_to(np.float32(2), shape))
    assert len(parameter_digest(splat)) == 64


def test_parameter_digest_sees_type_shape_and_every_bit():
    arrays = [
        np.zeros(4, np.float32),
        -np.zeros(4, np.float32),
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.float32),
        np.zeros((0, 2), np.float32),
        np.zeros((2, 0), np.float32),
        np.asarray([0, 0, 0, 1e-45], np.float32),
        np.asarray(0, np.float32),
        np.asarray([True, False]),
    ]
    assert len({parameter_digest(parameter(a)) for a in arrays}) == len(arrays)


def test_parameter_digest_ignores_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert parameter_digest(parameter(array.T)) == parameter_digest(parameter(np.ascontiguousarray(array.T)))


def test_signature_ignores_names_and_sees_constants():
    def mul(graph):
        return signature(graph.site(graph.nodes()[1]))

    renamed = load(
        parse("net (float[2] a) => (float[2] c) <float[2] k = {1, 1}> { b = LeakyRelu(a) c = Mul(b, k) }")
    )
    assert mul(renamed) == mul(chain())
    assert mul(chain(weight=2.0)) != mul(chain())
    first = chain().nodes()[0]
    assert signature(chain().site(first)) != signature(chain(slope=0.2).site(chain(slope=0.2).nodes()[0]))
