"""python -m benchmarks STUDY [options]."""

from __future__ import annotations

import importlib
import sys

from compiler.errors import CompilerError

STUDIES = {
    "compile-time": "benchmarks.compile_time",
    "darb": "benchmarks.darb",
    "dense": "benchmarks.dense",
    "equal-accuracy": "benchmarks.equal_accuracy",
    "frontier": "benchmarks.frontier",
    "fuzz": "benchmarks.fuzz.study",
    "holding": "benchmarks.holding",
    "inner-loops": "benchmarks.inner_loops",
    "merging": "benchmarks.merging.study",
    "multitask": "benchmarks.multitask",
    "mutation": "benchmarks.mutation.study",
    "nesting": "benchmarks.nesting",
    "newcomer": "benchmarks.newcomer",
    "overhead": "benchmarks.overhead",
    "page": "benchmarks.page",
    "portfolio": "benchmarks.portfolio",
    "pruning": "benchmarks.pruning",
    "pruning-accuracy": "benchmarks.pruning_accuracy",
    "pruning-coverage": "benchmarks.pruning_coverage",
    "pruning-gates": "benchmarks.pruning_gates",
    "pruning-updates": "benchmarks.pruning_updates",
    "reading": "benchmarks.reading",
    "sparse": "benchmarks.sparse",
    "switching": "benchmarks.switching",
    "threads": "benchmarks.threads",
    "tune": "benchmarks.tune",
    "wakewords": "benchmarks.wakewords",
    "workers": "benchmarks.workers",
    "setup-peers": "benchmarks.setup_peers",
}
"""Name on the command line -> module with `main(arguments) -> exit status`."""


def main(arguments: list[str]) -> int:
    """Run the study named first; what our compiler refuses is one sentence and the exit status of `taskgraft`."""
    if not arguments or arguments[0] not in STUDIES:
        print(f"usage: python -m benchmarks {{{', '.join(STUDIES)}}} [options]", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(STUDIES[arguments[0]]).main(arguments[1:]))
    except CompilerError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
