"""Imports between packages point one way."""

import ast
import re
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).parent.parent

ROWS = [
    {"runtime", "slic"},
    {"metrics", "network", "superpixels", "files"},
    {"losses", "model", "optflow"},
    {"weights", "datasets"},
    {"inference", "export"},
    {"ssn_superpixels"},
    {"evaluation"},
    {"training"},
    {"cli"},
]
ROW_OF = {package: row for row, packages in enumerate(ROWS) for package in packages}
FILES = sorted(path.relative_to(REPO_ROOT) for path in (REPO_ROOT / "lib").rglob("*.py"))


def package_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "lib" and len(parts) > 1 else parts[0]


def imported_packages(path):
    """Packages of ours that a file imports anywhere in it."""
    tree = ast.parse((REPO_ROOT / path).read_text())
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules += (
                [f"lib.{alias.name}" for alias in node.names] if node.module == "lib" else [node.module]
            )
    scripts = {script.stem for script in REPO_ROOT.glob("*.py")}
    return {package_of(module) for module in modules if module.split(".")[0] in {"lib", *scripts}}


def test_every_package_has_a_row():
    found = {package_of(".".join(path.with_suffix("").parts)) for path in FILES} - {"__init__"}
    assert found | {"model", "ssn_superpixels"} == set(ROW_OF)


@pytest.mark.parametrize("path", [*FILES, Path("model.py")], ids=str)
def test_imports_point_down(path):
    own = package_of(".".join(path.with_suffix("").parts))
    for package in imported_packages(path) - {own}:
        assert ROW_OF[package] < ROW_OF[own], f"{path} imports {package}"


@pytest.mark.parametrize("path", [*FILES, Path("model.py")], ids=str)
def test_option_names_stay_at_the_edge(path):
    if path.is_relative_to("lib/cli"):
        return
    tree = ast.parse((REPO_ROOT / path).read_text())
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert [text for text in strings if isinstance(text, str) and re.search("--[a-z]", text)] == []
