"""MedFusion's own network on volumes of any size: seamless tiles, in little memory.

What the network gathers of an image (means of 2 x 2 x 2 voxels, and the texture) is kept for the whole volume from
the first halving on, an eighth of the voxels. Hidden features, of which there are many, are kept for the whole
volume at level `CUT` only (1/512 of the voxels); tiles compute those of the finer levels, each level with just the
context that the next finer one needs, so that each voxel gets the value that the whole volume at once would give it.
Tiles start on voxels of the coarse grid, so there is nothing to blend.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ..threads import at_once, spread
from .medfusion_net import grow, pyramid, shrink

CUT = 3
"""Levels below this one are computed in tiles."""

RIM = 2
"""Voxels around a tile, at each level: the outermost lacks its neighbours, the other is the neighbour of the tile's."""

WIDE = 4
"""Voxels around a tile that `MedFusionNet.gather` needs for the texture to be right on the inner one of the rim."""

CORES = {
    "cpu": ((16, 16, 32), (16, 32, 32), (32, 32, 32), (32, 32, 64)),
    "mps": ((64, 128, 128),),
    "cuda": ((128, 192, 192),),
}
"""Voxels of a tile by kind of device, smaller ones first: multiples of 2**levels. Larger ones have less rim."""

SHARE = 1 / 150
"""Of the volume that all tiles in work may be, where there is a choice: their hidden features are many times that."""


def fuse_volume(network, read, shape, modalities, device, store, step=lambda done, count: None):
    """Fuse a volume tile by tile.

    read(slices): float32 array (S, k, j, i), one part of the sources, 0..1. shape: (K, J, I) of the volume.
    modalities: (S,) tensor of indices into `MODALITIES`, on the device. store(slices, fused, weights): takes a
    part of the result, arrays (k, j, i) and (S, k, j, i). step(done, count): called before every piece of work.
    """
    tiles = _Tiles(network, read, shape, modalities, device)
    each = spread if device.type == "cpu" else _one_by_one
    fine = list(tiles.cores(0))
    total = 2 * len(fine)
    for level in range(CUT):
        tiles.add_level()
        tell = (lambda done: step(done, total)) if level == 0 else (lambda done: None)
        each(lambda core, level=level: tiles.collect(level, core), tiles.cores(level), tell)
    # Through `each`, so that it runs on as many threads as all else.
    each(lambda _: tiles.descend_whole(), [None], lambda done: None)

    def finish(core):
        fused, weights = tiles.finish(core)
        keep = tuple(slice(0, min(part.stop, n) - part.start) for part, n in zip(core, shape, strict=True))
        target = tuple(slice(part.start, part.start + k.stop) for part, k in zip(core, keep, strict=True))
        store(target, fused[0][keep].cpu().numpy(), weights[0][(slice(None), *keep)].cpu().numpy())

    each(finish, fine, lambda done: step(len(fine) + done, total))


def _one_by_one(work, items, step):
    for done, item in enumerate(items):
        step(done)
        work(item)


