"""Deep Boltzmann machine over image blocks (`blocks` tells how they fuse): Li, Zhao, Lv, Li, "Medical image fusion
method by deep learning", International Journal of Cognitive Computing in Engineering 2021; the machine itself:
Salakhutdinov and Hinton, "Deep Boltzmann machines", AISTATS 2009.

Two layers of hidden units, pre-trained one after the other as restricted Boltzmann machines by contrastive
divergence, the lower one with its input, the upper one with its output doubled. Mean-field updates
h1 = sigma(W1' v + W2 h2 + b1), h2 = sigma(W2' h1 + b2) settle them, unrolled and fine-tuned with the output.
Departure: Gaussian visible units.
"""

from __future__ import annotations

from . import weights
from .blocks import build
from .networks.boltzmann_net import BoltzmannNet

__all__ = ["build", "load"]


def load(method, device):
    return build(weights.load(method.weights, BoltzmannNet()).to(device))
