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

from itertools import pairwise

import torch

from . import weights
from .multiscale import SPLINE, smooth
from .networks.wavelet_cnn import PLANES, REACH, WaveletNet
from .slabs import device_of, each_volume, rows, slabs
from .weighing import within

ROWS = 8
"""Slices of a volume that are split at a time."""


def split(sources):
    """(B, S, PLANES + 1, *spatial) of sources (B, S, *spatial): details, fine first, then the remainder."""
    lows = [sources]
    for plane in range(PLANES):
        lows.append(smooth(lows[-1], 2**plane))
    return _planes(lows)


def _planes(lows):
    """What `split` returns, of c_0 to c_PLANES."""
    details = [low - lower for low, lower in pairwise(lows)]
    return torch.stack([*details, lows[-1]], 2)


def blend(network, sources):
    """(fused, unclipped) of sources (B, S, H, W), in 0..1; differentiable."""
    return blend_planes(network, sources, split(sources))


def blend_planes(network, sources, planes):
    details = (network(planes).softmax(1) * planes[:, :, :PLANES]).sum((1, 2))
    low = planes[:, :, PLANES]
    base = ((network.sharpness * low).softmax(1) * low).sum(1)
    whole = base + details
    return within(whole, sources), whole


class WaveletCNN:
    """The `Fuser`. No weight maps: weights differ between the planes."""

    halo = REACH + 2 * (2**PLANES - 1)

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        if sources.ndim == 5:
            return each_volume(self.fuse_volume, sources, modalities)
        # One image at a time bounds the memory of the activations.
        return torch.cat([blend(self.network, one)[0] for one in sources.split(1)]), None

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        cascade = _Cascade(read, shape, device_of(self.network))
        parts = slabs(shape[0], ROWS)
        for done, (start, stop) in enumerate(parts):
            step(done, len(parts))
            lows = cascade(start, stop)
            for n, k in enumerate(range(start, stop)):
                here = [low[:, :, n] for low in lows]
                fused, _ = blend_planes(self.network, here[0], _planes(here))
                store(rows(k, k + 1), fused.cpu().numpy(), None)


class _Cascade:
    """c_0 to c_PLANES of a volume, a few slices after the other, each of them smoothed once."""

    def __init__(self, read, shape, device):
        self._read, self._depth, self._device = read, shape[0], device
        # Of each c, the slices held and the number of the first.
        self._held, self._first = [None] * (PLANES + 1), [0] * (PLANES + 1)

    def __call__(self, start, stop):
        """[c_0, ...], each (1, S, stop - start, H, W): of slices that follow those of the call before."""
        self._reach(PLANES, stop)
        for level in range(PLANES + 1):
            # Of the next c the slices up to here are there: what is to come needs those below no more.
            keep = start if level == PLANES else min(start, self._end(level + 1) - _radius(level))
            self._held[level] = self._slices(level, max(keep, self._first[level]), self._end(level)).clone()
            self._first[level] = max(keep, self._first[level])
        return [self._slices(level, start, stop) for level in range(PLANES + 1)]

    def _end(self, level):
        return 0 if self._held[level] is None else self._first[level] + self._held[level].shape[2]

    def _slices(self, level, start, stop):
        return self._held[level][:, :, start - self._first[level] : stop - self._first[level]]

    def _reach(self, level, stop):
        """Hold a c up to slice `stop`."""
        start, stop = self._end(level), min(stop, self._depth)
        if start >= stop:
            return
        if level == 0:
            new = torch.from_numpy(self._read(rows(start, stop)))[None].to(self._device)
        else:
            self._reach(level - 1, stop + _radius(level - 1))
            new = self._smoothed(level - 1, start, stop)
        self._held[level] = new if start == 0 else torch.cat([self._held[level], new], 2)

    def _smoothed(self, level, start, stop):
        """`smooth`, of some slices; the first and last slice of the volume go on beyond it."""
        below = self._held[level]
        at = torch.arange(start, stop, device=self._device)
        new = below.new_zeros([*below.shape[:2], stop - start, *below.shape[3:]])
        for n, tap in enumerate(SPLINE):
            index = (at + (n - 2) * 2**level).clamp_(0, self._depth - 1) - self._first[level]
            new.add_(below.index_select(2, index), alpha=tap)
        # A slice at a time is an image of its own.
        return torch.stack([smooth(image, 2**level) for image in new.unbind(2)], 2)


def _radius(level):
    """Slices on either side that the next c depends on."""
    return len(SPLINE) // 2 * 2**level


def build(network):
    """The `Fuser` of a trained network."""
    return WaveletCNN(network)


def load(method, device):
    return build(weights.load(method.weights, WaveletNet()).to(device))
