"""taskgraft: several single-task ONNX networks in, one multitask library out.

The public names below are imported on first use, so `import compiler` loads no tensor compiler, no runtime and no
ONNX. docs/architecture.md explains the parts.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "compiler.ir.onnx_in:load",
    "save": "compiler.ir.onnx_out:save",
    "to_onnx": "compiler.ir.onnx_out:to_onnx",
    "union": "compiler.ir.union:union",
    "portfolio": "compiler.ir.portfolio:portfolio",
    "Member": "compiler.ir.union:Member",
    "Binding": "compiler.ir.union:Binding",
    "Graph": "compiler.ir.graph:Graph",
    "Node": "compiler.ir.payload:Node",
    "Value": "compiler.ir.payload:Value",
    "verify": "compiler.ir.verify:verify",
    "evaluate": "compiler.ir.reference:evaluate",
    "NewNames": "compiler.passes.base:NewNames",
    "Pass": "compiler.passes.base:Pass",
    "Refusal": "compiler.passes.base:Refusal",
    "Resources": "compiler.passes.base:Resources",
    "FoldConstants": "compiler.passes.fold:FoldConstants",
    "FoldBatchNorm": "compiler.passes.fold_batch_norm:FoldBatchNorm",
    "RemoveDeadCode": "compiler.passes.dead:RemoveDeadCode",
    "Deduplicate": "compiler.passes.dedupe:Deduplicate",
    "DeadChannels": "compiler.passes.dead_channels:DeadChannels",
    "PruneChannels": "compiler.passes.prune.channels:PruneChannels",
    "Sparsify": "compiler.passes.sparsify.magnitude:Sparsify",
    "Compress": "compiler.passes.compress.compress:Compress",
    "Nest": "compiler.passes.sparsify.nest:Nest",
    "ExtractLevel": "compiler.passes.extract_level:ExtractLevel",
    "ExtractTasks": "compiler.passes.extract:ExtractTasks",
    "Pipeline": "compiler.pipeline:Pipeline",
    "PassRecord": "compiler.pipeline:PassRecord",
    "parse_pass": "compiler.pipeline:parse",
    "Cost": "compiler.cost.count:Cost",
    "CostReport": "compiler.cost.combine:CostReport",
    "cost_report": "compiler.cost.combine:cost_report",
    "CalibrationSet": "compiler.calibration.data:CalibrationSet",
    "load_config": "compiler.config:load_config",
    "Config": "compiler.settings:Config",
    "compile_release": "compiler.compile:compile_release",
    "build": "compiler.compile:build",
    "open_workers": "compiler.workers.choose:open_workers",
    "open_bundle": "compiler.codegen.runtime:open_bundle",
    "CHEAPEST": "compiler.codegen.interface:CHEAPEST",
    "Bundle": "compiler.codegen.bundle:Bundle",
    "find_target": "compiler.codegen.target:find_target",
    "CompilerError": "compiler.errors:CompilerError",
    "ConfigError": "compiler.errors:ConfigError",
    "PassError": "compiler.errors:PassError",
    "VerifyError": "compiler.errors:VerifyError",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    where = _PUBLIC.get(name)
    if where is None:
        raise AttributeError(f"module 'compiler' has no attribute '{name}'")
    module, _, attribute = where.partition(":")
    found = globals()[name] = getattr(importlib.import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
