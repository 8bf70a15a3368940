"""Networks trained apart, merged by every policy: what every subset of tasks costs at one accuracy rule.

All methods get the single networks, the same pruner at the same budgets, and the same training towards the single
networks after the merge and after every pruning step. The rule: on average 0.5 point below the single networks, no
task more than 1 point. Where it holds is read from the selection data; accuracies in the table are those on the
report data. The lattice knows what the other methods cost at the rule: its pruning is pushed towards the cheapest
of them per subset.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.merging import families, pairs, releases, rule
from benchmarks.merging.families import FAMILIES, Data, Family
from benchmarks.merging.latency import latency_record
from benchmarks.merging.methods import METHODS
from benchmarks.merging.record import (
    Seeded,
    family_record,
    kept_notes,
    portfolio_networks,
    rule_networks,
    table,
)
from benchmarks.merging.recorded import RecordError, joined_notes, with_recorded, with_timed
from benchmarks.merging.seeded import prepared, run_seed
from benchmarks.results import keep

SEEDS = [0, 1]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks merging", description=__doc__)
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only this one; may be repeated")
    parser.add_argument(
        "--releases", nargs="*", help="the release files of models/ instead of families: merge, prune, compile"
    )
    parser.add_argument(
        "--pairs",
        nargs="*",
        choices=list(pairs.PAIRS),
        help="other people's networks instead: none named means all",
    )
    parser.add_argument(
        "--networks", type=Path, default=families.SHARED.parent / "models", help="folder of other people's networks"
    )
    parser.add_argument(
        "--method",
        action="append",
        choices=sorted({*METHODS, *pairs.METHODS}),
        help="only this one; may be repeated",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 0 1")
    parser.add_argument("--quick", action="store_true", help="few images and epochs: minutes per family")
    parser.add_argument("--json", action="store_true", help="print the records as JSON instead of tables")
    parser.add_argument("--save", type=Path, help="write merging-FAMILY.json into this folder")
    parser.add_argument(
        "--latency",
        action="store_true",
        help="also compile the networks just within the rule and time every subset",
    )
    parser.add_argument("--data", type=Path, default=families.SHARED, help="folder of the data sets")
    parser.add_argument(
        "--kept",
        type=Path,
        default=Path(".bench/merging"),
        help="folder of trained single networks, of sweeps and of releases' pipelines, which are run once",
    )
    parser.add_argument(
        "--as-kept",
        action="store_true",
        help="run no sweep (single networks are trained where none are kept): the record is made of what --kept "
        "holds, also of sweeps that were cut short, which it names",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="RECORD",
        help="a saved record of one family: methods that are not run now are taken from it, if its single networks "
        "are those of --kept",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """0, and what could not keep the rule is in the record; 2 where the command or what it needs is not right."""
    options = options_of(arguments)
    torch.set_num_threads(1)
    if options.releases is not None:
        releases.main(options.releases, options.kept, options.save, say)
        return 0
    if options.pairs is not None and not options.networks.exists():
        say(f"{options.networks} is not here: name the folder of other people's networks with --networks")
        return 2
    if not options.data.exists():
        say(f"{options.data} is not here: data sets are no part of the repository; name their folder with --data")
        return 2
    if options.pairs is not None:
        chosen = [m for m in pairs.METHODS if not options.method or m in options.method]
        folders = pairs.Options(options.networks, options.data, options.kept, chosen)
        pairs.main(options.pairs, folders, options.save, say)
        return 0
    if unknown := set(options.method or ()) - set(METHODS):
        say(f"--method {', '.join(sorted(unknown))} is of --pairs; families have {', '.join(METHODS)}")
        return 2
    chosen = options.method or list(METHODS)
    if options.beside and (len(options.family or ()) != 1 or not options.method or options.latency):
        say("--beside is the record of one family, with the methods named that it lacks; it times nothing anew")
        return 2
    lacking = 0
    for name in options.family or list(FAMILIES):
        try:
            record = studied(FAMILIES[name], options, chosen)
        except RecordError as error:
            say(f"{options.beside}: {error}")
            return 2
        if not record["families"][0]["methods"]:
            say(f"{name}: {options.kept} holds no sweep that all seeds have; run it without --as-kept")
            lacking = 2
            continue
        print(json.dumps(record, indent=1) if options.json else table(record["families"][0]), flush=True)
        if options.save:
            keep(options.save, f"merging-{name}", record)
    return lacking


def studied(family: Family, options: argparse.Namespace, methods: Sequence[str]) -> dict[str, Any]:
    """The record of a family at all seeds of the command line."""
    data = family.data(options.data, options.quick)
    seeds = []
    for seed in options.seeds:
        run = prepared(family, data, options.quick, seed, options.kept, say, not options.as_kept)
        seeds.append(run_seed(run, methods))
    earlier = json.loads(options.beside.read_text()) if options.beside else None
    if earlier:
        seeds = with_recorded(seeds, earlier)
    record = {
        "command": _command(family.name, options),
        "seeds": options.seeds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "minutes": round(sum(s.minutes for s in seeds), 1),
        **kept_notes(seeds),
        "effort": _effort(family, data, options.quick),
        "rule": {"mean_drop": rule.MEAN_DROP, "worst_drop": rule.WORST_DROP, "shares": family.shares},
        "families": [_record(family, seeds, options.latency)],
    }
    if earlier:
        record |= joined_notes(record, earlier)
        record["families"] = [with_timed(record["families"][0], earlier)]
    return record


def _record(family: Family, seeds: Sequence[Seeded], latency: bool) -> dict[str, Any]:
    record = family_record(family.name, family.what, seeds)
    networks = rule_networks(seeds) if latency else {}
    if latency and len(networks) < 2:
        say(f"{family.name}: no latency: the networks of these sweeps were not kept, or a method is missing")
    elif latency:
        found = latency_record(networks, portfolio_networks(seeds, record))
        record["subsets"] = [row | found.rows[tuple(row["tasks"])] for row in record["subsets"]]
        record["pool_bytes"] = found.pool_bytes
    return record


def _command(name: str, options: argparse.Namespace) -> str:
    chosen = "".join(f" --method {m}" for m in options.method or ())
    seeds = "" if options.seeds == SEEDS else f" --seeds {' '.join(map(str, options.seeds))}"
    given = {"--quick": options.quick, "--latency": options.latency, "--as-kept": options.as_kept}
    flags = "".join(f" {name}" for name, is_given in given.items() if is_given)
    beside = f" --beside {options.beside}" if options.beside else ""
    return f"python -m benchmarks merging --family {name}{flags}{chosen}{seeds}{beside}"


def _effort(family: Family, data: Data, quick: bool) -> dict[str, int]:
    effort = family.effort(quick)
    return {
        "train_images": len(data.train.inputs),
        "unlabelled_images": len(data.unlabelled),
        "selection_images": len(data.selection.inputs),
        "report_images": len(data.report.inputs),
        "epochs_single": effort.single,
        "epochs_after_merge": effort.merged,
        "epochs_after_each_pruning": effort.pruned,
    }
