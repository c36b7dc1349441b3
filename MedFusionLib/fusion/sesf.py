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
near its white end is content whose changes were cut off. Uptake is smooth by nature, so that the hot spots of PET
and SPECT drown in the MRI's texture. So (a) the activity has a second term, the local brightness over a knee, which
counts earlier and twice as much in PET and SPECT (`PLATEAU`, `UPTAKE`); (b) a small region keeps its source where the
change would dim it by `DIMMING`. Step 4 leaves out the opening and closing, whose losses in thin bone (b) could not
undo. Each source has its own map, which extends the rule to three: the activities of all are compared at once, and
where they are equal, as in the air, and in the turns of step 4, the brighter source as a whole comes first, so that
the order of three does not matter; of two it is the first one. Volumes: features slice by slice along the first axis;
windows, regions and filters in 3-D.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..volume import FUNCTIONAL
from . import weights
from .multiscale import box, box_
from .networks.sesf_net import SESFNet
from .slabs import device_of, each_volume, rows, slabs

RADIUS, EPS = 5, 0.1
SMALL = 0.01
"""Regions under this share of a slice are noise of the decision."""
PLATEAU, UPTAKE = (0.75, 0.2), (0.5, 0.4)
"""Knee: brightness (0..1 of the display range) above which a plateau counts as content; and what white then adds to the
activity, against spatial frequency. The second is that of PET and SPECT."""
DIMMING = 0.2
"""A region whose brightness would fall by more than this (0..1) is kept however small it is."""

ROWS = 4
"""Slices of a volume that are filtered at a time; the guided filter sees twice `RADIUS` more on either side."""


class SESF:
    """The `Fuser`. plateaus: whether they count as content; not by the paper's rule."""

    halo = None

    def __init__(self, network, plateaus=True):
        self.network, self.plateaus = network, plateaus

    def __call__(self, sources, modalities):
        if sources.ndim == 4:
            # A slice is a volume of one.
            fused, shares = each_volume(self.fuse_volume, sources.unsqueeze(2), modalities)
            return fused.squeeze(1), shares.squeeze(2)
        return each_volume(self.fuse_volume, sources, modalities)

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        if len(modalities) == 2:
            self._fuse(read, shape, modalities, store, step)
            return
        brightness = sum(read(rows(*ends)).sum((1, 2, 3), np.float64) for ends in slabs(shape[0], ROWS))
        order = np.argsort(-brightness, kind="stable")
        back = np.argsort(order)
        self._fuse(
            lambda window: read(window)[order],
            shape,
            [modalities[n] for n in order],
            lambda window, fused, shares: store(window, fused, shares[back]),
            step,
        )

    def _fuse(self, read, shape, modalities, store, step):
        """`fuse_volume`, where of sources that are alike the first one counts."""
        device, count = device_of(self.network), len(modalities)
        total = (count + 1) * shape[0]
        best, chosen = None, torch.zeros(shape, dtype=torch.uint8, device=device)
        for n, modality in enumerate(modalities):
            activity = self.activity(read, n, shape, modality, lambda k, n=n: step(n * shape[0] + k, total))
            if best is None:
                best = activity
                continue
            for window in (rows(*ends) for ends in slabs(shape[0], ROWS)):
                chosen[window].masked_fill_(activity[window] > best[window], n)
                torch.maximum(best[window], activity[window], out=best[window])
        del best, activity
        chosen = torch.from_numpy(verify(chosen.cpu().numpy(), read, count)).to(device)
        for start, stop in slabs(shape[0], ROWS):
            step(count * shape[0] + start, total)
            first = max(0, start - 2 * RADIUS)
            around = rows(first, min(shape[0], stop + 2 * RADIUS))
            guide, inside = torch.from_numpy(read(around))[:, None, None].to(device), rows(start - first, stop - first)
            shares = [
                guided(one, (chosen[around] == n).to(one)[None, None])[0, 0][inside] for n, one in enumerate(guide)
            ]
            shares = torch.stack(shares).clamp_(0, 1).add_(1e-6)
            shares /= shares.sum(0)
            fused = (shares * guide[(slice(None), 0, 0, *inside)]).sum(0)
            store(rows(start, stop), fused.cpu().numpy(), shares.cpu().numpy())

    def activity(self, read, n, shape, modality, step=lambda k: None):
        """(K, J, I): what source n, of a modality, has to say at each voxel. step(k): called before each slice."""
        device = device_of(self.network)
        height, width = shape[1:]
        activity = torch.empty((1, 1, *shape), device=device)
        for k in range(shape[0]):
            step(k)
            image = torch.from_numpy(read(rows(k, k + 1))[n : n + 1]).to(device)
            # The reflecting convolutions need two rows and columns.
            padded = F.pad(image, (0, int(width < 2), 0, int(height < 2)), mode="replicate")
            activity[0, 0, k] = _changes(self.network.encode(padded))[0, :height, :width]
        box_(activity, RADIUS).clamp_min_(0).sqrt_()
        if not self.plateaus:
            return activity[0, 0]
        knee, weight = UPTAKE if modality in FUNCTIONAL else PLATEAU
        for start, stop in slabs(shape[0], ROWS):
            first = max(0, start - 1)
            image = torch.from_numpy(read(rows(first, min(shape[0], stop + 1)))[n]).to(device)
            plateau = (box(image[None, None], 1)[0, 0, start - first : stop - first] - knee).clamp_min_(0) / (1 - knee)
            activity[0, 0, start:stop] += weight * plateau
        return activity[0, 0]


