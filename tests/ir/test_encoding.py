"""Storage forms: what fits, what is stored, what slicing and new data do to them, text both ways."""

from __future__ import annotations

import re
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from compiler.errors import VerifyError
from compiler.ir.encoding import (
    WORTH_STORING,
    BlockSparse,
    Dense,
    Encoding,
    RegularBlock,
    Unstructured,
    parse,
)
from compiler.ir.graph import Graph
from compiler.ir.types import DType, TensorType, ValueRef
from tests.sparse import fitted


# ---------------------------------------------------------------------- what fits
@pytest.mark.parametrize("encoding", [BlockSparse(), RegularBlock(), Unstructured()])
def test_activations_are_dense(encoding: Encoding) -> None:
    with pytest.raises(ValueError, match="is a form of constants; a computed value is dense"):
        encoding.check((16, 16), None)
    with pytest.raises(VerifyError, match=f"value 'x': {encoding} is a form of constants"):
        Graph().add_value("x", TensorType(DType.FLOAT32, (16, 16), encoding))


def test_a_vector_has_no_rows_and_inputs() -> None:
    with pytest.raises(ValueError, match=re.escape("block16x1/0 needs rows on axis 0 and inputs on others")):
        BlockSparse().check((16,), np.zeros(16, np.float32))
    with pytest.raises(ValueError, match=re.escape("unstructured/2 needs rows on axis 2")):
        Unstructured(2).check((4, 4), np.zeros((4, 4)))
    with pytest.raises(ValueError, match=re.escape("regular16/0,2 has runs along axis 2; the shape is (4, 4)")):
        RegularBlock(inputs=2).check((4, 4), np.zeros((4, 4)))


def test_a_crowded_run_is_named() -> None:
    encoding, shape = RegularBlock(sizes=(4, 8)), (2, 10, 3, 3)
    data = fitted(encoding, shape)
    encoding.check(shape, data)
    data[1, 2:4, 1, 2] = 1
    expected = "row 1 has more than one non-zero element among inputs 0 to 7 of tap 5"
    with pytest.raises(ValueError, match=expected):
        encoding.check(shape, data)
    data[1, 2:4, 1, 2] = 0
    data[0, 8:10, 0, 0] = 1
    with pytest.raises(ValueError, match="row 0 has more than one non-zero element among inputs 8 to 9 of tap 0"):
        encoding.check(shape, data)


def test_sizes_are_for_all_rows_or_each() -> None:
    with pytest.raises(ValueError, match=re.escape("gives sizes for 2 rows; there are 3")):
        RegularBlock(sizes=(4, 8)).check((3, 8), np.zeros((3, 8)))
    assert RegularBlock(sizes=(8, 8, 8)) == RegularBlock(sizes=(8,))


