"""MedFusion's own network on volumes of any size: seamless tiles, in little memory.

Everything coarser than `CUT` halvings is computed once for the whole volume, which is small there (1/512 of the
voxels). Tiles then compute the finer levels with enough context that each voxel gets the value that the whole
volume at once would give it. Tiles start on voxels of the coarse grid, so there is nothing to blend.
"""

from __future__ import annotations

import numpy as np
import torch

from ..threads import spread
from .medfusion_net import grow, pyramid, shrink

CUT = 3
"""Levels below this one are computed in tiles."""

CONTEXT = 16
"""Voxels around a tile that its values depend on: a multiple of 2**CUT."""

RIM = 4
"""Voxels around a tile that the finest level needs: a multiple of 4, for the bands."""

CORES = {"cpu": (32, 64, 96), "mps": (64, 128, 128), "cuda": (128, 192, 192)}
"""Voxels of a tile by kind of device: multiples of 2**levels."""


def fuse_volume(network, read, shape, modalities, device, store, step=lambda done, count: None):
    """Fuse a volume tile by tile.

    read(slices): float32 array (S, k, j, i), one part of the sources, 0..1. shape: (K, J, I) of the volume.
    modalities: (S,) tensor of indices into `MODALITIES`, on the device. store(slices, fused, weights): takes a
    part of the result, arrays (k, j, i) and (S, k, j, i). step(done, count): called before every piece of work.
    """
    tiles = _Tiles(read, shape, 2**network.levels, device)
    cores = list(tiles)
    coarse = torch.empty((1, len(modalities), *(n >> CUT for n in tiles.padded)), device=device)
    texture = torch.empty_like(coarse)

    def gather(core):
        window = tiles.around(core, CONTEXT)
        images = pyramid(tiles.read(window), CUT)
        target, inside = _scaled(core, CUT), _scaled(_within(core, window), CUT)
        coarse[target] = images[CUT][inside]
        texture[target] = shrink(network.collect(images, CUT)[-1][2])[inside]

    def finish(core):
        fused, weights = _fine(network, tiles, core, hidden[0], modalities)
        keep = tuple(slice(0, min(part.stop, n) - part.start) for part, n in zip(core, shape, strict=True))
        target = tuple(slice(part.start, part.start + k.stop) for part, k in zip(core, keep, strict=True))
        store(target, fused[0][keep].cpu().numpy(), weights[0][(slice(None), *keep)].cpu().numpy())

    total = 2 * len(cores)
    each = spread if device.type == "cpu" else _one_by_one
    each(gather, cores, lambda done: step(done, total))
    hidden = []
    each(lambda _: hidden.append(_coarse(network, coarse, texture, modalities)), [None], lambda done: None)
    each(finish, cores, lambda done: step(len(cores) + done, total))


def _one_by_one(work, items, step):
    for done, item in enumerate(items):
        step(done)
        work(item)


def _coarse(network, image, texture, modalities):
    """Hidden features of level `CUT` of the whole volume."""
    images = [None] * CUT + pyramid(image, network.levels - CUT)
    gathered = [None] * CUT
    for level in range(CUT, network.levels + 1):
        gathered.append(network.gather(images, level, texture))
        if level < network.levels:
            texture = shrink(gathered[level][2])
    return network.descend_to(CUT, images, gathered, None, modalities)


def _fine(network, tiles, core, hidden, modalities):
    """(fused (1, k, j, i), weights (1, S, k, j, i)) of one tile."""
    window = tiles.around(core, CONTEXT)
    images = pyramid(tiles.read(window), CUT)
    gathered = network.collect(images, CUT)
    hidden = network.descend_to(1, images[:CUT], gathered, hidden[_scaled(window, CUT)], modalities)
    # Full resolution costs most: it gets no more context than it needs.
    rim = tiles.around(core, RIM)
    crop = _within(rim, window)
    sources = images[0][_scaled(crop, 0)]
    local = [part[_scaled(crop, 0)] for part in gathered[0]]
    base = grow(gathered[1][0][_scaled(crop, 1)])
    weights = network.weights(sources, local, base, hidden[_scaled(crop, 1)], modalities)
    inner = _scaled(_within(core, rim), 0)
    sources, weights = sources[inner], weights[inner]
    return (weights * sources).sum(1), weights


class _Tiles:
    """Cuts a volume, padded at its far ends to multiples of the coarsest voxel by repeating its border."""

    def __init__(self, read, shape, step, device):
        self._read, self._shape, self._device = read, shape, device
        self.padded = tuple(n + -n % step for n in shape)

    def __iter__(self):
        core = CORES[self._device.type]
        for corner in np.ndindex(*(-(-n // c) for n, c in zip(self.padded, core, strict=True))):
            yield tuple(slice(at * c, min(n, (at + 1) * c)) for at, c, n in zip(corner, core, self.padded, strict=True))

    def around(self, core, extra):
        return tuple(
            slice(max(0, part.start - extra), min(n, part.stop + extra))
            for part, n in zip(core, self.padded, strict=True)
        )

    def read(self, window):
        """float32 tensor (1, S, k, j, i)."""
        there = tuple(slice(part.start, min(part.stop, n)) for part, n in zip(window, self._shape, strict=True))
        beyond = [(0, part.stop - t.stop) for part, t in zip(window, there, strict=True)]
        values = self._read(there)
        if np.any(beyond):
            values = np.pad(values, [(0, 0), *beyond], mode="edge")
        return torch.from_numpy(values)[None].to(self._device)


def _within(part, whole):
    """Slices of `part` as seen from the start of `whole`."""
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))


def _scaled(part, level):
    """Index of slices at a pyramid level, behind any leading axes."""
    return (..., *(slice(p.start >> level, p.stop >> level) for p in part))
