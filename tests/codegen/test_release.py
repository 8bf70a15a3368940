"""Real networks to bundles: compiled, linked, run natively and under emulation, rebuilt."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compiler.codegen.bundle import Bundle, read_bundle, write_bundle
from compiler.codegen.elf import Elf
from compiler.codegen.emulate import run_selftest
from compiler.codegen.generate import generate
from compiler.codegen.golden import Golden, Sample
from compiler.codegen.runtime import open_bundle
from compiler.codegen.target import find_target
from compiler.ir.onnx_in import load
from compiler.ir.union import union
from tests.codegen.emulated import linkable
from tests.shared import ROOT

FASHION = ROOT / "models" / "fashion"


def references(tasks: tuple[str, ...], image: np.ndarray) -> tuple[np.ndarray, ...]:
    """onnxruntime's outputs of the separate networks."""
    sessions = [onnxruntime.InferenceSession(FASHION / f"{task}.onnx") for task in tasks]
    return tuple(s.run(None, {s.get_inputs()[0].name: image})[0] for s in sessions)


def build(target_name: str, tasks: tuple[str, ...], root: Path) -> Bundle:
    """A bundle of these tasks with two golden samples."""
    target = linkable(target_name)
    graph = union({task: load(FASHION / f"{task}.onnx") for task in tasks}, name="fashion")
    rng = np.random.default_rng(0)
    images = [rng.random((1, 1, 28, 28), dtype=np.float32) for _ in range(2)]
    golden = Golden(0, tuple(Sample((x,), references(tasks, x)) for x in images))
    library = generate(graph, target)
    return write_bundle(library, target, root, sources={}, golden=golden, graph_onnx=b"", config_text="")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a target -> the folder of a bundle of one task, built once."""

    @functools.cache
    def built(name: str) -> Path:
        return build(name, ("kind",), tmp_path_factory.mktemp(name)).path.parent

    return built


def test_host_bundle_answers_every_subset(tmp_path: Path) -> None:
    tasks = ("garment", "kind", "season")
    bundle = build("host", tasks, tmp_path)
    assert run_selftest(bundle, find_target("host")).status == "passed"
    network = open_bundle(tmp_path)
    image = np.random.default_rng(1).random((1, 1, 28, 28), dtype=np.float32)
    wanted = dict(zip(tasks, references(tasks, image), strict=True))
    full = network.run(image)
    for mask in range(1, 8):
        chosen = [t for i, t in enumerate(tasks) if mask >> i & 1]
        for task, found in network.run(image, tasks=chosen).items():
            np.testing.assert_array_equal(found, full[task])
            assert np.abs(found - wanted[task]).max() <= 1e-4 * np.abs(wanted[task]).max()


@pytest.mark.cross
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["aarch64-cortex-a72", "aarch64-cortex-a76", "armv7-neon", "x86-64-v3", "x86-64-v4"]
)
def test_selftest_on_the_exact_cpu(folders: Callable[[str], Path], name: str) -> None:
    bundle = read_bundle(folders(name), name)
    result = run_selftest(bundle, find_target(name), quick=True)
    if result.status == "skipped":
        pytest.skip(result.reason)
    assert result.status == "passed", result.output
    strong = {
        s.name for s in Elf(bundle.library.read_bytes()).symbols(dynamic=True) if not s.defined and not s.weak
    }
    pool = """
    free malloc pthread_cond_broadcast pthread_cond_destroy pthread_cond_init pthread_cond_wait pthread_create
    pthread_join pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock pthread_sigmask
    sched_yield sigfillset
    """
    plain = strong - set(pool.split())
    assert plain <= {"getauxval", "memcpy", "memset", "memmove", "expf", "logf", "tanhf", "erff", "powf"}


REBUILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.codegen.test_release import build
build("aarch64-cortex-a72", ("kind",), Path(sys.argv[1]))
"""


@pytest.mark.cross
@pytest.mark.slow
def test_rebuild_elsewhere_gives_the_same_bytes(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Here, and by a process of its own with another hash seed, deeper down."""
    linkable("aarch64-cortex-a72")
    again = tmp_path / "b" / "deeper"
    again.mkdir(parents=True)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    program = REBUILD.format(root=str(ROOT))
    subprocess.run([sys.executable, "-c", program, again], check=True, env=environment, cwd=again)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (folders("aarch64-cortex-a72"), again)
    )
    assert {n for n in first if first[n] != second.get(n)} == set()
    assert first.keys() == second.keys()
