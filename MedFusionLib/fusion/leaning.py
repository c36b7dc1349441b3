"""A fusion leaned towards one of its sources, from its weight maps alone: no network, no torch."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral

import numpy as np

from ..errors import GeometryError, MethodError, VolumeError
from ..volume import require_several, require_volume
from .driver import recorded
from .units import Units


def lean(fusion, sources, towards, amount):
    """Move a fusion towards one of its sources without running the network again.

    fusion: what `fuse` returned, with weights. sources: the Volumes it was made of, in the same order.
    towards: index of a source. amount: 0 (the fusion as it is) .. 1 (that source alone; beyond its field of view the
    brightest of the others, as in `fuse`).

    Returns a `Fusion` with the new values and weights. It is still a convex combination of the sources.
    Raises MethodError for a fusion without weights or values out of range, GeometryError for sources on other grids,
    VolumeError for what is no Volume, or another one than was fused (modality, units or display range differ).
    """
    if fusion.weights is None:
        raise MethodError("this fusion has no weight maps to lean: choose a method that has them, such as medfusion.")
    if not isinstance(towards, Integral) or not 0 <= towards < len(fusion.weights):
        raise MethodError(f"there is no source {towards} to lean to: there are {len(fusion.weights)}, from 0.")
    if not 0 <= amount <= 1:
        raise MethodError(f"the amount to lean is {amount}: choose 0 (as fused) to 1 (that source alone).")
    sources = require_several(sources)
    for source in sources:
        require_volume(source)
    if len(sources) != len(fusion.weights) or not all(source.same_grid(fusion.volume) for source in sources):
        raise GeometryError("these are not the volumes of this fusion: give its own sources, on its grid, in order.")
    units = Units(sources)
    for n, (source, ends) in enumerate(zip(sources, units.ranges, strict=True), 1):
        # What holds no such record cannot be checked.
        was, now = fusion.volume.attributes.get(f"MedFusion.Source{n}"), recorded(source, *ends)
        if was not in (None, now):
            raise VolumeError(
                f"{source.title} ({now}) is not source {n} of this fusion ({was}): give its own sources, in order."
            )
    said = f"{amount:g} towards source {towards + 1}"
    before = fusion.volume.attributes.get("MedFusion.Lean")
    attributes = {**fusion.volume.attributes, "MedFusion.Lean": f"{before}, then {said}" if before else said}
    fused = np.empty_like(fusion.volume.array)
    shares = np.stack([share.array for share in fusion.weights])
    shares *= np.float32(1 - amount)
    shares[towards] += np.float32(amount)
    for k in range(len(fused)):
        fused[k] = sum(shares[:, k] * units(k))
        units.settle(k, shares[:, k])
    volume = fusion.volume.with_array(np.clip(fused, 0, 1, out=fused), attributes=attributes)
    leaned = [
        share.with_array(array, attributes=attributes) for share, array in zip(fusion.weights, shares, strict=True)
    ]
    return replace(fusion, volume=volume, weights=tuple(leaned))
