"""The autoencoder of SESF-Fuse: a dense encoder with squeeze-and-excitation, and a decoder that only trains it."""

from __future__ import annotations

from itertools import pairwise

import torch
from monai.networks.blocks import ChannelSELayer
from torch import nn


class _Layer(nn.Module):
    """Conv 3x3, ReLU, and squeeze-and-excitation over space (sSE) and channels (cSE), the stronger of both."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"), nn.ReLU(True))
        self.channels = ChannelSELayer(2, outputs, r=2)
        self.space = nn.Sequential(nn.Conv2d(outputs, 1, 1), nn.Sigmoid())

    def forward(self, image):
        found = self.conv(image)
        return torch.maximum(self.channels(found), self.space(found) * found)


class SESFNet(nn.Module):
    """Encoder: four layers of `width` features, each sees all before it; 4 * width features in all."""

    def __init__(self, width=16):
        super().__init__()
        self.enter = _Layer(1, width)
        self.dense = nn.ModuleList(_Layer(n * width, width) for n in (1, 2, 3))
        sizes = (4 * width, 4 * width, 2 * width, width)
        self.decoder = nn.Sequential()
        for inputs, outputs in pairwise(sizes):
            self.decoder.extend([nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"), nn.ReLU(True)])
        self.decoder.append(nn.Conv2d(width, 1, 3, padding=1, padding_mode="reflect"))

    def encode(self, image):
        """Features (B, 4 * width, H, W) of image (B, 1, H, W), 0..1."""
        features = self.enter(image)
        for layer in self.dense:
            features = torch.cat([features, layer(features)], 1)
        return features

    def forward(self, image):
        """The image again, through its features."""
        return self.decoder(self.encode(image))
