"""One operator compiled and run on this machine by the generic route, for tests of lowerings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm

from compiler.codegen.functions import expand
from compiler.codegen.generic.kernel import lower_group
from compiler.ir.graph import Site
from compiler.ir.types import ValueRef

LANES = 8

TARGET = {"kind": "llvm", "opt-level": 0}
"""What is tested is the lowering, as it was written; compiled libraries are held to onnxruntime elsewhere."""


def run_site(site: Site, arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    """Compile one operator application by the generic route for this machine and run it.

    `arrays` by formal operand position; those of constant operands are ignored (the data is compiled in).
    """
    stored = [v for v in site.results if v.size]  # nothing to compute for the others
    if not stored:
        return tuple(np.zeros(v.shape, v.dtype.numpy) for v in site.results)
    kernel = lower_group([site], stored, {}, LANES)
    func = kernel.func.with_attr("global_symbol", "main").with_body(expand(kernel.func.body))
    built = tvm.tirx.build(tvm.IRModule({"main": func}), target=tvm.target.Target(TARGET))
    by_ref = {v.ref: arrays[i] for i, v in site.operands.present()}
    feeds = [np.ascontiguousarray(by_ref[r]).reshape(_flat(site, r)) for r in kernel.inputs]
    outs = [np.zeros(max(v.size, 1), v.dtype.numpy) for v in stored]
    tensors = [tvm.runtime.tensor(a) for a in [*feeds, *(t.reshape(-1) for t in kernel.tables), *outs]]
    built["main"](*tensors, *((0, kernel.parts) if kernel.parts else ()))
    made = {v.ref: t.numpy() for v, t in zip(stored, tensors[len(tensors) - len(outs) :], strict=True)}
    return tuple(made.get(v.ref, np.zeros(0, v.dtype.numpy)).reshape(v.shape) for v in site.results)


def _flat(site: Site, ref: ValueRef) -> int:
    """Elements of the operand called `ref`."""
    return next(v.size for _, v in site.operands.present() if v.ref == ref)
