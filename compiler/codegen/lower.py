"""PrimFuncs to relocatable objects with plain C entry points: no TVM runtime, no allocation, no packed calls.

The usual host pipeline ends in TVM's packed calling convention. Here the same loop passes run, then every buffer
parameter becomes a raw pointer, local buffers that would need the runtime's allocator move to a scratch pointer,
and LLVM emits `int32_t symbol(void *, ...)`.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from compiler.codegen.addresses import widened
from compiler.codegen.elf import Elf
from compiler.codegen.flatten import flattened
from compiler.codegen.functions import expand
from compiler.codegen.target import Target
from compiler.errors import LoweringError, TargetError
from compiler.progress import Say, silent, tracked
from compiler.workers.jobs import Job, Workers

STACK_LIMIT = 1024
"""Local buffers of at least this many bytes would become runtime calls; they move to scratch."""

LLVM_OPTIONS = ("-vectorize-loops:bool=false",)
"""LLVM's loop vectoriser is off: kernels carry explicit vectors, and LLVM 22 turns `x[i % 4]` inside a vectorised
loop over i into a read of x[i] on AVX-512 (docs/decisions/0006)."""

ARMV7_OPTIONS = ("-unroll-threshold-aggressive:uint=0",)
"""On 32-bit ARM LLVM unrolls no loops: loads of vectors take no offset there, so that every load of an unrolled
body wants an address in a register of its own, and spills it."""

KERNEL = "kernel"
"""Symbol that every function is compiled under: equal functions of different libraries give equal objects."""

LEFT_OUT = ("tirx.RemoveNoOp", "s_tir.StmtSimplify")
"""Passes of TVM within HoistIfThenElse: LLVM finds statements without effect sooner, and once loops are unrolled
everything is simplified anyway."""

TVM_VERSION = "0.27.0"
"""Names of passes change between releases of TVM: a build is only made with the release it was tested with."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Per symbol an object file, and the bytes of scratch it wants as an extra last pointer (0: no pointer)."""

    objects: Mapping[str, bytes]
    scratch: Mapping[str, int]


def check_versions() -> None:
    """TargetError where the installed TVM is not the tested one."""
    if not tvm.__version__.startswith(TVM_VERSION):
        raise TargetError(
            f"taskgraft needs apache-tvm {TVM_VERSION}, found {tvm.__version__}: "
            "pip install 'apache-tvm==0.27.0.post1' 'apache-tvm-ffi==0.1.14.post1'"
        )


def compile_kernels(
    funcs: Mapping[str, Any], target: Target, workers: Workers | None = None, say: Say = silent
) -> Compiled:
    """Compile PrimFuncs by symbol for `target`, each to an object of its own.

    Every kernel is a job, whose result does not depend on its symbol; without `workers` they are compiled in this
    process. LoweringError names the kernel that TVM or LLVM rejects.
    """
    check_versions()
    stage = f"{target.name}: kernels"
    if workers is None:
        made = []
        for symbol, func in tracked(say, stage, funcs.items(), len(funcs)):
            try:
                made.append(_compile(func, target.tvm))
            except LoweringError as error:
                raise LoweringError(f"kernel {symbol} for {target.name}: {error}") from error
    else:
        jobs = [_job(symbol, func, target) for symbol, func in funcs.items()]
        made = [_unpacked(result) for result in workers.perform(jobs, stage, say)]
    named = dict(zip(funcs, made, strict=True))
    return Compiled(
        {symbol: Elf(code).renamed(KERNEL, symbol) for symbol, (code, _) in named.items()},
        {symbol: scratch for symbol, (_, scratch) in named.items()},
    )


def compile_job(payload: bytes) -> bytes:
    """A job: a PrimFunc and a target as text to the bytes of scratch (8 bytes, little-endian) and the object."""
    check_versions()
    record = json.loads(payload)
    code, scratch = _compile(tvm.ir.load_json(record["function"]), record["target"])
    return scratch.to_bytes(8, "little") + code


def _job(symbol: str, func: Any, target: Target) -> Job:
    record = {"target": target.tvm, "function": tvm.ir.save_json(func.with_attr("global_symbol", KERNEL))}
    payload = json.dumps(record, sort_keys=True).encode()
    return Job(f"kernel {symbol} for {target.name}", f"{__name__}:{compile_job.__name__}", payload)


def _unpacked(result: bytes) -> tuple[bytes, int]:
    return result[8:], int.from_bytes(result[:8], "little")


