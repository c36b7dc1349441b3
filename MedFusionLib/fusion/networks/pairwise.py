"""What the networks that compare sources have in common: kinds of modality, and images of any size."""

from __future__ import annotations

import torch.nn.functional as F

KINDS = {"CT": 0, "MR": 1, "PT": 2, "NM": 2}
"""Kind of a modality: bone, anatomy, uptake. PET and SPECT are one: both show metabolism or blood flow."""

OTHER = 3
"""The kind of every other modality: ultrasound, and what is not known."""


def kinds_of(modalities):
    """One kind per DICOM term."""
    return tuple(KINDS.get(name, OTHER) for name in modalities)


def pad(images, step):
    """(..., H, W) with H and W rounded up to multiples of `step`; the last row and column go on."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % step, 0, -height % step), mode="replicate")
