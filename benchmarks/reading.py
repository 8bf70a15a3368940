"""Products of one row by a matrix against a loop that only reads as many bytes: what is left to gain.

Such a product uses every weight once, so it takes at least as long as its weights take to arrive. Cases `row-KxN`:
a row of K inputs by a matrix for N outputs, 128 KiB to 8 MiB, so that weights come from the second- and from the
third-level cache. Peer `reading`; the ratio is the share of its rate that our kernel reaches, and the note has both
rates.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx

from benchmarks.cases import Case, Prepared, recipe_digest
from benchmarks.compare import Contender, kernels, loop_options, started
from benchmarks.host import machine_lock
from benchmarks.networks import Net
from benchmarks.outputs import Expected
from benchmarks.peers import READING
from benchmarks.peers.client import PeerError
from benchmarks.results import report
from benchmarks.rounds import duel, race
from benchmarks.rows import OUR_FAULT, Row, times
from benchmarks.running import Timing, measure
from benchmarks.settings import Settings, chosen, parser
from compiler.codegen.target import find_target
from compiler.errors import plural

SHAPES = ((256, 128), (256, 512), (256, 1024), (784, 512), (1024, 1024), (1024, 2048))
"""Inputs and outputs: an LSTM's recurrent matrix and the first layer of the perceptron among them."""

BEYOND = 4
"""Times the nominal rate of loads at which no core reads: a loop that does is not what was written."""


def cases() -> dict[str, Case]:
    """One matrix each."""
    recipe = recipe_digest()
    names = {f"row-{k}x{n}": (k, n) for k, n in SHAPES}
    return {name: Case(name, partial(product, name, *shape), recipe) for name, shape in names.items()}


def product(name: str, inputs: int, outputs: int) -> onnx.ModelProto:
    """A row by a matrix, with bias."""
    net = Net(name, (1, inputs))
    return net.model(net.gemm("x", outputs))


def against_reading(ready: Prepared, settings: Settings) -> Timing:
    """Our kernel alone and the loop, in turns."""
    (weight,) = (v for v in ready.graph.parameters() if v.rank == 2)
    own = kernels("ours", ready.file, settings)
    return lambda expected: [beside_reading(ready, own, 4 * weight.size, expected, settings)]


def beside_reading(ready: Prepared, own: Contender, size: int, expected: Expected, settings: Settings) -> Row:
    """A contender of ours and the loop over `size` bytes, in turns; by wall clock where threads share them."""
    name = ready.case.name
    loop = Contender(READING.name, READING, Path(), {**loop_options(settings), "bytes": size})
    whose = OUR_FAULT
    try:
        with started(own, ready.feeds, settings) as ours:
            difference = expected.check(ours.outputs())
            whose = ""
            with started(loop, {}, settings) as reading, machine_lock(settings.lock):
                hot = duel(*race([ours, reading], settings.effort), wall=len(settings.cores) > 1)
    except PeerError as error:
        return Row(name, READING.name, error=f"{whose}{error}")
    if problem := impossible(size / hot.peer, settings):
        return Row(name, READING.name, error=problem)
    note = f"{size >> 10} KiB at {size / hot.ours * 1e-9:.0f} of {size / hot.peer * 1e-9:.0f} GB/s"
    return Row(name, READING.name, **times(hot, None), difference=difference, note=note)


def impossible(rate: float, settings: Settings) -> str:
    """What is wrong with a loop that reads `rate` bytes per second; empty where cores can do that."""
    machine, cores = find_target(settings.target).machine, len(settings.cores)
    most = BEYOND * cores * machine.loads_per_cycle * 4 * machine.lanes * machine.clock
    if rate <= most:
        return ""
    return f"{rate * 1e-9:.0f} GB/s, which {plural(cores, 'core')} cannot load: the compiler left readings out"


def main(arguments: list[str]) -> int:
    """0 unless our side failed somewhere."""
    options = parser("reading", __doc__, without=("hot",))
    given = options.parse_args(arguments)
    settings = Settings.of(given)
    known = cases()
    rows = (
        row
        for name in chosen(given.only, known)
        for row in measure(known[name], [READING.name], settings, against_reading, time=not given.prepare)
    )
    return report(rows, "reading", given)
