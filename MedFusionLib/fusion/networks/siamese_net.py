"""The Siamese network of Liu et al. 2017: which of two patches is in focus, or carries the detail."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PATCH = 16
"""Width of the patches that the network judges, in pixels."""

STEP = 4
"""Pixels from one judged patch to the next, on images."""


class SiameseNet(nn.Module):
    """Two branches with shared weights, a 256-d fully connected layer over both, and two outputs.

    A branch is conv 3x3 32, conv 3x3 64, max-pooling, conv 3x3 32: an (8, 8) map of 32 features a patch. The paper's
    branches have 64, 128 and 256 features, which go straight to the two outputs; here they are narrower, and the
    256-d layer of the authors' earlier network for photographs comes between. It is kept as one 8x8 filter bank per
    branch, whose answers add up, and so runs over images of any size.
    """

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.full = nn.Conv2d(32, 512, PATCH // 2, stride=STEP // 2)
        self.judge = nn.Conv2d(256, 2, 1)

    def evidence(self, image):
        """(B, 512, h, w), a vector every `STEP` pixels: what the image adds to the 256-d layer as first and as second.

        image: (B, 1, H, W), 0..1, at least 16 wide.
        """
        return self.full(self.branch(image - 0.5))

    def decide(self, first, second):
        """Logits (B, 2, h, w) of "first is sharper" and "second is sharper", of two `evidence`s."""
        return self.judge(F.relu(first[:, :256] + second[:, 256:]))

    def forward(self, first, second):
        """Logits (B, 2, h, w) of two images or patches."""
        return self.decide(self.evidence(first), self.evidence(second))

    def share(self, sources):
        """Softmax share (B, S, h, w) of each source of (B, S, H, W).

        Two sources: the softmax of the two outputs, averaged over both orders. More: of the sums over all pairs.
        """
        found = [self.evidence(image) for image in sources.split(1, 1)]
        scores = [0.0] * len(found)
        for a in range(len(found)):
            for b in range(a + 1, len(found)):
                logits = (self.decide(found[a], found[b]) + self.decide(found[b], found[a]).flip(1)) / 2
                scores[a] = scores[a] + logits[:, :1]
                scores[b] = scores[b] + logits[:, 1:]
        return F.softmax(torch.cat(scores, 1), 1)


def spread(weights, size):
    """Weight map (B, S, H, W) from patch weights (B, S, h, w): each patch counts for all its pixels, averaged."""
    shares, channels = weights.flatten(0, 1).unsqueeze(1), weights.shape[1]
    box = shares.new_ones(1, 1, PATCH, PATCH)
    total = F.conv_transpose2d(shares, box, stride=STEP)
    count = F.conv_transpose2d(shares.new_ones(1, 1, *shares.shape[2:]), box, stride=STEP)
    mean = (total / count).unflatten(0, (-1, channels)).squeeze(2)
    return F.pad(mean, (0, size[1] - mean.shape[3], 0, size[0] - mean.shape[2]), mode="replicate")
