"""The CNN that weighs the planes of an a trous wavelet transform."""

from __future__ import annotations

import torch
from torch import nn

PLANES = 3
REACH = 1 + 2 + 4 + 1
"""Pixels around a pixel that its scores depend on."""


class WaveletNet(nn.Module):
    """Scores one source against the others, per detail plane, plus one sharpness for the low-pass rule."""

    def __init__(self, width=16):
        super().__init__()
        layers = []
        inputs = 2 * (PLANES + 1)
        for dilation in (1, 2, 4):
            layers += [nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, padding_mode="replicate")]
            layers += [nn.ReLU(True)]
            inputs = width
        layers.append(nn.Conv2d(width, PLANES, 3, padding=1, padding_mode="replicate"))
        self.layers = nn.Sequential(*layers)
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, planes):
        """Scores (B, S, PLANES, H, W) of planes (B, S, PLANES + 1, H, W): the details, fine first, and the remainder.

        A source is seen beside the strongest (details) and brightest (remainder) of the others, so that neither
        the number of sources nor their order matters.
        """
        scores = []
        for n in range(planes.shape[1]):
            others = torch.cat([planes[:, :n], planes[:, n + 1 :]], 1)
            strongest = others.gather(1, others.abs().argmax(1, keepdim=True))[:, 0]
            scores.append(self.layers(torch.cat([planes[:, n], strongest], 1)))
        return torch.stack(scores, 1)
