"""What the networks that judge image blocks learn from: blocks of the pairs, and clear ones against spoilt ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..multiscale import smooth
from ..networks.block_net import BLOCK, visible
from .pairs import require_size, several

MARGIN = 8
"""Pixels around a block that its blurred version needs."""

DARK = 0.04
"""Blocks of a lower mean are air."""


def _crops(pairs, generator, count):
    """(count, 1, w, w), w = BLOCK + 2 MARGIN: blocks that are not air, of single sources, with their surroundings."""
    wide = BLOCK + 2 * MARGIN

    def draw():
        drawn = torch.rand(4, generator=generator).tolist()
        images = pairs[int(drawn[0] * len(pairs))].images
        image = images[int(drawn[1] * len(images))]
        top, left = (int(share * (n - wide + 1)) for share, n in zip(drawn[2:], image.shape, strict=True))
        crop = image[top : top + wide, left : left + wide]
        return crop if crop[MARGIN:-MARGIN, MARGIN:-MARGIN].mean() > DARK else None

    smallest = min((pair.images.shape[1:] for pair in pairs), key=min)
    require_size(smallest, wide)
    return torch.from_numpy(np.stack(several(count, draw)))[:, None]


def _core(crops):
    return crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN].flatten(1)


def pool(pairs, generator, count):
    """(count, UNITS) visible units of blocks, to pre-train with."""
    return visible(_core(_crops(pairs, generator, count)))


def block_batch(pairs, generator, size):
    """(clear, spoilt): (size, BLOCK^2) blocks and the same blurred (sigma 0.8 to 2.5), dimmed (to .2-.8), or both."""
    crops = _crops(pairs, generator, size)
    deviation = 0.8 + 1.7 * float(torch.rand((), generator=generator))
    taps = torch.exp(-(torch.arange(-7.0, 8.0) ** 2) / (2 * deviation**2))
    blurred = smooth(crops, taps=(taps / taps.sum()).tolist())
    kind = torch.randint(3, (size, 1, 1, 1), generator=generator)
    dimming = 0.2 + 0.6 * torch.rand((size, 1, 1, 1), generator=generator)
    spoilt = torch.where(kind == 0, crops, blurred) * torch.where(kind == 1, 1.0, dimming)
    return _core(crops), _core(spoilt)


def block_loss(network, clear, spoilt):
    """Cross-entropy of the logistic output: the clear block should win."""
    return F.softplus(network(spoilt) - network(clear)).mean()
