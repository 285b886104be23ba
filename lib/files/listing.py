"""Tell data apart from what systems and editors leave in folders."""

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


def is_hidden(path: Path) -> bool:
    """Return True if a file or folder is hidden, or made by the system; such names are never data."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_NAMES


def list_visible(folder: Path, pattern: str = "*") -> list[Path]:
    """List what a folder holds in the order of names, without hidden entries; `pattern` as in `Path.glob`."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path))


def list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder as `list_visible` does."""
    return [path for path in list_visible(folder) if path.is_dir()]
