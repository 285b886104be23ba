"""Import PyAV only where a video file is read or written; everything else works without it."""

from types import ModuleType

from lib.runtime.errors import InputError


def import_av() -> ModuleType:
    """Return PyAV; raise an `InputError` with the way out if it is missing."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            "video files need PyAV: pip install av; folders of frames work without it"
        ) from error
    return av
