"""FW-Net (Fusion W-Net): Fan et al., "A semantic-based medical image fusion approach", arXiv:1906.00225, 2019.

Two U-Nets in a row, trained together without labels. The left one encodes the sources into the fused image, the right
one decodes the fused image back into the sources: a fusion from which the sources cannot be told any more has
lost what they meant. Only the left one is run to fuse.

Departures. The paper's left U-Net draws the fused image; here it gives weights, so every fused voxel is a weighted
mean of its sources and nothing is invented: it sees two sources and what kind they are (bone, anatomy, uptake,
other), a softmax over the sources makes weights of its answers, and a third source meets each of the two. The right
U-Net has one output per kind in place of one per source. The loss adds to the decoding the quality of the
fusion and what a reader looks for, see `training.pairs`. U-Nets: MONAI's BasicUNet, without normalisation, as what
is learnt per image would let the slices of a volume flicker. Volumes: axial slices, each with what the left U-Net
sees in its neighbours at every scale, see `networks.through`.
"""

from __future__ import annotations

from . import weights
from .networks.fwnet_net import FWNet
from .weighing import build

__all__ = ["build", "load"]


def load(method, device):
    return build(weights.load(method.weights, FWNet()).to(device))
