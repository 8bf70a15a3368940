"""Opening and calling bundles from Python."""

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from compiler.codegen.bundle import Bundle
from compiler.codegen.foreign import Port
from compiler.codegen.runtime import Network, open_bundle
from compiler.codegen.target import Feature, find_target
from compiler.errors import BundleError, ConfigError
from tests.codegen.handmade import SCALE, X, compile_kernels, expected, tiny_bundle, tiny_library

HOST = find_target("host")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_kernels(HOST, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def bundle(objects: bytes, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tiny_library(objects, (1, 3)), HOST, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def network(bundle: Bundle) -> Network:
    return open_bundle(bundle.path.parent)


def test_every_subset_listed_or_not(network: Network) -> None:
    a, b = expected()
    for tasks in (["a"], ["b"], ["a", "b"], ["b", "a"]):
        found = network.run(X, tasks=tasks)
        assert list(found) == tasks
        for task in tasks:
            np.testing.assert_array_equal(found[task], {"a": a, "b": b}[task])
    np.testing.assert_array_equal(network.run({"x": X})["a"], a)


def test_facts(network: Network) -> None:
    assert network.tasks == ("a", "b")
    assert network.inputs == {"x": ("float32", (8,))}
    assert network.workspace_bytes(["a"]) == 128


def test_conversion_and_strictness(network: Network) -> None:
    doubled = np.repeat(X.astype(np.float64), 2)[::2]
    np.testing.assert_array_equal(network.run(doubled)["a"], expected()[0])
    with pytest.raises(ValueError, match=r"'x' is float64\[8\], not in C order; needed is float32\[8\]"):
        network.run(doubled, strict=True)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (X[:4], {}, r"shape \[4\]; needed is float32\[8\]"),
        ({}, {}, "input 'x' is missing"),
        ({"x": X, "z": X}, {}, "unknown input z"),
        (X, {"tasks": ["c"]}, "choose from a, b"),
        (X, {"tasks": []}, "choose from a, b"),
        (X, {"level": 1}, "level 1 is not in this bundle"),
        (X, {"level": -1}, "level -1"),
    ],
)
def test_wrong_calls_say_what_is_right(network: Network, inputs: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.run(inputs, **options)  # type: ignore[arg-type]


def test_texts_and_complex_numbers_are_no_inputs() -> None:
    port = Port("x", "x", "", np.dtype(np.float32), (2,))
    for wrong in (["a", "b"], [1j, 2]):
        with pytest.raises(ValueError, match=r"'x' holds .* and no real numbers; needed is float32"):
            port.converted(np.array(wrong))


def test_integers_are_never_made_of_other_numbers() -> None:
    port = Port("x", "x", "", np.dtype(np.uint8), (2,))
    assert port.converted(np.array([0.0, 255.0])).tolist() == [0, 255]
    for wrong in ([0.5, 1.0], [0, 256], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match=r"'x' has values that uint8 does not have; needed is uint8\[2\]"):
            port.converted(np.array(wrong))


def test_bound_call_writes_into_given_arrays(network: Network) -> None:
    x, a = X.copy(), np.zeros(8, np.float32)
    bound = network.bind(["a"], x=x, a=a)
    assert bound()["a"] is a
    np.testing.assert_array_equal(a, expected()[0])
    x[:] = 1
    bound(level=0)
    np.testing.assert_array_equal(a, expected(x)[0])
    with pytest.raises(ValueError, match=r"^level 1 is not in this bundle$"):
        bound(level=1)
    bound()


def test_an_input_is_not_written_to_where_a_task_has_its_name(objects: bytes, tmp_path: Path) -> None:
    network = open_bundle(tiny_bundle(tiny_library(objects, names=("x", "b")), HOST, tmp_path).path)
    given, out = X.copy(), np.zeros_like(X)
    np.testing.assert_array_equal(network.bind(["x"], x=given)()["x"], expected()[0])
    np.testing.assert_array_equal(given, X)
    network.bind(["x"], x=given, **{"x/y": out})()
    np.testing.assert_array_equal(out, expected()[0])


def test_bind_refuses_what_it_cannot_pin(network: Network) -> None:
    frozen = np.zeros(8, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="'a' is float32\\[8\\], read-only"):
        network.bind(["a"], x=X, a=frozen)
    with pytest.raises(ValueError, match="'x' is float64"):
        network.bind(["a"], x=X.astype(np.float64))
    with pytest.raises(ValueError, match="unknown array b"):
        network.bind(["a"], x=X, b=frozen)
    memory = np.zeros(12, np.float32)
    with pytest.raises(ValueError, match="output 'a' shares memory with 'x'"):
        network.bind(["a"], x=memory[:8], a=memory[4:])
    with pytest.raises(ValueError, match="output 'b' shares memory with 'a'"):
        network.bind(["a", "b"], x=X, a=memory[:8], b=memory[7:9].view(np.int32))


def test_bind_takes_arrays_by_position_too(network: Network) -> None:
    """A single input needs no name there, as for `run`."""
    out = np.zeros(8, np.float32)
    for arrays, named in (((X,), {}), (({"x": X},), {"a": out}), (({"x": X, "a": out},), {}), ((None,), {"x": X})):
        np.testing.assert_array_equal(network.bind(["a"], *arrays, **named)()["a"], expected()[0])
    with pytest.raises(ValueError, match="'x': given by position and as an argument; give it once"):
        network.bind(["a"], {"x": X}, x=X)


def test_an_array_that_cannot_be_pinned_is_told(network: Network) -> None:
    given = X.tolist()
    for ask in (
        lambda: network.bind(["a"], x=given),
        lambda: network.bind(["a"], given),
        lambda: network.run(given, strict=True),
    ):
        with pytest.raises(ValueError, match=r"'x' is a list, which has no address to pass; .* float32\[8\]"):
            ask()
    with pytest.raises(ValueError, match="'a' is a list"):
        network.bind(["a"], x=X, a=[0.0] * 8)
    np.testing.assert_array_equal(network.run(given)["a"], expected()[0])
    for ask in (lambda: network.bind(["a"], x=X, pool=X), lambda: network.run(X, pool=2)):
        with pytest.raises(ValueError, match=r"pool is a (ndarray|int); give what pool\(\) made"):
            ask()


def test_threads_have_their_own_workspace(network: Network) -> None:
    def right(seed: int) -> int:
        x = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
        reference = expected(x)[0]
        return sum(np.array_equal(network.run(x)["a"], reference) for _ in range(300))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(right, range(4))) == [300] * 4


