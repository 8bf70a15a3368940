"""Nested sparsity levels that are trained: how accurate a tenth and a twentieth of a network are in one pool.

A dense network is trained first, its levels after (`nested_training`), on a GPU where torch sees one; every level
is then measured as compiled (`nested_measuring`). What was trained is kept, so that `--train-only` can run on a
machine without the tensor compiler and the study goes on elsewhere with the same folder. Selection data are there
for choosing between recipes; report data are looked at for the table alone. Published figures (Qin et al., ICTAI
2022, arXiv 2112.10930) are averages over other networks and data. Needs the extras `train` and `images`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar import load_cifar
from benchmarks.merging import families
from benchmarks.merging.families import Data
from benchmarks.nested_training import SEED, STUDIES, Kept, Study, kept_levels
from benchmarks.settings import Settings, chosen, no_data, parser

UNUSED = ("target", "core", "hot", "lock", "prepare", "venvs")
QUICK = 1280
"""Images of every part in a quick run."""


def reduced(data: Data) -> Data:
    """The first images of every part."""
    return Data(*(part.first(QUICK) for part in (data.train, data.selection, data.report)))


def line(name: str, record: Mapping[str, Any]) -> str:
    """A table of the levels of one network: as compiled, or as trained where nothing was compiled."""
    held = record["accuracy"]
    dense, levels = held["dense"], held.get("levels", held["trained"])
    rows = [f"{name}: dense {dense['selection']:.4f} selection, {dense['report']:.4f} report"]
    for k, (level, plain) in enumerate(zip(levels, held["by magnitude"], strict=True)):
        size = f"{record['weights_fraction'][k]:.2%} of weights, {record['flops_fraction'][k]:.2%} of FLOPs"
        loss = f"relative loss {1 - level['report'] / dense['report']:.2%}; untrained {plain['report']:.4f}"
        rows.append(f"  level {k}: {size}: {level['selection']:.4f}, {level['report']:.4f}, {loss}")
    rows.append(f"  trained on {record['training']['device']}, torch {record['training']['torch']}")
    if "levels" in held:
        rows.append(f"  pool {record['pool_bytes']['over_densest']:.4f} x that of the densest level")
        rows.append(f"  images with other bits than a library of the level alone: {record['wrong_bits']}")
    return "\n".join(rows)


def measured(name: str, found: Kept, data: Data, settings: Settings, arguments: list[str]) -> dict[str, Any]:
    """The whole record of one network."""
    from benchmarks.nested_measuring import measured as as_compiled  # the tensor compiler may not be here
    from benchmarks.results import record_of

    with tempfile.TemporaryDirectory(dir=settings.kept) as folder:
        numbers = as_compiled(found, data, Path(folder))
    return dict(record_of("nesting", arguments, name, {"network, data and training": SEED}, numbers))


def study_of(name: str, options: argparse.Namespace) -> Study:
    """How a network is studied by the command line."""
    found = STUDIES[name].scaled(options.epochs_scale)
    return found.quick() if options.quick else found


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    options = parser("nesting", __doc__, without=UNUSED)
    options.add_argument("--data", type=Path, default=families.SHARED, help="folder with cifar10_jpg/")
    options.add_argument("--train-only", action="store_true", help="train and keep levels; compile nothing")
    options.add_argument("--epochs-scale", type=float, default=1.0, metavar="F", help="so many times the epochs")
    options.add_argument("--minutes", type=float, metavar="M",
                         help="for training each network: levels get fewer epochs if they must")  # fmt: skip
    given = options.parse_args(arguments)
    if given.epochs_scale <= 0 or (given.minutes is not None and given.minutes <= 0):
        options.error("--epochs-scale and --minutes must be above 0")
    if given.train_only and given.save is not None:
        options.error("--save is of measured levels: give it without --train-only, where these are measured")
    return given


def main(arguments: list[str]) -> int:
    """0 unless bits differed or the pool is larger than it may be; 2 where the data are not here."""
    given, start = options_of(arguments), time.monotonic()
    settings, wrong = Settings.of(given), False
    names = chosen(given.only, STUDIES)
    try:
        data = load_cifar(given.data, settings.kept)
    except FileNotFoundError as error:
        return no_data(error)
    data = reduced(data) if given.quick else data
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    results = {}
    for name in names:
        until = None if given.minutes is None else start + 60 * given.minutes
        found = kept_levels(name, data, study_of(name, given), settings.kept, until)
        record = dict(found.record)
        if not given.train_only:
            record = measured(name, found, data, settings, arguments)
            wrong |= any(record["wrong_bits"]) or record["pool_bytes"]["over_densest"] > 1.05
            save(given.save, name, record)
        results[name] = record
        if not given.json:
            print(line(name, record), flush=True)
        start = time.monotonic()
    if given.json:
        print(json.dumps(results, indent=1))
    return int(wrong)


def save(folder: Path | None, name: str, record: Mapping[str, Any]) -> None:
    """Keep the record of a network in a folder, where one is given."""
    if folder is not None:
        from benchmarks.results import keep

        keep(folder, f"nesting-{name}", record)
