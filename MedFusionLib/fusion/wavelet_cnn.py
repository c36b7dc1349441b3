"""A trous wavelet and CNN hybrid.

The transform is the undecimated one with the cubic B-spline (Starck and Murtagh, Astronomical Image and Data Analysis,
2002; for fusion Nunez et al. 1999, doi:10.1109/36.763274): c_0 = source, c_j = h_j * c_(j-1) with the taps
(1, 4, 6, 4, 1) / 16 spread by 2^(j-1), details w_j = c_(j-1) - c_j, source = c_3 + sum of w_j.

1. Sources are split into three detail planes and the remainder c_3.
2. A small CNN gives each source a score per detail plane; a softmax over the sources makes weights of them, and
   the fused plane is the weighted mean.
3. Low-pass rule: remainders are weighted by a softmax of their brightness, of learnt sharpness.
4. The planes are summed.

The CNN is trained on the quality of the fusion, without labels. Beyond the transform: the sum is clipped to the
range of the sources at each voxel, which keeps the air black and leaves no halo. Volumes: planes in 3-D, the CNN
slice by slice along the first axis.
"""

from __future__ import annotations

import torch

from . import weights
from .multiscale import smooth
from .networks.wavelet_cnn import PLANES, REACH, WaveletNet


def split(sources):
    """(B, S, PLANES + 1, *spatial) of sources (B, S, *spatial): details, fine first, then the remainder."""
    planes = []
    for plane in range(PLANES):
        low = smooth(sources, 2**plane)
        planes.append(sources - low)
        sources = low
    return torch.stack([*planes, sources], 2)


def blend(network, sources):
    """(fused, unclipped) of sources (B, S, *spatial), in 0..1; differentiable."""
    planes = split(sources)
    flat = planes
    if planes.ndim == 6:
        batch, depth = planes.shape[0], planes.shape[3]
        flat = planes.movedim(3, 1).flatten(0, 1)
    scores = network(flat)
    if planes.ndim == 6:
        scores = scores.unflatten(0, (batch, depth)).movedim(1, 3)
    details = (scores.softmax(1) * planes[:, :, :PLANES]).sum((1, 2))
    low = planes[:, :, PLANES]
    base = ((network.sharpness * low).softmax(1) * low).sum(1)
    whole = base + details
    return torch.maximum(torch.minimum(whole, sources.amax(1)), sources.amin(1)), whole


class WaveletCNN:
    """The `Fuser`. No weight maps: weights differ between the planes."""

    halo = REACH + 2 * (2**PLANES - 1)

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        # One image at a time bounds the memory of the activations.
        return torch.cat([blend(self.network, one)[0] for one in sources.split(1)]), None


def build(network):
    """The `Fuser` of a trained network."""
    return WaveletCNN(network)


def load(method, device):
    return build(weights.load(method.weights, WaveletNet()).to(device))
