"""How the deep Boltzmann machine learns: contrastive divergence by layer, then clear blocks against spoilt ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..multiscale import smooth
from ..networks.boltzmann_net import BLOCK, visible

MARGIN = 8
"""Pixels around a block that its blurred version needs."""

DARK = 0.04
"""Blocks of a lower mean are air."""

STEPS, SIZE = 1500, 256
"""Steps of contrastive divergence a layer, and blocks a step."""


def _crops(pairs, generator, count):
    """(count, 1, w, w), w = BLOCK + 2 MARGIN: blocks that are not air, of single sources, with their surroundings."""
    wide = BLOCK + 2 * MARGIN
    found = []
    while len(found) < count:
        drawn = torch.rand(4, generator=generator).tolist()
        images = pairs[int(drawn[0] * len(pairs))].images
        image = images[int(drawn[1] * len(images))]
        top, left = (int(share * (n - wide + 1)) for share, n in zip(drawn[2:], image.shape, strict=True))
        crop = image[top : top + wide, left : left + wide]
        if crop[MARGIN:-MARGIN, MARGIN:-MARGIN].mean() > DARK:
            found.append(crop)
    return torch.from_numpy(np.stack(found))[:, None]


def _core(crops):
    return crops[..., MARGIN:-MARGIN, MARGIN:-MARGIN].flatten(1)


def divergence(data, weight, below, above, gaussian, up, down, generator):
    """One step of contrastive divergence (CD-1; Hinton 2002) of a restricted Boltzmann machine.

    data: (N, V). weight: (V, H); below, above: biases (V,), (H,). gaussian: visible units are real with variance 1,
    else binary probabilities. up, down: factors of the input to the hidden and to the visible units.
    Returns (gradients of weight, below and above to go up along, mean squared error of the reconstruction).
    """
    hidden = torch.sigmoid(up * data @ weight + above)
    drawn = (torch.rand(hidden.shape, generator=generator).to(hidden) < hidden).to(hidden)
    back = down * drawn @ weight.T + below
    back = back if gaussian else torch.sigmoid(back)
    again = torch.sigmoid(up * back @ weight + above)
    count = len(data)
    gradients = (data.T @ hidden - back.T @ again) / count, (data - back).mean(0), (hidden - again).mean(0)
    return gradients, float((data - back).square().mean())


@torch.no_grad()
def pretrain(network, pairs, seed):
    """Fill both layers of a `BoltzmannNet`. Returns the reconstruction errors (first, last) of each layer."""
    generator = torch.Generator().manual_seed(seed)
    device = network.first.device
    pool = visible(_core(_crops(pairs, generator, 64 * SIZE))).to(device)
    errors = []
    layers = (
        (network.first, network.visible_bias, network.lower_bias, True, 2, 1, 0.005),
        (network.second, network.lower_bias.clone(), network.upper_bias, False, 1, 2, 0.05),
    )
    for weight, below, above, gaussian, up, down, rate in layers:
        speeds = [torch.zeros_like(one) for one in (weight, below, above)]
        course = []
        for _ in range(STEPS):
            data = pool[torch.randint(len(pool), (SIZE,), generator=generator).to(device)]
            gradients, error = divergence(data, weight, below, above, gaussian, up, down, generator)
            for value, speed, gradient in zip((weight, below, above), speeds, gradients, strict=True):
                speed.mul_(0.9).add_(rate * (gradient - 1e-4 * value))
                value += speed
            course.append(error)
        errors.append((float(np.mean(course[:20])), float(np.mean(course[-20:]))))
        pool = torch.sigmoid(up * pool @ weight + above)
    return errors


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
