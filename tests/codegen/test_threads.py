"""The thread pool: equal bits for any number of threads, no races, and what is refused."""

import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.bundle import Bundle
from compiler.codegen.driver import header_text
from compiler.codegen.emulate import run_bench, run_selftest
from compiler.codegen.interface import interface
from compiler.codegen.program import Program
from compiler.codegen.runtime import Network, open_bundle
from compiler.codegen.sharing import LEAST_SECONDS, worth_sharing
from compiler.codegen.target import find_target
from compiler.errors import BundleError
from compiler.machine import X86_64_V4
from tests.codegen.emulated import expect_passed, linkable
from tests.codegen.team import SCRATCH, compile_kernels, expected, team_bundle, team_library, x_of

HOST = find_target("host")
STRESS = Path(__file__).with_name("threads_stress.c")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_kernels(HOST, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def bundle(objects: bytes, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return team_bundle(team_library(objects), HOST, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def network(bundle: Bundle) -> Network:
    return open_bundle(bundle.path)


# ---------------------------------------------------------------------- the self-test of a bundle
@pytest.mark.parametrize("listed", [(1, 2, 3), (3,), ()])
def test_every_subset_gives_the_same_bits_with_pools(
    objects: bytes, tmp_path: Path, listed: tuple[int, ...]
) -> None:
    result = run_selftest(team_bundle(team_library(objects, listed), HOST, tmp_path), HOST)
    assert result.status == "passed", result.output


@pytest.mark.cross
@pytest.mark.parametrize("name", ["aarch64-cortex-a72", "armv7-neon"])
def test_pools_under_emulation(tmp_path: Path, name: str) -> None:
    target = linkable(name)
    made = team_bundle(team_library(compile_kernels(target, tmp_path)), target, tmp_path / "dist")
    expect_passed(run_selftest(made, target))


def test_selftest_notices_a_kernel_whose_units_depend_on_each_other(tmp_path: Path) -> None:
    """A unit that reads what an earlier unit of the same call wrote is right in one piece only."""
    source = (tmp_path / "kernels.c").as_posix()
    compile_kernels(HOST, tmp_path)
    text = Path(source).read_text()
    broken = text.replace("y[i] = x[i] * w[i]", "y[i] = x[i] * w[i] + (i == begin * (N / UNITS) ? begin : 0)")
    assert broken != text
    Path(source).write_text(broken)
    subprocess.run(["gcc", "-O2", "-fPIC", "-DEXIT=0", "-c", source, "-o", tmp_path / "kernels.o"], check=True)
    library = team_library((tmp_path / "kernels.o").read_bytes())
    result = run_selftest(team_bundle(library, HOST, tmp_path / "dist"), HOST)
    assert result.status == "failed"
    assert "differs from the full set's" in result.output


def test_nothing_worth_sharing_needs_no_pthread(objects: bytes, tmp_path: Path) -> None:
    made = team_bundle(team_library(objects, shared=False), HOST, tmp_path)
    assert run_selftest(made, HOST).status == "passed"
    assert not {"malloc", "pthread_create"} & set(made.manifest["library"]["imports"])
    with open_bundle(made.path).pool(3) as pool:
        np.testing.assert_array_equal(open_bundle(made.path).run(x_of(0))["a"], expected(x_of(0))[0])
        assert pool.threads == 3


def test_without_threads(objects: bytes, tmp_path: Path) -> None:
    library = team_library(objects)
    made = team_bundle(library, HOST, tmp_path, threads=False)
    assert run_selftest(made, HOST).status == "passed"
    assert "pool_create" not in header_text(interface(library, threads=False), HOST)
    assert not {"malloc", "pthread_create"} & set(made.manifest["library"]["imports"])
    with pytest.raises(BundleError, match="was built without threads"):
        open_bundle(made.path).pool(2)


def test_bench_takes_threads(bundle: Bundle) -> None:
    assert '"threads": 2' in run_bench(bundle, HOST, seconds=0.01, threads=2)


# ---------------------------------------------------------------------- races
def stress(
    bundle: Bundle, folder: Path, *flags: str, edit: tuple[str, str] = ("", "")
) -> subprocess.CompletedProcess:
    """Build the stress program with the driver, `edit` replacing some of its text, and run it."""
    driver = bundle.path / "src/team_driver.c"
    text = driver.read_text()
    assert edit[0] in text
    (folder / "driver.c").write_text(text.replace(*edit) if edit[0] else text)
    compile_kernels(HOST, folder)
    program = folder / "stress"
    sources = [STRESS, folder / "driver.c", "src/weights.S", folder / "kernels.c"]
    command = ["gcc", "-std=c11", "-O1", "-g", *flags, "-DEXIT=0", "-I.", *sources, "-o", program, "-lpthread"]
    subprocess.run(command, cwd=bundle.path, check=True)
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=300, env=env)


def has_sanitizer(folder: Path, kind: str) -> bool:
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    command = ["gcc", f"-fsanitize={kind}", folder / "empty.c", "-o", folder / "empty"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return False
    return subprocess.run([folder / "empty"], capture_output=True, check=False).returncode == 0


def test_stress(bundle: Bundle, tmp_path: Path) -> None:
    done = stress(bundle, tmp_path, "-Wall", "-Wextra", "-Werror")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("0 failures")


def test_no_data_race(bundle: Bundle, tmp_path: Path) -> None:
    if not has_sanitizer(tmp_path, "thread"):
        pytest.skip("gcc lacks ThreadSanitizer")
    done = stress(bundle, tmp_path, "-fsanitize=thread")
    assert done.returncode == 0, done.stderr[:4000]
    assert "WARNING" not in done.stderr


def test_scratch_of_threads_is_for_calls_that_they_share(objects: bytes, tmp_path: Path) -> None:
    """It has the size that those need; a call of one thread that needs more has it in the workspace."""
    if not has_sanitizer(tmp_path, "address"):
        pytest.skip("gcc lacks AddressSanitizer")
    library = team_library(objects)

    def apart(program: Program) -> Program:
        calls = (replace(c, shared=c.shared and c.kernel != "k_team_2") for c in program.calls)
        return replace(program, calls=tuple(calls))

    programs = tuple(apart(p) for p in library.programs)
    made = replace(library, full=apart(library.full), programs=programs, scratch_bytes=64)
    done = stress(team_bundle(made, HOST, tmp_path / "dist"), tmp_path, "-fsanitize=address")
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout.startswith("0 failures")


RACES = {
    "steps do not wait for others": ("if (me->shared) await_others(me);", "if (me->shared) {}"),
    "the caller's steps are not awaited": (
        "else if (me->index) await(pool, &pool->members[0].progress, me->step);",
        "",
    ),
    "calls may overlap": ("if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) return 8;", ""),
    "one scratch for all": ("(me && me->scratch ? me->scratch : ws + (offset))", "(ws + (offset))"),
}


@pytest.mark.parametrize("name", RACES)
def test_a_missing_wait_is_a_race_that_is_seen(bundle: Bundle, tmp_path: Path, name: str) -> None:
    if not has_sanitizer(tmp_path, "thread"):
        pytest.skip("gcc lacks ThreadSanitizer")
    done = stress(bundle, tmp_path, "-fsanitize=thread", edit=RACES[name])
    assert done.returncode != 0
    assert "data race" in done.stderr or "failures" in done.stdout


PARTS = """
#include "driver.c"
#include <stdio.h>
int main(void) {
  const int32_t counts[] = {1, 2, 3, 7, 61, 64, 255, 256, 257, 1000, 65535, 16777216, 2147483647};
  for (unsigned threads = 1; threads <= TEAM_THREADS_MAX; threads++)
    for (unsigned k = 0; k < sizeof counts / sizeof *counts; k++) {
      team_pool pool = {.threads = threads, .share = inverse(threads)};
      member me = {.pool = &pool};
      int64_t units = counts[k], least = units / threads; int32_t at = 0;
      for (unsigned i = 0; i < threads; i++) {
        int32_t begin = part_begin(&me, i, units), end = part_begin(&me, i + 1, units);
        if (begin != at || (units <= 1 << 24 && (end - begin < least || end - begin > least + 1)))
          return printf("%u threads, %ld units: part %u is %d to %d\\n", threads, (long)units, i, begin, end), 1;
        at = end;
      }
      if (at != units) return printf("%u threads, %ld units: ends at %d\\n", threads, (long)units, at), 1;
    }
  return 0;
}
"""


SCRATCHES = """
#include "driver.c"
#include <malloc.h>
#include <stdio.h>
int main(void) {
  team_pool *pool = furnish(3);
  if (!pool) return printf("no pool\\n"), 1;
  unsigned char *end = (unsigned char *)pool->memory + malloc_usable_size(pool->memory);
  for (int i = 0; i < 3; i++) {
    unsigned char *own = pool->members[i].scratch;
    if (own < (unsigned char *)&pool->members[3]) return printf("member %d has none of its own\\n", i), 1;
    if (i && own - pool->members[i - 1].scratch < SIZE) return printf("member %d shares it\\n", i), 1;
    if (own + SIZE > end) return printf("that of member %d is too short\\n", i), 1;
  }
  return free(pool->memory), 0;
}
"""


def test_every_thread_of_a_pool_has_scratch_of_its_own(bundle: Bundle, tmp_path: Path) -> None:
    """The calling thread too: lines of the workspace are read by others."""
    shutil.copy(bundle.path / "src/team_driver.c", tmp_path / "driver.c")
    (tmp_path / "scratch.c").write_text(SCRATCHES)
    compile_kernels(HOST, tmp_path)
    flags = ["-std=c11", "-w", f"-DSIZE={SCRATCH}", "-I", tmp_path, "-I."]
    command = ["gcc", *flags, tmp_path / "scratch.c", "src/weights.S", tmp_path / "kernels.o"]
    subprocess.run([*command, "-o", tmp_path / "scratch", "-lpthread"], cwd=bundle.path, check=True)
    done = subprocess.run([tmp_path / "scratch"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_parts_cover_all_units_evenly(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(bundle.path / "src/team_driver.c", tmp_path / "driver.c")
    (tmp_path / "parts.c").write_text(PARTS)
    compile_kernels(HOST, tmp_path)
    command = ["gcc", "-std=c11", "-w", "-I", tmp_path, "-I.", tmp_path / "parts.c", "src/weights.S"]
    command += [tmp_path / "kernels.o", "-o", tmp_path / "parts", "-lpthread"]
    subprocess.run(command, cwd=bundle.path, check=True)
    done = subprocess.run([tmp_path / "parts"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------- from Python
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_python_pools(network: Network, threads: int) -> None:
    x = x_of(threads)
    a, b = expected(x)
    with network.pool(threads) as pool:
        found = network.run(x, pool=pool)
        np.testing.assert_array_equal(found["a"], a)
        np.testing.assert_array_equal(found["b"], b)
        bound = network.bind(["b"], pool=pool, x=x)
        np.testing.assert_array_equal(bound()["b"], b)


def test_closed_pools_are_refused(network: Network) -> None:
    with network.pool(2) as pool:
        bound = network.bind(["a"], pool=pool, x=x_of(1))
    pool.close()
    for call in (bound, lambda: network.run(x_of(1), pool=pool), lambda: network.bind(["a"], pool=pool, x=x_of(1))):
        with pytest.raises(ValueError, match="the pool is closed"):
            call()


def test_a_bound_call_keeps_its_pool(network: Network) -> None:
    """A pool that nobody else holds is not given back while a call can use it."""
    made = network.pool(2)
    alive = weakref.ref(made)
    bound = network.bind(["a"], pool=made, x=x_of(1))
    del made
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(bound()["a"], expected(x_of(1))[0])
    del bound
    gc.collect()
    assert alive() is None


FORKS = """
import os, sys
import numpy as np
from compiler import open_bundle

network = open_bundle(sys.argv[1])
x = np.load(sys.argv[2])
expected = network.run(x)["b"]
pool, dropped = network.pool(2), network.pool(3)
bound = network.bind(["b"], {"x": x}, pool=pool)
child = os.fork()
if child == 0:
    del dropped  # closes it, in the process that made it
    refused = []
    for call in (bound, lambda: network.run(x, pool=pool), lambda: network.bind(["b"], {"x": x}, pool=pool)):
        try:
            call()
        except ValueError as error:
            refused.append("before this process was forked" in str(error))
    pool.close()
    with network.pool(2) as own:
        right = np.array_equal(network.run(x, pool=own)["b"], expected)
    os._exit(0 if right and refused == [True] * 3 else 1)
print(os.waitpid(child, 0)[1], np.array_equal(bound()["b"], expected))
"""


def test_a_child_of_fork_has_no_pool_and_waits_for_none(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x_of(1))
    command = [sys.executable, "-W", "ignore", "-c", FORKS, bundle.path, tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def test_a_pool_serves_its_own_network(bundle: Bundle, network: Network) -> None:
    other = open_bundle(bundle.path)
    with other.pool(2) as pool, pytest.raises(ValueError, match="belongs to another network"):
        network.run(x_of(1), pool=pool)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_pools_of_impossible_size(network: Network, threads: int) -> None:
    with pytest.raises(ValueError, match="1 to 256 threads"):
        network.pool(threads)


def test_one_call_at_a_time(network: Network) -> None:
    """Calls of two threads on one pool: each is right or refused."""
    x, codes = x_of(3), []
    with network.pool(2) as pool:
        bounds = [network.bind(["a", "b"], pool=pool, x=x) for _ in range(2)]

        def hammer(call) -> None:
            for _ in range(200):
                try:
                    np.testing.assert_array_equal(call()["a"], expected(x)[0])
                    codes.append(0)
                except BundleError as error:
                    assert "8: pool is in use by another call" in str(error)
                    codes.append(8)

        threads = [threading.Thread(target=hammer, args=(call,)) for call in bounds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(codes) == 400
    assert 0 in codes


def test_a_failing_kernel_is_reported_by_any_thread(tmp_path: Path) -> None:
    made = team_bundle(team_library(compile_kernels(HOST, tmp_path, exit_code=1)), HOST, tmp_path / "dist")
    network = open_bundle(made.path)
    with network.pool(3) as pool:
        for _ in range(3):
            with pytest.raises(BundleError, match="7: kernel failure"):
                network.run(x_of(1), pool=pool)


# ---------------------------------------------------------------------- what is worth sharing
def test_small_calls_stay_with_the_caller() -> None:
    assert not worth_sharing(1, 1.0, 0, 0, X86_64_V4)
    assert not worth_sharing(8, LEAST_SECONDS / 2, 10**9, 10**9, X86_64_V4)
    assert worth_sharing(8, LEAST_SECONDS, 0, 0, X86_64_V4)
    assert worth_sharing(8, None, 10**6, 0, X86_64_V4)
    assert worth_sharing(8, 0.0, 0, 10**6, X86_64_V4)
    assert not worth_sharing(8, None, 1000, 1000, X86_64_V4)
