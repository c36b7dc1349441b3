"""Boltzmann machines over image blocks, restricted and deep, with a logistic output."""

from __future__ import annotations

import torch
from torch import nn

from .block_net import UNITS, BlockNet, visible

SETTLING = 3
"""Mean-field updates of the deep machine's hidden layers."""


class RBMNet(BlockNet):
    """A restricted Boltzmann machine: Gaussian visible units and one layer of binary hidden units."""

    def __init__(self, hidden=96):
        super().__init__(hidden)
        self.weight = nn.Parameter(0.02 * torch.randn(UNITS, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(UNITS))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def hidden(self, blocks):
        """Probabilities (N, hidden) of the hidden units, of blocks (N, BLOCK^2)."""
        return torch.sigmoid(visible(blocks) @ self.weight + self.hidden_bias)


class BoltzmannNet(BlockNet):
    """A deep Boltzmann machine: Gaussian visible units and two layers of binary hidden units."""

    def __init__(self, lower=96, upper=48):
        super().__init__(upper)
        self.first = nn.Parameter(0.02 * torch.randn(UNITS, lower))
        self.second = nn.Parameter(0.02 * torch.randn(lower, upper))
        self.visible_bias = nn.Parameter(torch.zeros(UNITS))
        self.lower_bias = nn.Parameter(torch.zeros(lower))
        self.upper_bias = nn.Parameter(torch.zeros(upper))

    def hidden(self, blocks):
        """Probabilities (N, upper) of the upper hidden units, of blocks (N, BLOCK^2)."""
        drive = visible(blocks) @ self.first + self.lower_bias
        # Doubled where the layer above is not there yet, as in the pre-training.
        low = torch.sigmoid(2 * drive - self.lower_bias)
        for _ in range(SETTLING):
            high = torch.sigmoid(low @ self.second + self.upper_bias)
            low = torch.sigmoid(drive + high @ self.second.T)
        return torch.sigmoid(low @ self.second + self.upper_bias)
