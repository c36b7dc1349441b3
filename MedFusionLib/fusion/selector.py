"""Method selector: after Rice, "The algorithm selection problem", Advances in Computers 1976.

A small network has learnt, from the measured quality of every option on pairs of the atlas, which method suits the
features of a volume (intensities, gradients, correlation, modalities), and with what weight against `maximum`.
It chooses once per volume, so that the volume is fused by one rule. It was trained on pairs: of three sources the
features are means and extremes, and the choice is less sure.
"""

from __future__ import annotations

import torch

from . import registry, weights
from .networks.selector_net import OPTIONS, SelectorNet, features


class Selector:
    """The `Fuser`. `choice` is (method, weight), from `prepare` on. No weight maps: most methods have none."""

    halo = None

    def __init__(self, network, device):
        self.network, self.device = network, device
        self._loaded = {}

    def prepare(self, sources, modalities):
        with torch.inference_mode():
            scores = self.network(features(sources, modalities)[None])[0]
        self.choice = OPTIONS[int(scores.argmax())]
        name = self.choice[0]
        if name not in self._loaded:
            self._loaded[name] = registry.load(name, self.device)
        self._fuser = self._loaded[name]
        self.halo = self._fuser.halo
        if hasattr(self._fuser, "fuse_volume"):
            # The driver takes this way where it is there.
            self.fuse_volume = self._fuse_volume

    def __call__(self, sources, modalities):
        fused, _ = self._fuser(sources, modalities)
        return mixed(fused, sources, self.choice[1]), None

    def _fuse_volume(self, read, shape, modalities, store, step):
        weight = self.choice[1]

        def mix(window, values, shares):
            store(window, weight * values + (1 - weight) * read(window).max(0), None)

        self._fuser.fuse_volume(read, shape, modalities, mix, step)


def mixed(fused, sources, weight):
    """The fused image (B, *spatial), its rest of the weight given to the maximum of sources (B, S, *spatial)."""
    return fused if weight == 1 else weight * fused + (1 - weight) * sources.amax(1)


def build(network):
    """The `Fuser` of a trained network, on the CPU."""
    return Selector(network, torch.device("cpu"))


def load(method, device):
    return Selector(weights.load(method.weights, SelectorNet()), device)