@pytest.mark.parametrize("make", [lambda: BlockSparse(block=(16, 2)), lambda: BlockSparse(block=(1, 1))])
def test_blocks_are_columns(make: object) -> None:
    with pytest.raises(ValueError, match="a block is at least 2 rows of one input"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("bad", [{"sizes": ()}, {"sizes": (1,)}, {"rows": 1, "inputs": 1}])
def test_runs_have_two_inputs_on_another_axis(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="runs have at least 2 inputs"):
        RegularBlock(**bad)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what is stored
def test_stored_blocks_count_their_rows() -> None:
    data = np.zeros((10, 3, 2), np.float32)
    data[2, 1, 0] = data[3, 1, 0] = data[9, 2, 1] = 1
    encoding = BlockSparse(block=(4, 1))
    assert encoding.stored(data.shape, data) == 4 + 2  # the last block has two rows
    assert encoding.index_bytes(data.shape, data) == 4 * (2 + 2 * 3)
    assert Unstructured().stored(data.shape, data) == 3
    assert Unstructured().index_bytes(data.shape, data) == 4 * (3 + 11)
    turned = np.ascontiguousarray(data.transpose(1, 0, 2))
    assert BlockSparse(rows=1, block=(4, 1)).stored(turned.shape, turned) == 6


def test_a_regular_form_stores_one_element_per_run_whatever_the_data() -> None:
    encoding = RegularBlock(sizes=(4, 16))
    assert encoding.stored((2, 20, 3), np.zeros((2, 20, 3))) == (5 + 2) * 3
    assert encoding.index_bytes((2, 20, 3), np.zeros((2, 20, 3))) == 21
    assert RegularBlock(rows=1, inputs=0).stored((33, 7), np.zeros((33, 7))) == 3 * 7


@pytest.mark.parametrize("encoding", [BlockSparse(), RegularBlock(), Unstructured()])
def test_nothing_is_stored_of_an_empty_tensor(encoding: Encoding) -> None:
    data = np.zeros((0, 4), np.float32)
    encoding.check(data.shape, data)
    assert encoding.stored(data.shape, data) == 0


# ---------------------------------------------------------------------- slicing
def test_taking_inputs_keeps_blocks() -> None:
    data = fitted(BlockSparse(), (32, 12, 3, 3), 0.2)
    encoding, left = BlockSparse().take(data, 1, np.array([0, 3, 4, 11]))
    assert encoding == BlockSparse()
    assert np.array_equal(left, data[:, [0, 3, 4, 11]])


def test_taking_whole_blocks_keeps_their_share() -> None:
    data = fitted(BlockSparse(), (64, 40), 0.6)
    encoding, left = BlockSparse().take(data, 0, np.r_[16:32, 48:64])
    assert encoding == BlockSparse()
    assert encoding.stored(left.shape, left) == np.count_nonzero(left)


def test_rows_that_break_blocks_stay_blocks_up_to_half_and_become_dense_beyond() -> None:
    kept = np.delete(np.arange(64), [3])
    thin, thick = fitted(BlockSparse(), (64, 400), 0.1), fitted(BlockSparse(), (64, 400), 0.4)
    encoding, left = BlockSparse().take(thin, 0, kept)
    assert encoding == BlockSparse()
    assert encoding.stored(left.shape, left) > 1.5 * np.count_nonzero(left)
    assert BlockSparse().take(thick, 0, kept)[0] == Dense()


def test_taking_rows_keeps_their_sizes() -> None:
    encoding = RegularBlock(sizes=(4, 8, 8, 16))
    data = fitted(encoding, (4, 32))
    assert encoding.take(data, 0, np.array([0, 3]))[0] == RegularBlock(sizes=(4, 16))
    assert encoding.take(data, 0, np.array([1, 2]))[0] == RegularBlock(sizes=(8,))


def test_taking_inputs_halves_the_runs_that_become_crowded() -> None:
    data = np.zeros((3, 16), np.float32)
    data[0, [0, 8]] = data[1, [7, 8]] = data[2, [0, 12]] = 1
    encoding = RegularBlock(sizes=(8,))
    kept = np.delete(np.arange(16), [1, 2, 3])  # entries 8 and 12 move to 5 and 9
    assert encoding.take(data, 1, kept)[0] == Unstructured()  # row 1 has 7, 8 side by side
    data[1, 7] = 0
    assert encoding.take(data, 1, kept)[0] == RegularBlock(sizes=(4, 8, 8))


def test_taking_whole_runs_changes_nothing() -> None:
    encoding = RegularBlock(sizes=(4,))
    data = fitted(encoding, (5, 16, 3))
    assert encoding.take(data, 1, np.r_[0:4, 8:16])[0] == encoding


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(shape=SHAPES, kind=st.integers(0, 2), axis=st.integers(0, 2), seed=st.integers(0, 99))
def test_what_is_taken_fits_and_is_not_stored_larger(
    shape: tuple[int, ...], kind: int, axis: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(3))
    inputs = (rows + 1) % 3
    sizes = tuple(int(s) for s in rng.choice([4, 8, 16], shape[rows]))
    forms = (BlockSparse(rows, (sizes[0], 1)), RegularBlock(rows, inputs, sizes), Unstructured(rows))
    encoding, data = forms[kind], fitted(forms[kind], shape, seed=seed)
    encoding.check(shape, data)
    kept = np.flatnonzero(rng.random(shape[axis]) < 0.6)
    after, left = encoding.take(data, axis, kept)
    assert np.array_equal(left, np.take(data, kept, axis=axis))
    after.check(left.shape, left)
    needed = max(np.count_nonzero(left), WORTH_STORING * left.size)
    assert isinstance(after, Dense) or after.stored(left.shape, left) <= needed
    assert encoding.adapted(data, data) == encoding


# ---------------------------------------------------------------------- new data
def test_new_data_keep_a_form_that_fits_and_change_it_otherwise() -> None:
    graph = Graph()
    encoding = RegularBlock(sizes=(16,))
    data = fitted(encoding, (4, 32))
    w = graph.add_value("w", TensorType(DType.FLOAT32, data.shape, encoding), data)
    graph.update(w.ref, data=data * np.float32(2))
    assert graph.value(w.ref).type.encoding == encoding
    moved = np.roll(data, 5, axis=1)
    graph.update(w.ref, data=moved)
    changed = graph.value(w.ref).type.encoding
    assert changed != encoding
    assert isinstance(changed, (RegularBlock, Unstructured))
    graph.update(w.ref, data=np.ones_like(data))
    assert graph.value(w.ref).type.encoding == Dense()


def test_a_form_given_with_data_must_fit() -> None:
    graph = Graph()
    w = graph.add_parameter("w", np.ones((4, 16), np.float32))
    with pytest.raises(VerifyError, match=r"value 'w': regular16/0,1: row 0 has more than one non-zero"):
        graph.update(w.ref, type=replace(w.type, encoding=RegularBlock()))


def test_readers_of_another_form_cannot_be_redirected() -> None:
    graph = Graph()
    data = np.zeros((16, 4), np.float32)
    graph.add_parameter("a", data)
    graph.add_value("b", TensorType(DType.FLOAT32, data.shape, BlockSparse()), data)
    with pytest.raises(VerifyError, match="types differ"):
        graph.replace_uses(ValueRef("a"), ValueRef("b"))


# ---------------------------------------------------------------------- text
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        (Dense(), "dense"),
        (BlockSparse(), "block16x1/0"),
        (BlockSparse(1, (4, 1)), "block4x1/1"),
        (RegularBlock(), "regular16/0,1"),
        (RegularBlock(2, 0, (4, 4, 8, 4, 4, 4)), "regular4*2+8+4*3/2,0"),
        (Unstructured(1), "unstructured/1"),
    ],
)
def test_text_reads_back(encoding: Encoding, text: str) -> None:
    assert str(encoding) == text
    assert parse(text) == encoding


@pytest.mark.parametrize(
    "text",
    ["", "block16", "block16x1/x", "regular/0,1", "regular4*0000000009999999999/0,1", "unstructured", "x" * 99],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an encoding; the forms are"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("regular4*9999999/0,1", "sizes for more than 1048576 rows"),
        ("block16x2/0", "a block is at least 2 rows of one input"),
        ("regular1/0,1", "runs have at least 2 inputs"),
    ],
)
def test_text_of_forms_that_do_not_exist(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)
