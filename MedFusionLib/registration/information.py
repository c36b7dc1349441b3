"""Normalised mutual information of sampled points, with its analytic gradient.

Studholme, Hill and Hawkes, "An overlap invariant entropy measure of 3D medical image alignment", Pattern Recognition
32 (1999); Parzen windows of cubic B-splines as in Thevenaz and Unser, IEEE Trans. Image Processing 9 (2000). Points are
counted in fine bins, and the windows are applied to the counts: the cost per point is that of a plain histogram.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

BINS = 32
FINE_FIXED = 128
FINE_MOVING = 256
TINY = 1e-9
"""Keeps the logarithm of an empty bin finite."""


def fixed_bins(values):
    """int64 (N,): the row of the fine histogram that each fixed value, 0..1, belongs to, times its width."""
    return (values * FINE_FIXED).to(torch.int64).clamp_(0, FINE_FIXED - 1) * FINE_MOVING


def similarity(rows, values, inside, gradient=False, normalised=True):
    """(NMI, share of points inside, dNMI/dvalue (N,) or None).

    rows: of `fixed_bins`. values: moving values 0..1 (N,). inside: bool (N,): points that count. normalised: False:
    mutual information in natural units, plus 1, so that it too is 1 where nothing is shared.
    """
    bins = (values * FINE_MOVING).to(torch.int64).clamp_(0, FINE_MOVING - 1).add_(rows)
    bins = torch.where(inside, bins, FINE_FIXED * FINE_MOVING)
    counts = _counts(bins)
    count = counts[:-1].sum()
    share = float(count) / len(values)
    if share * len(values) < 64:
        return 0.0, share, torch.zeros_like(values) if gradient else None
    fixed, moving, slope = _windows(counts.device)
    joint = fixed @ (counts[:-1].reshape(FINE_FIXED, FINE_MOVING) / count) @ moving.T
    joint = joint.clamp(min=TINY)
    log_joint = joint.log()
    of_moving = joint.sum(0)
    log_moving = of_moving.log()
    of_fixed = joint.sum(1)
    entropy = -(joint * log_joint).sum()
    apart = -((of_fixed * of_fixed.log()).sum() + (of_moving * log_moving).sum())
    found = apart / entropy if normalised else 1 + apart - entropy
    if not gradient:
        return float(found), share, None
    change = (found * log_joint - log_moving[None]) / entropy if normalised else log_joint - log_moving[None]
    table = (fixed.T @ change @ slope).reshape(-1) / count
    table = torch.cat([table, table.new_zeros(1)])
    return float(found), share, torch.index_select(table, 0, bins)


def _counts(bins):
    n = FINE_FIXED * FINE_MOVING + 1
    # Whole numbers: atomic adds in any order give the same sum, so this is deterministic on a GPU too.
    return (
        torch.zeros(n, dtype=torch.int32, device=bins.device)
        .index_add_(0, bins, torch.ones(1, dtype=torch.int32, device=bins.device).expand(len(bins)))
        .float()
        if bins.device.type != "cpu"
        else torch.bincount(bins, minlength=n).float()
    )


@lru_cache(maxsize=8)
def _windows(device):
    """Parzen windows as matrices: (BINS, FINE_FIXED), (BINS, FINE_MOVING), and the latter's derivative by the value."""
    fixed, _ = _window(FINE_FIXED)
    moving, slope = _window(FINE_MOVING)
    return tuple(torch.tensor(m, dtype=torch.float32, device=device) for m in (fixed, moving, slope))


def _window(fine):
    # Two bins at each end take the tails of the windows of the outermost values.
    value = 1.5 + (np.arange(fine) + 0.5) / fine * (BINS - 4)
    t = value[None] - np.arange(BINS)[:, None]
    a = np.abs(t)
    weight = np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.where(a < 2, (2 - a) ** 3 / 6, 0))
    slope = np.where(a < 1, np.sign(t) * (-2 * a + 1.5 * a**2), np.where(a < 2, -np.sign(t) * (2 - a) ** 2 / 2, 0))
    return weight, slope * (BINS - 4)
