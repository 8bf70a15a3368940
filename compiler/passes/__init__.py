"""The passes. A name leads to "module:Class", imported on use, so that listing passes loads none of them."""

from __future__ import annotations

import dataclasses
import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING

from compiler.errors import ConfigError
from compiler.references import imported

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
        "join-siblings": "compiler.passes.join:JoinSiblings",
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
    if name in REGISTRY:
        made: type[Pass] = imported(REGISTRY[name])
        return made
    if ":" not in name:
        raise ConfigError(f"unknown pass '{name}'; the passes are {', '.join(REGISTRY)}, or 'package.module:Class'")
    return _checked(name, imported(name))


def _checked(name: str, found: object) -> type[Pass]:
    """A class of a user, if it is a pass."""
    base: type[Pass] = imported("compiler.passes.base:Pass")
    if not (isinstance(found, type) and issubclass(found, base) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"'{name}' is no pass: needed is a dataclass that derives from compiler.passes.base.Pass")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"'{name}' is not a whole pass: it leaves out {missing}")
    return found
