"""Build hook of Hatchling: puts `lib` and `model.py` into one package, `ssn_superpixels`.

In the checkout, scripts import `lib` and `model`, which lie beside them. Installed, such common names would
collide with other packages. So a wheel has them inside the package. Imports of them begin with
`ssn_superpixels.` there; nothing else in the files changes.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "ssn_superpixels"

# Imports of `lib` and `model`, also in examples of docstrings.
_IMPORT = re.compile(r"^(\s*(?:>>> )?from )(?=(?:lib|model)(?:\.\w+)* import )", re.MULTILINE)


class PackageHook(BuildHookInterface):
    """Collect the package in a temporary folder, from which Hatchling makes the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise RuntimeError(
                "an editable install would make `lib` and `model` importable everywhere; install without "
                "--editable, or run the scripts in the checkout without installing"
            )
        self._temporary = TemporaryDirectory()
        collect_package(Path(self.root), Path(self._temporary.name))
        build_data["force_include"][self._temporary.name] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._temporary.cleanup()


def collect_package(root: Path, package: Path) -> None:
    """Copy the modules of a checkout to a folder, with the imports that they need in the package.

    `lib/cli` stays out: it only serves the scripts.
    """
    modules = [root / "model.py", *sorted((root / "lib").rglob("*.py"))]
    copies = {module: package / module.relative_to(root) for module in modules}
    copies[root / f"{PACKAGE}.py"] = package / "__init__.py"
    for module, copy in copies.items():
        if root / "lib" / "cli" in module.parents:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(prefix_imports(module.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def prefix_imports(source: str) -> str:
    """Put the package's name before `lib` and `model` where a module imports from them."""
    return _IMPORT.sub(rf"\1{PACKAGE}.", source)
