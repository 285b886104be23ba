"""The wheel: its names, its files, and that it works where the checkout is not importable."""

import ast
import doctest
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.data import astronaut

import ssn_superpixels
from hatch_build import PACKAGE, collect_package, prefix_imports
from ssn_superpixels import superpixels

REPO_ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
IMAGE = astronaut()[60:130:2, 150:270:2]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package as the wheel has it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("collected")
    collect_package(REPO_ROOT, folder / PACKAGE)
    return folder / PACKAGE


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPO_ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def run_apart(program, folder, *, search_path=""):
    """Run a program in another folder, where only `search_path` is importable; return the JSON it prints."""
    environment = {**os.environ, "PYTHONPATH": str(search_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def imported_modules(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from lib.slic import slic\n", "from ssn_superpixels.lib.slic import slic\n"),
        ("from lib import weights\n", "from ssn_superpixels.lib import weights\n"),
        ("from model import (\n    SSNPix,\n)\n", "from ssn_superpixels.model import (\n    SSNPix,\n)\n"),
        ("def f():\n    from lib.a.b import c\n", "def f():\n    from ssn_superpixels.lib.a.b import c\n"),
        ("    >>> from lib.inference import X\n", "    >>> from ssn_superpixels.lib.inference import X\n"),
    ],
)
def test_imports_get_the_prefix(source, expected):
    assert prefix_imports(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from library import x\n",
        "from models import x\n",
        "x = 1  # from lib.slic import slic\n",
        "from model files.\n",
    ],
)
def test_other_text_stays(source):
    assert prefix_imports(source) == source


def test_no_file_of_the_package_imports_lib_or_model(package):
    files = list(package.rglob("*.py"))
    assert len(files) > 100
    for path in files:
        roots = {module.split(".")[0] for module in imported_modules(path.read_text())}
        assert not roots & {"lib", "model"}, path


def test_only_imports_differ_from_the_checkout(package):
    for path in package.rglob("*.py"):
        name = path.relative_to(package)
        original = REPO_ROOT / (f"{PACKAGE}.py" if name == Path("__init__.py") else name)
        assert path.read_text().replace(f"from {PACKAGE}.", "from ") == original.read_text().replace(
            f"from {PACKAGE}.", "from "
        )


def test_the_package_lacks_no_module_but_the_command_line(package):
    modules = {path.relative_to(REPO_ROOT) for path in (REPO_ROOT / "lib").rglob("*.py")}
    modules = {path for path in modules if path.parts[1] != "cli"}
    assert {path.relative_to(package) for path in package.rglob("*.py")} == {
        *modules,
        Path("__init__.py"),
        Path("model.py"),
    }


@pytest.mark.slow
def test_docstring_examples():
    results = doctest.testmod(ssn_superpixels)
    assert results.attempted > 3
    assert results.failed == 0


@pytest.mark.slow
def test_the_wheel_installs_one_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        PACKAGE,
        f"{PACKAGE}-{ssn_superpixels.__version__}.dist-info",
    }
    data = [*(REPO_ROOT / "trained_models").glob("*.pth"), *(REPO_ROOT / "lib").rglob("*.txt")]
    assert len(data) > 5
    assert {f"{PACKAGE}/{path.relative_to(REPO_ROOT).as_posix()}" for path in data} < set(names)


@pytest.mark.slow
def test_the_wheel_gives_what_the_checkout_gives(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    np.save(tmp_path / "image.npy", IMAGE)
    program = f"""
import importlib, json, pkgutil, sys
import numpy as np
import {PACKAGE}
from {PACKAGE} import Segmenter, Superpixels, load_model, shipped_weights, slic, superpixels

loaded = set(sys.modules)
image = np.load("image.npy")
labels = superpixels(image, 24)
composite = load_model(shipped_weights("composite")).kind
small = Segmenter.from_checkpoint(shipped_weights("small"))(image, 30).n_measured
for module in pkgutil.walk_packages({PACKAGE}.__path__, "{PACKAGE}."):
    importlib.import_module(module.name)
own = [name for name in ("lib", "model") if name in sys.modules]
optional = ("av", "h5py", "matplotlib", "pyogrio", "rasterio", "tensorboard")
extras = [name for name in optional if name in loaded]
print(json.dumps([labels.tolist(), composite, small, own, extras]))
"""
    labels, composite, small, own, extras = run_apart(program, tmp_path, search_path=tmp_path / "site")
    np.testing.assert_array_equal(labels, superpixels(IMAGE, 24))
    assert (composite, small) == ("composite", 30)
    assert own == []
    assert extras == []


@pytest.mark.slow
def test_editable_installs_are_refused(tmp_path):
    program = "from hatchling.build import build_editable; import sys; build_editable(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "run the scripts in the checkout without installing" in run.stderr


def read_requirements(name):
    lines = (REPO_ROOT / name).read_text().splitlines()
    return [line for line in lines if not line.startswith("-r")]


def test_requirements_are_those_of_the_files():
    extras = {name: set(lines) for name, lines in PROJECT["optional-dependencies"].items()}
    shared, demo, dev = (set(read_requirements(f"requirements{end}.txt")) for end in ("", "-demo", "-dev"))
    assert {*PROJECT["dependencies"]} | extras["video"] | extras["train"] - dev == shared
    assert extras["demo"] == demo
    assert extras["geo"] | extras["export"] | {*PYPROJECT["build-system"]["requires"]} < dev


def test_one_version_everywhere():
    version = ssn_superpixels.__version__
    (cited,) = re.findall(r"^version: (.*)$", (REPO_ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (REPO_ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert cited == newest == version


def test_the_workflow_has_the_steps_of_the_ci():
    workflow = yaml.safe_load((REPO_ROOT / ".github" / "workflows" / "tests.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    ci = (REPO_ROOT / ".ci" / "run").read_text()
    expected = re.findall(r"^(?:test_command=')?((?:pip install|ruff) .*?)'?$", ci, re.MULTILINE)
    assert [step for step in steps if step in expected] == expected
    assert len(expected) == 3


@pytest.mark.slow
def test_torch_hub(tmp_path):
    program = f"""
import json, torch
import numpy as np

segmenter = torch.hub.load({str(REPO_ROOT)!r}, "ssn", source="local", weights="small", n_iter=3)
image = np.arange(20 * 31 * 3, dtype=np.uint8).reshape(20, 31, 3)
print(json.dumps([segmenter.model.n_mid_channels, segmenter.n_iter, segmenter(image, 12).n_measured]))
"""
    assert run_apart(program, tmp_path) == [32, 3, 12]
