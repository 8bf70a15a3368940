"""`readers` with the compiler instrumented for coverage: a module is, if atheris watches while it is imported.

    python -m benchmarks.fuzz.covered NAME --coverage ...

`python -m benchmarks.fuzz.readers NAME --coverage` becomes this process. Nothing of the compiler may be imported
before `main` runs.
"""

from __future__ import annotations

import importlib
import sys


def main(arguments: list[str]) -> int:
    """Attack one reader here; what it imports later is instrumented as well."""
    with importlib.import_module("atheris").instrument_imports(include=["compiler"]):
        return int(importlib.import_module("benchmarks.fuzz.readers").main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
