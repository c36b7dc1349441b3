"""FW-Net's two U-Nets: the left one makes the fusion of the sources, the right one the sources of the fusion."""

from __future__ import annotations

from itertools import permutations

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet

from .pairwise import OTHER, pad
from .through import ThroughNet

STEP = 16
"""Both U-Nets halve the image four times."""

FEATURES = (12, 16, 24, 32, 48, 12)


def _unet(inputs, outputs):
    # Normalised per image the weights of a slice would depend on all of it: volumes would flicker.
    return BasicUNet(2, inputs, outputs, FEATURES, norm=None, upsample="nontrainable")


class FWNet(ThroughNet):
    """left: how much a source has to say against another one. right: what each kind of source looked like."""

    def __init__(self):
        super().__init__(FEATURES[:-1])
        self.left = _unet(2 + 2 * (OTHER + 1), 1)
        self.right = _unet(1, OTHER)

    def encode(self, sources, kinds):
        """The left U-Net's features of every source meeting every other one: n = S (S - 1)."""
        images = pad(sources, STEP)
        planes = F.one_hot(kinds, OTHER + 1).to(images.dtype)[..., None, None].expand(-1, -1, -1, *images.shape[2:])
        seen = torch.cat([images[:, :, None], planes], 2)
        met = []
        for one, other in permutations(range(seen.shape[1]), 2):
            found = [self.left.conv_0(torch.cat([seen[:, one], seen[:, other]], 1))]
            for down in (self.left.down_1, self.left.down_2, self.left.down_3, self.left.down_4):
                found.append(down(found[-1]))
            met.append(found)
        # Scale by scale, so that no two copies of all are held.
        return [torch.stack([scales.pop(0) for scales in met], 1) for _ in FEATURES[:-1]]

    def weigh(self, features, kinds, size):
        """A source's logit is the mean of its meetings, so that neither their number nor their order matters."""
        height, width = size
        logits = []
        for met in zip(*(scale.unbind(1) for scale in features), strict=True):
            *finer, found = met
            ups = (self.left.upcat_4, self.left.upcat_3, self.left.upcat_2, self.left.upcat_1)
            for up, skip in zip(ups, reversed(finer), strict=True):
                found = up(found, skip)
            logits.append(self.left.final_conv(found))
        logits = torch.cat(logits, 1).unflatten(1, (kinds.shape[1], -1)).mean(2)
        return logits.softmax(1)[..., :height, :width]

    def decode(self, fused):
        """(B, 3, H, W), 0..1: bone, anatomy and uptake as they can be told from fusions (B, 1, H, W)."""
        height, width = fused.shape[2:]
        return torch.sigmoid(self.right(pad(fused, STEP)))[..., :height, :width]