def test_kernel_failure_is_reported(tmp_path: Path) -> None:
    library = tiny_library(compile_kernels(HOST, tmp_path, exit_code=1))
    network = open_bundle(tiny_bundle(library, HOST, tmp_path / "dist").path)
    with pytest.raises(BundleError, match="7: kernel failure"):
        network.run(X)
    np.testing.assert_array_equal(network.run(X, tasks=["a"])["a"], expected()[0])


def test_two_versions_in_one_process(objects: bytes, tmp_path: Path, bundle: Bundle) -> None:
    library = tiny_library(objects)
    other = dataclasses.replace(library, pool=bytes(32) + library.pool[32:])
    first = open_bundle(bundle.path)
    second = open_bundle(tiny_bundle(other, HOST, tmp_path).path)
    np.testing.assert_array_equal(second.run(X)["a"], np.arange(8, dtype=np.float32))
    np.testing.assert_array_equal(first.run(X)["a"], expected()[0])


@pytest.mark.parametrize("lower", [False, True])  # whether the file is read by another number than it keeps
def test_a_library_is_not_taken_for_one_whose_descriptor_was_closed(
    lower: bool, objects: bytes, tmp_path: Path
) -> None:
    """The loader knows libraries by the path of their descriptor, and daemons close all descriptors."""
    low = os.open(os.devnull, os.O_RDONLY)
    biases = [np.full(8, 2 + n + 2 * lower, np.float32) for n in range(2)]
    pools = [SCALE.tobytes() + bytes(32) + bias.tobytes() for bias in biases]
    libraries = [dataclasses.replace(tiny_library(objects), pool=pool) for pool in pools]
    paths = [tiny_bundle(made, HOST, tmp_path / str(n)).path for n, made in enumerate(libraries)]
    first = open_bundle(paths[0])
    held = int(first._functions._library._name.rpartition("/")[2])
    os.close(held)
    taken = [low]
    while taken[-1] != held:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    os.close(taken.pop())
    if lower:
        os.close(taken.pop(0))
    second = open_bundle(paths[1])
    for number in taken:
        os.close(number)
    for network, bias in zip((first, second), biases, strict=True):
        np.testing.assert_array_equal(network.run(X)["a"], np.maximum(X * SCALE, 0) + bias)


def test_tampered_library_is_not_loaded(objects: bytes, tmp_path: Path) -> None:
    bundle = tiny_bundle(dataclasses.replace(tiny_library(objects), plan={"x": 1}), HOST, tmp_path)
    data = bytearray(bundle.library.read_bytes())
    data[-1] ^= 1
    bundle.library.write_bytes(data)
    with pytest.raises(BundleError, match=r"libtiny\.so has another digest"):
        open_bundle(tmp_path)


def test_richest_target_that_runs_is_taken(objects: bytes, tmp_path: Path) -> None:
    source = {"x86_64": "leaf7_ebx"}.get(HOST.arch, "hwcap")
    lacking = Feature("UNOBTAINIUM", source, 1 << 2 if source == "leaf7_ebx" else 1 << 31, "")  # type: ignore[arg-type]
    library = tiny_library(objects)
    rich = dataclasses.replace(HOST, name="rich", features=(*HOST.features, lacking))
    tiny_bundle(library, HOST, tmp_path)
    tiny_bundle(library, rich, tmp_path)
    tiny_bundle(library, dataclasses.replace(HOST, name="plain", features=()), tmp_path)
    expected_target = "host" if HOST.features else "plain"
    assert open_bundle(tmp_path).bundle.target == expected_target
    with pytest.raises(BundleError, match="rich: this processor lacks UNOBTAINIUM"):
        open_bundle(tmp_path, "rich")


def test_several_outputs_per_task(objects: bytes, tmp_path: Path) -> None:
    library = tiny_library(objects)
    both = dataclasses.replace(library.tasks[0], outputs=tuple(t.outputs[0] for t in library.tasks))
    one = tuple(dataclasses.replace(c, mask=1) for c in library.full.calls)
    program = dataclasses.replace(library.full, mask=1, calls=one)
    library = dataclasses.replace(library, tasks=(both,), full=program, programs=(program,))
    network = open_bundle(tiny_bundle(library, HOST, tmp_path, costs=[]).path)
    found = network.run(X)["a"]
    assert list(found) == ["y", "n"]
    np.testing.assert_array_equal(found["n"], expected()[1])
    bound = network.bind(["a"], x=X, **{"a/n": np.zeros(2, np.int32)})
    np.testing.assert_array_equal(bound()["a"]["y"], expected()[0])


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is no bundle: there is no such folder"):
        open_bundle(tmp_path / "nowhere")


def test_runtime_needs_neither_tvm_nor_onnx() -> None:
    program = (
        "import sys, compiler.codegen.runtime\n"
        "print([m for m in ('tvm', 'onnx', 'onnxruntime', 'torch', 'networkx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
