"""Positions in 64 bits: every operand of a sum is extended, never the sum."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from compiler.codegen.addresses import widened
from compiler.codegen.templates.common import kernel, vector, view


def positions(module: Any) -> list[Any]:
    """The index of every load, then of every store."""
    loads: list[Any] = []
    stores: list[Any] = []
    rewrite = [
        (tvm.ir.TensorLoad, lambda n: loads.append(n.indices[0]) or n),
        (tirx.BufferStore, lambda n: stores.append(n.indices[0]) or n),
    ]
    for func in module.functions.values():
        tvm_ffi.structural_map(func.body, rewrite)
    return loads + stores


def extended(module: Any) -> list[str]:
    """What is cast to 64 bits."""
    found: list[str] = []
    for func in module.functions.values():
        cast = [(tirx.Cast, lambda n: found.append(type(n.value).__name__) or n)]
        tvm_ffi.structural_map(func.body, cast)
    return found


def test_operands_are_extended_not_sums() -> None:
    with kernel(("x", "t", "y"), {"t": "int32"}) as made:
        x, y = (view(made.pointers[p], (4096,)) for p in "xy")
        table = view(made.pointers["t"], (64,), "int32")
        with T.serial(8) as i, T.serial(8) as j:
            read = vector((i * 8 + table[j]) * 4 - j + 12, 4)
            T.buffer_store(y, x[read], [vector((i * 8 + j) * 4, 4)])
    module = tvm.IRModule({"f": made.func})
    assert {str(p.ty.dtype) for p in positions(module)} == {"int32", "int32x4"}
    wide = widened(module)
    assert {str(p.ty.dtype) for p in positions(wide)} == {"int64", "int64x4"}
    # i, j, and what the table holds; constants are of 64 bits themselves
    assert set(extended(wide)) == {"Var", "TensorLoad"}
