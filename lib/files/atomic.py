"""Write files completely or not at all, and check early that they can be written."""

import errno
import hashlib
import os
import platform
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from lib.files.locks import locked
from lib.runtime.errors import InputError, RunError

_MAX_NAME_BYTES = 255  # of a file, on common file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on failure.

    The temporary name keeps the suffix, because writers choose the format by it. The content is on the disk
    before the new name is, so a power cut leaves the old file or the new one. A failed write, for example on
    a full disk, raises `RunError`.
    """
    with name_failed_write(path), _temporary_file(path) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(path)


def write_together(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write several files, or none if one fails, which raises `RunError`.

    Each writer gets a temporary path. All files are renamed after the last one is written.
    """
    temporaries: dict[Path, Path] = {}
    renamed = []
    with ExitStack() as stack:
        for path, write in writers.items():
            with name_failed_write(path):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                temporaries[path] = stack.enter_context(_temporary_file(path))
                write(temporaries[path])
                _sync(temporaries[path])
        try:
            for path, temporary in temporaries.items():
                with name_failed_write(path):
                    temporary.replace(path)
                renamed.append(path)
        except BaseException:
            for path in renamed:
                path.unlink()
            raise


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """Make a file next to `path` that no other process has, locked so that none removes it."""
    temporary = _temporary_path(path)
    with ExitStack() as stack:
        stack.callback(temporary.unlink, missing_ok=True)
        with suppress(OSError):  # no locks; if the file cannot be made, writing raises the same error
            stack.enter_context(locked(temporary, waits=True))
        yield temporary


def _temporary_path(path: Path) -> Path:
    ending = f".partial-{_host()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    name = f".{path.stem}{ending}"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{ending}"
    return path.with_name(name)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that `atomic_path` left in a folder when their process was killed.

    Files in writing stay, and files of other computers, whose locks may not be seen.
    """
    for path, process in _temporary_files(folder):
        try:
            _remove_if_free(path)
        except OSError:  # no locks
            if not _is_running(process):
                path.unlink(missing_ok=True)


def _temporary_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the temporary files in a folder that processes of this computer made, with their numbers."""
    for path in folder.iterdir():
        name = re.fullmatch(r"\..+\.partial-(\w+)-(\d+)-[0-9a-f]+(\.\w+)?", path.name, re.DOTALL)
        if name and name[1] == _host():
            yield path, int(name[2])


def _remove_if_free(path: Path) -> bool:
    """Remove a temporary file and return True; return False if a process writes it.

    Raises `OSError` if there are no locks. The number of a process is no proof: containers on one host may
    use it twice.
    """
    try:
        # Removed while it is locked: a process that has just made the file, and waits, makes another one.
        with locked(path, temporary=True):
            return True
    except BlockingIOError:
        return False


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

    Raises `InputError` if its folder is missing or not writable, its suffix is not one of `suffixes`, or
    another process writes the file now.
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
    for temporary, process in _temporary_files(path.parent):
        if not (temporary.name.startswith(f".{path.stem}.partial-") and temporary.suffix == path.suffix):
            continue
        with suppress(OSError):  # without locks, it may be a leftover
            if not _remove_if_free(temporary):
                raise InputError(
                    f"{path} is being written by process {process}; wait for it, or choose another name",
                    parameter=parameter,
                )


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
