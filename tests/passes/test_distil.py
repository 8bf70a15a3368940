"""distil: what it needs, what it changes, that it learns, and that it ends the same way every time."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler import parse_pass
from compiler.errors import ConfigError, PassError, TargetError, VerifyError
from compiler.ir.encoding import Dense, Unstructured
from compiler.ir.graph import Graph
from compiler.ir.reference import evaluate
from compiler.ir.text import digest
from compiler.passes.base import Resources
from compiler.passes.distil import COLDEST, MOST, Distil, teacher_problems
from compiler.passes.extract import ExtractTasks
from compiler.passes.extract_level import ExtractLevel
from compiler.passes.merge.merging import Merge
from compiler.passes.narrow.narrowing import Narrow
from compiler.passes.prune.channels import PruneChannels
from compiler.passes.sparsify.magnitude import Sparsify
from compiler.passes.sparsify.nest import Nest
from compiler.pipeline import Pipeline, parse
from tests.graphs import Builder, half_network

SHAPE = (1, 2, 6, 6)
NEST = Nest(levels=(0.0, 0.5, 0.75))


def network(*tasks: str, seed: int = 0) -> Graph:
    """Two small convolutional networks over one input."""
    b = Builder(seed=seed)
    x = b.input("x", *SHAPE)
    for task in tasks:
        h = b.apply("Relu", b.conv(x, 8, 3, pads=(1, 1, 1, 1)))
        h = b.apply("MaxPool", h, kernel_shape=(2, 2), strides=(2, 2))
        h = b.apply("Flatten", b.apply("Relu", b.conv(h, 8, 3)))
        b.task(task, b.apply("Gemm", h, b.weight(3, 8), b.weight(3), transB=1))
    return b.graph.freeze()


@pytest.fixture(scope="module")
def original() -> Graph:
    return network("a", "b")


@pytest.fixture(scope="module")
def use(original) -> Resources:
    data = np.random.default_rng(3).normal(size=(120, *SHAPE[1:])).astype(np.float32)
    return Resources(calibration={"x": data}, teacher=original)


def deciding(*ends: str, seed: int = 0) -> Graph:
    """A small network whose task gives its scores, or decisions made of them: the number of the best class, as an
    integer or as a float.
    """
    b = Builder(seed=seed)
    h = b.apply("Relu", b.conv(b.input("x", *SHAPE), 8, 3))
    h = b.apply("Relu", b.apply("Gemm", b.apply("Flatten", h), b.weight(8, 128), b.weight(8), transB=1))
    scores = b.apply("Gemm", h, b.weight(3, 8), b.weight(3), transB=1)
    best = b.apply("ArgMax", scores, axis=1)
    made = {"Identity": scores, "ArgMax": best, "Cast": b.apply("Cast", best, to=1)}
    b.task("t", *(made[end] for end in ends))
    return b.graph.freeze()


def error(graph: Graph, original: Graph, use: Resources) -> float:
    """Mean squared error of all outputs against the originals, as a share of their variance."""
    return float(np.mean([error_of(graph, original, use, t) for t in original.tasks]))


def error_of(graph: Graph, original: Graph, use: Resources, task: str) -> float:
    """The same of one task."""
    own, other = (g.tasks[task].outputs[0].name for g in (graph, original))
    pairs = [(evaluate(graph, f)[own], evaluate(original, f)[other]) for f in use.batches(original)]
    found, wanted = (np.stack(p) for p in zip(*pairs, strict=True))
    return float(np.mean((found - wanted) ** 2) / wanted.var(0).mean())


def margin(scores: np.ndarray) -> float:
    """How far class 0 is ahead of the best other one."""
    return float(scores[0, 0] - scores[0, 1:].max())


# ---------------------------------------------------------------------- without torch
def test_options_are_text_both_ways():
    pass_ = Distil(epochs=3, loss="kl", classes=("a", "b"), weights=("a:2.0",), rate=0.003)
    assert parse(str(pass_)) == pass_


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *((wrong, "epochs and batch start at 1") for wrong in ({"epochs": 0}, {"batch": 0}, {"samples": -1})),
        ({"patience": -1}, "samples and patience at 0"),
        *((wrong, "settle starts at 1, rounds at 0") for wrong in ({"rounds": -1}, {"settle": 0})),
        *(
            (wrong, "rate, temperature and climb must be above 0")
            for wrong in ({"rate": 0.0}, {"temperature": 0.0})
        ),
        ({"labels": -0.5}, "labels cannot be negative"),
        *(
            ({name: 1_000_001}, "epochs, batch, patience, rounds and settle go up to 1,000,000")
            for name in ("epochs", "batch", "patience", "settle")
        ),
        *(({name: 1.1e6}, "climb and labels go up to 1,000,000") for name in ("rate", "temperature", "labels")),
        ({"rate": float("inf")}, "climb and labels go up to 1,000,000"),
        ({"temperature": 1e-7}, "temperature starts at 1e-06"),
        *(
            ({"weights": wrong}, "weights go up to 1,000,000, and one at least is above 0")
            for wrong in (("a:1.1e6",), ("a:0", "b:0"))
        ),
        ({"loss": "l1"}, "loss is 'l1'; it can be mse or kl"),
        ({"classes": ("c",)}, "classes names c; the tasks are a, b"),
        ({"weights": ("a",)}, "weights: 'a' is not TASK:WEIGHT with one of a, b"),
        ({"weights": ("a:1", "b:2", "a:3")}, "weights: 'a' is given twice"),
        ({"weights": ("a:nan",)}, "weights: 'a:nan' is not TASK:WEIGHT"),
        ({"weights": ("a:-1",)}, "weights: 'a:-1' is not TASK:WEIGHT"),
        ({"labels": 0.5}, "labels asks for class labels"),
        ({"batch": 1, "normalise": True}, "normalise is over the samples of a batch; give a batch of 2 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused(original, use, options, message):
    with pytest.raises(ConfigError, match=message):
        Distil(**options)(original, use)


def test_it_says_what_it_lacks(original, use):
    with pytest.raises(ConfigError, match=r"needs calibration inputs.*needs the original networks"):
        Distil()(original)
    other = network("a", seed=1)
    with pytest.raises(ConfigError, match="the original networks lack task b"):
        Distil()(original, replace(use, teacher=other))


def test_an_original_with_another_number_of_outputs_is_refused(original, use):
    teacher = original.copy()
    teacher.set_task("b", [*teacher.tasks["b"].outputs, *teacher.tasks["a"].outputs])
    with pytest.raises(ConfigError, match=r"other numbers of outputs for task b \(1 and 2\)"):
        Distil()(original, replace(use, teacher=teacher.freeze()))


@pytest.fixture
def without_torch(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(importlib, "import_module", missing)


def test_without_torch_it_says_how_to_get_it(original, use, without_torch):
    with pytest.raises(TargetError, match=r"needs torch.*taskgraft\[train\]"):
        Distil()(original, use)


@pytest.mark.parametrize("front", [(), (ExtractTasks(tasks=("a", "b")),), (NEST, ExtractLevel(alone=True))])
def test_rounds_without_levels_are_refused_before_torch_is_looked_for(original, use, without_torch, front):
    with pytest.raises(ConfigError, match="rounds are for networks with sparsity levels; run nest before"):
        Pipeline((*front, Distil(rounds=1))).run(original, use)
    with pytest.raises(ConfigError, match=r"^distil: rounds are for networks"):
        Distil(rounds=1)(original, use)


@pytest.mark.parametrize("front", [(NEST,), (NEST, ExtractLevel(level=1))])
def test_rounds_are_for_levels_that_a_pass_in_front_makes(original, use, without_torch, front):
    with pytest.raises(TargetError, match="needs torch"):
        Pipeline((*front, Distil(rounds=1))).run(original, use)


# ---------------------------------------------------------------------- with torch
@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs torch, which the extra [train] installs")


def test_the_ends_of_what_is_allowed_are_allowed(torch, original, use):
    least = Distil(epochs=1, batch=1, samples=0, patience=0, rounds=0, settle=1, labels=0.0)
    assert not least.wrong(original, use)
    most = Distil(epochs=MOST, batch=MOST, rate=MOST, labels=MOST, temperature=COLDEST, weights=("a:1e6", "b:0"))
    assert not most.wrong(original, replace(use, labels={"a": np.zeros(120, int)}))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_pruned_network_comes_closer_to_the_originals(torch, original, use, mixed):
    pruned = PruneChannels(flops=0.6, score="l2")(original, use)
    said = []
    trained = Distil(epochs=12, batch=16, rate=5e-3, mixed=mixed).run(pruned, replace(use, say=said.append))
    assert error(trained.graph, original, use) < 0.7 * error(pruned, original, use)
    assert "12 epochs" in str(trained.notes[0])
    assert len(said) == 12 and "s left" in said[0]


def test_labels_of_channels_stay_and_subsets_are_restrictions(torch, original, use):
    merged = Merge(policy="mtz", share=0.5)(original, use)
    trained = Distil(epochs=2, batch=16)(merged, use)
    assert trained.needed_by() == merged.needed_by()
    feed = next(iter(use.batches(original)))
    part = ExtractTasks(tasks=("a",))(trained)
    name = trained.tasks["a"].outputs[0].name
    assert np.array_equal(evaluate(part, feed)[name], evaluate(trained, feed)[name])


def test_zeros_of_sparse_encodings_stay(torch, original, use):
    sparse = Sparsify(pattern="unstructured", density=0.5, dense=(), min_inputs=1)(original, use)
    trained = Distil(epochs=2, batch=16)(sparse, use)
    encoded = [v for v in sparse.parameters() if not isinstance(v.type.encoding, Dense)]
    assert encoded
    for value in encoded:
        after = trained.value(value.ref)
        assert after.type == value.type
        assert not after.constant[value.constant == 0].any()
        assert not np.array_equal(after.constant, value.constant)


def test_two_trainings_give_the_same_bytes_and_seeds_differ(torch, original, use):
    pruned = PruneChannels(flops=0.6, score="l2")(original, use)
    first, again = (Distil(epochs=2, batch=16)(pruned, use) for _ in range(2))
    assert digest(first) == digest(again)
    assert digest(Distil(epochs=2, batch=16)(pruned, replace(use, seed=1))) != digest(first)


def test_an_interrupted_training_continues_to_the_same_result(torch, original, use, tmp_path):
    pruned = PruneChannels(flops=0.6, score="l2")(original, use)
    whole = Distil(epochs=4, batch=16)(pruned, use)

    class Interrupted(Exception):
        pass

    def stop(line):
        if "epoch 2 of" in line:
            raise Interrupted

    kept = replace(use, cache=tmp_path)
    with pytest.raises(Interrupted):
        Distil(epochs=4, batch=16)(pruned, replace(kept, say=stop))
    said = []
    resumed = Distil(epochs=4, batch=16)(pruned, replace(kept, say=said.append))
    assert said[0] == "distil: continues after epoch 2"
    assert digest(resumed) == digest(whole)
    (checkpoint,) = tmp_path.iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])  # damaged: it counts as none
    said.clear()
    assert digest(Distil(epochs=4, batch=16)(pruned, replace(kept, say=said.append))) == digest(whole)
    assert said[0].startswith("distil: epoch 1 of 4")


def test_it_never_comes_back_worse_on_held_out_inputs(torch, original, use):
    outcome = Distil(epochs=3, rate=5.0, patience=2).run(original, use)
    assert digest(outcome.graph) == digest(original)
    assert "the weights it started with" in str(outcome.notes[0])
    assert "stopped after epoch 2" in str(outcome.notes[0])


def test_weights_behind_inputs_of_0_to_255_are_not_trained_to_pieces(torch):
    """The same network reads x and 255 x: what it learns must not depend on the unit of its inputs."""
    wide, data = network("a"), np.random.default_rng(3).normal(size=(120, *SHAPE[1:])).astype(np.float32)
    scaled = wide.copy()
    first = next(n for n in scaled.nodes() if n.op.name == "Conv")
    weight = scaled.operands(first)[1]
    scaled.update(weight.ref, data=weight.constant / np.float32(255))
    found = []
    for graph, inputs in ((wide, data), (scaled.freeze(), 255 * data)):
        use = Resources(calibration={"x": inputs}, teacher=graph)
        pruned = PruneChannels(flops=0.6, score="l2")(graph, use)
        found.append(error(Distil(epochs=8, batch=16, rate=5e-3)(pruned, use), graph, use))
        assert found[-1] < 0.7 * error(pruned, graph, use)
    assert found[1] < 1.5 * found[0]


def test_class_labels_are_an_extra_loss(torch, original, use):
    labels = {"a": np.zeros(120, np.int64)}
    trained = Distil(epochs=8, batch=16, rate=1e-2, labels=5.0)(original, replace(use, labels=labels))
    feeds = list(use.batches(original))
    name = original.tasks["a"].outputs[0].name
    before, after = (np.mean([margin(evaluate(g, f)[name]) for f in feeds]) for g in (original, trained))
    assert after > before + 0.5
    with pytest.raises(ConfigError, match="label 3 of task 'a' is no class; its outputs tell of 0 to 2"):
        Distil(labels=1.0)(original, replace(use, labels={"a": np.full(120, 3)}))
    with pytest.raises(ConfigError, match="has 7 labels"):
        Distil(labels=1.0)(original, replace(use, labels={"a": np.zeros(7, np.int64)}))
    told = r"have shape \[120, 3\]; its outputs \[1, 3\] make 1 decision a call; give the number of a class"
    with pytest.raises(ConfigError, match=told):  # read one after the other they were those of other samples
        Distil(labels=1.0)(original, replace(use, labels={"a": np.tile(np.eye(3, dtype=int), (40, 1))}))
    column = {"a": labels["a"][:, None]}
    assert digest(trained) == digest(
        Distil(epochs=8, batch=16, rate=1e-2, labels=5.0)(original, replace(use, labels=column))
    )


@pytest.mark.parametrize("end", ["Identity", "Sigmoid"])
def test_class_labels_are_for_outputs_without_axes_too(torch, use, end):
    b = Builder(seed=1)
    h = b.apply("Flatten", b.conv(b.input("x", *SHAPE), 8, 3))
    found = b.apply(end, b.apply("ReduceSum", b.apply("Gemm", h, b.weight(128, 3)), keepdims=0))
    b.task("t", found)
    graph = b.done()
    assert graph.value(found).shape == ()
    middle = 0.5 if end == "Sigmoid" else 0.0
    right = np.array([evaluate(graph, f)[found.name] > middle for f in use.batches(graph)]).astype(np.int64)
    before = []
    for labels in (right, 1 - right):
        (note,) = Distil(epochs=1, labels=1.0).run(graph, replace(use, teacher=graph, labels={"t": labels})).notes
        before.append(float(str(note).partition("inputs ")[2].partition(" before")[0]))
    assert before[0] < np.log(2) < before[1]


@pytest.mark.parametrize("heavy", ["a", "b"])
def test_tasks_that_share_an_output_all_count(torch, original, use, heavy):
    """Both originals are taught to one value: it follows the task of the larger weight, be it the first or last."""
    shared = network("a", seed=5).copy()
    shared.set_task("b", shared.tasks["a"].outputs)
    weights = tuple(f"{t}:{50 if t == heavy else 0.02}" for t in "ab")
    trained = Distil(epochs=12, batch=16, rate=1e-2, weights=weights)(shared.freeze(), use)
    near, far = (error_of(trained, original, use, t) for t in (heavy, "ab".replace(heavy, "")))
    assert near < 0.8 * far
    assert near < 0.6 * error_of(shared, original, use, heavy)


def test_labels_of_tasks_that_share_an_output_all_count(torch, original, use):
    shared = network("a", seed=5).copy()
    shared.set_task("b", shared.tasks["a"].outputs)
    labels = {t: np.full(120, number) for number, t in enumerate("ab")}
    found = []
    for weights in (("a:9", "b:0.1"), ("a:0.1", "b:9")):
        options = {"epochs": 8, "batch": 16, "rate": 1e-2, "labels": 5.0, "weights": weights}
        found.append(Distil(**options)(shared.freeze(), replace(use, labels=labels)))
    name = shared.tasks["a"].outputs[0].name
    scores = [np.mean([evaluate(g, f)[name][0] for f in use.batches(original)], 0) for g in found]
    assert scores[0][0] - scores[0][1] > scores[1][0] - scores[1][1] + 1


ADVICE = {
    "cpu": {"distil": "smaller batch than 64, or fewer samples than 120", "narrow": "fewer samples"},
    "gpu": {"distil": "or device=cpu", "narrow": "or the CPU: set CUDA_VISIBLE_DEVICES="},
}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize(
    "pass_", [Distil(), Narrow(), PruneChannels(flops=0.6, score="fisher")], ids=lambda p: p.name
)
def test_too_little_memory_is_told_with_what_to_do(torch, original, use, monkeypatch, pass_, where):
    def run(net, *given):
        if where == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        torch.empty(2**60)  # torch's own error

    monkeypatch.setattr("compiler.training.module.TorchNet.run", run)
    memory = {"cpu": "this machine", "gpu": "the GPU"}[where]
    advice = ADVICE[where].get(pass_.name, "fewer samples, or another score")
    with pytest.raises(
        TargetError, match=rf"^{pass_.name}: the memory of {memory} is too small: .*llocate .*\n"
    ) as told:
        pass_(original, use)
    assert advice in str(told.value) and told.value.exit_code == 5
    monkeypatch.setattr("compiler.training.module.TorchNet.run", lambda *given: torch.empty(2) + torch.empty(3))
    with pytest.raises(RuntimeError, match="size of tensor"):  # any other error stays what it is
        pass_(original, use)


@pytest.mark.parametrize("pass_", [Distil(epochs=1), Narrow(flops=0.9, between=0)])
def test_originals_that_answer_no_numbers_are_told_with_the_inputs(torch, original, use, pass_):
    data = {"x": use.calibration["x"].copy()}
    data["x"][[7, 50], 0, 3, 3] = np.inf
    told = "task 'a' answers NaN or infinity to 2 of 120 calibration batches, the first of them number 7"
    with pytest.raises(PassError, match=told):
        pass_(original, replace(use, calibration=data))


def test_a_network_without_a_loss_to_begin_with_is_refused(torch, original, use):
    graph = original.copy()
    bias = next(v for v in graph.parameters() if v.shape == (3,))
    graph.update(bias.ref, data=np.full(3, 1e30, np.float32))
    with pytest.raises(PassError, match="graph 'net' loses inf on held-out inputs before training"):
        Distil(epochs=1)(graph.freeze(), use)


@pytest.mark.parametrize(
    "pass_",
    [Distil(epochs=2), Distil(epochs=2, loss="kl", labels=1.0), Narrow(flops=0.8, between=0.05, drawn=16)],
)
def test_decisions_beside_scores_are_not_trained_for(torch, use, pass_):
    teacher = deciding("Identity", "ArgMax")
    labels = {"t": np.random.default_rng(0).integers(0, 3, 120)}
    outcome = pass_.run(deciding("Identity", "ArgMax", seed=5), replace(use, teacher=teacher, labels=labels))
    first = deciding("ArgMax", "Identity", seed=5)
    turned = pass_.run(first, replace(use, teacher=deciding("ArgMax", "Identity"), labels=labels))
    assert outcome.notes == turned.notes
    assert [v.data.tobytes() for v in outcome.graph.parameters()] == [
        v.data.tobytes() for v in turned.graph.parameters()
    ]


@pytest.mark.parametrize("pass_", [Distil(), Narrow()])
def test_tasks_that_only_decide_are_refused(use, pass_):
    graph = deciding("ArgMax")
    with pytest.raises(ConfigError, match="task 't' answers int64 only, towards which nothing can be trained"):
        pass_(graph, replace(use, teacher=graph))


@pytest.mark.parametrize("pass_", [Distil(), Narrow(between=0)])
def test_decisions_written_as_floats_are_refused(torch, use, pass_):
    graph = deciding("Cast")
    with pytest.raises(PassError, match="no output of graph 'net' changes gradually with weights"):
        pass_(graph, replace(use, teacher=graph))


@pytest.mark.parametrize("pass_", [Distil(), Narrow()])
def test_float16_is_not_trained(torch, pass_):
    graph = half_network()
    use = Resources(calibration=lambda: (), teacher=graph)
    with pytest.raises(PassError, match="'conv:0' is computed in float16; convert the network to float32"):
        pass_(graph, use)


def test_too_few_inputs_are_refused(torch, original, use):
    with pytest.raises(PassError, match="4 calibration batches, too few to train on; give 10 or more"):
        Distil(samples=4)(original, use)


def test_a_network_without_weights_has_nothing_to_train(torch, use):
    b = Builder()
    b.task("t", b.apply("Relu", b.input("x", *SHAPE)))
    graph = b.done()
    with pytest.raises(PassError, match="no weights that can be trained"):
        Distil(epochs=1)(graph, replace(use, teacher=graph))


def test_a_device_that_is_not_there_is_told_before_the_first_pass(torch, original, use):
    told: list[str] = []
    with pytest.raises(ConfigError, match="device 'tpu9' cannot be used"):
        Pipeline.parse(["fold-constants", "distil{device=tpu9}"]).run(original, replace(use, say=told.append))
    assert not told


# ---------------------------------------------------------------------- what is handed on, told and checked
class Handed(Exception):
    """Stops a pass where training would begin."""


@pytest.fixture
def handed(torch, monkeypatch):
    """Runs a pass up to its training; (network, material, wanted, recipe, device, checkpoint, say)."""

    def run(pass_, graph, use):
        found = []

        def distil(*given):
            found.append(given)
            raise Handed

        monkeypatch.setattr("compiler.training.distilling.distil", distil)
        with pytest.raises(Handed):
            pass_(graph, use)
        return found[0]

    return run


def test_every_option_is_handed_on(handed, original, use, tmp_path):
    pass_ = Distil(*(3, 8, 0.25, "mse", ("b",), ("a:2.5",), 4.0, 0.75, 2, 11, "cpu", True), rounds=0, settle=5)
    labels = {"a": np.zeros(120, int), "nobody": np.zeros(120, int)}
    use = replace(use, labels=labels, seed=7, cache=tmp_path)
    _, material, wanted, recipe, device, checkpoint, say = handed(pass_, original, use)
    assert material.teacher is original and material.labels.keys() == {"a"} and len(material.feeds) == 11
    for feed, expected in zip(material.feeds, use.batches(original), strict=False):
        assert np.array_equal(feed["x"], expected["x"])
    assert (wanted.weights, wanted.classes) == ({"a": 2.5, "b": 1.0}, {"b"})
    assert (wanted.temperature, wanted.labels) == (4.0, 0.75)
    assert (recipe.epochs, recipe.batch, recipe.rate) == (3, 8, 0.25)
    assert (recipe.patience, recipe.seed, recipe.mixed) == (2, 7, True)
    assert device == "cpu" and checkpoint.parent == tmp_path and say is use.say


def test_without_options_all_tasks_and_samples_count_alike(handed, original, use):
    labels = {"a": np.zeros(120, int)}
    _, material, wanted, recipe, device, checkpoint, _ = handed(Distil(), original, replace(use, labels=labels))
    assert len(material.feeds) == 120 and material.labels == {} and not wanted.classes
    assert wanted.weights == {"a": 1.0, "b": 1.0} and checkpoint is None and device == "auto"
    assert not recipe.mixed and recipe.patience == 0
    assert handed(Distil(loss="kl"), original, use)[2].classes == {"a", "b"}


def test_a_checkpoint_is_of_one_network_one_teacher_one_set_of_options_and_data(handed, original, use, tmp_path):
    def file(pass_=Distil(), graph=original, **changed):  # noqa: B008
        return handed(pass_, graph, replace(use, cache=tmp_path, **changed))[5]

    other = network("a", "b", seed=1)
    data = {"x": np.array(use.calibration["x"])}
    data["x"][-1, 0, 0, 0] += 1
    labels = [{"a": np.full(120, n)} for n in range(2)]
    found = [file(), file(Distil(epochs=9)), file(graph=other), file(teacher=other), file(calibration=data)]
    found += [file(seed=1), *(file(Distil(labels=0.5), labels=given) for given in labels)]
    assert len(set(found)) == len(found)
    assert file() == file(labels=labels[0]) == found[0]  # labels that do not count
    assert found[0].name.startswith("distil-") and found[0].suffix == ".pt"


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_training_tells_how_it_goes_on(torch, original, use, tmp_path, kept):
    def stop(line):
        raise KeyboardInterrupt

    use = replace(use, say=stop, cache=tmp_path if kept else None)
    with pytest.raises(KeyboardInterrupt) as told:
        Distil(epochs=2)(original, use)
    (note,) = told.value.__notes__
    expected = str(tmp_path / "distil-") if kept else "training starts anew; with a folder as [calibration] cache"
    assert expected in note and ("goes on from the last epoch" in note) == kept


def test_an_interrupted_training_of_levels_names_the_files_of_its_stages(torch, original, use, tmp_path):
    told = iter(range(3))

    def stop(line):
        if next(told) == 2:
            raise KeyboardInterrupt

    levels = parse_pass("nest{levels=0+0.5,pattern=block4x1,min_inputs=1,dense=()}")(original)
    with pytest.raises(KeyboardInterrupt) as caught:
        Distil(epochs=2)(levels, replace(use, say=stop, cache=tmp_path))
    (note,) = caught.value.__notes__
    pattern = Path(note.removeprefix("training goes on from the last epoch that ").removesuffix(" holds"))
    assert pattern.parent == tmp_path and sorted(tmp_path.glob(pattern.name)) == sorted(tmp_path.glob("distil-*"))
    assert any(tmp_path.glob(pattern.name))


def test_ten_inputs_are_enough(handed, original, use):
    assert len(handed(Distil(samples=10), original, use)[1].feeds) == 10
    with pytest.raises(PassError, match="9 calibration batches, too few to train on; give 10 or more"):
        Distil(samples=9)(original, use)


@pytest.mark.parametrize(
    ("history", "text"),
    [
        (([4.0, 2.0, 3.0], 1, False), "2 epochs; loss on held-out inputs 4 before, 2 with the weights of epoch 1"),
        (
            ([4.0, 5.0, 6.0, 7.0], 0, True),
            "stopped after epoch 3; loss on held-out inputs 4 before, 4 with the weights it started with, since no "
            "epoch was better",
        ),
        (
            ([0.123456, 0.01], 1, False),
            "1 epochs; loss on held-out inputs 0.1235 before, 0.01 with the weights of epoch 1",
        ),
        (
            ([4.0, 2.0, float("nan")], 1, False),
            "training diverged in epoch 2 and was stopped: lower rate; loss on held-out inputs 4 before, 2 with "
            "the weights of epoch 1",
        ),
    ],
)
def test_how_training_went_is_told(torch, original, use, monkeypatch, history, text):
    from compiler.training.loop import History

    losses, best, stopped = history
    given = History(tuple(losses), best, stopped)
    monkeypatch.setattr("compiler.training.distilling.distil", lambda *given_: given)
    (note,) = Distil().run(original, use).notes
    assert str(note) == f"distil: {text}"


def test_all_that_is_wrong_is_told_at_once(original):
    wrong = Distil(epochs=0, rounds=-1, rate=0, loss="l1", classes=("z",), weights=("z:1",), labels=1.0)
    problems = wrong.wrong(original, Resources())
    assert len(problems) == 9 and problems[-1].startswith("it needs the original networks")


def changed(graph, change):
    made = graph.copy()
    change(made)
    return made.freeze()


def test_originals_of_other_inputs_or_outputs_are_refused():
    def net(*widths, shape=(1, 4)):
        b = Builder()
        x = b.input("x", *shape)
        for task, width in zip("ab", widths, strict=False):
            b.task(task, b.apply("MatMul", x, b.weight(shape[-1], width)))
        return b.done()

    graph = net(3, 2)
    assert teacher_problems(graph, graph) == teacher_problems(net(3), graph) == []
    assert teacher_problems(graph, None) == ["it needs the original networks; pass Resources(teacher=graph)"]
    assert teacher_problems(graph, net()) == ["the original networks lack task a, b"]
    assert teacher_problems(graph, net(3, 2, shape=(1, 5))) == ["the original networks have other inputs"]
    outputs = [t.outputs[0] for t in graph.tasks.values()]
    assert teacher_problems(graph, net(3, 4)) == [
        f"output '{outputs[1]}' has not the type of the original network's '{outputs[1]}'"
    ]
    assert len(teacher_problems(graph, net(2, 3))) == 2


def test_training_may_change_nothing_but_values_of_weights(original):
    def renamed(graph):
        graph.add_parameter("more", np.zeros(3, np.float32))

    weight = next(v for v in original.parameters() if v.rank == 4)

    def less(graph):
        graph.update(weight.ref, data=weight.constant * np.float32(0))

    pass_ = Distil()
    pass_.ensures(original, changed(original, less))
    with pytest.raises(VerifyError, match="something other than the values of weights has changed"):
        pass_.ensures(original, changed(original, renamed))
    sparse = changed(original, lambda g: g.update(weight.ref, type=replace(weight.type, encoding=Unstructured())))
    with pytest.raises(VerifyError, match="something other than the values of weights has changed"):
        pass_.ensures(original, sparse)
    thin = np.where(np.arange(weight.size).reshape(weight.shape) % 4, np.float32(0), weight.constant)
    before = changed(sparse, lambda g: g.update(weight.ref, data=thin))
    for entries in (1, 3):
        data = np.where(np.arange(weight.size).reshape(weight.shape) % 4 < entries, weight.constant, np.float32(0))
        after = changed(
            before, lambda g, data=data: g.update(weight.ref, type=before.value(weight.ref).type, data=data)
        )
        if entries == 1:
            pass_.ensures(before, after)
        else:
            with pytest.raises(VerifyError, match=f"level 0 of '{weight.ref}' stores more than before"):
                pass_.ensures(before, after)