_TVM_ERRORS = (tvm.error.InternalError, ValueError, RuntimeError, TypeError)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _compile(func: Any, target: Mapping[str, object]) -> tuple[bytes, int]:
    """Object with the symbol KERNEL, and bytes of scratch; LoweringError where TVM or LLVM reject the function."""
    try:
        options = [*LLVM_OPTIONS, *(ARMV7_OPTIONS if str(target["mtriple"]).startswith("armv7") else ())]
        return _lowered(func, tvm.target.Target({**target, "cl-opt": options}))
    except _TVM_ERRORS as error:
        raise LoweringError(f"TVM cannot compile it: {_reason(error)}") from error


def _lowered(func: Any, target: Any) -> tuple[bytes, int]:
    named = {KERNEL: func.with_attr("global_symbol", KERNEL)}
    module = tirx.transform.BindTarget(target.with_host(target))(tvm.IRModule(named))
    module = s_tir.transform.CanonicalizeLoop()(module)
    with tvm.ir.transform.PassContext(disabled_pass=list(LEFT_OUT)):
        module = tvm.ir.transform.Sequential(_loop_passes())(flattened(module))
    if str(target.attrs["mtriple"]).startswith("aarch64"):
        module = widened(module)
    module = tirx.transform.VerifyMemory()(_named_repeats(module))
    module, scratch = _raw_pointers(module, target)
    module = tvm.ir.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])(module)
    module = _fused(module)
    if not str(target.attrs["mtriple"]).startswith("x86_64"):
        module = _single_extremes(module)
    built = tvm.get_global_func("target.build.llvm")(module, target)
    return _object_bytes(built, str(target.attrs["mtriple"])), scratch[KERNEL]


def _fused(module: Any) -> Any:
    """Multiply-adds that LLVM may fuse as ones that it must: it would split those of 32-bit ARM vectors.

    Every target has the instruction, and one rounding everywhere makes results agree between targets.
    """
    may, must = (tvm.target.codegen.llvm_lookup_intrinsic_id(f"llvm.{n}") for n in ("fmuladd", "fma"))

    def exact(call: Any) -> Any:
        if str(getattr(call.op, "name", "")) != "tirx.call_llvm_pure_intrin" or int(call.args[0].value) != may:
            return call
        return tirx.call_llvm_pure_intrin(call.ty, tirx.IntImm("uint32", must), *call.args[1:])

    mapped = {
        n: f.with_body(tvm_ffi.structural_map(f.body, [(tvm.ir.Call, exact)])) for n, f in module.functions.items()
    }
    return tvm.IRModule(mapped)


def _single_extremes(module: Any) -> Any:
    """The larger or smaller of two vectors as one instruction of ARM; LLVM would compare and select, because the
    instruction orders zeros by their sign."""
    larger, smaller = (tvm.target.codegen.llvm_lookup_intrinsic_id(f"llvm.{n}") for n in ("maximum", "minimum"))

    def intrinsic(number: int) -> Callable[[Any], Any]:
        def single(node: Any) -> Any:
            dtype = tvm_ffi.dtype(str(node.a.ty.dtype))
            if dtype.lanes == 1 or not str(dtype).startswith("float32"):
                return node
            return tirx.call_llvm_pure_intrin(node.a.ty, tirx.IntImm("uint32", number), node.a, node.b)

        return single

    maps = [(tirx.Max, intrinsic(larger)), (tirx.Min, intrinsic(smaller))]
    mapped = {n: f.with_body(tvm_ffi.structural_map(f.body, maps)) for n, f in module.functions.items()}
    return tvm.IRModule(mapped)


def _object_bytes(built: Any, triple: str) -> bytes:
    """Machine code of an optimised module; what TVM offers no option for is changed in its text."""
    text = _without_conversions(_without_names(built.inspect_source("ll")))
    if triple.startswith("x86_64"):
        text = _with_aligned_frames(text)
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder, "kernels.ll"), Path(folder, "kernels.o")
        source.write_text(text)
        tvm.runtime.load_module(str(source)).write_to_file(str(path), "o")
        return path.read_bytes()


def _without_names(text: str) -> str:
    """A module without what debuggers would show: the names of variables of our code generation. LLVM takes a
    quarter longer to follow them through registers, and they are more than half of an object."""
    bare = re.sub(r"^ *#dbg_.*\n|^!llvm\.dbg\.cu = .*\n", "", text, flags=re.M)
    return re.sub(r",? !dbg !\d+", "", bare)


def _without_conversions(text: str) -> str:
    """A module without the conversions of float16 that TVM puts into every one, if nothing is float16.

    They are as long as a small kernel. Otherwise they stay: machine code may call them where the text does not.
    """
    bare = re.sub(r"^define weak .*?^}\n", "", text, flags=re.M | re.S)
    return text if re.search(r"\bhalf\b", re.sub(r"^declare .*\n", "", bare, flags=re.M)) else bare


