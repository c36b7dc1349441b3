"""SESF: Ma, Zhu, Yin, Han, Cheng, "SESF-Fuse: an unsupervised deep model for multi-focus image fusion",
Neural Computing and Applications 2021 (doi:10.1007/s00521-020-05358-9).

1. The encoder of an autoencoder, trained without labels, gives 64 features a pixel.
2. Their spatial frequency is each source's activity: SF = sqrt(sum over a window of radius 5 of the squared
   differences to the left and upper neighbours' feature vectors) (equations 4-6).
3. The source of greatest activity is chosen per pixel (7).
4. Consistency verification: regions under 1% of the slice change sides.
5. A guided filter softens the seams (radius 5, eps 0.1), and F = D I1 + (1 - D) I2 (8).

Departures, against what the original does to CT with MRI: the inside of the skull is flat, so its spatial
frequency is nil, the MRI wins there and chunks of skull go out. The display range saturates there: a plateau
near its white end is content whose changes were cut off. So (a) the activity has a second term, the local
brightness over a knee of 0.75; (b) a small region keeps its source where the change would dim it by `DIMMING`.
Step 4 leaves out the opening and closing, whose losses in thin bone (b) could not undo. Each source has its own
map, which extends the rule to three. Volumes: features slice by slice along the first axis; windows, regions and
filters in 3-D.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from . import weights
from .multiscale import box
from .networks.sesf_net import SESFNet

RADIUS, EPS = 5, 0.1
SMALL = 0.01
"""Regions under this share of a slice are noise of the decision."""
KNEE = 0.75
"""Brightness (0..1 of the display range) above which a plateau counts as content."""
BRIGHTNESS = 0.2
"""Weight of local brightness against spatial frequency in the activity; 0 is the paper's rule."""
DIMMING = 0.2
"""A region whose brightness would fall by more than this (0..1) is kept however small it is."""


class SESF:
    """The `Fuser`."""

    halo = None

    def __init__(self, network, brightness=BRIGHTNESS):
        self.network, self.brightness = network, brightness

    def __call__(self, sources, modalities):
        activity = torch.stack([self.activity(image) for image in sources.unbind(1)], 1)
        decision = torch.zeros_like(sources).scatter_(1, activity.argmax(1, keepdim=True), 1)
        decision = torch.stack([verify(*pair) for pair in zip(decision, sources, strict=True)])
        shares = torch.cat(
            [guided(sources[:, n : n + 1], decision[:, n : n + 1]) for n in range(sources.shape[1])], 1
        ).clamp(0, 1)
        shares = (shares + 1e-6) / (shares + 1e-6).sum(1, keepdim=True)
        return (shares * sources).sum(1), shares

    def activity(self, image):
        """(B, *spatial) of image (B, *spatial)."""
        slices = image if image.ndim == 3 else image.flatten(0, 1)
        height, width = slices.shape[1:]
        # The reflecting convolutions need two rows and columns.
        padded = F.pad(slices, (0, int(width < 2), 0, int(height < 2)), mode="replicate")
        squares = torch.cat([_changes(self.network.encode(one[:, None])) for one in padded.split(1)])
        squares = squares[:, :height, :width].reshape(image.shape)[:, None]
        frequency = box(squares, RADIUS)[:, 0].clamp_min(0).sqrt()
        plateau = (box(image[:, None], 1)[:, 0] - KNEE).clamp_min(0) / (1 - KNEE)
        return frequency + self.brightness * plateau


def _changes(features):
    """Squared differences to the left and upper neighbour, mean over features: (B, H, W)."""
    across = F.pad(features.diff(dim=3), (1, 0))
    down = F.pad(features.diff(dim=2), (0, 0, 1, 0))
    return (across**2 + down**2).mean(1)


def guided(guide, image, radius=RADIUS, eps=EPS):
    """He, Sun and Tang's guided filter (2013): (B, 1, *spatial), any rank."""
    mean, target = box(guide, radius), box(image, radius)
    slope = (box(guide * image, radius) - mean * target) / (box(guide * guide, radius) - mean**2 + eps)
    return box(slope, radius) * guide + box(target - slope * mean, radius)


def verify(decision, sources):
    """Consistency verification of one-hot decisions (S, *spatial) over sources (S, *spatial)."""
    values = sources.cpu().numpy()
    chosen = decision.argmax(0).cpu().numpy()
    limit = SMALL * chosen.shape[-1] * chosen.shape[-2]
    for n in range(len(values)):
        labels, count = ndimage.label(chosen == n)
        if count == 0:
            continue
        index = np.arange(1, count + 1)
        small = ndimage.sum_labels(np.ones_like(labels), labels, index) < limit
        others = np.delete(values, n, 0).max(0)
        dimmed = ndimage.mean(values[n] - others, labels, index) > DIMMING
        region = np.isin(labels, index[small & ~dimmed])
        rest = np.argmax(np.delete(values, n, 0), 0)
        chosen[region] = np.delete(np.arange(len(values)), n)[rest[region]]
    return F.one_hot(torch.from_numpy(chosen), len(values)).movedim(-1, 0).to(decision)


def build(network):
    """The `Fuser` of a trained network."""
    return SESF(network)


def load(method, device):
    return build(weights.load(method.weights, SESFNet()).to(device))
