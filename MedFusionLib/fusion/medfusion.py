"""The default method: MedFusion's own network, which blends and never invents.

A small network (`networks/medfusion_net.py`) predicts how much of each source each frequency band takes;
the sum of the bands is brought into the range of the sources and written back as one convex weight per source
and voxel. The fused value is exactly sum(weights * sources) there, so every voxel can be traced, and the
weight maps are enough to lean the result towards one source afterwards (`leaning`).
"""

from __future__ import annotations

import torch

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