def _with_aligned_frames(text: str) -> str:
    """The module with stack frames as aligned as the vectors that registers spill to.

    x86-64 promises 16 bytes. Unless a function is marked before registers are allocated, LLVM spills 32- and
    64-byte vectors to such addresses; whether they straddle cache lines then depends on the caller's depth, and a
    kernel that spills took 1.75 times as long in every second process. TVM marks no functions: the text is edited.
    """
    marked, count = re.subn(r'^(attributes #\d+ = \{.*?)("target-cpu")', r'\1"stackrealign" \2', text, flags=re.M)
    assert count, "kernels carry the attribute target-cpu"
    return marked


def _loop_passes() -> list[Any]:
    """From loops over flat buffers to machine code's loops; with what precedes and follows in the order of TVM's
    host pipeline. That simplifies indices before buffers are flat, too; simplifying once, at the end, is
    cheaper and gives the same machine code, or some of another order of equal additions. It also brings divisions
    into a normal form before that (RenormalizeSplitPattern), which changes the machine code of hardly any kernel.

    Kernels have no schedulable blocks, so the passes that lower those are left out; one of them
    (CompactBufferAllocation) overflows where a loop takes its bounds from the caller.
    """
    s, t = s_tir.transform, tirx.transform
    return [
        t.BF16ComputeLegalize(),
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.ConvertSSA(),
        t.VectorizeLoop(True),
        t.StorageRewrite(),
        s.HoistIfThenElse(),
        t.UnrollLoop(),
        t.StmtSimplify(),
        s.RewriteUnsafeSelect(),
    ]


def _named_repeats(module: Any) -> Any:
    """The module with names for what is computed several times, once addresses have their form.

    TVM overlooks uses inside of names for vectors and may define a name where these do not see it. Then nothing
    gets one: LLVM finds repetitions too.
    """
    made = tirx.transform.CommonSubexprElim()(module)

    def sound(module: Any) -> bool:
        return all(tirx.analysis.verify_well_formed(f, False) for f in module.functions.values())

    return made if sound(made) or not sound(module) else module


def _raw_pointers(module: Any, target: Any) -> tuple[Any, dict[str, int]]:
    functions, scratch = {}, {}
    for name, func in module.functions.items():
        functions[name], scratch[name.name_hint] = _raw_pointer_function(func, target)
    return tvm.IRModule(functions), scratch


def _raw_pointer_function(func: Any, target: Any) -> tuple[Any, int]:
    """Buffer parameters become pointers; large local buffers become offsets into a last `scratch` pointer.

    Scalar parameters (the range of a divided kernel) stay behind all pointers.
    """
    parameters, scalars, declarations = [], [], []
    for parameter in func.params:
        if tirx.buffer.is_buffer_var(parameter):
            pointer = tirx.Var(parameter.name + "_p", tvm.ir.PointerType(parameter.ty.dtype))
            declarations.append(tirx.DeclBuffer(parameter, data=pointer))
            parameters.append(pointer)
        elif isinstance(parameter.ty, tvm.ir.PointerType):
            parameters.append(parameter)
        else:
            scalars.append(parameter)
    scratch = tirx.Var("scratch", tvm.ir.PointerType(tvm.ir.PrimType("void")))
    lifted = _Lifted(scratch)
    body = tvm_ffi.structural_map(func.body, [(tirx.AllocBuffer, lifted.place)])
    body = expand(body)
    zero = tirx.IntImm("int32", 0)
    body = tirx.AttrStmt(zero, "device_id", zero, tirx.AttrStmt(zero, "device_type", tirx.IntImm("int32", 1), body))
    body = tirx.SeqStmt([*declarations, body, tirx.stmt.Return(zero)])
    parameters += [scratch, *scalars] if lifted.used else scalars
    raw = tirx.PrimFunc(parameters, body, ret_type=tvm.ir.PrimType("int32"), attrs=func.attrs)
    return raw.with_attr("target", target).with_attr("tirx.noalias", True), lifted.used


class _Lifted:
    """Moves local buffers of STACK_LIMIT bytes or more to offsets from the scratch pointer."""

    def __init__(self, scratch: Any) -> None:
        self.used = 0
        self._scratch = scratch

    def place(self, allocation: Any) -> Any:
        type_ = allocation.buffer.ty
        element = tvm_ffi.dtype(str(getattr(type_.dtype, "dtype", type_.dtype)))
        # StorageRewrite gives buffers that are only read and written by vectors a vector as element
        size = math.prod(int(s) for s in type_.shape) * max(element.bits * element.lanes, 8) // 8
        if size < STACK_LIMIT:
            return allocation
        at, self.used = self.used, self.used + -(-size // 64) * 64
        data = tirx.handle_add_byte_offset(self._scratch, tirx.IntImm("int32", at))
        return tirx.DeclBuffer(allocation.buffer, data=data)
