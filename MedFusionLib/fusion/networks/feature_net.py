"""The multi-modal feature extraction network: a branch per kind of modality, fused at every scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import nn

from .pairwise import OTHER, pad
from .through import ThroughNet

WIDTHS = (12, 16, 24, 32)
"""Features per scale, from full size to an eighth of it."""

STEP = 2 ** (len(WIDTHS) - 1)

RULES = ("concatenation", "attention")


def _convolve(inputs, outputs):
    # Normalised per image the weights of a slice would depend on all of it: volumes would flicker.
    return Convolution(2, inputs, outputs, act="relu", norm=None)


class Branch(nn.Module):
    """Features of one kind of modality at every scale."""

    def __init__(self):
        super().__init__()
        inputs = (1, *WIDTHS)
        self.scales = nn.ModuleList(
            nn.Sequential(_convolve(inputs[n], width), _convolve(width, width)) for n, width in enumerate(WIDTHS)
        )

    def forward(self, images):
        """[(N, width, H / 2^n, W / 2^n)] of images (N, 1, H, W)."""
        found = []
        for n, scale in enumerate(self.scales):
            images = scale(F.avg_pool2d(images, 2) if n else images)
            found.append(images)
        return found


class Concatenation(nn.Module):
    """Features side by side, each kind at its place: zero where there is none, the strongest where there are two."""

    def __init__(self, width):
        super().__init__()
        self.width, self.outputs = width, width * (OTHER + 1)

    def forward(self, features, kinds):
        """((B, n, H, W), their channels) of features (B, S, width, H, W), which are 0 or more, and kinds (B, S).

        Of all `outputs` channels those of kinds that there are: the others are zero.
        """
        there = kinds.unique()
        places = ((kinds == kind).to(features.dtype)[..., None, None, None] for kind in there)
        channels = self.width * there[:, None] + torch.arange(self.width, device=there.device)
        return torch.cat([(features * place).amax(1) for place in places], 1), channels.flatten()


class Attention(nn.Module):
    """The mean of the sources' features, weighted per feature and pixel by a softmax over the sources."""

    def __init__(self, width):
        super().__init__()
        self.outputs = width
        self.score = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, features, kinds):
        """((B, outputs, H, W), their channels) of features (B, S, width, H, W).

        What a source scores depends on it and on the mean.
        """
        mean = features.mean(1)
        # One source at a time: side by side they would be most of the network's memory.
        seen = (torch.cat([one, mean], 1) for one in features.unbind(1))
        shares = torch.stack([self.score(one) for one in seen], 1).softmax(1)
        fused = sum(share * one for share, one in zip(shares.unbind(1), features.unbind(1), strict=True))
        return fused, torch.arange(self.outputs, device=features.device)


class FeatureNet(ThroughNet):
    """rule: one of RULES, how the features of the sources become one."""

    def __init__(self, rule):
        super().__init__(WIDTHS)
        self.branches = nn.ModuleList(Branch() for _ in range(OTHER + 1))
        self.fusions = nn.ModuleList({"concatenation": Concatenation, "attention": Attention}[rule](w) for w in WIDTHS)
        coarser = (*WIDTHS[1:], 0)
        self.merge = nn.ModuleList(
            _convolve(fusion.outputs + more, width)
            for fusion, more, width in zip(self.fusions, coarser, WIDTHS, strict=True)
        )
        self.output = nn.Sequential(_convolve(2 * WIDTHS[0], WIDTHS[0]), nn.Conv2d(WIDTHS[0], 1, 3, padding=1))

    def encode(self, sources, kinds):
        """Each source's features: n = S."""
        return self.extract(pad(sources, STEP), kinds)

    def across(self, before, here, after):
        return [scale.relu_() for scale in super().across(before, here, after)]

    def weigh(self, features, kinds, size):
        """The convolutional output sees each source's features beside the fused ones."""
        height, width = size
        fused = self.fuse(features, kinds)
        # One source at a time: side by side they would be most of the network's memory.
        logits = [self.output(torch.cat([own, fused], 1)) for own in features[0].unbind(1)]
        return torch.cat(logits, 1).softmax(1)[..., :height, :width]

    def fuse(self, features, kinds):
        """(B, width, H, W) of what `extract` found, from the coarsest scale to the finest."""
        fused = None
        for here, fusion, merge in zip(reversed(features), reversed(self.fusions), reversed(self.merge), strict=True):
            inputs, channels = fusion(here, kinds)
            if fused is not None:
                channels = torch.cat([channels, fusion.outputs + torch.arange(fused.shape[1], device=channels.device)])
                fused = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=False)
                inputs = torch.cat([inputs, fused], 1)
                del fused
            conv = merge.conv
            fused = merge.adn(F.conv2d(inputs, conv.weight[:, channels], conv.bias, conv.stride, conv.padding))
        return fused

    def extract(self, images, kinds):
        """[(B, S, width, H / 2^n, W / 2^n)]: each source's features, by the branch of its kind."""
        flat, kinds = images.flatten(0, 1)[:, None], kinds.flatten()
        groups = [(kinds == kind).nonzero()[:, 0] for kind in range(OTHER + 1)]
        found = [branch(flat[group]) for branch, group in zip(self.branches, groups, strict=True) if len(group)]
        back = torch.cat(groups).argsort()
        # Scale by scale, so that no two copies of all are held.
        scales = (torch.cat([scales.pop(0) for scales in found]) for _ in WIDTHS)
        return [scale[back].unflatten(0, images.shape[:2]) for scale in scales]
