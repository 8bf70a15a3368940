"""One thread per process for linear algebra: the test processes fill the processors already. Kernels are compiled
once for all tests. What collecting the tests made is not searched for garbage while they run. Drawn examples are
the same in every run, and take what time they take."""

import gc
import os
import sys

import hypothesis
import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Files with tests marked slow go first: what runs last, when one process waits for the other, is short."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Modules and thousands of tests live to the end: looking through them again and again takes a twentieth
    of a run."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def kept_kernels(tmp_path_factory, request):
    """Where a test module loads the code generation: kernels that any test of this run has compiled are not
    compiled again."""
    lower = sys.modules.get("compiler.codegen.lower")
    if lower is None:
        yield None
        return
    from tests.kept_kernels import KeptKernels

    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # of pytest-xdist: the folder that its processes share
        folder = folder.parent
    folder = folder / "kernels"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        kept = KeptKernels(lower._compile, folder)
        patch.setattr(lower, "_compile", kept)
        yield kept


@pytest.fixture
def fresh_kernels(kept_kernels, monkeypatch):
    """This test compiles every kernel anew."""
    monkeypatch.setattr("compiler.codegen.lower._compile", kept_kernels.compile)
