"""FW-Net's two U-Nets: the left one makes the fusion of the sources, the right one the sources of the fusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import nn

from .pairwise import OTHER, pad

STEP = 16
"""Both U-Nets halve the image four times."""

FEATURES = (12, 16, 24, 32, 48, 12)


def _unet(inputs, outputs):
    # Normalised per image the weights of a slice would depend on all of it: volumes would flicker.
    return BasicUNet(2, inputs, outputs, FEATURES, norm=None, upsample="nontrainable")


class FWNet(nn.Module):
    """left: how much a source has to say against another one. right: what each kind of source looked like."""

    def __init__(self):
        super().__init__()
        self.left = _unet(2 + 2 * (OTHER + 1), 1)
        self.right = _unet(1, OTHER)

    def forward(self, sources, kinds):
        """Shares (B, S, H, W), which sum to 1 over S, of sources (B, S, H, W), 0..1, of any size.

        kinds: int64 (B, S), see `pairwise`. Each source meets every other one in the left U-Net; its logit is the
        mean of these meetings, so that neither their number nor their order matters.
        """
        height, width = sources.shape[2:]
        images = pad(sources, STEP)
        planes = F.one_hot(kinds, OTHER + 1).to(images.dtype)[..., None, None].expand(-1, -1, -1, *images.shape[2:])
        seen = torch.cat([images[:, :, None], planes], 2)
        count = seen.shape[1]
        logits = []
        for one in range(count):
            met = [self.left(torch.cat([seen[:, one], seen[:, n]], 1)) for n in range(count) if n != one]
            logits.append(torch.stack(met).mean(0))
        return torch.cat(logits, 1).softmax(1)[..., :height, :width]

    def decode(self, fused):
        """(B, 3, H, W), 0..1: bone, anatomy and uptake as they can be told from fusions (B, 1, H, W)."""
        height, width = fused.shape[2:]
        return torch.sigmoid(self.right(pad(fused, STEP)))[..., :height, :width]