class _Tiles:
    """A volume at every level, padded at its far ends to multiples of the coarsest voxel by repeating its border.

    Cores and windows are slices over (K, J, I), in voxels of their level.
    """

    def __init__(self, network, read, shape, modalities, device):
        self._network, self._read, self._shape = network, read, shape
        self._modalities, self._device = modalities, device
        step = 2**network.levels
        self._padded = tuple(n + -n % step for n in shape)
        # Level 0 stays where it is read from.
        self._images, self._textures = [None], [None]
        self._hidden = None

    def cores(self, level):
        """Tiles that together are the whole of a level."""
        sizes = CORES[self._device.type]
        most = SHARE * math.prod(self._padded) / at_once()
        fitting = [core for core in sizes if math.prod(core) <= most]
        core, whole = fitting[-1] if fitting else sizes[0], self._size(level)
        for corner in np.ndindex(*(-(-n // c) for n, c in zip(whole, core, strict=True))):
            yield tuple(slice(at * c, min(n, (at + 1) * c)) for at, c, n in zip(corner, core, whole, strict=True))

    def add_level(self):
        """Make room for a coarser level, which `collect` fills."""
        size = (1, len(self._modalities), *self._size(len(self._images)))
        self._images.append(torch.empty(size, device=self._device))
        self._textures.append(torch.empty(size, device=self._device))

    def collect(self, level, core):
        """Find the image and the texture of the next coarser level where a tile of this one is."""
        window = self._around(core, level, RIM)
        image = self._image(level, window)
        coarser = shrink(image)
        texture = self._network.gather({level: image, level + 1: coarser}, level, self._texture(level, window))[2]
        target, inside = _halved(core), _halved(_within(core, window))
        self._images[level + 1][_at(target)] = coarser[_at(inside)]
        self._textures[level + 1][_at(target)] = shrink(texture)[_at(inside)]

    def descend_whole(self):
        """Find the hidden features of level `CUT`."""
        levels = self._network.levels
        texture = self._textures[CUT]
        images = [None] * CUT + pyramid(self._images[CUT], levels - CUT)
        gathered = [None] * CUT
        for level in range(CUT, levels + 1):
            gathered.append(self._network.gather(images, level, texture))
            if level < levels:
                texture = shrink(gathered[level][2])
        self._hidden = self._network.descend_to(CUT, images, gathered, None, self._modalities)

    def finish(self, core):
        """(fused (1, k, j, i), weights (1, S, k, j, i)) of one tile of level 0."""
        network = self._network
        there, hidden = tuple(slice(0, n) for n in self._size(CUT)), self._hidden
        for level in range(CUT - 1, 0, -1):
            own = tuple(slice(part.start >> level, part.stop >> level) for part in core)
            wide, near = self._around(own, level, WIDE), self._around(own, level, RIM)
            images = {n: self._image(n, part) for n, part in ((level, wide), (level + 1, _halved(wide)))}
            inside = _at(_within(near, wide))
            gathered = [part[inside] for part in network.gather(images, level, self._texture(level, wide))]
            hidden = hidden[_at(_within(_halved(near), there))]
            hidden = network.refine(level, images[level][inside], gathered, hidden, self._modalities)
            there = near
        window = self._around(core, 0, RIM)
        beneath = _at(_within(_halved(window), there))
        hidden, base = hidden[beneath], grow(gathered[0][beneath])
        sources = self._image(0, window)
        local = network.gather({0: sources, 1: self._image(1, _halved(window))}, 0, None)
        weights = network.weights(sources, local, base, hidden, self._modalities)
        inner = _at(_within(core, window))
        sources, weights = sources[inner], weights[inner]
        return (weights * sources).sum(1), weights

    def _size(self, level):
        return tuple(n >> level for n in self._padded)

    def _around(self, core, level, extra):
        return tuple(
            slice(max(0, part.start - extra), min(n, part.stop + extra))
            for part, n in zip(core, self._size(level), strict=True)
        )

    def _texture(self, level, window):
        return self._textures[level][_at(window)] if level else None

    def _image(self, level, window):
        """float32 tensor (1, S, k, j, i)."""
        if level:
            return self._images[level][_at(window)]
        there = tuple(slice(part.start, min(part.stop, n)) for part, n in zip(window, self._shape, strict=True))
        beyond = [(0, part.stop - t.stop) for part, t in zip(window, there, strict=True)]
        values = self._read(there)
        if np.any(beyond):
            values = np.pad(values, [(0, 0), *beyond], mode="edge")
        return torch.from_numpy(values)[None].to(self._device)


def _within(part, whole):
    """Slices of `part` as seen from the start of `whole`."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))


def _halved(part):
    return tuple(slice(p.start >> 1, p.stop >> 1) for p in part)


def _at(part):
    """Index of slices behind any leading axes."""
    return (..., *part)
