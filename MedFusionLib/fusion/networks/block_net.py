"""What the networks that judge image blocks have in common: their input, and how block scores become shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 8
"""Width of a block, in pixels."""

STEP = 2
"""Pixels from one block to the next."""

UNITS = BLOCK**2 + 1
"""Visible units."""

CHUNK = 2**12
"""Blocks that are judged at a time: bounds the memory of the units, and stays in the processor's cache."""

CONTRAST = 8.0
"""What a pixel's difference from its block's mean is multiplied by, so that visible units vary by about 1."""


def visible(blocks):
    """Visible units (N, UNITS) of blocks (N, BLOCK^2), 0..1: contrast-scaled pixels, then the mean."""
    mean = blocks.mean(1, keepdim=True)
    return torch.cat([CONTRAST * (blocks - mean), 4 * mean - 1], 1)


class BlockNet(nn.Module):
    """A logistic output over the features of a block, `hidden(blocks)`, which the networks define."""

    def __init__(self, features):
        super().__init__()
        self.output = nn.Linear(features, 1)

    def forward(self, blocks):
        """Scores (N,) of blocks (N, BLOCK^2), 0..1.

        The softmax of the scores of several sources' blocks is each one's probability to carry the information.
        """
        return self.output(self.hidden(blocks))[:, 0]

    def share(self, sources):
        """(B, S, H, W) that sum to 1 over S, of sources (B, S, H, W): block softmax, averaged over the blocks."""
        count, (height, width) = sources.shape[1], sources.shape[2:]
        pad = [max(0, BLOCK - n) + (max(n, BLOCK) - BLOCK) % STEP for n in (width, height)]
        padded = F.pad(sources, (0, pad[0], 0, pad[1]), mode="replicate")
        size = padded.shape[2:]
        blocks = F.unfold(padded.flatten(0, 1)[:, None], BLOCK, stride=STEP).transpose(1, 2)
        scores = torch.cat([self(some) for some in blocks.flatten(0, 1).split(CHUNK)])
        scores = scores.view(-1, count, blocks.shape[1])
        shares = scores.softmax(1).flatten(0, 1)[:, None]
        area = shares.expand(-1, BLOCK**2, -1)
        total = F.fold(area, size, BLOCK, stride=STEP)
        cover = F.fold(torch.ones_like(area[:1]), size, BLOCK, stride=STEP)
        return (total / cover).view(-1, count, *size)[..., :height, :width]
