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
pixel's share (`BRIGHTNESS`; 0 leaves it out). Both were chosen on
subjects trained on. Volumes: slice by slice along the first axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .slabs import device_of, each_volume, rows
from .weighing import slice_by_slice

KNEE = 0.3
"""Brightness (0..1 of the display range) above which a pixel counts as content of its own."""

BRIGHTNESS = 12.0
"""What white adds to the logarithm of its source's share."""


class BlockFuser:
    """The `Fuser` of a `BlockNet`. Its weight maps are exact: the fused value is their weighted mean."""

    halo = None

    def __init__(self, network, brightness=BRIGHTNESS):
        self.network, self.brightness = network, brightness

    def __call__(self, sources, modalities):
        if sources.ndim == 5:
            return each_volume(self.fuse_volume, sources, modalities)
        return slice_by_slice(self.weight_map, sources)

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        device = device_of(self.network)
        for k in range(shape[0]):
            step(k, shape[0])
            fused, shares = self(torch.from_numpy(read(rows(k, k + 1))).transpose(0, 1).to(device), modalities)
            store(rows(k, k + 1), fused.cpu().numpy(), shares.transpose(0, 1).cpu().numpy())

    def weight_map(self, sources):
        """(B, S, H, W) of sources (B, S, H, W), sums to 1 over S."""
        shares = self.network.share(sources)
        mean = F.avg_pool2d(sources, 3, 1, 1, count_include_pad=False)
        bright = (mean - KNEE).clamp_min(0) / (1 - KNEE)
        return (shares.clamp_min(1e-6).log() + self.brightness * bright).softmax(1)


def build(network):
    """The `Fuser` of a trained network."""
    return BlockFuser(network)
