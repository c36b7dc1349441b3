"""All measures by name: of plain arrays, of volumes, and slice by slice."""

from __future__ import annotations

import numpy as np

from ..errors import Cancelled, GeometryError, MethodError, VolumeError
from ..normalize import display_range, to_unit
from ..volume import require_several, require_usable, require_volume
from .gradients import activity_measures, edge_measures
from .histograms import level_measures
from .structure import (
    WINDOW,
    fidelity_measures,
    multiscale_measures,
    quality_measures,
    similarity_measures,
    ssim_slab,
)
from .task import task_measures

LEVEL = ("EN", "mean", "SD", "MSE", "RMSE", "PSNR", "REL", "SCD", "MI", "NMI", "FMI")
ACTIVITY = ("SF", "AG", "EOG")
LOCAL = {
    edge_measures: ("Qabf", "Nabf"),
    similarity_measures: ("SSIM", "head-SSIM"),
    multiscale_measures: ("MS-SSIM",),
    quality_measures: ("Q0", "QS", "QW", "QE"),
    fidelity_measures: ("VIF",),
}

TASK = ("bone_solid", "soft_corr", "soft_edges", "background")
"""Measures of a CT and an MRI only."""

NAMES = (*ACTIVITY, *LEVEL, *(name for names in LOCAL.values() for name in names))
"""Every measure of any pair, each explained where it is computed."""

QUICK = ("SSIM", "PSNR", "MSE", "MI", "EN", "SD", "SF", "AG", "SCD", "Qabf")
"""What `run` reports: seconds for a head, where all take a minute."""

ROUNDED = 1e-4
"""How far a fused volume may leave 0..1 by what its file or a resampling rounded, and still be one."""

MOST_VOXELS = 8_000_000
"""Of a volume, that measures of local windows look at: larger ones are sampled at evenly spread slices."""


def pair_scores(first, second, fused, data_range=255, names=None):
    """Measure one fused image of two sources, as the literature does: on 8-bit grey levels.

    first, second, fused: (H, W) arrays, 0..data_range; rounded to 256 levels here. data_range: 255, or 1 for a
    network's output. names: of `NAMES` and `TASK` (for the latter first is the CT, second the MRI); None: all `NAMES`.
    PET and SPECT in colour are measured by their luma, 0.299 R + 0.587 G + 0.114 B.

    Returns {name: value}, in the order of `names`; NaN where a measure is not defined (image too small).
    Raises GeometryError for shapes that differ or are not 2-D, VolumeError for NaN, MethodError for unknown names or a
    data range that is not positive.
    """
    return slice_scores((first, second), fused, _known(names, NAMES, (*NAMES, *TASK)), data_range, ct_mri=(0, 1))


def slice_scores(sources, fused, names, data_range=255, ct_mri=None):
    """As `pair_scores`, of two or three sources (H, W). ct_mri: the index of the CT and of the MRI, for `TASK`."""
    names = _known(names, NAMES, (*NAMES, *TASK) if ct_mri else NAMES)
    images = [np.asarray(image) for image in (*sources, fused)]
    if images[0].ndim != 2 or not images[0].size or any(image.shape != images[0].shape for image in images):
        raise GeometryError(
            f"images of shape {', '.join(str(image.shape) for image in images)}: measure (H, W) images of one shape."
        )
    if not all(np.isfinite(image).all() for image in images):
        raise VolumeError("an image holds NaN or infinite values: replace them before measuring.")
    if not data_range > 0:
        raise MethodError(f"the data range is {data_range}: give what is white in the images, 255 or 1.")
    levels = [np.rint(np.clip(image * (255 / data_range), 0, 255)).astype(np.uint8) for image in images]
    return _slice(levels[:-1], levels[-1], names, ct_mri)


def evaluate(fused, sources, mode="volume", axis="axial", names=None, progress=None, cancelled=None):
    """Measure a fused volume against its sources, on 8-bit grey levels of their display ranges.

    fused: Volume as `fuse` returns it (without a display range: values in 0..1 as they are). sources: two or three
    Volumes on its grid. names: of `NAMES`, and `TASK` where a CT and an MRI are among the sources; None: all of them.
    mode "volume": measures of grey levels over all voxels; SF, AG, EOG and SSIM in three dimensions (SSIM in slices
    where an axis is under 11 voxels); the others, defined on images, as the mean over the slices along `axis`. Windows
    are in voxels. Over `MOST_VOXELS`, windows are measured in evenly spread slices. A single slice is measured as it
    lies, whatever the axis.
    mode "slice": every measure as the mean over all slices. Slices without anything in them are left out.
    progress(fraction, message); cancelled() -> bool, asked at every slice.

    Returns {name: value}; NaN where a measure is not defined.
    Raises VolumeError, GeometryError, MethodError, Cancelled.
    """
    if mode not in ("volume", "slice"):
        raise MethodError(f"mode {mode!r} is neither 'volume' nor 'slice'.")
    sources = require_several(sources)
    names, roles = _names(sources, names)
    levels, levels_fused = _levels(fused, sources)
    along = fused.slice_axis(axis)
    ticks = _Ticks(progress, cancelled)
    result = {}
    if mode == "volume":
        if set(names) & set(LEVEL):
            result |= level_measures(levels, levels_fused)
        ticks(0.1)
        if set(names) & set(ACTIVITY):
            result |= activity_measures(levels_fused)
        ticks(0.2)
        if "SSIM" in names and min(levels_fused.shape) >= WINDOW:
            result["SSIM"] = _ssim_volume(levels, levels_fused, ticks)
    wanted = [name for name in names if name not in result]
    if wanted:
        chosen = _filled(levels, along, MOST_VOXELS if mode == "volume" else None)
        rows = []
        for done, n in enumerate(chosen):
            rows.append(_slice([s.take(n, along) for s in levels], levels_fused.take(n, along), wanted, roles))
            ticks(0.4 + 0.6 * (done + 1) / len(chosen))
        result |= {name: _mean([row[name] for row in rows]) for name in wanted}
    return {name: result[name] for name in names}


