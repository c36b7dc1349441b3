"""Every measure of one fused image, by name."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from . import gradient, information, structure, task


def _mean(measure):
    return lambda sources, fused: float(np.mean([measure(source, fused) for source in sources]))


def _sum(measure):
    return lambda sources, fused: float(np.sum([measure(source, fused) for source in sources]))


def _alone(measure):
    return lambda sources, fused: float(measure(fused))


def _squared_error(source, fused):
    return float(((source - fused) ** 2).mean())


def _psnr(source, fused):
    return 10 * np.log10(255**2 / max(_squared_error(source, fused), 1e-10))


def _ssim(source, fused):
    return structure.ssim_maps(source, fused, crop=True)[0].mean() if min(fused.shape) > 10 else np.nan


def _head_ssim(sources, fused):
    inside = ndimage.binary_fill_holes(np.max(sources, axis=0) > 10)
    if not inside.any():
        return np.nan
    return float(np.mean([structure.ssim_maps(source, fused, crop=False)[0][inside].mean() for source in sources]))


MEASURES = {
    "EN": _alone(information.entropy),
    "SD": _alone(np.std),
    "mean": _alone(np.mean),
    "SF": _alone(gradient.spatial_frequency),
    "AG": _alone(gradient.average_gradient),
    "EOG": _alone(gradient.energy_of_gradient),
    "MSE": _mean(_squared_error),
    "RMSE": _mean(lambda source, fused: np.sqrt(_squared_error(source, fused))),
    "PSNR": _mean(_psnr),
    "SSIM": _mean(_ssim),
    "MS-SSIM": _mean(structure.ms_ssim),
    "head-SSIM": _head_ssim,
    "MI": _sum(information.mutual),
    "NMI": _sum(information.normalised),
    "REL": _mean(structure.correlation),
    "Q0": lambda sources, fused: structure.piella(sources, fused)[0],
    "QS": lambda sources, fused: structure.piella(sources, fused)[1],
    "QW": lambda sources, fused: structure.piella(sources, fused)[2],
    "QE": structure.piella_edges,
    "Qabf": gradient.qabf,
    "Nabf": gradient.nabf,
    "SCD": structure.scd,
    "VIF": _sum(structure.vif),
    "FMI": _mean(information.feature),
}
"""Measure name -> function of (sources, fused). Means or sums over the sources, as each was published."""

TASK = ("bone_solid", "soft_corr", "soft_edges", "background")
"""Figures of `task.ct_mri`, for a CT with an MRI."""


def scores(sources, fused, names=None, modalities=None):
    """Measure a fused image against its sources.

    sources: two or three (H, W) arrays, 0..255, on one grid. fused: (H, W), 0..255. names: those of `MEASURES` and
    `TASK` to compute, None for all. modalities: of the sources; the task figures need a "CT" and an "MR".

    Returns dict name -> value, NaN where an image is too small for a measure.
    """
    sources = [np.asarray(source, dtype=np.float64) for source in sources]
    fused = np.asarray(fused, dtype=np.float64)
    result = {name: measure(sources, fused) for name, measure in MEASURES.items() if names is None or name in names}
    if modalities and {"CT", "MR"} <= set(modalities) and (names is None or set(names) & set(TASK)):
        ct, mri = (sources[modalities.index(modality)] for modality in ("CT", "MR"))
        figures = task.ct_mri(ct, mri, fused)
        result |= {name: value for name, value in figures.items() if names is None or name in names}
    return result
