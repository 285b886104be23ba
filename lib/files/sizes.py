"""Sizes of images: as text, and held against the free memory."""

from PIL import Image

from lib.runtime.memory import check_memory

_DECODED_BYTES = 7  # per pixel: 4 in Pillow, and 3 in an array of RGB


def size_text(shape: tuple[int, ...]) -> str:
    """Return the size of an array (H, W, ...) as text, width first, as in image viewers."""
    return f"{shape[1]}x{shape[0]}"


def check_decoding(image: Image.Image) -> None:
    """Raise `InputError` if an open image has too many pixels for the memory; a small file may have many."""
    check_memory(
        _DECODED_BYTES * image.width * image.height, f"of {size_text((image.height, image.width))} pixels"
    )
