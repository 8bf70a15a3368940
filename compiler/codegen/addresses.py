"""Addresses in 64 bits, for processors whose loads take nothing else.

Kernels compute positions in 32 bits. LLVM forgets that these sums do not overflow once it has reordered them:
every turn of a loop then adds in 32 bits, extends the sum, and adds that to a pointer. Of sums in 64 bits it makes
a pointer that moves.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

WIDE = "int64"
_SUMS = frozenset({tirx.Add, tirx.Sub, tirx.Mul})


def widened(module: Any) -> Any:
    """The functions of a module with flat buffers, their positions as sums and products of 64-bit numbers."""
    rewrite = [(tvm.ir.TensorLoad, _load), (tirx.BufferStore, _store)]
    made = {n: f.with_body(tvm_ffi.structural_map(f.body, rewrite)) for n, f in module.functions.items()}
    return tvm.IRModule(made)


def _load(load: Any) -> Any:
    return tirx.BufferLoad(load.source, [_position(i) for i in load.indices])


def _store(store: Any) -> Any:
    return tirx.BufferStore(store.buffer, store.value, [_position(i) for i in store.indices])


def _position(index: Any) -> Any:
    if type(index) is tirx.Ramp:
        return tirx.Ramp(_wide(index.base), _wide(index.stride), index.lanes)
    return _wide(index)


def _wide(value: Any) -> Any:
    """A number of 32 bits as one of 64. Of sums and products every operand: LLVM sees through none that is
    extended."""
    if str(value.ty.dtype) != "int32":
        return value
    kind = type(value)  # the classes have no subclasses, and asking `isinstance` takes as long as all the rest
    if kind in _SUMS:
        return kind(_wide(value.a), _wide(value.b))
    if kind is tirx.IntImm:
        return tirx.IntImm(WIDE, value.value)
    return tirx.Cast(WIDE, value)
