"""Pruning ratios by gradual masked fine-tuning: DARB, alone and behind channels, against plain patterns.

The networks and their training are those of benchmarks/masked_training.py; every pattern and density starts from
the same dense network, and is trained as long. The ratio counts the weights of all recurrent and fully connected
matrices over those stored; embedding tables, of which a call reads a few rows, are left out and named. `ratios`
holds the largest ratio of every pattern whose accuracy on the development part, never on the test part, lies at
most half a point below the dense network's; `darb_ratio` is DARB's. `over`: what it is, and what that of DARB in a
network that loses hidden units besides is, over those of plain patterns. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.host import facts
from benchmarks.masked_training import CASES, CHANNELS, NAMES, NARROW_DARB, Case, dense, pruned
from benchmarks.results import keep
from benchmarks.settings import no_data
from compiler.workers.store import Store

NETWORKS = ("mlp-mnist", "lstm-tagger")
"""Those of the kind that DARB was made for."""
OURS, PLAIN = ("darb", NARROW_DARB), ("block16x1", CHANNELS, "unstructured")
ALLOWED = 0.005
DENSITIES = (1 / 8, 1 / 13, 1 / 16, 1 / 20, 1 / 25)
ALIKE = 1e-4
"""Accuracies that are nearer than this are those of the same dense network, in the digits of a file."""


@dataclass(frozen=True)
class Row:
    """One network, pattern and density. Accuracies are shares; ratios are over the pruned matrices."""

    network: str
    pattern: str
    density: float
    ratio: float
    bytes_ratio: float
    dense_dev: float
    dense_test: float
    dev: float
    test: float
    minutes: float


def rows(case: Case, patterns: Sequence[str], densities: Sequence[float], seed: int, store: Store) -> Iterator[Row]:
    """Every pattern and density, each from the same dense network."""
    start = dense(case, seed, store)
    print(f"{case.name}: dense {start.dev:.4f} dev, {start.test:.4f} test", flush=True)
    for pattern in patterns:
        for density in densities:
            found = pruned(case, start, pattern, density, seed, store)
            ratios = found.stored.ratio, found.stored.bytes_ratio
            scores = start.dev, start.test, found.dev, found.test
            yield Row(case.name, pattern, density, *ratios, *scores, found.minutes)


# ---------------------------------------------------------------------- reporting
def record(
    found: Sequence[Row], case: Case, seed: int, command: str, earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """JSON-ready, with the rows of an earlier record that started from the same dense network and were not made
    again. Every row names the command and the machine that made it; ratios are None where no density was within the
    limit.
    """
    machine = facts()
    new = [{**asdict(row), "command": command, "machine": machine["cpu"]} for row in found]
    every = {(r["pattern"], r["density"]): r for r in [*_comparable(found[0], earlier), *new]}
    best = _best(list(every.values()))
    return {
        "command": "; ".join(dict.fromkeys(r["command"] for r in every.values())),
        "seeds": [seed],
        "versions": {**machine["versions"], "torch": torch.__version__},
        "machine": machine["cpu"],
        "network": case.name,
        "darb_ratio": best.get("darb"),
        "ratios": best,
        "over": {p: _over(best[p], best) for p in OURS if p in best},
        "allowed_loss": ALLOWED,
        "left_out": case.left_out,
        "rows": list(every.values()),
    }


def _comparable(row: Row, earlier: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of a record whose dense network had the accuracies of this row's."""
    if earlier is None:
        return []
    parts = ("dense_dev", "dense_test")
    return [r for r in earlier["rows"] if all(abs(r[p] - getattr(row, p)) < ALIKE for p in parts)]


def _best(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The largest ratio within the limit, of every pattern."""
    within = [r for r in found if r["dense_dev"] - r["dev"] <= ALLOWED]
    patterns = dict.fromkeys(r["pattern"] for r in found)
    return {p: max((r["ratio"] for r in within if r["pattern"] == p), default=None) for p in patterns}


def _over(ratio: float | None, best: Mapping[str, float | None]) -> dict[str, float | None]:
    """A ratio over that of every plain pattern that was tried; None where either held at no density."""
    plain = {p: best[p] for p in PLAIN if p in best}
    return {p: ratio and other and ratio / other for p, other in plain.items()}


def line(row: Row) -> str:
    """One row of the table."""
    sizes = f"{row.ratio:6.1f}x {row.bytes_ratio:6.1f}x bytes"
    parts = ("dev", row.dev, row.dense_dev), ("test", row.test, row.dense_test)
    change = "  ".join(f"{name} {now:.4f} ({now - was:+.4f})" for name, now, was in parts)
    return f"{row.network:14} {row.pattern:13} {sizes}  {change}  {row.minutes:.1f} min"


def main(arguments: list[str]) -> int:
    """Train, prune and print; `--save` writes a file per network, after every row. 2 where data are not here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks darb", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with ud_ewt/ and mnist/")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(CASES), help="networks")
    parser.add_argument("--pattern", nargs="+", default=list(NAMES), choices=list(NAMES), help="patterns")
    parser.add_argument("--density", nargs="+", type=float, default=list(DENSITIES), help="shares that stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps at one density: does it run?")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--save", type=Path, help="folder for pruning-darb-NETWORK.json; rows are added to it")
    parser.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="keep finished trainings here, and go on from them"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    densities = given.density[-1:] if given.quick else given.density
    for name in given.only:
        try:
            case = CASES[name](given.data, given.quick)
        except FileNotFoundError as error:
            return no_data(error)
        command = (
            f"python -m benchmarks darb --data DATA --only {name} --pattern {' '.join(given.pattern)} "
            f"--density {' '.join(f'{d:g}' for d in densities)} --seed {given.seed}" + " --quick" * given.quick
        )
        found: list[Row] = []
        for row in rows(case, given.pattern, densities, given.seed, Store(given.kept)):
            found.append(row)
            if not given.json:
                print(line(row), flush=True)
            made = record(found, case, given.seed, command, held(given.save, case))
            if given.save:
                keep(given.save, file_of(case), made)
        if given.json:
            print(json.dumps(made, indent=1))
    return 0


def file_of(case: Case) -> str:
    """The name of a network's file of results, without its ending."""
    return f"pruning-darb-{case.name}"


def held(folder: Path | None, case: Case) -> dict[str, Any] | None:
    """What the file of a network in a folder holds; None where there is none."""
    path = None if folder is None else folder / f"{file_of(case)}.json"
    if path is None or not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found
