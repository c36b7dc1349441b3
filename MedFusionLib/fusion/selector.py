"""Method selector: after Rice, "The algorithm selection problem", Advances in Computers 1976.

Several methods, each also half and half with `maximum`, fuse a sample of the volume, and the sample is measured
(`trial`). A model that has learnt from the quality measured on whole pairs of the atlas (`training.selector`) predicts
from that which option suits the volume best. It chooses once per volume, so that the volume is fused by one rule.
It was trained on pairs: of three sources the measures are those of all, and the choice is less sure.
"""

from __future__ import annotations

import logging

import torch

from . import registry, trial, weights
from .networks.selector_net import OPTIONS, SelectorNet, kinds
from .slabs import slabs

log = logging.getLogger(__name__)

ROWS = 8
"""Slices of a volume that are mixed at a time."""


class Selector:
    """The `Fuser`. `choice` is (method, weight), from `prepare` on. No weight maps: most methods have none."""

    halo = None

    def __init__(self, network, device):
        self.network, self.device = network, device
        self._fusers = {}

    def prepare(self, sources, modalities, step=lambda done, count: None):
        if not self._fusers:
            self._fusers = {name: registry.load(name, self.device) for name, _ in OPTIONS}
        with torch.inference_mode():
            found = trial.measured(self._fusers, trial.sample(sources), modalities, self.device, step)
            gains = self.network(torch.from_numpy(found).float()[None], kinds(modalities)[None])[0]
        self.choice = OPTIONS[int(gains.argmax())]
        name, weight = self.choice
        log.info("the method selector chose %s, weight %g.", name, weight)
        self.provenance = {"MedFusion.Selected": name if weight == 1 else f"{weight:g} {name}, {1 - weight:g} maximum"}
        self._fuser = self._fusers[name]
        self.halo = self._fuser.halo
        if hasattr(self._fuser, "fuse_volume"):
            # The driver takes this way where it is there.
            self.fuse_volume = self._fuse_volume

    def __call__(self, sources, modalities):
        fused, _ = self._fuser(sources, modalities)
        return trial.mixed(fused, sources, self.choice[1]), None

    def _fuse_volume(self, read, shape, modalities, store, step):
        weight = self.choice[1]

        def mix(window, values, shares):
            first = window[0].start or 0
            # Some slices at a time: a method may bring the whole volume at once.
            for start, stop in slabs(len(values), ROWS):
                part = slice(first + start, first + stop), *window[1:]
                store(part, weight * values[start:stop] + (1 - weight) * read(part).max(0), None)

        self._fuser.fuse_volume(read, shape, modalities, mix, step)


def build(network):
    """The `Fuser` of a trained network, on the CPU."""
    return Selector(network, torch.device("cpu"))


def load(method, device):
    return Selector(weights.load(method.weights, SelectorNet()), device)
