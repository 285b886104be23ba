"""Write files completely or not at all, and check early that they can be written."""

import errno
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lib.runtime.errors import InputError, RunError

_MAX_NAME_BYTES = 255  # of a file, on common file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on failure.

    The temporary name keeps the suffix, because writers choose the format by it. The content is on the disk
    before the new name is, so a power cut leaves the old file or the new one. A failed write, for example on
    a full disk, raises `RunError`.
    """
    temporary = _temporary_path(path)
    with name_failed_write(path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_together(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write several files, or none if one fails, which raises `RunError`.

    Each writer gets a temporary path. All files are renamed after the last one is written.
    """
    temporaries = {path: _temporary_path(path) for path in writers}
    renamed = []
    try:
        for path, write in writers.items():
            with name_failed_write(path):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                write(temporaries[path])
                _sync(temporaries[path])
        for path, temporary in temporaries.items():
            with name_failed_write(path):
                temporary.replace(path)
            renamed.append(path)
    except BaseException:
        for path in renamed:
            path.unlink()
        raise
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _temporary_path(path: Path) -> Path:
    ending = f".partial-{_host()}-{os.getpid()}{path.suffix}"
    name = f".{path.stem}{ending}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{ending}"
    return path.with_name(name)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that `atomic_path` left in a folder when their process was killed.

    Files of running processes stay, and files of other computers, whose processes cannot be seen.
    """
    for path in folder.iterdir():
        name = re.fullmatch(r"\..+\.partial-(\w+)-(\d+)(\.\w+)?", path.name, re.DOTALL)
        if name and name[1] == _host() and not _is_running(int(name[2])):
            path.unlink(missing_ok=True)


@cache
def _host() -> str:
    """Return a short name of this computer, without characters that file names exclude."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there, `os.kill` would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


@contextmanager
def name_failed_write(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a `RunError` that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error})") from error


def real_path(path: Path) -> Path:
    """Return the path with links resolved. On Python 3.11, `Path.resolve` fails on circular links."""
    return Path(os.path.realpath(path))


def check_output_file(parameter: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that a file can be written, before any work starts, and remove leftovers in its folder.

    Raises `InputError` if its folder is missing or not writable, or its suffix is not one of `suffixes`.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: the name must end in {', '.join(suffixes)}", parameter=parameter)
    if path.is_dir():
        raise InputError(f"{path} is a folder", parameter=parameter)
    try:
        _try_writing_to(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write to folder {path.parent} ({error.strerror})", parameter=parameter
        ) from error


def prepare_out_dir(out_dir: Path, *, parameter: str = "out_dir") -> None:
    """Create a folder, check that it can be written to, and remove leftovers in it; raises `InputError`."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        _try_writing_to(out_dir)
    except OSError as error:
        raise InputError(f"{out_dir} cannot be written to ({error.strerror})", parameter=parameter) from error


def _try_writing_to(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
    remove_leftovers(folder)
