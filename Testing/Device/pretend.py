"""Runs registration, every fusion method and every training step on a device with memory of its own.

    python Testing/Device/pretend.py BUILD_FOLDER

There need be no GPU: `pretend.cpp` is a device for torch that computes on the CPU but refuses what a GPU refuses.
Prints a JSON object, what was run -> "" or what was wrong with it; results that differ from the CPU's count as wrong.
"""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import MedFusionLib as mf  # noqa: E402
from MedFusionLib import device as devices  # noqa: E402
from MedFusionLib import phantom  # noqa: E402
from MedFusionLib.fusion.networks import medfusion_tiles  # noqa: E402
from MedFusionLib.fusion.training import medfusion_data, medfusion_training  # noqa: E402
from MedFusionLib.fusion.training.atlas import GROUPS, Pair  # noqa: E402
from MedFusionLib.fusion.training.recipes import RECIPES  # noqa: E402
from MedFusionLib.normalize import to_unit  # noqa: E402

NAME = "pretend"

TOO_LITTLE = 2**20
"""Bytes of a device on which nothing fits."""


def load(folder):
    """The compiled device, named `NAME` in torch from then on. folder: an existing one to build in."""
    from torch.utils.cpp_extension import load as compiled

    built = compiled("pretend", [str(Path(__file__).with_name("pretend.cpp"))], ["-O0"], build_directory=str(folder))
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_amp_supported_dtype = lambda: [torch.float16]
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, module)
    return built


def main():
    built = load(sys.argv[1])
    torch.set_num_threads(1)
    choose = devices.choose
    devices.choose = lambda name="auto": torch.device(NAME) if name == NAME else choose(name)
    medfusion_tiles.CORES[NAME] = medfusion_tiles.CORES["cuda"]
    head = phantom.make(seed=3, spacing=4, rotation=8, translation=8)
    found = {}

    def check(name, work):
        try:
            found[name] = work() or ""
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    check("what a GPU refuses", refused)
    for model in ("rigid", "affine", "deformable"):
        check(model, lambda model=model: registered(head, model))
    sources = [head.ct, *(mf.register(head.ct, one, device="cpu").resample(one) for one in (head.mr, head.pet))]
    for method in mf.methods():
        for mode in ("volume", "slice"):
            check(f"{method}, {mode}", lambda method=method, mode=mode: fused(sources, method, mode))
    pairs = slices(sources)
    for method, recipe in RECIPES.items():
        check(f"train {method}", lambda recipe=recipe: trained(recipe, pairs))
    check("train medfusion", lambda: trained_medfusion(pairs))
    # As the others it runs on the device first, which hands over to the CPU for want of memory.
    built.set_room(TOO_LITTLE)
    check("rigid without memory", lambda: registered(head, "rigid"))
    check("medfusion without memory", lambda: fused(sources, "medfusion", "volume"))
    print(json.dumps(found))


def refused():
    here, there = torch.ones(3, device=NAME), torch.ones(3)
    wrong = {
        "a sum with the CPU": lambda: here + there,
        "an index from here into the CPU": lambda: there[here.long()],
        "numpy": here.numpy,
        "a convolution with the CPU's weights": lambda: torch.conv1d(here[None, None], there[None, None]),
        "float64": here.double,
    }
    for name, work in wrong.items():
        try:
            work()
        except (RuntimeError, TypeError):
            continue
        return f"{name} is not refused"
    allowed = here * torch.tensor(2.0) + here[torch.tensor([0, 0, 2])]
    return "" if allowed.cpu().tolist() == [3.0] * 3 else f"3 came out as {allowed.cpu()}"


def registered(head, model):
    here, there = (mf.register(head.ct, head.mr, model=model, device=device) for device in (NAME, "cpu"))
    off = np.abs(here.matrix - there.matrix).max()
    if model == "deformable":
        off = max(off, np.abs(here.displacement.array - there.displacement.array).max())
    return "" if off < 1e-3 else f"differs from the CPU by {off}"


def fused(sources, method, mode):
    here, there = (mf.fuse(sources, method, mode, device=device).volume.array for device in (NAME, "cpu"))
    off = np.abs(here - there).max()
    return "" if off < 1e-3 else f"differs from the CPU by {off}"


def slices(sources):
    """`Pair`s to train on, of slices in the middle of the head."""
    found = []
    for group, order in (("CT-MRI", (0, 1)), ("PET-MRI", (2, 1))):
        images = np.stack([to_unit(sources[n]) for n in order])
        depth, *size = images.shape[1:]
        for k in range(depth // 3, 2 * depth // 3):
            canvas = np.zeros((2, 256, 256), np.float32)
            canvas[:, : size[0], : size[1]] = images[:, k]
            found.append(Pair(canvas, GROUPS[group], group, "1", k))
    return found


def trained(recipe, pairs):
    network = recipe.network().to(NAME)
    if recipe.pretrain:
        recipe.pretrain(network, pairs, 0)
    for stage in (recipe, recipe.volumes):
        if stage:
            network.requires_grad_(True)
            batch = stage.batch(pairs, torch.Generator().manual_seed(0), stage.size)
            stage.loss(network, *(part.to(NAME) for part in batch)).backward()


def trained_medfusion(pairs):
    settings = replace(medfusion_training.Settings(), steps=3, batch=2)
    medfusion_training.train(medfusion_data.examples(pairs), settings, device=NAME)


if __name__ == "__main__":
    main()
