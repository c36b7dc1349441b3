"""What FW-Net learns from: its fusion's quality, and whether the sources can be told from it."""

from __future__ import annotations

import torch.nn.functional as F

from ..networks.pairwise import OTHER
from ..weighing import weighted
from .medfusion_losses import structure
from .pairs import COMPLEMENT, quality_loss, reading_loss, target_loss


def fwnet_loss(network, sources, kinds, targets=None):
    """`quality_loss` + 2 `reading_loss`, or where there are targets `target_loss`, + `decoding_loss` / 4."""
    fused = weighted(sources, network(sources, kinds))[:, None]
    decoding = decoding_loss(network, sources, kinds, fused)
    if targets is not None:
        return target_loss(targets, fused) + decoding / 4
    return quality_loss(sources, fused, COMPLEMENT) + 2 * reading_loss(sources, kinds, fused) + decoding / 4


def decoding_loss(network, sources, kinds, fused):
    """What the right U-Net gets wrong of the sources whose kind is known: mean absolute error + (1 - SSIM)."""
    known = kinds != OTHER
    if not known.any():
        return fused.new_zeros(())
    decoded = network.decode(fused)
    found = decoded.gather(1, kinds.clamp_max(OTHER - 1)[..., None, None].expand(-1, -1, *decoded.shape[2:]))
    found, wanted = found[known][:, None], sources[known][:, None]
    return F.l1_loss(found, wanted) + 1 - structure(wanted, found)[0].mean()
