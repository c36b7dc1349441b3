"""How each network learns: what a training step sees, what it is trained for, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from ..networks.autoencoder_net import AutoencoderNet
from ..networks.boltzmann_net import BoltzmannNet, RBMNet
from ..networks.feature_net import RULES, FeatureNet
from ..networks.fwnet_net import FWNet
from ..networks.sesf_net import SESFNet
from ..networks.siamese_net import PATCH, SiameseNet
from ..networks.through import ThroughNet
from ..networks.wavelet_cnn import WaveletNet
from .autoencoder import pretrain_stack
from .blocks import block_batch, block_loss
from .boltzmann import pretrain_deep, pretrain_restricted
from .feature_extraction import feature_loss
from .fwnet import fwnet_loss
from .medfusion_losses import structure
from .pairs import DEPTH, corner, integer, kind_batch, pair_batch, several, stack_batch, stack_loss
from .wavelet_cnn import blend_loss


@dataclass(frozen=True)
class Stage:
    """batch(pairs, generator, size) -> tensor(s). loss(network, *batch) -> scalar tensor.

    epochs, steps: epochs, and optimiser steps an epoch. size: examples a step. rate: Adam's learning rate,
    times `decay` every `every` epochs. learns(network): the parameters that do; the others stay as they are.
    """

    batch: Callable
    loss: Callable
    epochs: int
    steps: int
    size: int
    rate: float
    decay: float
    every: int
    learns: Callable = field(default=torch.nn.Module.parameters, kw_only=True)


@dataclass(frozen=True)
class Recipe(Stage):
    """network() -> module. summary: what the model card says of the training.

    pretrain(network, pairs, seed) (optional): fills the network before the first step.
    volumes (optional): a second stage, on slices that follow each other. targets: whether it learns to give fusions
    that come with the data.
    """

    network: Callable
    summary: str
    pretrain: Callable | None = None
    volumes: Stage | None = None
    targets: bool = False


def _crops(pairs, generator, count, width, busy):
    """(count, 1, width, width) crops of single source images whose standard deviation is over `busy`."""

    def draw():
        pair = pairs[integer(generator, len(pairs))]
        image = pair.images[integer(generator, len(pair.images))]
        top, left = corner(generator, image.shape, width)
        crop = torch.from_numpy(image[top : top + width, left : left + width])
        if crop.std() <= busy:
            return None
        turned = torch.rot90(crop, integer(generator, 4))
        return turned.flip(1) if integer(generator, 2) else turned

    return torch.stack(several(count, draw))[:, None]


def _blurred(images, deviation):
    taps = torch.exp(-((torch.arange(7.0) - 3) ** 2) / (2 * deviation**2))
    taps = taps / taps.sum()
    padded = F.pad(images, (3,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))


def siamese_batch(pairs, generator, size):
    """(first, second, label): a clear patch and its spoilt version, in either order; label 0: first is clear.

    A quarter of the patches is blurred (sigma 0.8 to 2.5), as in the paper; the rest is dimmed (to .3-.95): of blurred
    ones alone the network learns nothing of evenly bright bone, and dims the skull.
    """
    wide = _crops(pairs, generator, size, PATCH + 6, 0.04)
    clear = wide[..., 3:-3, 3:-3]
    deviation = 0.8 + 1.7 * torch.rand((), generator=generator)
    blurred = _blurred(wide, deviation)[..., 3:-3, 3:-3]
    dimming = 0.3 + 0.65 * torch.rand((size, 1, 1, 1), generator=generator)
    dim = torch.rand((size, 1, 1, 1), generator=generator) < 0.75
    spoilt = torch.where(dim, clear * dimming, blurred)
    label = torch.randint(2, (size,), generator=generator)
    swap = label.view(-1, 1, 1, 1).bool()
    return torch.where(swap, spoilt, clear), torch.where(swap, clear, spoilt), label


def siamese_loss(network, first, second, label):
    """Cross-entropy of the two outputs."""
    return F.cross_entropy(network(first, second).flatten(1), label)


def sesf_batch(pairs, generator, size):
    """(images,): crops of single sources; the paper trains on whole photographs."""
    return (_crops(pairs, generator, size, 64, 0.02),)


def sesf_loss(network, images):
    """The paper's: mean squared error + 3 (1 - SSIM)."""
    found = network(images)
    return F.mse_loss(found, images) + 3 * (1 - structure(images, found)[0].mean())


