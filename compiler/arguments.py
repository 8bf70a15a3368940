"""What can be typed: every command with its options, as a tree of argparse.

Building it loads nothing heavy: a command is "module:function", imported by `compiler.cli` when it is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from compiler import __version__
from compiler.toml_table import MOST_SEED

_Adder = Callable[[argparse.ArgumentParser], None]


class _Once(argparse.Action):
    """Stores a value, as argparse does by default, but refuses a second one, which would replace the first, and an
    empty one, which would count as none: a variable of a shell was not set."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._stored = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if self._stored:
            raise argparse.ArgumentError(self, "is given twice, and takes one value")
        if values == "":
            raise argparse.ArgumentError(self, "is empty; give a value, or leave the option out")
        self._stored = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose options take one value unless they collect several; it is for one command line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("action", None, _Once)


def parser() -> argparse.ArgumentParser:
    """The whole argument tree, for one command line."""
    root = _Parser(
        prog="taskgraft",
        description="Compile several single-task ONNX networks into one multitask library in which any subset of "
        "tasks is one C call.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"taskgraft {__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    groups = {"": commands}
    for name, function, text, adders in _COMMANDS:
        topic, _, last = name.rpartition(" ")
        if topic not in groups:
            words = commands.add_parser(topic, help=_TOPICS[topic], description=_TOPICS[topic], allow_abbrev=False)
            groups[topic] = words.add_subparsers(metavar="SUBJECT", required=True)
        one = groups[topic].add_parser(last, help=text, description=text, allow_abbrev=False)
        one.set_defaults(function=function)
        for add in (*adders, _common):
            add(one)
    return root


def _common(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print the result as JSON")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    p.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "json", "none"),
        default="auto",
        help="how progress is shown on stderr; auto: a bar on a terminal, else plain lines",
    )
    p.add_argument("--debug", action="store_true", help="print the traceback of an error")


def _paths(what: str) -> _Adder:
    return lambda p: p.add_argument("paths", metavar=what, nargs="+")  # type: ignore[return-value]


def _path(what: str) -> _Adder:
    return lambda p: p.add_argument("path", metavar=what)  # type: ignore[return-value]


def _two(what: str) -> _Adder:
    def add(p: argparse.ArgumentParser) -> None:
        p.add_argument("before", metavar="BEFORE", help=what)
        p.add_argument("after", metavar="AFTER", help=what)

    return add


def _config(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the release file"
    )
    _external(p)


def _input(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--input", action="append", default=[], metavar="NAME:SHAPE", help="bind free axes: image:1,3,32,32"
    )


def _target(p: argparse.ArgumentParser) -> None:
    p.add_argument("--target", action="append", default=[], metavar="T", help="target; may be repeated")


def _output(required: bool, what: str, default: str = "") -> _Adder:
    def add(p: argparse.ArgumentParser) -> None:
        p.add_argument("-o", "--output", default=default, required=required, metavar="PATH", help=what)
        p.add_argument("--force", action="store_true", help="replace what is there")

    return add


def _stop_after(p: argparse.ArgumentParser) -> None:
    p.add_argument("--stop-after", metavar="PASS", help="stop behind this pass; -o then names an ONNX file")


def _planning(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--plan",
        action="append",
        default=[],
        metavar="PLAN",
        help="repeat the choices of a plan.json, a bundle or an output folder; may be repeated",
    )
    p.add_argument("--tuning", metavar="DB.json", help="choose by these measurements; `none`: by rule alone")


def _tune(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--tune",
        nargs="?",
        type=float,
        const=300.0,
        metavar="SECONDS",
        help="measure choices on this machine first, into --tuning or tuning.json beside the output",
    )


def _workers(p: argparse.ArgumentParser) -> None:
    p.add_argument("--workers", type=int, default=1, metavar="N", help="processes that compile kernels")
    p.add_argument("--cluster", default="", metavar="ADDRESS", help="a Dask scheduler whose workers do, instead")
    p.add_argument("--cache", metavar="DIR", help="keep compiled kernels here, for every later build")


def _unlinked(p: argparse.ArgumentParser) -> None:
    p.add_argument("--allow-unlinked", action="store_true", help="accept bundles that could not be linked")


def _tasks(required: bool) -> _Adder:
    return lambda p: p.add_argument("--tasks", required=required, default="", metavar="A,B", help="subset of tasks")  # type: ignore[return-value]


def _extract(p: argparse.ArgumentParser) -> None:
    p.add_argument("--level", type=int, metavar="N", help="level, with those nested in it or behind it")
    p.add_argument("--alone", action="store_true", help="without the levels nested in it")


def _external(p: argparse.ArgumentParser) -> None:
    p.add_argument("--allow-external-data", action="store_true", help="read tensor data beside the model file")


def _layer(p: argparse.ArgumentParser) -> None:
    p.add_argument("layer", metavar="LAYER", help="a node, or a layer without task and label")


def _code(p: argparse.ArgumentParser) -> None:
    p.add_argument("code", type=int, metavar="CODE", help="a number")


def _release_name(p: argparse.ArgumentParser) -> None:
    p.add_argument("--name", default="", help="name of the release, part of C names; default: the file's")


def _seed(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=_generator_seed, metavar="N", help="of drawn inputs and random choices (0)")


def _generator_seed(text: str) -> int:
    number = int(text)
    if not 0 <= number <= MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 0 to {MOST_SEED}")
    return number


def _prune(p: argparse.ArgumentParser) -> None:
    p.add_argument("--flops", metavar="F", help="keep this share of the FLOPs, up to 1; above 100: so many FLOPs")
    p.add_argument("--parameters", metavar="F", help="keep this share of the parameters, up to 1")
    p.add_argument("--option", action="append", default=[], metavar="K=V", help="another option of prune-channels")
    p.add_argument("--calibration", default="", metavar="X", help="unlabelled inputs (.npz, .npy, a folder)")
    p.add_argument("--samples", type=int, metavar="N", help="so many of them (256); 0: all")
    p.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="names that must keep their size"
    )


def _verify(p: argparse.ArgumentParser) -> None:
    p.add_argument("--range", action="append", default=[], metavar="NAME:LO:HI", help="uniform values of an input")


def _level(text: str) -> int | str:
    if text == "cheapest" or text.lstrip("-").isdecimal():
        return text if text == "cheapest" else int(text)
    raise argparse.ArgumentTypeError(f"{text}: give the number of a level, or cheapest")


def _run_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--input", required=True, metavar="X.npz", help="arrays by input name")
    p.add_argument(
        "--level",
        type=_level,
        default=0,
        metavar="N",
        help="level, default 0; of a portfolio also `cheapest`: that of the fewest operations",
    )
    p.add_argument("--all-combinations", action="store_true", help="run every subset and compare the bits")


def _bench(p: argparse.ArgumentParser) -> None:
    p.add_argument("--ssh", default="", metavar="USER@BOARD", help="run there instead of here")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="threads that share each call")
    p.add_argument("--save", action="store_true", help="keep the times in the bundle, for taskgraft report")


