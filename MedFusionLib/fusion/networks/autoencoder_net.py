"""A stacked autoencoder over image blocks, with a logistic output."""

from __future__ import annotations

import torch
from torch import nn

from .block_net import UNITS, BlockNet, visible


class AutoencoderNet(BlockNet):
    """The encoders of the stack; their decoders serve the pre-training alone (`training.autoencoder`)."""

    def __init__(self, lower=96, upper=48):
        super().__init__(upper)
        self.encoders = nn.ModuleList([nn.Linear(UNITS, lower), nn.Linear(lower, upper)])

    def hidden(self, blocks):
        """Code (N, upper), 0..1, of blocks (N, BLOCK^2)."""
        code = visible(blocks)
        for encoder in self.encoders:
            code = torch.sigmoid(encoder(code))
        return code
