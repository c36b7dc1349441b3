"""Measures of grey levels alone, all from the joint histograms of 8-bit images: exact, and in bounded memory."""

from __future__ import annotations

from itertools import combinations

import numpy as np

LEVELS = np.arange(256.0)

CHUNK = 2**22
"""Voxels counted at a time: bounds the memory of the joint histograms."""

SMALLEST_ERROR = 1e-10
"""Mean squared error that PSNR takes for an exact copy, so that it stays finite (148 dB)."""


def joint(first, second):
    """(256, 256) probabilities that two uint8 images of one shape have these levels at a pixel."""
    first, second = first.reshape(-1), second.reshape(-1)
    counts = np.zeros(65536, np.int64)
    for start in range(0, first.size, CHUNK):
        pairs = first[start : start + CHUNK].astype(np.uint16)
        pairs <<= 8
        pairs |= second[start : start + CHUNK]
        counts += np.bincount(pairs, minlength=65536)
    return (counts / first.size).reshape(256, 256)


def entropy(probabilities):
    """Bits."""
    some = probabilities[probabilities > 0]
    return max(0.0, float(-(some * np.log2(some)).sum()))


class _Pair:
    """What the joint histogram of two images tells."""

    def __init__(self, first, second):
        table = joint(first, second)
        one, two = table.sum(1), table.sum(0)
        self.entropies = entropy(one), entropy(two)
        self.information = max(0.0, sum(self.entropies) - entropy(table))
        means = LEVELS @ one, LEVELS @ two
        self.variances = (LEVELS - means[0]) ** 2 @ one, (LEVELS - means[1]) ** 2 @ two
        self.means = means
        self.covariance = (LEVELS - means[0]) @ table @ (LEVELS - means[1])
        self.squared_error = float(((LEVELS[:, None] - LEVELS) ** 2 * table).sum())


def _ratio(value, bound):
    return float(value / bound) if bound > 1e-12 else 0.0


def level_measures(sources, fused):
    """EN, mean, SD, MSE, RMSE, PSNR, REL, SCD, MI, NMI and FMI as a dict.

    sources: uint8 arrays; fused: uint8 array; all of one shape, of any rank.

    EN: entropy of the fusion, bits. SD: its standard deviation. MSE, RMSE, PSNR (dB), REL (Pearson correlation):
    means over the sources. MI: mutual information with the sources, bits, summed (Qu, Zhang and Yan 2002).
    NMI: the same, each divided by half the sum of the two entropies (Hossny, Nahavandi and Creighton 2008).
    FMI: the mean instead of the sum of these, i.e. global feature mutual information with the grey level as the
    feature (Haghighat, Aghagolzadeh and Seyedarabi 2011). SCD: sum of the correlations of differences (Aslantas
    and Bendes 2015); with three sources the mean over their pairs. A correlation with a constant image is 0.
    """
    pairs = [_Pair(source, fused) for source in sources]
    shares = [_ratio(2 * pair.information, sum(pair.entropies)) for pair in pairs]
    errors = [pair.squared_error for pair in pairs]
    differences = []
    for (one, first), (two, second) in combinations(zip(pairs, sources, strict=True), 2):
        between = _Pair(first, second).covariance
        for own, other in ((one, two), (two, one)):
            # corr(fused - other, own), from covariances: no difference image is made.
            variance = own.variances[1] + other.variances[0] - 2 * other.covariance
            differences.append(_ratio(own.covariance - between, np.sqrt(max(variance, 0.0) * own.variances[0])))
    return {
        "EN": pairs[0].entropies[1],
        "mean": float(pairs[0].means[1]),
        "SD": float(np.sqrt(pairs[0].variances[1])),
        "MSE": float(np.mean(errors)),
        "RMSE": float(np.mean(np.sqrt(errors))),
        "PSNR": float(np.mean(10 * np.log10(255**2 / np.maximum(errors, SMALLEST_ERROR)))),
        "REL": float(np.mean([_ratio(p.covariance, np.sqrt(p.variances[0] * p.variances[1])) for p in pairs])),
        "SCD": 2 * float(np.mean(differences)) if differences else float("nan"),
        "MI": float(sum(pair.information for pair in pairs)),
        "NMI": float(sum(shares)),
        "FMI": float(np.mean(shares)),
    }