def evaluate_slices(fused, sources, axis="axial", names=None, progress=None, cancelled=None):
    """Measure every slice along an axis that has anything in it; arguments as `evaluate`'s.

    Returns a list of {"slice": index along the array's axis, name: value}.
    """
    sources = require_several(sources)
    names, roles = _names(sources, names)
    levels, levels_fused = _levels(fused, sources)
    along = fused.slice_axis(axis)
    ticks = _Ticks(progress, cancelled)
    rows, chosen = [], _filled(levels, along, None)
    for done, n in enumerate(chosen):
        row = _slice([s.take(n, along) for s in levels], levels_fused.take(n, along), names, roles)
        rows.append({"slice": n} | row)
        ticks((done + 1) / len(chosen))
    return rows


class _Ticks:
    """Tells progress and asks for cancelling."""

    def __init__(self, progress, cancelled):
        self.progress, self.cancelled = progress, cancelled

    def __call__(self, fraction):
        if self.cancelled and self.cancelled():
            raise Cancelled()
        if self.progress:
            self.progress(fraction, "Measuring")


def _known(names, default, choices):
    names = tuple(default if names is None else names)
    for name in names:
        if name not in choices:
            raise MethodError(f"{name!r} is not a measure of these images: choose of {', '.join(choices)}.")
    return names


def roles_of(modalities):
    """(index of the CT, index of the MRI) among modalities, or None: where the measures of `TASK` are defined."""
    return (modalities.index("CT"), modalities.index("MR")) if {"CT", "MR"} <= set(modalities) else None


def _names(sources, names):
    """(names to measure, (index of the CT, index of the MRI) or None)."""
    for source in sources:
        require_volume(source)
    roles = roles_of([source.modality for source in sources])
    every = (*NAMES, *TASK) if roles else NAMES
    return _known(names, every, every), roles


def _levels(fused, sources):
    """uint8 arrays (K, J, I) of the sources, and of the fusion."""
    if not 2 <= len(sources) <= 3:
        raise MethodError(f"a fusion is measured against 2 or 3 sources: {len(sources)} given.")
    require_volume(fused)
    for source in sources:
        require_usable(source)
        if not source.same_grid(fused):
            raise GeometryError(f"{source.title} is not on the grid of {fused.title}: register or resample it first.")
    fused = fused.with_array(fused.array, display_range=range_of_fused(fused))
    return [_bytes(source) for source in sources], _bytes(fused)


def range_of_fused(fused):
    """(black, white) by which a fused Volume is measured: 0 and 1, unless its values or display range say otherwise.

    Raises VolumeError for one that cannot be measured.
    """
    if fused.is_vector:
        raise VolumeError(f"{fused.title} is a colour volume: measure the fused scalar volume.")
    low, high = fused.array.min(), fused.array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeError(f"{fused.title} has NaN or infinite voxels: fuse again.")
    if fused.display_range is None and low >= -ROUNDED and high <= 1 + ROUNDED:
        return (0.0, 1.0)
    return display_range(fused)


def _bytes(volume):
    unit = to_unit(volume)
    unit *= 255
    return np.rint(unit, out=unit).astype(np.uint8)


def _filled(levels, along, budget):
    """Indices of the slices in which a source is not constant, evenly thinned to a number of voxels."""
    count = levels[0].shape[along]
    filled = [n for n in range(count) if any(np.ptp(source.take(n, along)) for source in levels)]
    most = count if budget is None else max(8, budget * count // levels[0].size)
    if len(filled) <= most:
        return filled
    return [filled[n] for n in np.linspace(0, len(filled) - 1, most).round().astype(int)]


def _slice(sources, fused, names, ct_mri):
    """{name: value} of uint8 (H, W) images."""
    wanted = set(names)
    result = {}
    if wanted & set(LEVEL):
        result |= level_measures(sources, fused)
    if wanted & set(ACTIVITY):
        result |= activity_measures(fused)
    sources, fused = [source.astype(np.float64) for source in sources], fused.astype(np.float64)
    for measure, own in LOCAL.items():
        if wanted & set(own):
            result |= measure(sources, fused)
    if wanted & set(TASK):
        result |= task_measures(sources[ct_mri[0]], sources[ct_mri[1]], fused)
    return {name: result[name] for name in names}


def _ssim_volume(levels, fused, ticks):
    """SSIM with a three-dimensional window, in slabs of 12 slices, evenly spread in large volumes."""
    starts = np.arange(5, len(fused) - 5, 12)
    most = max(3, MOST_VOXELS // (22 * fused[0].size))
    if len(starts) > most and fused.size > MOST_VOXELS:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    total, count = 0.0, 0
    for done, start in enumerate(starts):
        part, voxels = ssim_slab(levels, fused, start, start + 12)
        total, count = total + part, count + voxels
        ticks(0.2 + 0.2 * (done + 1) / len(starts))
    return float(total / count)


def _mean(values):
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else float("nan")