VOLUMES = Stage(
    stack_batch, stack_loss, epochs=5, steps=40, size=DEPTH, rate=4e-3, decay=0.6, every=1, learns=ThroughNet.of_volumes
)

THEN_VOLUMES = (
    f" Then, all of that fixed, the layers across slices\n  by stacks of {DEPTH} crops, in slices and in both planes "
    f"across them: {VOLUMES.epochs} epochs of {VOLUMES.steps} stacks, rate {VOLUMES.rate:g},\n  times "
    f"{VOLUMES.decay:g} every epoch."
)

RECIPES = {
    "siamese": Recipe(
        siamese_batch, siamese_loss, network=SiameseNet, epochs=10, steps=40, size=64, rate=1e-3, decay=0.7, every=2,
        summary="Clear 16x16 patches against dimmed (to .3-.95) or Gaussian-blurred ones (sigma 0.8 to 2.5), "
        "cross-entropy.",
    ),
    "sesf": Recipe(
        sesf_batch, sesf_loss, network=SESFNet, epochs=10, steps=100, size=12, rate=1e-4, decay=0.8, every=2,
        summary="Autoencoder of 64x64 crops, mean squared error + 3 (1 - SSIM), without labels.",
    ),
    "wavelet_cnn": Recipe(
        pair_batch, blend_loss, network=WaveletNet, epochs=6, steps=25, size=6, rate=3e-3, decay=0.6, every=2,
        targets=True,
        summary="Pairs of 96x96 crops, (1 - Qabf) + (1 - SCD/2)/2 + (1 - SSIM) + clipping, without labels.",
    ),
    "fwnet": Recipe(
        kind_batch, fwnet_loss, network=FWNet, epochs=9, steps=40, size=6, rate=2e-3, decay=0.7, every=2,
        learns=ThroughNet.of_slices, volumes=VOLUMES, targets=True,
        summary="Pairs of 96x96 crops, without labels: (1 - Qabf) + (2 - SCD) + (1 - SSIM), bone and hot spots "
        "kept bright, soft tissue that follows the MRI, and the sources decoded from the fusion." + THEN_VOLUMES,
    ),
    **{
        f"feature_{rule}": Recipe(
            kind_batch, feature_loss, network=partial(FeatureNet, rule), epochs=9, steps=40, size=6, rate=2e-3,
            decay=0.7, every=2, learns=ThroughNet.of_slices, volumes=VOLUMES, targets=True,
            summary="Pairs of 96x96 crops, without labels: (1 - Qabf) + (2 - SCD) + (1 - SSIM), bone and "
            "hot spots kept bright, soft tissue that follows the MRI." + THEN_VOLUMES,
        )
        for rule in RULES
    },
    "boltzmann": Recipe(
        block_batch, block_loss, network=BoltzmannNet, epochs=8, steps=100, size=256, rate=2e-3, decay=0.7, every=2,
        summary="Contrastive divergence (CD-1) of each layer, then clear 8x8 blocks against blurred or dimmed ones.",
        pretrain=pretrain_deep,
    ),
    "rbm": Recipe(
        block_batch, block_loss, network=RBMNet, epochs=8, steps=100, size=256, rate=2e-3, decay=0.7, every=2,
        summary="Contrastive divergence (CD-1), then clear 8x8 blocks against blurred or dimmed ones.",
        pretrain=pretrain_restricted,
    ),
    "autoencoder": Recipe(
        block_batch, block_loss, network=AutoencoderNet, epochs=8, steps=100, size=256, rate=2e-3, decay=0.7, every=2,
        summary="Each layer to give back its input, then clear 8x8 blocks against blurred or dimmed ones.",
        pretrain=pretrain_stack,
    ),
}  # fmt: skip
