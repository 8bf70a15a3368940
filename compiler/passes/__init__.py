"""The passes. A name leads to "module:Class", imported on use, so that listing passes loads none of them."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from compiler.errors import ConfigError

if TYPE_CHECKING:
    from compiler.passes.base import Pass

REGISTRY = MappingProxyType(
    {
        "fold-constants": "compiler.passes.fold:FoldConstants",
        "fold-batch-norm": "compiler.passes.fold_batch_norm:FoldBatchNorm",
        "remove-dead-code": "compiler.passes.dead:RemoveDeadCode",
        "deduplicate": "compiler.passes.dedupe:Deduplicate",
        "merge": "compiler.passes.merge.merging:Merge",
        "dead-channels": "compiler.passes.dead_channels:DeadChannels",
        "prune-channels": "compiler.passes.prune.channels:PruneChannels",
        "narrow": "compiler.passes.narrow.narrowing:Narrow",
        "distil": "compiler.passes.distil:Distil",
        "sparsify": "compiler.passes.sparsify.magnitude:Sparsify",
        "compress": "compiler.passes.compress.compress:Compress",
        "nest": "compiler.passes.sparsify.nest:Nest",
        "extract-level": "compiler.passes.extract_level:ExtractLevel",
        "extract-tasks": "compiler.passes.extract:ExtractTasks",
    }
)
"""Pass name, as on the command line -> where its class is."""


def find(name: str) -> type[Pass]:
    """The class of a registered pass, or of "package.module:Class"; ConfigError names what is known."""
    where = REGISTRY.get(name, name if ":" in name else "")
    if not where:
        raise ConfigError(f"unknown pass '{name}'; the passes are {', '.join(REGISTRY)}, or 'package.module:Class'")
    module, _, attribute = where.partition(":")
    try:
        found: type[Pass] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"pass '{name}': {where} cannot be imported: {error}") from error
    return found
