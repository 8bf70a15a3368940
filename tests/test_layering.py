"""Imports point down the table only, and guarded libraries stay in their files."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from tests.shared import ROOT

LAYERS: tuple[tuple[str, ...], ...] = (
    ("compiler.__main__",),
    ("compiler.start",),
    ("compiler.cli",),
    (
        "compiler.arguments",
        "compiler.commands.answers",
        "compiler.commands.builds",
        "compiler.commands.frontiers",
        "compiler.commands.graphs",
        "compiler.commands.lists",
        "compiler.commands.merges",
        "compiler.commands.plans",
        "compiler.commands.reports",
        "compiler.commands.starts",
        "compiler.commands.differences",
    ),
    ("compiler.commands.common", "compiler.commands.bundles", "compiler.commands.pictures", "compiler.tables"),
    ("compiler.commands", "compiler.check", "compiler.frontier"),
    ("compiler.compile",),
    ("compiler.measure", "compiler.staging", "compiler.planning", "compiler.proposal"),
    ("compiler.release", "compiler.bundle_report"),
    ("compiler.gates", "compiler.report", "compiler.views", "compiler.outline", "compiler.difference"),
    ("compiler.config", "compiler.pipeline"),
    ("compiler.settings", "compiler.passes", "compiler.passes.*", "compiler.codegen", "compiler.codegen.*"),
    ("compiler.training", "compiler.training.*"),
    ("compiler.calibration", "compiler.calibration.*", "compiler.cost", "compiler.cost.*"),
    ("compiler.ir.onnx_out", "compiler.ir.portfolio"),
    ("compiler.ir.union",),
    ("compiler.ir.onnx_in", "compiler.ir.adapters"),
    ("compiler.ir.lift",),
    ("compiler.ir.decisions",),
    ("compiler.ir.verify", "compiler.ir.reference", "compiler.ir.convert", "compiler.ir.folding"),
    ("compiler.ir.onnx_nodes", "compiler.ir.ties", "compiler.ir.levels", "compiler.ir.text", "compiler.ir.safety"),
    ("compiler.ir.dead",),
    ("compiler.ir.ops", "compiler.ir.ops.*", "compiler.ir.relations"),
    ("compiler.ir.op",),
    ("compiler.ir.graph",),
    ("compiler.ir.payload",),
    ("compiler.ir.types", "compiler.references", "compiler.workers", "compiler.workers.*"),
    (
        "compiler.ir.encoding",
        "compiler.machine",
        "compiler.errors",
        "compiler.files",
        "compiler.json_form",
        "compiler.page",
        "compiler.progress",
        "compiler.toml_table",
        "compiler.ir",
        "compiler.ir.names",
        "compiler",
    ),
)
"""From the top. A module may import modules of lower rows only; see SAME_ROW for packages that are one row."""

SAME_ROW = (
    "compiler.passes",
    "compiler.codegen",
    "compiler.training",
    "compiler.calibration",
    "compiler.cost",
    "compiler.ir.ops",
    "compiler.workers",
)
"""Packages whose modules may import each other; passes and codegen do not know each other."""

EXCEPTIONS = {
    ("compiler.ir.graph", "compiler.ir.op"): "annotation of the operator that a new node applies",
    (
        "compiler.ir.payload",
        "compiler.ir.op",
    ): "annotation of Node.op; operators look at nodes, not the reverse",
    ("compiler.cli", "compiler.commands"): "annotation of what a command returns",
}

GUARDED = {
    "tvm": (
        "compiler.codegen.addresses",
        "compiler.codegen.flatten",
        "compiler.codegen.functions",
        "compiler.codegen.generic.*",
        "compiler.codegen.lower",
        "compiler.codegen.templates.*",
    ),
    "tvm_ffi": (
        "compiler.codegen.addresses",
        "compiler.codegen.flatten",
        "compiler.codegen.functions",
        "compiler.codegen.generic.*",
        "compiler.codegen.kernels",
        "compiler.codegen.lower",
    ),
    "torch": ("compiler.training.*",),
    "onnxruntime": ("compiler.calibration.engine",),
    "networkx": ("compiler.ir.graph",),
    "onnx_graphsurgeon": (),
    "rich": ("compiler.tables",),
    "distributed": ("compiler.workers.cluster",),
}

FILES = sorted((ROOT / "compiler").rglob("*.py"))


def module_of(path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(p) for p in FILES}


def level(module: str) -> int:
    exact = [i for i, row in enumerate(LAYERS) if module in row]
    found = exact or [i for i, row in enumerate(LAYERS) if any(fnmatchcase(module, entry) for entry in row)]
    assert len(found) == 1, f"{module} has {len(found)} places in the table of layers"
    return found[0]


def imports(path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else str(node.module)


def package(module: str) -> str:
    return next((p for p in SAME_ROW if module == p or module.startswith(p + ".")), module)


def problems(path) -> Iterator[str]:
    module = module_of(path)
    for line, name in imports(path):
        if not (name == "compiler" or name.startswith("compiler.")) or name == module:
            continue
        if (module, name) in EXCEPTIONS or (package(module) == package(name) in SAME_ROW):
            continue
        if level(name) <= level(module):
            yield f"{path.name}:{line} imports {name}; level {level(module) + 1} imports lower levels only"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_down(path):
    assert list(problems(path)) == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_guarded_libraries_stay_in_their_files(path):
    module = module_of(path)
    for line, name in imports(path):
        allowed = GUARDED.get(name.partition(".")[0])
        if allowed is not None:
            assert any(fnmatchcase(module, a) for a in allowed), f"{path.name}:{line} imports {name}"


def test_every_exception_is_needed():
    used = {(module_of(p), name) for p in FILES for _, name in imports(p)}
    assert set(EXCEPTIONS) <= used


def test_nothing_outside_tests_imports_tests():
    for path in FILES:
        assert not any(name.partition(".")[0] in ("tests", "benchmarks", "models") for _, name in imports(path))


def test_a_wrong_import_is_noticed(tmp_path, monkeypatch):
    folder = tmp_path / "compiler" / "ir"
    folder.mkdir(parents=True)
    (folder / "ties.py").write_text("def f():\n    from compiler.cost import count\n")
    monkeypatch.setattr("tests.test_layering.ROOT", tmp_path)
    assert list(problems(folder / "ties.py")) == [
        "ties.py:2 imports compiler.cost.count; level 21 imports lower levels only"
    ]


def test_every_package_is_installed():
    """The build takes packages from a list, so that a folder that is not on it would be missing."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(tools["packages"]) == sorted({module_of(p.parent / "__init__.py") for p in FILES})
    listed = {
        path
        for name, patterns in tools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / name.replace(".", "/")).glob(pattern)
    }
    others = {p for p in (ROOT / "compiler").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others == listed
