"""How the stacked autoencoder is pre-trained: each layer learns to give back its input."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from . import blocks

STEPS, SIZE, RATE = 1500, 256, 2e-3
"""Steps a layer, blocks a step, and Adam's learning rate."""


def pretrain_stack(network, pairs, seed):
    """Fill the encoders of an `AutoencoderNet`, the lower first. Returns their reconstruction errors (first, last).

    Decoders have the encoders' weights turned round (tied) and a bias of their own, and are thrown away. The lower
    one gives back visible units, the upper one the lower one's code, which lies in 0..1.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = blocks.pool(pairs, generator, 64 * SIZE).to(network.output.weight.device)
    errors = []
    for number, encoder in enumerate(network.encoders):
        back = torch.zeros(encoder.in_features, device=pool.device, requires_grad=True)
        optimizer = torch.optim.Adam([*encoder.parameters(), back], RATE)
        course = []
        for _ in range(STEPS):
            data = pool[torch.randint(len(pool), (SIZE,), generator=generator).to(pool.device)]
            found = F.linear(torch.sigmoid(encoder(data)), encoder.weight.T, back)
            loss = F.mse_loss(torch.sigmoid(found) if number else found, data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(float(loss.detach()))
        errors.append((float(np.mean(course[:20])), float(np.mean(course[-20:]))))
        with torch.no_grad():
            pool = torch.sigmoid(encoder(pool))
    return errors
