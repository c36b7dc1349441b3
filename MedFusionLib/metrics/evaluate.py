"""Measures of a fused volume: slice by slice, averaged over the slices that show anatomy."""

from __future__ import annotations

import numpy as np

from ..errors import GeometryError, MethodError
from ..normalize import to_unit
from .scores import MEASURES, TASK, scores

ALL = (*MEASURES, *TASK)
RUN = ("SSIM", "PSNR", "MSE", "MI", "EN", "SD", "SF", "Qabf", "SCD", "bone_solid", "soft_corr", "background")
"""Quick enough to follow every run."""

MOST_SLICES = 48
"""A volume with more slices is measured on as many, evenly spread."""

LEAST_ANATOMY = 0.01
"""Share of a slice brighter than 10 of 255 in a source."""


def evaluate(fused, sources, names=RUN, axis="axial"):
    """Measure a fused volume against the sources it was made of.

    fused: Volume, 0..1. sources: Volumes on its grid, in their own units: their display ranges map them to 0..1.
    names: measures (`ALL` lists them), None for all. axis: of the slices: "axial", "coronal" or "sagittal".

    Returns dict name -> mean over the slices that show anatomy, `MOST_SLICES` of them at the most. Measures that no
    slice is large enough for are left out. Raises GeometryError for other grids, MethodError for unknown names.
    """
    rows = [row for _, row in slice_scores(fused, sources, names, axis)]
    result = {}
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows])
        if np.isfinite(values).any():
            result[name] = float(np.nanmean(values))
    return result


def slice_scores(fused, sources, names=None, axis="axial", every=False):
    """(index, dict name -> value) of each slice with anatomy. every: of all such slices, not `MOST_SLICES`."""
    unknown = set(names or ()) - set(ALL)
    if unknown:
        raise MethodError(f"there is no measure {', '.join(sorted(unknown))}: choose from {', '.join(ALL)}.")
    for source in sources:
        if not source.same_grid(fused):
            raise GeometryError(f"{source.title} is not on the grid of {fused.title}: resample it first.")
    along = fused.anatomical_axis(axis)
    # Only views move: a volume and its sources may be large.
    unit = [np.moveaxis(to_unit(source), along, 0) for source in sources]
    image = np.moveaxis(fused.array, along, 0)
    modalities = [source.modality for source in sources]
    shown = [n for n in range(len(image)) if any((u[n] > 10 / 255).mean() > LEAST_ANATOMY for u in unit)]
    if not every and len(shown) > MOST_SLICES:
        shown = [shown[n] for n in np.linspace(0, len(shown) - 1, MOST_SLICES).round().astype(int)]
    rows = []
    for n in shown:
        grey = [np.round(255 * u[n].astype(np.float64)) for u in unit]
        rows.append((n, scores(grey, np.round(255 * np.clip(image[n], 0, 1).astype(np.float64)), names, modalities)))
    return rows
