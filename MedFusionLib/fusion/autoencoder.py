"""Stacked autoencoder over image blocks (`blocks` tells how they fuse), the sibling of `boltzmann` in Li, Zhao, Lv,
Li, "Medical image fusion method by deep learning", International Journal of Cognitive Computing in Engineering 2021;
its training: Bengio et al., "Greedy layer-wise training of deep networks", NIPS 2006.

Two encoders c = sigma(W x + b), each trained with a decoder to give back its input, the upper one from
the lower one's code; then the decoders fall away and the encoders are fine-tuned with the output.
"""

from __future__ import annotations

from . import weights
from .blocks import build
from .networks.autoencoder_net import AutoencoderNet

__all__ = ["build", "load"]


def load(method, device):
    return build(weights.load(method.weights, AutoencoderNet()).to(device))
