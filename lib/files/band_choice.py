"""Check which bands of a file are read as red, green and blue, or as grey."""

from lib.runtime.errors import InputError

Bands = tuple[int, ...]  # of a file, from 1: red, green and blue, or one of grey


def check_bands(bands: Bands | None) -> None:
    """Raise `InputError` unless the bands are None, or one or three numbers from 1."""
    if bands is not None and (len(bands) not in (1, 3) or min(bands) < 1):
        raise InputError(
            f"{' '.join(map(str, bands))}: expected three bands, as red, green and blue, or one of grey, "
            "counted from 1",
            parameter="bands",
        )


def check_has_bands(n_bands: int, bands: Bands) -> None:
    """Raise `InputError` if a file of `n_bands` bands lacks a chosen one."""
    if max(bands) > n_bands:
        raise InputError(f"has {n_bands} bands, and so no band {max(bands)} of `bands`")


def must_choose(n_bands: int) -> InputError:
    """Return the error for a file whose bands do not say which are red, green and blue."""
    return InputError(f"has {n_bands} bands; `bands` chooses three, as red, green and blue, or one of grey")
