"""How the method selector judges its options by what a trial on a sample of the volume has measured."""

from __future__ import annotations

import torch
from torch import nn

METHODS = ("medfusion", "sesf", "wavelet_cnn", "laplacian", "guided")
OPTIONS = (*((method, weight) for method in METHODS for weight in (1.0, 0.5)), ("maximum", 1.0))
"""(method, weight): the rest of the weight goes to `maximum`. The other networks, slower to try, were tried too and
were hardly ever the best of a pair."""

MEASURES = ("Qabf", "SSIM", "SCD", "head-SSIM", "bone_solid", "hot_contrast")
"""Of `MedFusionLib.metrics`: the quality figure is made of them, and the trial takes them. bone_solid is for CT-MRI
only, hot_contrast (`metrics.failures`, at most 1) for PET and SPECT: the others would let skull and hot spots fade."""

MODALITIES = ("CT", "PT", "NM")
"""Those that options have a bias for, beside their general one; MR is in every pair learnt from."""


def kinds(modalities):
    """(MODALITIES,) float32: which of them are among the sources, of a sum of 1 or 0."""
    there = torch.tensor([float(name in modalities) for name in MODALITIES])
    return there / there.sum().clamp_min(1)


def relative(measured):
    """(..., options, measures) less the mean over the options; 0 where a measure is not defined (NaN)."""
    return (measured - measured.mean(-2, keepdim=True)).nan_to_num(0)


class SelectorNet(nn.Module):
    """Predicts how much better than the mean option each one is: linear in the measures, plus biases."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(len(MEASURES)))
        self.slope = nn.Parameter(torch.zeros(len(MEASURES)))
        self.bias = nn.Parameter(torch.zeros(len(OPTIONS)))
        self.kind_bias = nn.Parameter(torch.zeros(len(MODALITIES), len(OPTIONS)))

    def forward(self, measured, kind):
        """(N, options), of measured (N, options, measures) and `kinds` (N, MODALITIES)."""
        return (relative(measured) / self.scale) @ self.slope + self.bias + kind @ self.kind_bias