def _frontier(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--budget",
        choices=("latency_us", "flops", "weight_bytes"),
        default="latency_us",
        help="the quantity that budgets are in",
    )
    p.add_argument("--shares", metavar="A,B", help="budgets, as shares of what the network costs before")
    p.add_argument("--points", type=int, metavar="N", help="so many budgets down to a quarter of that instead")
    p.add_argument("--pass", dest="pass_", default="compress", metavar="SPEC", help="the pass that meets them")
    p.add_argument("--cache", metavar="DIR", help="keep finished points here, for a run that goes on")


def _seconds(default: float, what: str) -> _Adder:
    return lambda p: p.add_argument("--seconds", type=float, default=default, help=what)  # type: ignore[return-value]


def _text(p: argparse.ArgumentParser) -> None:
    p.add_argument("--text", action="store_true", help="print the graph as text")


def _no_bundle(p: argparse.ArgumentParser) -> None:
    p.add_argument("--no-bundle", action="store_true", help="skip compiling; originals and graph only")


_GRAPHS, _BUILDS, _LISTS = (f"compiler.commands.{m}" for m in ("graphs", "builds", "lists"))
_TOPICS = {"explain": "why a step of the compiler did what it did"}
"""Words in front of commands of two words."""
_ANY = "RELEASE.toml|MODEL.onnx|BUNDLE"
_COMMANDS: tuple[tuple[str, str, str, tuple[_Adder, ...]], ...] = (
    (
        "init",
        "compiler.commands.starts:init",
        "a commented release file for a set of models",
        (
            _paths("MODEL.onnx"),
            _input,
            _release_name,
            _external,
            _output(False, "release file (release.toml)", "release.toml"),
        ),
    ),
    (
        "compile",
        f"{_BUILDS}:compile_",
        "the release step: networks in, bundles out",
        (
            _path("RELEASE.toml"),
            _config,
            _target,
            _output(False, "bundle folder"),
            _planning,
            _tune,
            _workers,
            _stop_after,
            _unlinked,
        ),
    ),
    (
        "cost",
        f"{_GRAPHS}:cost",
        "what every combination of tasks costs",
        (_path(_ANY), _config, _input, _target),
    ),
    (
        "inspect",
        f"{_GRAPHS}:inspect",
        "ports, layers, owners, files",
        (_path(_ANY), _config, _input, _target, _text),
    ),
    (
        "diff",
        "compiler.commands.differences:diff",
        "what differs between two: nodes, tensors, costs, accuracy; status 1 where anything does",
        (_two(_ANY), _config, _input, _target, _output(False, "HTML page")),
    ),
    (
        "extract",
        f"{_GRAPHS}:extract",
        "the exact network of a subset of tasks, or of a level, as ONNX",
        (_path("RELEASE.toml|MODEL.onnx"), _config, _input, _tasks(False), _extract, _output(True, "ONNX file")),
    ),
    (
        "prune",
        f"{_GRAPHS}:prune",
        "remove channels to a budget, ONNX in and out",
        (_path("RELEASE.toml|MODEL.onnx"), _config, _input, _prune, _seed, _output(True, "ONNX file")),
    ),
    (
        "explain plan",
        "compiler.commands.plans:explain_plan",
        "per layer: what runs it, who chose that and why, and its share of the time",
        (
            _path(_ANY),
            _config,
            _input,
            _target,
            _planning,
            _seconds(1.0, "time to measure for; 0: measure nothing"),
        ),
    ),
    (
        "explain merge",
        "compiler.commands.merges:explain_merge",
        "per layer: what networks share, and why the rest is not",
        (_path("RELEASE.toml|MODEL.onnx"), _config, _input),
    ),
    (
        "explain layer",
        "compiler.commands.answers:explain_layer",
        "one layer of a bundle: its owners, why its kernel runs, what passes did with it or left alone",
        (_path("BUNDLE"), _layer, _target),
    ),
    (
        "explain code",
        "compiler.commands.answers:explain_code",
        "what a return code of a library or an exit status of taskgraft means",
        (_code,),
    ),
    (
        "frontier",
        "compiler.commands.frontiers:frontier_",
        "accuracy against cost and time of a release at several budgets",
        (
            _path("RELEASE.toml"),
            _config,
            _target,
            _frontier,
            _seconds(0.5, "time per combination"),
            _output(False, "folder (frontier)", "frontier"),
        ),
    ),
    (
        "evaluate",
        f"{_BUILDS}:evaluate",
        "every task's metric: originals, graph, compiled library",
        (_path("RELEASE.toml"), _config, _no_bundle),
    ),
    (
        "verify",
        f"{_BUILDS}:verify",
        "compare a model's imported, exported and compiled results with onnxruntime, or check a bundle",
        (_path("MODEL.onnx|BUNDLE"), _external, _input, _target, _verify, _seed),
    ),
    (
        "run",
        f"{_BUILDS}:run",
        "outputs of a bundle on this machine",
        (_path("BUNDLE"), _run_arguments, _target, _tasks(False), _output(False, "write outputs as .npz")),
    ),
    (
        "bench",
        f"{_BUILDS}:bench",
        "measured time of every combination",
        (_path("BUNDLE"), _target, _bench, _seconds(0.5, "time per combination")),
    ),
    (
        "report",
        "compiler.commands.reports:report",
        "one page about one bundle, or about several side by side",
        (_paths("BUNDLE"), _target, _output(False, "HTML file (report.html)", "report.html")),
    ),
    ("targets", f"{_LISTS}:targets", "what can be compiled for", ()),
    ("passes", f"{_LISTS}:passes", "the passes and their options", ()),
    ("ops", f"{_LISTS}:ops", "the operators", ()),
)
