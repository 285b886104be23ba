"""Settings of the merge tree, by the requested number of superpixels."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class MergeSettings(NamedTuple):
    """How finely to segment before merging, and how much the position counts in a merge.

    Each setting maps requested numbers of superpixels to values. Between two numbers, the value is
    interpolated over the logarithm of the number; beyond them, the nearest value holds.

    Attributes
    ----------
    fine_factor : mapping of int to float
        Superpixels to segment for each requested one, at least 1. With 1, nothing is merged.
    merge_pos_scale : mapping of int to float
        Factor of the position in the cost of a merge; higher values give more compact superpixels.
    """

    # Chosen on BSDS500 val for the shipped base weights.
    fine_factor: Mapping[int, float] = {100: 5.0, 200: 3.0, 1000: 2.0}
    merge_pos_scale: Mapping[int, float] = {100: 0.6, 400: 0.5, 1000: 1.0}


def setting_at(values: Mapping[int, float], n_spixels: int) -> float:
    """Return the value of a setting for a requested number of superpixels."""
    counts = sorted(values)
    return float(np.interp(np.log(n_spixels), np.log(counts), [values[count] for count in counts]))
