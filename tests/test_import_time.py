"""What `import compiler` and `taskgraft --help` load: facts about a fresh interpreter, not timings that flake."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = ("tvm", "torch", "onnxruntime", "rich", "onnx", "networkx", "numpy", "scipy")


def loaded(code: str) -> set[str]:
    text = f"import sys\n{code}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded("import compiler; dir(compiler)") == set()


def test_help_loads_nothing_heavy():
    code = "import contextlib, io\nfrom compiler.cli import main\nout = io.StringIO()\n"
    code += "with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):\n    main(['--help'])\n"
    code += "assert 'compile' in out.getvalue()"
    assert loaded(code) == set()


@pytest.mark.parametrize(
    "code",
    [
        "from compiler import load, union, Pipeline, cost_report, load_config",
        "from compiler import FoldConstants, FoldBatchNorm, RemoveDeadCode, Deduplicate, ExtractTasks",
    ],
)
def test_graph_work_needs_neither_tensor_compiler_nor_runtime(code):
    assert not loaded(code) & {"tvm", "torch", "onnxruntime", "rich"}


def test_a_broken_release_is_refused_before_the_tensor_compiler_is_loaded(tmp_path):
    (tmp_path / "release.toml").write_text("schema = 2\n")
    code = "from compiler.cli import main\n"
    code += f"assert main(['compile', {str(tmp_path / 'release.toml')!r}]) == 2"
    assert not loaded(code) & {"tvm", "torch", "onnxruntime", "onnx"}


def test_help_answers_in_half_a_second_of_processor_time():
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):  # the caches may be cold: the fastest of three counts
        start = spent()
        subprocess.run([sys.executable, "-m", "compiler", "--help"], capture_output=True, check=True)
        times.append(spent() - start)
    assert 0 < min(times) < 0.5
