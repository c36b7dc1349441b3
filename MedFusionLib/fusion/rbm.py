"""Restricted Boltzmann machine over image blocks (`blocks` tells how they fuse), the shallow sibling of `boltzmann`
in Li, Zhao, Lv, Li, "Medical image fusion method by deep learning", International Journal of Cognitive Computing in
Engineering 2021; its training: Hinton, "Training products of experts by minimizing contrastive divergence", 2002.

One layer of hidden units h = sigma(W' v + b), pre-trained by contrastive divergence, then fine-tuned with the output.
Departure: Gaussian visible units.
"""

from __future__ import annotations

from . import weights
from .blocks import build
from .networks.boltzmann_net import RBMNet

__all__ = ["build", "load"]


def load(method, device):
    return build(weights.load(method.weights, RBMNet()).to(device))
