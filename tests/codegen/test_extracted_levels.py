"""A level taken out of a network and compiled by itself has the bits that it has in the library of all levels."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from compiler import load, parse_pass, to_onnx
from compiler.codegen.bundle import write_bundle
from compiler.codegen.emulate import _runner
from compiler.codegen.generate import generate
from compiler.codegen.groups import make_groups
from compiler.codegen.link import find_toolchain, run_tool
from compiler.codegen.planner import Sources, candidates, situation
from compiler.codegen.program import Library
from compiler.codegen.strategies.base import Choice
from compiler.codegen.target import Target, find_target
from compiler.compile import golden_of
from compiler.ir.graph import Graph
from compiler.ir.levels import at_level, level_count
from compiler.ir.reference import random_feeds
from tests.codegen.emulated import linkable
from tests.codegen.native import NativeLibrary
from tests.codegen.test_levels import network, planned, switched
from tests.codegen.test_sparse_recurrent import NESTED
from tests.codegen.test_sparse_recurrent import nested as recurrent
from tests.graphs import Builder


def small_images() -> Graph:
    """Images of few positions, a matrix of one row and one of several: register tiles of few sums."""
    b = Builder(seed=4)
    x = b.apply("Relu", b.conv(b.input("x", 2, 24, 5, 3), 48, 3, pads=(1, 1, 1, 1)))
    y = b.apply("Relu", b.conv(x, 32, 3, strides=(2, 2), pads=(1, 1, 1, 1)))
    b.task("a", b.conv(y, 3, 1))
    rows = b.apply("Reshape", y, b.const(np.array([4, 96], np.int64)))
    b.task("b", b.apply("Add", b.apply("MatMul", rows, b.weight(96, 40)), b.weight(40)))
    return parse_pass("nest{levels=0+0.4+0.95,pattern=block8x1,dense=()}")(b.done())


def dense_beside() -> Graph:
    """Level 0 stores nearly all; first and last layer have no levels; a layer of another sparse form neither."""
    b = Builder(seed=7)
    x = b.apply("Relu", b.conv(b.input("x", 1, 16, 12, 12), 64, 3, pads=(1, 1, 1, 1)))
    y = b.apply("Relu", b.conv(x, 64, 3, pads=(1, 1, 1, 1)))
    z = b.apply("Relu", b.conv(y, 64, 3, pads=(1, 1, 1, 1)))
    b.task("t", b.conv(b.apply("Add", z, x), 10, 1))
    graph = parse_pass("sparsify{pattern=regular8,dense=(),exclude=conv+conv.1+conv.3}")(b.done())
    return parse_pass("nest{levels=0.02+0.2,exclude=conv.2}")(graph)


NETWORKS: dict[str, Callable[[], Graph]] = {
    "residual, segments, biases by level": network,
    "small images": small_images,
    "dense layers beside": dense_beside,
    "recurrent": lambda: recurrent(NESTED[:3]),
}


def alone(graph: Graph, level: int) -> Graph:
    """The level by itself, through a file."""
    part = load(to_onnx(at_level(graph, level, alone=True)))
    assert level_count(part) == 1
    return part


@pytest.mark.parametrize("preset", ["host", "x86-64-v3"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_level_alone_has_the_bits_of_the_level(name: str, preset: str, tmp_path: Path) -> None:
    """Without a plan, for every level and combination; and a library of one level stores no other one."""
    graph, target = NETWORKS[name](), find_target(preset)
    feeds = random_feeds(graph, np.random.default_rng(1))
    (tmp_path / "all").mkdir()
    library = generate(graph, target)
    whole = NativeLibrary(library, tmp_path / "all")
    for level in range(level_count(graph)):
        folder = tmp_path / str(level)
        folder.mkdir()
        made = generate(alone(graph, level), target)
        assert len(made.levels) == 1 and not any(a.stride for c in made.full.calls for a in c.arguments)
        assert len(made.pool) < len(library.pool)
        part = NativeLibrary(made, folder)
        for program, own in zip(library.programs, made.programs, strict=True):
            wanted, found = whole.run(program, feeds, level), part.run(own, feeds)
            assert wanted.keys() == found.keys()
            for task, arrays in wanted.items():
                assert [a.tobytes() for a in arrays] == [a.tobytes() for a in found[task]], (level, task)


@pytest.mark.parametrize("name", ["small images", "recurrent"])
def test_all_tiles_of_a_layer_with_levels_have_the_same_bits(name: str, tmp_path: Path) -> None:
    """So measurements, which may choose another tile at every level, cannot change a level."""
    graph, target = NETWORKS[name](), find_target("host")
    groups = make_groups(graph)
    known = situation(graph, groups, target)
    ranked = {g.anchor.node.ref.name: [c.choice for c in candidates(g, known)] for g in groups if g.nested}
    assert max(map(len, ranked.values())) > 2
    feeds = random_feeds(graph, np.random.default_rng(1))
    seen = set()
    for number, place in enumerate((0, len(max(ranked.values(), key=len)) // 2, -1)):
        choices: dict[str, Choice] = {n: c[min(place, len(c) - 1)] for n, c in ranked.items()}
        (tmp_path / str(number)).mkdir()
        library = generate(graph, target, sources=Sources(choices))
        outputs = NativeLibrary(library, tmp_path / str(number)).run(library.full, feeds, level=1)
        seen.add(b"".join(a.tobytes() for arrays in outputs.values() for a in arrays))
    assert len(seen) == 1


def test_without_an_order_a_level_alone_runs_by_the_best_kernels() -> None:
    graph = dense_beside()
    assert planned(at_level(graph, 1, alone=True)) == planned(graph)
    assert planned(at_level(graph, 1, alone=True, order=False)) != planned(graph)


def test_what_no_kernel_can_switch_is_planned_alone() -> None:
    """A bundle of its levels is refused, so there are no bits to repeat."""
    assert planned(at_level(switched(group=8), 0, alone=True)) == {"depthwise"}


# ---------------------------------------------------------------------- emulated
_DUMP = """#include <stdio.h>
#include <stdlib.h>
#include "@name@.h"
/* Arguments: a file of all inputs; outputs of all tasks at every level go to standard output. */
int main(int argc, char **argv) {
  static const size_t in_bytes[] = {@in@}, out_bytes[] = {@out@};
  const void *in[sizeof in_bytes / sizeof *in_bytes];
  void *out[sizeof out_bytes / sizeof *out_bytes];
  FILE *file = argc > 1 ? fopen(argv[1], "rb") : 0;
  if (!file) return 1;
  for (size_t i = 0; i < sizeof in_bytes / sizeof *in_bytes; i++) {
    void *data = malloc(in_bytes[i]);
    if (fread(data, 1, in_bytes[i], file) != in_bytes[i]) return 1;
    in[i] = data;
  }
  for (size_t i = 0; i < sizeof out_bytes / sizeof *out_bytes; i++) out[i] = malloc(out_bytes[i]);
  size_t size = (@name@_workspace(@NAME@_ALL, 0) + 63) / 64 * 64;
  @name@_call call = {.size = sizeof call, .workspace = aligned_alloc(64, size + 64), .workspace_bytes = size};
  for (call.level = 0; call.level < @NAME@_LEVELS; call.level++) {
    int code = @name@_run(@NAME@_ALL, in, out, &call);
    if (code) return 10 + code;
    for (size_t i = 0; i < sizeof out_bytes / sizeof *out_bytes; i++) fwrite(out[i], 1, out_bytes[i], stdout);
  }
  return 0;
}
"""


def emulated(library: Library, graph: Graph, target: Target, folder: Path) -> Iterator[bytes]:
    """Outputs of all tasks, level by level."""
    bundle = write_bundle(
        library,
        target,
        folder / "bundle",
        sources={},
        golden=golden_of(graph, None, 0),
        graph_onnx=b"",
        config_text="",
    )
    toolchain, runner = find_toolchain(target), _runner(target, "")
    assert toolchain is not None
    if runner is None:
        pytest.skip(f"this machine cannot emulate {target.name}")
    feeds = random_feeds(graph, np.random.default_rng(1))
    (folder / "inputs").write_bytes(b"".join(feeds[v.ref.name].tobytes() for v in graph.inputs))
    outputs = [p.type.bytes for t in library.tasks for p in t.outputs]
    text = _DUMP.replace("@in@", ", ".join(str(v.type.bytes) for v in graph.inputs))
    text = text.replace("@out@", ", ".join(map(str, outputs)))
    text = text.replace("@name@", bundle.name).replace("@NAME@", bundle.name.upper())
    (bundle.path / "dump.c").write_text(text)
    flags = ("-std=c11", "-O1", "-fPIE", *toolchain.baseline, "-static", "-I.")
    command = (
        *toolchain.cc,
        *flags,
        "dump.c",
        f"lib{bundle.name}.a",
        "-lm",
        "-lpthread",
        "-o",
        str(folder / "dump"),
    )
    run_tool(command, bundle.path)
    done = subprocess.run([*runner, folder / "dump", folder / "inputs"], check=True, capture_output=True)
    size = sum(outputs)
    assert len(done.stdout) == size * level_count(graph)
    yield from (done.stdout[at : at + size] for at in range(0, len(done.stdout), size))


@pytest.mark.cross
@pytest.mark.parametrize("name", ["small images", "recurrent"])
def test_a_level_alone_has_the_bits_of_the_level_on_arm(name: str, tmp_path: Path) -> None:
    graph, target = NETWORKS[name](), linkable("aarch64-cortex-a72")
    (tmp_path / "all").mkdir()
    levels = list(emulated(generate(graph, target), graph, target, tmp_path / "all"))
    assert len(set(levels)) == len(levels)
    for level, wanted in enumerate(levels):
        part, folder = alone(graph, level), tmp_path / str(level)
        folder.mkdir()
        (found,) = emulated(generate(part, target), part, target, folder)
        assert found == wanted, level
