"""What gradients say: detail in the fusion, edges carried over from the sources, artefacts added."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SMALLEST = 2.0
"""Sobel strength (0..255, kernel summing to 8) under which Nabf takes a pixel for flat."""


def spatial_frequency(image):
    """SF: root mean square of the differences along rows and columns together."""
    return float(np.sqrt((np.diff(image, axis=1) ** 2).mean() + (np.diff(image, axis=0) ** 2).mean()))


def average_gradient(image):
    """AG, also called GRAD: mean of sqrt((dx^2 + dy^2) / 2), central differences."""
    down, across = np.gradient(image)
    return float(np.sqrt((down**2 + across**2) / 2).mean())


def energy_of_gradient(image):
    """EOG: sum over forward differences squared, per pixel."""
    return float((np.diff(image, axis=1)[:-1] ** 2 + np.diff(image, axis=0)[:, :-1] ** 2).mean())


def edges(image, mode="constant"):
    """Sobel (strength, angle in -pi/2..pi/2, rows counted upwards; pi/2 where nothing changes along a row)."""
    down, across = (ndimage.sobel(image, axis, mode=mode) for axis in (0, 1))
    level = across == 0
    return np.hypot(down, across), np.where(level, np.pi / 2, -np.arctan(down / np.where(level, 1, across)))


def _kept(source, fused, strength_curve, angle_curve, folded):
    """Quality of edge preservation (strength, angle), each 0..1. folded: angles beyond pi/2 count back."""
    strength, angle = source
    fused_strength, fused_angle = fused
    low, high = np.minimum(strength, fused_strength), np.maximum(strength, fused_strength)
    ratio = np.divide(low, high, out=np.zeros_like(low), where=high > 0)
    aligned = 1 - np.abs(angle - fused_angle) * 2 / np.pi
    if folded:
        aligned = np.abs(aligned)
    qualities = []
    for value, (top, slope, middle) in ((ratio, strength_curve), (aligned, angle_curve)):
        qualities.append(top / (1 + np.exp(-slope * (value - middle))))
    return qualities


def qabf(sources, fused):
    """Q^AB/F (Xydeas and Petrovic, Electronics Letters 36, 2000): edges of the sources that the fusion keeps, 0..1."""
    there = edges(fused)
    kept = total = 0.0
    for source in sources:
        here = edges(source)
        strength, angle = _kept(here, there, (0.9994, 15, 0.5), (0.9879, 22, 0.8), folded=False)
        kept += (strength * angle * here[0]).sum()
        total += here[0].sum()
    return float(kept / total) if total else 0.0


def nabf(sources, fused):
    """N^AB/F (Petrovic and Xydeas, 2005): share of edge strength that is in the fusion and in no source, 0 is best."""
    there = edges(fused, "nearest")
    here = [edges(source, "nearest") for source in sources]
    added = np.all([there[0] > strength for strength, _ in here], axis=0)
    lost = total = 0.0
    for edge in here:
        strength, angle = _kept(edge, there, (0.9999, 19, 0.5), (0.9995, 22, 0.5), folded=True)
        scaled = edge[0] / 8
        weight = np.where(scaled >= SMALLEST, scaled, 1.0)
        lost += (added * (1 - np.sqrt(strength * angle)) * weight).sum()
        total += weight.sum()
    return float(lost / total)