def _changes(features):
    """Squared differences to the left and upper neighbour, mean over features: (B, H, W)."""
    found = torch.empty_like(features[:, 0])
    # Some rows at a time stay in the processor's cache.
    for start, stop in slabs(features.shape[2], 16):
        here = features[:, :, max(0, start - 1) : stop]
        across = F.pad(features[:, :, start:stop].diff(dim=3), (1, 0))
        down = here.diff(dim=2) if start else F.pad(here.diff(dim=2), (0, 0, 1, 0))
        found[:, start:stop] = (across**2 + down**2).mean(1)
    return found


def guided(guide, image, radius=RADIUS, eps=EPS):
    """He, Sun and Tang's guided filter (2013): (B, 1, *spatial), any rank."""
    mean, target = box(guide, radius), box(image, radius)
    slope = box_(guide * image, radius).sub_(mean * target)
    slope.div_(box_(guide * guide, radius).sub_(mean**2).add_(eps))
    offset = target.sub_(mean.mul_(slope))
    del mean, target
    return box_(slope, radius).mul_(guide).add_(box_(offset, radius))


def verify(chosen, read, count):
    """Consistency verification of a map (K, J, I) of chosen sources, an integer array that is changed; returns it.

    read(window): float32 (S, k, j, i), a part of the `count` sources.
    """
    limit = SMALL * chosen.shape[-1] * chosen.shape[-2]
    for n in range(count):
        labels, regions = ndimage.label(chosen == n)
        if regions == 0:
            continue
        size, excess = np.zeros(regions + 1, np.int64), np.zeros(regions + 1)
        for start, stop in slabs(len(chosen), ROWS):
            # Part by part: counting turns all that it counts into large numbers.
            values = read(rows(start, stop))
            part = labels[start:stop].ravel()
            more = values[n] - np.delete(values, n, 0).max(0)
            size += np.bincount(part, minlength=regions + 1)
            excess += np.bincount(part, more.ravel(), regions + 1)
        change = (size < limit) & (excess <= DIMMING * size)
        change[0] = False
        for window in (rows(*ends) for ends in slabs(len(chosen), ROWS)):
            region = change[labels[window]]
            if region.any():
                rest = np.argmax(np.delete(read(window), n, 0), 0)
                chosen[window][region] = np.delete(np.arange(count), n)[rest[region]]
    return chosen


def build(network):
    """The `Fuser` of a trained network."""
    return SESF(network)


def load(method, device):
    return build(weights.load(method.weights, SESFNet()).to(device))
