"""Read image files that Pillow refuses although every pixel is there, and metadata behind the pixels."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from lib.runtime.errors import InputError

T = TypeVar("T")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # Pillow limits their size
_MAX_KEPT_TEXT = 2**16  # bytes, stored without compression

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PROGRESSIVE_FRAME, _SCAN = 0xC2, 0xDA
# Marker of a segment that has a length: not one of start, end and restarts, nor a byte of pixels.
_JPEG_SEGMENT = re.compile(rb"\xff([\x02-\xcf\xda-\xfe])")
# Long codes, which stand for large values, and short ones: a single one may change nothing in a few pixels.
_JPEG_FILLERS = [
    bytes.fromhex(pattern) * 64 for pattern in ("fe", "fbfa", "f6f5", "7fbfdfef", "5a330f96", "00", "c71ea8")
]


def use_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Open an image file and return what `use` makes of it; call it again if the file can be repaired.

    Repaired are PNG files whose text or colour profile exceeds the limits of Pillow, and JPEG files that lack
    the end marker only. Errors of Pillow, and of `use`, are raised.
    """
    try:
        with Image.open(path) as image:
            return use(image)
    except InputError:
        raise
    except Exception:  # broken files make Pillow raise many kinds of errors
        repaired = _repair(path)
        if repaired is None:
            raise
    with Image.open(io.BytesIO(repaired)) as image:
        return use(image)


def has_late_metadata(path: Path) -> bool:
    """Return True for a PNG file with EXIF or text after its pixels, which `Image.open` does not read."""
    with path.open("rb") as file:
        kinds = [kind for kind, _, _ in _png_chunks(file)]
    late = kinds[kinds.index(b"IDAT") :] if b"IDAT" in kinds else []
    return any(kind in (b"eXIf", *_PNG_TEXTS) for kind in late)


def _repair(path: Path) -> bytes | None:
    with path.open("rb") as file:
        start = file.read(len(_PNG_SIGNATURE))
    if start == _PNG_SIGNATURE:
        return _without_texts(path.read_bytes())
    return _with_end(path.read_bytes()) if start.startswith(_JPEG_START) else None


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG file, its first byte, and the byte after it."""
    file.seek(len(_PNG_SIGNATURE))
    while len(header := file.read(8)) == 8:
        start = file.tell() - 8
        end = start + 12 + int.from_bytes(header[:4], "big")
        yield header[4:], start, end
        file.seek(end)


def _without_texts(data: bytes) -> bytes | None:
    """Return a PNG file without long or compressed texts, and without colour profile; None if it has none."""
    parts = [_PNG_SIGNATURE]
    n_left_out = 0
    for kind, start, end in _png_chunks(io.BytesIO(data)):
        # XMP, with the orientation, is a short text without compression.
        is_kept = kind in (b"tEXt", b"iTXt") and end - start < _MAX_KEPT_TEXT
        if kind == b"iTXt":
            _, _, flags = data[start + 8 : end].partition(b"\0")
            is_kept = is_kept and flags[:1] == b"\0"
        if kind in _PNG_TEXTS and not is_kept:
            n_left_out += 1
        else:
            parts.append(data[start:end])
    return b"".join(parts) if n_left_out else None


def _with_end(data: bytes) -> bytes | None:
    """Return a JPEG file with its end marker; None if pixels are missing too.

    Missing pixels would be decoded from whatever follows. So none is missing if all that may follow gives the
    same picture. In progressive files, this holds for the scan that is cut, and no later scan may be missing.
    """
    body = data.removesuffix(_JPEG_END[:1])
    try:
        with Image.open(io.BytesIO(body + _JPEG_END)) as image:
            if image.info.get("progressive") and not _has_all_scans(data):
                return None
            picture = np.asarray(image)
        for filler in _JPEG_FILLERS:
            with Image.open(io.BytesIO(body + filler + _JPEG_END)) as image:
                if not np.array_equal(np.asarray(image), picture):
                    return None
    except Exception:  # broken files make Pillow raise many kinds of errors
        return None
    return body + _JPEG_END


def _has_all_scans(data: bytes) -> bool:
    """Return True if the scans of a progressive JPEG file send every bit of every coefficient.

    The data of the last scan may be cut.

    References
    ----------
    .. [1] ITU-T T.81, B.2 and G.1.1: the headers of frames and scans.
    """
    missing: set[tuple[int, int]] = set()  # (component, coefficient)
    for kind, content in _jpeg_headers(data):
        if kind == _PROGRESSIVE_FRAME:
            components = content[6 : 6 + 3 * content[5] : 3]
            missing = {(component, idx) for component in components for idx in range(64)}
        elif kind == _SCAN:
            n_components = content[0]
            components = content[1 : 1 + 2 * n_components : 2]
            first, last, bits = content[1 + 2 * n_components : 4 + 2 * n_components]
            if bits & 15 == 0:  # the lowest bit that the scan sends
                missing -= {(component, idx) for component in components for idx in range(first, last + 1)}
    return not missing


def _jpeg_headers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the content of each marker segment, without the data of scans."""
    position = 0
    while match := _JPEG_SEGMENT.search(data, position):
        start = match.end()
        position = start + int.from_bytes(data[start : start + 2], "big")
        yield match[1][0], data[start + 2 : position]
