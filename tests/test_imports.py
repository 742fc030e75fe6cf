"""Imports point one way (house, part 1): each room knows the rooms before it and no other."""

import ast
from pathlib import Path

import pytest

import espy

ROOT = Path(espy.__file__).parent
BASE = {
    "spec",
    "labels",
    "header",
    "published",
    "errors",
    "output",
    "torchfile",
    "version",
    "bundle",
    "priors",
    "eightbits",
    "machine",
    "process",
}
MAY = {
    "base": {"base"},
    "picture": {"base", "picture"},
    "measure": {"base", "picture", "measure"},
    "run": {"base", "picture", "measure", "run"},
    "nn": {"base", "nn"},
    "data": {"base", "picture", "data"},
    "learn": {"base", "picture", "measure", "run", "nn", "data", "evaluation", "learn"},
    "ship": {"base", "picture", "measure", "nn", "run", "data", "learn", "evaluation", "ship"},
    "evaluation": {"base", "picture", "measure", "run", "data", "evaluation"},
    "cli": {"base", "picture", "measure", "run", "nn", "data", "learn", "ship", "evaluation", "cli"},
}
LATER = {
    ("espy.run.engines.torch", "espy.nn"),  # the torch engine, in its constructor
    ("espy.published", "espy.nn"),  # Published.network, built on first use
}
"""(module, room) pairs that are allowed inside functions only."""

LIGHT = {f"espy.ship.{name}" for name in ("bench", "energy", "foreign", "limits", "operators", "plot", "turns")} | {
    "espy.learn.films",
    "espy.learn.recipe",
    "espy.learn.suggest",
    "espy.learn.tasks",
    "espy.learn.watch",
}
"""Of the rooms that need torch: what the command line shows of training where there is none."""


def module_of(path):
    parts = ("espy", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def group(module):
    """The room of a module; None for the package itself, which imports lazily."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return "base" if parts[1] in BASE else parts[1]


class Imports(ast.NodeVisitor):
    """(imported module, whether inside a function) of a file; what only type checkers see is left out."""

    def __init__(self, module):
        self.module, self.found, self.depth = module, [], 0

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node):
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)
        else:
            for child in node.orelse:
                self.visit(child)

    def visit_Import(self, node):
        self.found += [(alias.name, self.depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"{self.module}: a relative import"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        self.found += [(name if name in MODULES else node.module, self.depth > 0) for name in names]


def imports(module):
    visitor = Imports(module)
    visitor.visit(ast.parse(MODULES[module].read_text("utf-8")))
    return visitor.found


def ours(module):
    return [(name, inside) for name, inside in imports(module) if name.split(".")[0] == "espy"]


def test_every_file_has_its_room():
    assert len(MODULES) > 30
    assert {group(module) for module in MODULES} - {None} <= set(MAY)


@pytest.mark.parametrize("module", [module for module in MODULES if group(module)])
def test_a_room_imports_only_from_the_rooms_before_it(module):
    for name, inside in ours(module):
        if name == "espy":
            continue  # the public names
        room = group(name)
        allowed = room in MAY[group(module)] or (inside and (module, f"espy.{room}") in LATER)
        assert allowed, f"{module} imports {name}"


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in MODULES
        if group(m) in (None, "base", "picture", "measure", "run", "data", "evaluation", "cli") or m in LIGHT
    ],
)
def test_torch_is_imported_by_none_of_the_rooms_that_run_without_it(module):
    heavy = [
        name for name, inside in imports(module) if name.split(".")[0] in ("torch", "onnx", "onnxscript") and not inside
    ]
    assert heavy == []
    needing_torch = {m for m in MODULES if group(m) in ("nn", "ship", "learn")} - LIGHT
    assert not [name for name, inside in ours(module) if name in needing_torch and not inside]


def test_the_package_itself_imports_nothing_but_its_version():
    assert [name for name, inside in ours("espy") if not inside] == ["espy.version"]


def test_there_are_no_cycles():
    """Depth first over module-level imports, the packages above a module among them where they hold code."""
    graph = {m: {name for name, inside in ours(m) if not inside and name in MODULES} for m in MODULES}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(graph[module] - {module}):
            visit(name)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)
    assert done == set(MODULES)


def test_this_test_sees_a_wrong_import():
    visitor = Imports("espy.picture.read")
    visitor.visit(
        ast.parse("from espy.run import tile\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch")
    )
    assert visitor.found[0] == ("espy.run.tile", False)
    assert "torch" not in [name for name, _ in visitor.found]
    assert group("espy.run.tile") not in MAY["picture"]
