"""The default method: MedFusion's own network, which blends and never invents.

A small network (`networks/medfusion_net.py`) predicts how much of each source each frequency band takes;
the sum of the bands is brought into the range of the sources and written back as one convex weight per source
and voxel. The fused value is exactly sum(weights * sources) there, so every voxel can be traced, and the
weight maps are enough to lean the result towards one source afterwards (`lean`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..errors import GeometryError, MethodError
from ..normalize import to_unit
from ..volume import MODALITIES
from . import weights
from .networks.medfusion_net import MedFusionNet, fuse
from .networks.medfusion_tiles import fuse_volume
from .threads import spread

GPU_BATCH = 16
"""Slices at a time on a GPU, which a single one does not fill."""


class MedFusion:
    """The `Fuser`."""

    halo = None

    def __init__(self, network, device):
        self.network, self.device = network, device

    def __call__(self, sources, modalities):
        index = self._index(modalities)
        weights = torch.empty_like(sources)
        if self.device.type == "cpu":
            # One image at a time stays in the processor's cache and bounds the memory.
            def one(n):
                weights[n : n + 1] = fuse(self.network, sources[n : n + 1], index)

            spread(one, range(len(sources)))
        else:
            for part, target in zip(sources.split(GPU_BATCH), weights.split(GPU_BATCH), strict=True):
                target[:] = fuse(self.network, part, index)
        return (weights * sources).sum(1), weights

    def fuse_volume(self, read, shape, modalities, store, step):
        fuse_volume(self.network, read, shape, self._index(modalities), self.device, store, step)

    def _index(self, modalities):
        return torch.tensor([MODALITIES.index(modality) for modality in modalities], device=self.device)


def load(method, device):
    return MedFusion(weights.load(method.weights, MedFusionNet()).to(device), device)


def lean(fusion, sources, towards, amount):
    """Move a fusion towards one of its sources without running the network again.

    fusion: what `fuse` returned, with weights. sources: the Volumes it was made of, in the same order.
    towards: index of a source. amount: 0 (the fusion as it is) .. 1 (that source alone).

    Returns a `Fusion` with the new values and weights. It is still a convex combination of the sources.
    Raises MethodError for a fusion without weights or values out of range, GeometryError for other sources.
    """
    if fusion.weights is None:
        raise MethodError("this fusion has no weight maps to lean: choose a method that has them, such as medfusion.")
    if not 0 <= towards < len(fusion.weights):
        raise MethodError(f"there is no source {towards} to lean to: there are {len(fusion.weights)}, from 0.")
    if not 0 <= amount <= 1:
        raise MethodError(f"the amount to lean is {amount}: choose 0 (as fused) to 1 (that source alone).")
    if len(sources) != len(fusion.weights) or not all(source.same_grid(fusion.volume) for source in sources):
        raise GeometryError("these are not the volumes of this fusion: give its own sources, on its grid, in order.")
    fused = np.zeros_like(fusion.volume.array)
    leaned = []
    for n, (share, source) in enumerate(zip(fusion.weights, sources, strict=True)):
        array = share.array * np.float32(1 - amount)
        if n == towards:
            array += np.float32(amount)
        fused += array * to_unit(source)
        leaned.append(share.with_array(array))
    attributes = {**fusion.volume.attributes, "MedFusion.Lean": f"{amount:g} towards source {towards + 1}"}
    volume = fusion.volume.with_array(np.clip(fused, 0, 1, out=fused), attributes=attributes)
    return replace(fusion, volume=volume, weights=tuple(leaned))
