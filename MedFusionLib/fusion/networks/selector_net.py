"""What the method selector sees of a volume, and the network that judges the options by it."""

from __future__ import annotations

import torch
from torch import nn

METHODS = ("medfusion", "sesf", "wavelet_cnn", "laplacian", "guided")
OPTIONS = (*((method, weight) for method in METHODS for weight in (1.0, 0.5)), ("maximum", 1.0))
"""(method, weight): the rest of the weight goes to `maximum`."""

MODALITIES = ("CT", "MR", "PT", "NM")
AIR, BRIGHT = 0.02, 0.75
MOST_SLICES = 32
"""Slices of a volume that the features are taken from, evenly spaced: bounds memory and time."""

FEATURES = 3 * 5 + 3 + len(MODALITIES)


def features(sources, modalities):
    """(FEATURES,) float32 of sources (S, K, J, I), 0..1; the order of the sources does not matter.

    Per source, in the head: mean, standard deviation, mean gradient, share near white, share above air; of
    these the mean, least and greatest over the sources. Over pairs: mean correlation, difference and overlap. Then
    how many sources there are of each modality.
    """
    step = -(-sources.shape[1] // MOST_SLICES)
    sources = sources[:, ::step].float().cpu()
    seen = sources > AIR
    head = seen.any(0)
    if not head.any():
        head = torch.ones_like(head)
    across, down = torch.zeros_like(sources), torch.zeros_like(sources)
    across[..., 1:] = sources.diff(dim=-1).abs()
    down[..., 1:, :] = sources.diff(dim=-2).abs()
    inside = sources[:, head]
    rows = torch.stack(
        [
            inside.mean(1),
            inside.std(1, correction=0),
            (across + down)[:, head].mean(1),
            (inside > BRIGHT).float().mean(1),
            seen[:, head].float().mean(1),
        ],
        1,
    )
    centred = inside - rows[:, :1]
    pairs = [(a, b) for a in range(len(sources)) for b in range(a)]
    between = torch.tensor(
        [
            [
                float((centred[a] * centred[b]).mean() / (rows[a, 1] * rows[b, 1] + 1e-6)),
                float((inside[a] - inside[b]).abs().mean()),
                float((seen[a] & seen[b]).sum() / head.sum()),
            ]
            for a, b in pairs
        ]
    )
    kinds = torch.tensor([float(modalities.count(name)) for name in MODALITIES])
    return torch.cat([rows.mean(0), rows.amin(0), rows.amax(0), between.mean(0), kinds])


class SelectorNet(nn.Module):
    """A score per option, of features that it standardises itself."""

    def __init__(self, width=16):
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))
        self.layers = nn.Sequential(nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, len(OPTIONS)))

    def forward(self, seen):
        """(N, options) of features (N, FEATURES)."""
        # Within what training has seen: a stranger's features must not drive the scores out of bounds.
        return self.layers(((seen - self.mean) / self.scale).clamp(-3, 3))
