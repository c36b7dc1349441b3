"""Tries fusion methods on a sample of a volume and measures the results, for the method selector.

The sample is bands of rows at full resolution: a method and a measure see there what they will see in the whole.
Reduced images would be cheaper, but the best method on them is often another one.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from ..metrics import slice_scores
from ..metrics.failures import uptake_failures
from ..metrics.scores import roles_of
from ..volume import FUNCTIONAL
from .networks.selector_net import MEASURES, OPTIONS

SEEN = 0.1
"""Of the display range: rows where no source is brighter are not worth a band."""

PLACES = (0.18, 0.5, 0.82)
"""Where the bands' middles lie between the first and the last row seen."""

SHARE, FEWEST = 3 / 16, 48
"""Rows of a band: of the image, and at least."""

MOST_SLICES = 6
"""Slices of a volume that bands are taken from, evenly spaced: bounds memory and time."""


def sample(sources):
    """(N, S, rows, columns) bands of sources (S, K, J, I), 0..1, from slices across the thinnest axis."""
    sources = sources.movedim(1 + int(np.argmin(sources.shape[1:])), 1)
    filled = (sources > SEEN).any(0).any(-1)
    slices = filled.any(1).nonzero()[:, 0]
    if len(slices) == 0:
        slices = torch.arange(sources.shape[1])
    height = sources.shape[2]
    rows = min(height, max(FEWEST, round(SHARE * height)))
    bands = []
    for k in slices[spread(len(slices))].tolist():
        seen = filled[k].nonzero()[:, 0]
        low, high = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, height)
        for place in PLACES:
            top = round(low + place * (high - low) - rows / 2)
            top = max(0, min(top, height - rows))
            bands.append(sources[:, k, top : top + rows])
    return torch.stack(bands)


def spread(length):
    """Indices of at most `MOST_SLICES` of so many slices, evenly spaced."""
    count = min(MOST_SLICES, length)
    return [(2 * n + 1) * length // (2 * count) for n in range(count)]


def measured(fusers, bands, modalities, device, step=lambda done, count: None):
    """(options, measures) float64 means over the `sample` bands (N, S, rows, columns); NaN for what none defines.

    fusers: {method: `Fuser`} of every method among the options. step(done, count): called before every piece of work.
    """
    values = np.full((len(OPTIONS), len(bands), len(MEASURES)), np.nan)
    for first in range(0, len(bands), len(PLACES)):
        of_slice = bands[first : first + len(PLACES)]
        images = []
        for n, band in enumerate(of_slice):
            step(2 * first + n, 2 * len(bands))
            images.append(list(options(fusers, band[None].to(device), modalities)))
        images = np.stack([[image[0].cpu().numpy() for image in row] for row in images], 1)
        for n, band in enumerate(of_slice):
            step(2 * first + len(of_slice) + n, 2 * len(bands))
            values[:, first + n, :-1] = [alike(band.numpy(), image[n], modalities) for image in images]
        # What is hot shows in all of a slice, not in each part of it.
        sources = np.concatenate(of_slice.numpy(), 1)
        values[:, first, -1] = [hot(sources, np.concatenate(image), modalities) for image in images]
    return mean(values, 1)


def mean(values, axis):
    """Of the values that are not NaN; NaN where there is none."""
    some = np.isfinite(values)
    total = np.where(some, values, 0).sum(axis)
    return np.divide(total, some.sum(axis), out=np.full_like(total, np.nan), where=some.any(axis))


def options(fusers, sources, modalities):
    """The fused images (B, *spatial) of sources (B, S, *spatial), one by one in the order of `OPTIONS`."""
    for name, members in groupby(OPTIONS, key=itemgetter(0)):
        fused = fusers[name](sources, modalities)[0]
        for _, weight in members:
            yield mixed(fused, sources, weight)


def mixed(fused, sources, weight):
    """The fused image (B, *spatial), its rest of the weight given to the maximum of sources (B, S, *spatial)."""
    return fused if weight == 1 else weight * fused + (1 - weight) * sources.amax(1)


def scores(sources, fused, modalities):
    """The `MEASURES` of a fused image (H, W) of sources (S, H, W), 0..1; NaN where one is not defined."""
    return [*alike(sources, fused, modalities), hot(sources, fused, modalities)]


def alike(sources, fused, modalities):
    """All but the last of the `scores`: of any part of an image."""
    roles = roles_of(modalities)
    names = MEASURES[:-1]
    found = slice_scores(sources, fused, names if roles else names[:-1], 1, roles)
    return [found.get(name, np.nan) for name in names]


def hot(sources, fused, modalities):
    """The last of the `scores`: of the first PET or SPECT among the sources."""
    uptake = next((n for n, modality in enumerate(modalities) if modality in FUNCTIONAL), None)
    if uptake is None:
        return np.nan
    others = np.delete(sources, uptake, 0).max(0)
    return np.minimum(uptake_failures(255 * sources[uptake], 255 * others, 255 * fused)["hot_contrast"], 1)
