"""Networks of slices that look through the volume as well: slices first, then what their neighbours show.

After AH-Net (Liu et al., "3D anisotropic hybrid network", MICCAI 2018, arXiv:1711.08580), which takes a network that
has learnt slices into volumes, whose slices lie farther apart than their pixels: here every scale gets a layer of its
own across slices, and what was learnt of slices stays as it is.
"""

from __future__ import annotations

import torch
from torch import nn


class Through(nn.Module):
    """Features of a slice with what both neighbours show; untrained, the features themselves.

    The neighbours enter by their mean and their maximum: a volume that is turned upside down gives the same.
    """

    def __init__(self, width):
        super().__init__()
        self.own, self.mean, self.most = (nn.Conv2d(width, width, 1, bias=n == 0) for n in range(3))
        for layer in (self.own, self.mean, self.most):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.own.bias)

    def forward(self, before, here, after):
        """(B, n, width, H, W), as all three."""
        # One of the n at a time, and one layer after the other: side by side they would take several times the memory.
        found = [self._one(*three) for three in zip(*(part.unbind(1) for part in (before, here, after)), strict=True)]
        return torch.stack(found, 1)

    def _one(self, before, here, after):
        found = here + self.own(here)
        found += self.mean((before + after).mul_(0.5))
        found += self.most(torch.maximum(before, after))
        return found


class ThroughNet(nn.Module):
    """Slices by `encode` and `weigh`, which a network defines; stacks of slices with `across` between the two.

    encode(sources, kinds): features [(B, n, width, h, w)] of sources (B, S, H, W) and kinds (B, S), finest scale first.
    weigh(features, kinds, size): shares (B, S, *size), which sum to 1 over S.
    """

    def __init__(self, widths):
        """widths: of the features at every scale."""
        super().__init__()
        self.through = nn.ModuleList(Through(width) for width in widths)

    def of_slices(self):
        """The parameters that slices use."""
        across = set(self.of_volumes())
        return [one for one in self.parameters() if one not in across]

    def of_volumes(self):
        """The parameters that only stacks use."""
        return list(self.through.parameters())

    def forward(self, sources, kinds):
        """Shares (B, S, H, W), which sum to 1 over S, of sources (B, S, H, W), 0..1, of any size: slice by slice.

        kinds: int64 (B, S), see `pairwise`. Neither the number of the sources nor their order matters.
        """
        return self.weigh(self.encode(sources, kinds), kinds, sources.shape[2:])

    def stack(self, sources, kinds):
        """As `forward`, of B slices that follow each other; beyond the ends the outermost go on."""
        here = self.encode(sources, kinds)
        before = [torch.cat([scale[:1], scale[:-1]]) for scale in here]
        after = [torch.cat([scale[1:], scale[-1:]]) for scale in here]
        return self.weigh(self.across(before, here, after), kinds, sources.shape[2:])

    def across(self, before, here, after):
        """Features of a slice with what its neighbours show."""
        return [mix(*three) for mix, *three in zip(self.through, before, here, after, strict=True)]
