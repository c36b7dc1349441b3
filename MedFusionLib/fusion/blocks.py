"""Fusion by image blocks, in batch: Li, Zhao, Lv, Li, "Medical image fusion method by deep learning",
International Journal of Cognitive Computing in Engineering 2021, whatever network judges the blocks.

1. The sources are cut into overlapping 8x8 blocks; a block's pixels are the visible units, all blocks of a slice
   go as one batch.
2. The network, pre-trained without labels and fine-tuned with a logistic output, tells which of two
   blocks carries the information, the clear one or the blurred or dimmed one.
3. The softmax of the sources' scores is a block's share; a pixel's is the mean over the blocks that cover it; the
   fused pixel is the weighted mean.

Departures. Visible units hold the block's contrast, with one unit more for its mean. The scores,
not the hidden units, enter a softmax, which extends the logistic output to three sources. The inside of the skull
and of a hot spot is flat, so a judge of sharpness dims it: brightness over a knee counts as content and takes the
pixel's share, in PET and SPECT, whose uptake is smooth by nature, more than elsewhere (`BRIGHTNESS`, `UPTAKE`; chosen
on subjects trained on). Volumes: slice by slice along the first axis.
"""

from __future__ import annotations

import torch

from ..volume import FUNCTIONAL
from .slabs import device_of, each_volume, rows
from .weighing import brightened, slice_by_slice

BRIGHTNESS, UPTAKE = 12.0, 18.0
"""What white adds to the logarithm of its source's share; the second is that of PET and SPECT."""


class BlockFuser:
    """The `Fuser` of a `BlockNet`. Its weight maps are exact: the fused value is their weighted mean."""

    halo = None

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        if sources.ndim == 5:
            return each_volume(self.fuse_volume, sources, modalities)
        strengths = [UPTAKE if modality in FUNCTIONAL else BRIGHTNESS for modality in modalities]
        return slice_by_slice(lambda one: brightened(self.network.share(one), one, strengths), sources)

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        device = device_of(self.network)
        for k in range(shape[0]):
            step(k, shape[0])
            fused, shares = self(torch.from_numpy(read(rows(k, k + 1))).transpose(0, 1).to(device), modalities)
            store(rows(k, k + 1), fused.cpu().numpy(), shares.transpose(0, 1).cpu().numpy())


def build(network):
    """The `Fuser` of a trained network."""
    return BlockFuser(network)
