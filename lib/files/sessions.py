"""Files of a server's sessions: deleted when a session ends, and when the server ends."""

import shutil
import tempfile
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

from lib.files.locks import locked
from lib.runtime.errors import InputError

_LOCK = ".lock"  # file in a temporary folder that is in use


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Create a folder for temporary files, and remove it after the block.

    Folders with the same prefix that killed processes of the same user left behind are removed too.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with ExitStack() as stack:
            with suppress(OSError):  # without locks, leftovers stay
                stack.enter_context(locked(folder / _LOCK))
                for other in folder.parent.glob(f"{prefix}*"):
                    if other != folder:
                        _remove_leftover(other, owner=folder.stat().st_uid)
            yield folder


def _remove_leftover(folder: Path, *, owner: int) -> None:
    """Remove a temporary folder of the user `owner` unless a process has locked it."""
    with suppress(OSError):  # in use, or removed by another process meanwhile
        # A folder without a lock is being created.
        if folder.lstat().st_uid == owner and (folder / _LOCK).is_file():
            with locked(folder / _LOCK):
                shutil.rmtree(folder)


class SessionFiles:
    """Uploads and results of sessions, in one folder.

    Methods may be called from several threads. A computation may outlast its session: its result is then
    discarded.

    Parameters
    ----------
    folder : Path
        Existing folder that holds the uploads, without symbolic links in its path.
    examples : collection of Path
        Files elsewhere that sessions may use too.
    n_kept : int
        Number of results to keep for each session. A browser may still load the last but one.
    """

    def __init__(self, folder: Path, *, examples: Collection[Path] = (), n_kept: int = 3) -> None:
        self.folder = folder
        self._examples = examples
        self._n_kept = n_kept
        self._uploads: dict[str, set[Path]] = {}  # of each open session
        self._results: dict[str, deque[Path]] = {}  # folders, oldest first
        self._lock = Lock()

    def open(self, session: str, path: Path) -> None:
        """Open a session, unless it is open, and note the file that it uses.

        Raises `InputError` if the file is neither an upload nor an example: a request may name any file.
        """
        is_upload = path.resolve().is_relative_to(self.folder)
        if not is_upload and path not in self._examples:
            raise InputError(f"{path} is not an upload")
        with self._lock:
            uploads = self._uploads.setdefault(session, set())
            self._results.setdefault(session, deque())
            if is_upload:
                uploads.add(path.resolve())

    def is_open(self, session: str) -> bool:
        """Return True from `open` to `close`."""
        return session in self._results

    def add_result(self, session: str) -> Path | None:
        """Return a new folder for a result, and delete the oldest result; None if the session has ended."""
        with self._lock:
            if session not in self._results:
                return None
            results = self._results[session]
            results.append(Path(tempfile.mkdtemp(prefix="result_", dir=self.folder)))
            if len(results) > self._n_kept:
                shutil.rmtree(results.popleft(), ignore_errors=True)
            return results[-1]

    def close(self, session: str) -> None:
        """Delete the results of a session, and the uploads that no other session shares."""
        with self._lock:
            uploads = self._uploads.pop(session, set()).difference(*self._uploads.values())
            for path in uploads:
                # Equal uploads share a folder, named by their content, but not their names.
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    path.parent.rmdir()
            for result in self._results.pop(session, ()):
                shutil.rmtree(result, ignore_errors=True)

    def close_all(self) -> None:
        """Delete the files of all sessions."""
        for session in list(self._uploads):
            self.close(session)
