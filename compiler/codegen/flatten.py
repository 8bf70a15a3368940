"""Buffers of several dimensions become row-major ones of one dimension, as machine code addresses them.

TVM's FlattenBuffer does the same, and simplifies every address under all conditions around it: in unrolled kernels
that took more than half of the time of compilation and changed nothing that the later simplification does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx


def flattened(module: Any) -> Any:
    """The functions of a module with flat buffers; TVM does those with booleans, which it stores as bytes."""
    own: dict[Any, Any] = {}
    rest: dict[Any, Any] = {}
    for name, func in module.functions.items():
        (rest if _holds_booleans(func.body) else own)[name] = func
    made = {name: _Flat().function(func) for name, func in own.items()}
    if rest:
        made |= dict(tirx.transform.FlattenBuffer()(tvm.IRModule(rest)).functions.items())
    return tvm.IRModule(made)


def _holds_booleans(body: Any) -> bool:
    found = []

    def look(statement: Any) -> Any:
        found.append("bool" in str(statement.buffer.ty.dtype))
        return statement

    tvm_ffi.structural_map(body, [(tirx.DeclBuffer, look), (tirx.AllocBuffer, look)])
    return any(found)


class _Flat:
    """One function's buffers, flat."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def function(self, func: Any) -> Any:
        """The function with flat buffers."""
        parameters = [self._flat(p) if tirx.buffer.is_buffer_var(p) else p for p in func.params]
        return tirx.PrimFunc(parameters, self._body(func.body), func.ret_type, attrs=func.attrs)

    def _body(self, body: Any) -> Any:
        rewrite = [
            (tvm.ir.TensorLoad, self._load),
            (tirx.BufferStore, self._store),
            (tirx.DeclBuffer, lambda d: tirx.DeclBuffer(self._flat(d.buffer), data=d.data)),
            (tirx.AllocBuffer, lambda a: tirx.AllocBuffer(self._flat(a.buffer), a.annotations)),
        ]
        return tvm_ffi.structural_map(body, rewrite)

    def _flat(self, buffer: Any) -> Any:
        if buffer not in self._made:
            assert not buffer.ty.strides, "kernels' buffers are row-major"
            flat = len(buffer.ty.shape) == 1
            self._made[buffer] = buffer if flat else buffer.get_flattened_buffer()
        return self._made[buffer]

    def _load(self, load: Any) -> Any:
        if len(load.indices) == 1:
            return load
        return tirx.BufferLoad(self._flat(load.source), [_address(load.indices, load.source.ty.shape)])

    def _store(self, store: Any) -> Any:
        if len(store.indices) == 1:
            return store
        at = _address(store.indices, store.buffer.ty.shape)
        return tirx.BufferStore(self._flat(store.buffer), store.value, [at])


def _address(indices: Sequence[Any], shape: Sequence[Any]) -> Any:
    """The row-major position of an index; at most one entry is a ramp, which the result then is too."""
    constant, stride, terms = 0, 1, []
    lanes: tuple[Any, int] | None = None
    for index, extent in zip(reversed(list(indices)), reversed(list(shape)), strict=True):
        scalar = index
        if isinstance(index, tirx.Ramp):
            assert lanes is None, "one axis of a vector moves"
            lanes, scalar = (index, stride), index.base
        if isinstance(scalar, tirx.IntImm):
            constant += int(scalar.value) * stride
        else:
            terms.append(scalar if stride == 1 else scalar * tirx.IntImm("int32", stride))
        stride *= int(extent)
    total = None
    for term in reversed(terms):
        total = term if total is None else total + term
    if total is None or constant:
        offset = tirx.IntImm("int32", constant)
        total = offset if total is None else total + offset
    if lanes is None:
        return total
    ramp, step = lanes
    return tirx.Ramp(total, ramp.stride * tirx.IntImm("int32", step), ramp.lanes)
