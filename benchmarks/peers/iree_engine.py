"""IREE's llvm-cpu backend for this processor, on the device that computes in the calling thread."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from iree import runtime

from benchmarks.peers.engine import Arrays, Engine

OPSET = 17
"""The importer is written against this opset; older files are converted."""
FLAGS = (
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
    "--iree-opt-level=O3",
)


def load(model: str, feeds: Arrays, options: dict[str, Any]) -> Engine:
    """The file `model`, compiled unless the folder `kept` has it. RuntimeError for more than one thread."""
    if options["threads"] != 1:
        raise RuntimeError("compared on one thread only")
    version = metadata.version("iree-base-compiler")
    name, results, inputs = _interface(Path(model))
    config = runtime.Config("local-sync")
    module = runtime.VmModule.mmap(config.vm_instance, str(_compiled(Path(model), Path(options["kept"]), version)))
    context = runtime.SystemContext(vm_modules=(module,), config=config)
    given = runtime.VmVariantList(len(inputs))
    views = [runtime.asdevicearray(config.device, feeds[i])._buffer_view for i in inputs]
    for view in views:
        given.push_ref(view)
    function = module.lookup_function(name)
    returned = [runtime.VmVariantList(len(results))]

    def call() -> None:
        returned[0] = runtime.VmVariantList(len(results))
        context.vm_context.invoke(function, given, returned[0])

    def outputs() -> Arrays:
        found = (returned[0].get_as_object(i, runtime.HalBufferView) for i in range(len(results)))
        return {
            n: np.array(runtime.DeviceArray(config.device, v).to_host())
            for n, v in zip(results, found, strict=True)
        }

    return Engine(version, call, outputs, keep=(feeds, views, context))


def _interface(path: Path) -> tuple[str, list[str], list[str]]:
    """Entry function, output names and input names; the importer calls the function like the graph."""
    graph = onnx.load(path).graph
    return graph.name, [o.name for o in graph.output], [i.name for i in graph.input]


def _compiled(path: Path, kept: Path, version: str) -> Path:
    """The compiled module of an ONNX file."""
    final = kept / f"{path.stem}.iree-{version}.vmfb"
    if not final.exists():
        imported, part = final.with_suffix(".mlir"), final.with_suffix(".part")
        tools = Path(sys.executable).parent
        _run([tools / "iree-import-onnx", path, "-o", imported, "--opset-version", str(OPSET)])
        _run([tools / "iree-compile", imported, "-o", part, *FLAGS])
        imported.unlink()
        part.rename(final)
    return final


def _run(command: list[Any]) -> None:
    """Run a tool; RuntimeError with the first line of what it complains about."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise RuntimeError(f"{Path(command[0]).name}: {(lines or ['no message'])[0][:300]}")
