"""The method selector: features, choice, mixing, one choice a volume, and what it loses on unseen subjects."""

from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import Volume, fuse
from MedFusionLib.fusion import registry

torch = pytest.importorskip("torch")
ATLAS = Path(__file__).parents[3] / "shared" / "data" / "harvard"


@pytest.fixture
def fuser():
    return registry.load("selector", torch.device("cpu"))


def scene(count=2, shape=(5, 48, 40)):
    """(count, *shape): smooth images within an ellipsoid, black outside it."""
    from MedFusionLib.fusion.multiscale import smooth

    noise = smooth(torch.rand((1, count, *shape), generator=torch.Generator().manual_seed(0)))[0]
    grid = np.indices(shape) - np.reshape([(n - 1) / 2 for n in shape], (-1, 1, 1, 1))
    radius = np.reshape([n / 2 for n in shape], (-1, 1, 1, 1))
    return noise * torch.from_numpy(((grid / radius) ** 2).sum(0) < 0.9)


def test_features_do_not_depend_on_the_order_of_the_sources():
    from MedFusionLib.fusion.networks.selector_net import FEATURES, features

    sources, names = scene(3), ("CT", "MR", "PT")
    first = features(sources, names)
    assert first.shape == (FEATURES,)
    torch.testing.assert_close(features(sources[[2, 0, 1]], ("PT", "CT", "MR")), first)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 7, 1)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_features_of_thin_and_constant_volumes_are_finite(shape, value):
    from MedFusionLib.fusion.networks.selector_net import features

    assert features(torch.full((2, *shape), value), ("CT", "OT")).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("count", [2, 3])
def test_the_result_is_the_chosen_method_mixed_with_the_maximum(fuser, count):
    from MedFusionLib.fusion.networks.selector_net import OPTIONS

    names = ("CT", "MR", "PT")[:count]
    sources = scene(count)
    fuser.prepare(sources, names)
    assert fuser.choice in OPTIONS
    slices = sources.transpose(0, 1).contiguous()
    method, weight = fuser.choice
    alone = registry.load(method, torch.device("cpu"))(slices, names)[0]
    expected = weight * alone + (1 - weight) * slices.amax(1)
    torch.testing.assert_close(fuser(slices, names)[0], expected)


@pytest.mark.parametrize("option", [("medfusion", 0.5), ("wavelet_cnn", 1.0), ("maximum", 1.0)])
def test_volumes_go_the_way_of_the_chosen_method(option, monkeypatch):
    """Also by the way through whole volumes that a method may have of its own."""
    from MedFusionLib.fusion import selector
    from MedFusionLib.fusion.networks.selector_net import OPTIONS

    def always(self, seen):
        return torch.nn.functional.one_hot(torch.tensor([OPTIONS.index(option)]), len(OPTIONS)).float()

    monkeypatch.setattr(selector.SelectorNet, "forward", always)
    volumes = [Volume(one.numpy(), np.eye(4), name) for one, name in zip(scene(), ("MR", "PT"), strict=True)]
    found = fuse(volumes, "selector").volume.array
    alone, brightest = (fuse(volumes, name).volume.array for name in (option[0], "maximum"))
    np.testing.assert_allclose(found, option[1] * alone + (1 - option[1]) * brightest, atol=1e-6)


def test_training_learns_a_choice_that_depends_on_the_features():
    from MedFusionLib.fusion.networks.selector_net import FEATURES, OPTIONS
    from MedFusionLib.fusion.training.selector import fit, losses

    seen = torch.randn(60, FEATURES, generator=torch.Generator().manual_seed(1))
    gain = np.zeros((60, len(OPTIONS)), np.float32)
    best = np.where(seen[:, 3] > 0, 2, 7)
    gain[np.arange(60), best] = 1
    single = int(gain.mean(0).argmax())
    ours, theirs = losses(fit(seen, gain), seen, gain, single)
    assert ours < 0.1 and theirs > 0.3


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_the_choice_beats_average_on_unseen_subjects():
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.score import score

    pairs = atlas.pairs(ATLAS, held_back=True)[::25]
    found, average = score("selector", None, pairs), score("average", None, pairs)
    for group in found:
        assert found[group]["Qabf"][0] > average[group]["Qabf"][0] + 0.1
        assert found[group]["SCD"][0] > average[group]["SCD"][0]
    assert found["CT-MRI"]["bone_solid"][0] > 0.97
