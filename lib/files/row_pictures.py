"""Write pictures and label maps in bands of rows, for arrays that are larger than the memory."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tifffile

PICTURE_SUFFIXES = (".png", ".tif", ".tiff")

# Level 1 takes a quarter of the time of level 6; files are larger.
_COMPRESS_LEVEL = 1

TILE_SIDE = 256  # of TIFF files, in pixels

_GREY, _RGB = 0, 2  # colour types of PNG
_UP = 2  # filter of PNG: a byte is stored as its difference to the byte above


def write_picture(
    path: Path, bands: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype | type
) -> None:
    """Write a PNG or TIFF file by its suffix, one of `PICTURE_SUFFIXES`.

    The array of the given shape and dtype is (H, W, 3) uint8, (H, W) uint16, or for TIFF (H, W) int32. It
    comes in bands of `TILE_SIDE` rows from the top.
    """
    write = _write_png if path.suffix.lower() == ".png" else _write_tiff
    write(path, bands, shape, np.dtype(dtype))


def write_npy(
    path: Path, bands: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype | type
) -> None:
    """Write the file that `numpy.save` writes."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for band in bands:
            file.write(np.ascontiguousarray(band, dtype).data)


def _write_png(path: Path, bands: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
    color_type = _RGB if len(shape) == 3 else _GREY
    compressor = zlib.compressobj(_COMPRESS_LEVEL)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", shape[1], shape[0], 8 * dtype.itemsize, color_type, 0, 0, 0)
        _write_chunk(file, b"IHDR", header)
        above = np.zeros((1, shape[1] * (3 if color_type == _RGB else 1) * dtype.itemsize), np.uint8)
        for band in bands:
            values = np.ascontiguousarray(band, dtype.newbyteorder(">")).reshape(len(band), -1).view(np.uint8)
            differences = values - np.concatenate([above, values[:-1]])
            filtered = np.pad(differences, ((0, 0), (1, 0)), constant_values=_UP)
            _write_chunk(file, b"IDAT", compressor.compress(filtered))
            above = values[-1:]
        _write_chunk(file, b"IDAT", compressor.flush())
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", zlib.crc32(kind + content)))


def _write_tiff(path: Path, bands: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
    is_big = np.prod(shape, dtype=float) * dtype.itemsize > 2**31  # a plain file ends at 4 GiB
    with tifffile.TiffWriter(path, bigtiff=is_big) as tiff:
        tiff.write(
            _tiles(bands),
            shape=shape,
            dtype=dtype,
            photometric="rgb" if len(shape) == 3 else "minisblack",
            tile=(TILE_SIDE, TILE_SIDE),
            compression="adobe_deflate",
            compressionargs={"level": _COMPRESS_LEVEL},
            metadata=None,
        )


def _tiles(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for band in bands:
        for first in range(0, band.shape[1], TILE_SIDE):
            tile = band[:, first : first + TILE_SIDE]
            beyond = ((0, TILE_SIDE - tile.shape[0]), (0, TILE_SIDE - tile.shape[1]))
            yield np.pad(tile, beyond + ((0, 0),) * (tile.ndim - 2))
