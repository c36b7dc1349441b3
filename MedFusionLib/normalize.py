"""One intensity mapping per volume: its display range to 0 (black) .. 1 (white)."""

from __future__ import annotations

import numpy as np

from .volume import FUNCTIONAL, require_usable, sample

CT_WINDOW = (-100.0, 900.0)
"""HU. Wide enough that cortical bone keeps its inner structure, narrow enough that brain is not black."""

MAX_SAMPLES = 1_000_000

FAR = 10
"""How many times as bright as all but a thousandth of a scan a few voxels may be: others are spikes, or a map's failed
fits, beside which all else would be background."""


def looks_like_hu(volume):
    """Whether a CT's values are Hounsfield units: said so, or air lies far below zero."""
    return volume.units == "HU" or (volume.modality == "CT" and not volume.units and has_air_below(volume.array))


def has_air_below(array):
    """Whether a CT's values are Hounsfield units by what they are: -500 and less are there, and not as padding alone.

    What is filled in outside the scanner's circle is -2000, say, in stored values as well, where air is at 0 and water
    at 1000: most of what is above 300 is then about 1000, and in Hounsfield units it is bone of every density.
    """
    if not array.min() <= -500:
        return False
    values = sample(array, MAX_SAMPLES)
    bone, water = (np.count_nonzero((values > least) & (values < most)) for least, most in ((300, 850), (850, 1250)))
    return water <= 2 * bone or peaks_at_air(values)


def peaks_at_air(values):
    """Whether many of some values, 1-D, are about -1000, and few a little below it."""
    air, below = (np.mean((values > least) & (values < least + 250)) for least in (-1150, -1400))
    return bool(air > max(0.02, 2 * below))


def display_range(volume):
    """(black, white) of a scalar volume, in its own units.

    The volume's own `display_range` where it has one. Else CT in HU: `CT_WINDOW`; PET and SPECT: 0 to
    the 99.95th percentile (a small hot spot must not saturate); others: 0, or the 0.5th percentile where
    values go below zero, to the 99.8th percentile of what is neither background nor `FAR` beyond the rest. What is
    filled in around a scan does not count (`without_padding`).

    Raises VolumeError for a volume that is constant, not finite or not scalar.
    """
    if volume.display_range is not None:
        return volume.display_range
    require_usable(volume)
    if looks_like_hu(volume):
        return CT_WINDOW
    values = sample(volume.array, MAX_SAMPLES).astype(np.float64)
    low, high = float(volume.array.min()), float(volume.array.max())
    functional = volume.modality in FUNCTIONAL
    if not functional and (inside := without_padding(values)) is not values:
        values, low = inside, float(inside.min())
    black = 0.0 if low >= 0 or functional else float(np.percentile(values, 0.5))
    most = float(np.percentile(values, 99.9))
    if not functional and most > black and high - black > FAR * (most - black):
        high = most
    body = values[(values > black + 0.02 * (high - black)) & (values <= high)]
    if body.size < 16:
        return (min(black, low), high)
    white = float(np.percentile(body, 99.95 if functional else 99.8))
    return (black, white) if white > black else (low, high)


def without_padding(values):
    """Those of a scan's values, 1-D, that are not filled in around it: a least value below zero, far below the others,
    that 16 voxels have, and one in a thousand. The same array where there is none."""
    low = values.min()
    inside = values[values > low]
    if low < 0 and inside.size >= 16 and values.size - inside.size >= max(16, values.size / 1000):
        # Not the least of the rest: at the padding's border, resampling makes values of all levels between.
        least, most = np.percentile(inside, (5, 99.9))
        if least - low > (most - least) / 3:
            return values[values >= least]
    return values


def to_unit(volume, out=None):
    """float32 array (K, J, I): the display range mapped to 0..1, clipped."""
    return scale(volume.array, *display_range(volume), out)


def scale(array, black, white, out=None):
    """float32 array: black..white mapped to 0..1, clipped. For the parts of a volume, whose range is one."""
    unit = np.empty(array.shape, np.float32) if out is None else out
    width = white - black
    if not 1e-30 < width < 1e30:
        # float32 holds too little of it, or nothing.
        array, black, width = array / np.float64(width), black / width, 1.0
    # In half precision a black or white beyond 65504 would be infinite.
    np.subtract(array, black, out=unit, casting="unsafe", dtype=np.float32 if array.dtype == np.float16 else None)
    unit /= width
    return np.clip(unit, 0, 1, out=unit)
