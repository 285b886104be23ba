"""List the data in folders, without what systems and editors leave there."""

import logging
from collections.abc import Collection
from pathlib import Path

# Besides names that start with a dot, such as `._x` and `.ipynb_checkpoints`; in lower case.
_SYSTEM_NAMES = {
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
}

_N_SHOWN = 5  # suffixes of files that are left out


def is_hidden(path: Path) -> bool:
    """Return True if a part of a path is hidden or made by the system, or the file is an editor's backup.

    Such names are never data. Give a path relative to the folder that is listed.
    """
    has_hidden_part = any(part.startswith(".") or part.lower() in _SYSTEM_NAMES for part in path.parts)
    return has_hidden_part or path.name.endswith("~")


def list_visible(folder: Path, pattern: str = "*") -> list[Path]:
    """List what a folder holds in the order of names, without hidden entries; `pattern` as in `Path.glob`."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.relative_to(folder)))


def list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder as `list_visible` does."""
    return [path for path in list_visible(folder) if path.is_dir()]


def log_left_out(logger: logging.Logger, files: Collection[Path]) -> None:
    """Log the number of files that are left out because they are no images, and their suffixes."""
    if not files:
        return
    kinds = sorted({file.suffix.lower() or file.name.lower() for file in files})
    shown = ", ".join(kinds[:_N_SHOWN]) + (", ..." if len(kinds) > _N_SHOWN else "")
    logger.info("%d files that are no readable images are left out: %s", len(files), shown)
