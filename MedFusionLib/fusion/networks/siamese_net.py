"""The Siamese network of Liu et al. 2017: which of two patches is in focus, or carries the detail."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

PATCH = 16
"""Width of the patches that the network judges, in pixels."""


class SiameseNet(nn.Module):
    """Two branches with shared weights, and one fully connected layer that judges both.

    A branch is conv 3x3 64, conv 3x3 128, max-pooling, conv 3x3 256: an (8, 8) map of 256 features a patch. As
    in the medical paper, both maps go straight into two outputs (435,000 weights, 1.7 MB), without the 256-d
    layer in between of the multi-focus paper. That layer is linear, so it is kept as one 8x8 filter bank per
    branch and runs over images of any size.
    """

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 256, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.judge = nn.Conv2d(256, 4, PATCH // 2)

    def evidence(self, image):
        """(B, 4, h, w), a value every second pixel: what the image adds to both outputs as first and as second.

        image: (B, 1, H, W), 0..1, at least 16 wide.
        """
        return self.judge(self.branch(image - 0.5))

    def forward(self, first, second):
        """Logits (B, 2, h, w) of "first is sharper" and "second is sharper"."""
        return self.evidence(first)[:, :2] + self.evidence(second)[:, 2:]

    def score(self, image):
        """Score (B, 1, h, w): the softmax of two scores is the network's answer, averaged over both orders."""
        wins_first, loses_first, loses_second, wins_second = self.evidence(image).unbind(1)
        return (wins_first - loses_first + wins_second - loses_second).unsqueeze(1) / 2


def spread(weights, size):
    """Weight map (B, S, H, W) from patch weights (B, S, h, w): each patch counts for all its pixels, averaged."""
    shares, channels = weights.flatten(0, 1).unsqueeze(1), weights.shape[1]
    box = shares.new_ones(1, 1, PATCH, PATCH)
    total = F.conv_transpose2d(shares, box, stride=2)
    count = F.conv_transpose2d(shares.new_ones(1, 1, *shares.shape[2:]), box, stride=2)
    mean = (total / count).unflatten(0, (-1, channels)).squeeze(2)
    return F.pad(mean, (0, size[1] - mean.shape[3], 0, size[0] - mean.shape[2]), mode="replicate")
