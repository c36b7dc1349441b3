"""Multi-modal feature extraction with fusion of the features: by concatenation, or by attention.

A method of MedFusion's own making, from parts that the field knows: a convolutional branch per kind of modality
(CT; MRI; PET and SPECT; one for all others), features at four scales, fused at every scale, coarse to fine (U-Net,
Ronneberger et al. 2015, arXiv:1505.04597), and a convolutional output. How features are fused is what the two
methods differ in:

- `feature_concatenation`: side by side, each kind at its place, and a convolution learns what to take of them;
- `feature_attention`: their mean, weighted per feature and pixel by a softmax over the sources of what a convolution
  scores each of them (soft attention: Bahdanau et al. 2015, arXiv:1409.0473).

The output gives each source a logit from its own features beside the fused ones; the softmax over the sources
makes weights of them. So every fused voxel is a weighted mean of its sources, whose weights
say which one leads: trained to let PET lead where uptake is high and MRI where anatomy is fine, see
`training.pairs`. Volumes: axial slices, each source's features with those of their neighbours, see `networks.through`.
"""

from __future__ import annotations

from . import weights
from .networks.feature_net import FeatureNet
from .weighing import build

__all__ = ["build", "load"]


def load(method, device):
    rule = method.name.partition("-")[0].removeprefix("feature_")
    return build(weights.load(method.weights, FeatureNet(rule)).to(device))
