"""Write the tables of docs/performance.md from the results under benchmarks/results/."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.peers.client import ROOT
from benchmarks.results import TITLES, render

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- results: written by `python -m benchmarks page` -->", "<!-- end of results -->"


def filled(page: str, tables: str) -> str:
    """The page with everything between the markers replaced. ValueError where a marker is missing."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page needs the lines {START} and {END}")
    return f"{before}{START}\n\n{tables}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """0; with --check 1 where the page is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is stale")
    given = parser.parse_args(arguments)
    if not any((given.results / f"{study}.json").exists() for study in TITLES):
        parser.error(f"no results of a study in {given.results}")
    old = given.page.read_text(encoding="utf-8")
    new = filled(old, render(given.results))
    if not given.check:
        given.page.write_text(new, encoding="utf-8")
    return int(given.check and old != new)
