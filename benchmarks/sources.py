"""What a record was measured on: the compiler's own sources. Needs no tensor compiler."""

from __future__ import annotations

import hashlib
from functools import cache

from benchmarks.peers.client import ROOT


@cache
def sources_digest() -> str:
    """Digest of every source file of the compiler."""
    digest = hashlib.sha256()
    for path in sorted(p for kind in ("*.py", "*.json") for p in (ROOT / "compiler").rglob(kind)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
