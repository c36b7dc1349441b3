"""How Boltzmann machines are pre-trained: contrastive divergence, layer by layer."""

from __future__ import annotations

import numpy as np
import torch

from . import blocks

STEPS, SIZE = 1500, 256
"""Steps of contrastive divergence a layer, and blocks a step."""


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
def pretrain_restricted(network, pairs, seed):
    """Fill the layer of an `RBMNet`. Returns the reconstruction errors (first, last) of it, in a list."""
    generator = torch.Generator().manual_seed(seed)
    pool = blocks.pool(pairs, generator, 64 * SIZE).to(network.weight.device)
    layer = network.weight, network.visible_bias, network.hidden_bias
    return [_layer(pool, layer, True, 1, 1, 0.005, generator)]


@torch.no_grad()
def pretrain_deep(network, pairs, seed):
    """Fill both layers of a `BoltzmannNet`. Returns the reconstruction errors (first, last) of each layer."""
    generator = torch.Generator().manual_seed(seed)
    pool = blocks.pool(pairs, generator, 64 * SIZE).to(network.first.device)
    lower = network.first, network.visible_bias, network.lower_bias
    upper = network.second, network.lower_bias.clone(), network.upper_bias
    errors = [_layer(pool, lower, True, 2, 1, 0.005, generator)]
    code = torch.sigmoid(2 * pool @ network.first + network.lower_bias)
    return [*errors, _layer(code, upper, False, 1, 2, 0.05, generator)]


def _layer(pool, layer, gaussian, up, down, rate, generator):
    """Fill a layer (weight, below, above) in place. Returns its mean reconstruction error at first and at last."""
    speeds = [torch.zeros_like(one) for one in layer]
    course = []
    for _ in range(STEPS):
        data = pool[torch.randint(len(pool), (SIZE,), generator=generator).to(pool.device)]
        gradients, error = divergence(data, *layer, gaussian, up, down, generator)
        for value, speed, gradient in zip(layer, speeds, gradients, strict=True):
            speed.mul_(0.9).add_(rate * (gradient - 1e-4 * value))
            value += speed
        course.append(error)
    return float(np.mean(course[:20])), float(np.mean(course[-20:]))
