"""Deep and restricted Boltzmann machine, stacked autoencoder: pre-training, what they learnt, blending, figures."""

from pathlib import Path

import numpy as np
import pytest

from MedFusionLib.fusion import registry

torch = pytest.importorskip("torch")
ATLAS = Path(__file__).parents[3] / "shared" / "data" / "harvard"


@pytest.fixture(params=["boltzmann", "rbm", "autoencoder"], scope="module")
def method(request):
    return request.param


@pytest.fixture(scope="module")
def fuser(method):
    return registry.load(method, torch.device("cpu"))


def scene(count=2, shape=(48, 40), seed=0):
    """(1, count, *shape): random images within a disc, black outside it."""
    noise = torch.rand((1, count, *shape), generator=torch.Generator().manual_seed(seed))
    grid = np.indices(shape) - np.reshape([n / 2 for n in shape], (-1, *[1] * len(shape)))
    return noise * torch.from_numpy(np.sqrt((grid**2).sum(0)) < min(shape) / 2.5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("count", "shape"), [(2, (48, 40)), (3, (33, 47)), (2, (9, 32, 30)), (3, (1, 24, 24)), (2, (1, 1)), (2, (5, 13))]
)
def test_every_voxel_is_the_weighted_mean_of_its_sources(fuser, count, shape):
    sources = scene(count, shape)
    fused, weights = fuser(sources, ("CT", "MR", "PT")[:count])
    assert fused.shape == (1, *shape) and weights.shape == sources.shape
    torch.testing.assert_close(weights.sum(1), torch.ones(1, *shape))
    torch.testing.assert_close((weights * sources).sum(1), fused)
    assert (weights >= 0).all() and (fused[(sources == 0).all(1)] == 0).all()


@torch.inference_mode()
def test_a_volume_is_its_slices(fuser):
    sources = scene(2, (4, 32, 30))
    slices = fuser(sources[0].transpose(0, 1).contiguous(), ("CT", "MR"))[0]
    torch.testing.assert_close(fuser(sources, ("CT", "MR"))[0][0], slices)


@torch.inference_mode()
def test_order_of_sources_does_not_matter(fuser):
    sources = scene(3)
    turned = fuser(sources[:, [2, 0, 1]], ("PT", "CT", "MR"))[0]
    torch.testing.assert_close(turned, fuser(sources, ("CT", "MR", "PT"))[0])


@torch.inference_mode()
def test_the_clear_and_bright_block_wins(fuser):
    from MedFusionLib.fusion.multiscale import smooth

    image = smooth(torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(2)))
    for spoilt in (smooth(smooth(image, 2), 2), 0.4 * image):
        shares = fuser.network.share(torch.cat([spoilt, image], 1))
        assert (shares[:, 1] > 0.5).float().mean() > 0.9


@torch.inference_mode()
def test_flat_bone_outshines_textured_tissue(fuser):
    tissue = 0.2 + 0.1 * torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(3))
    fused, _ = fuser(torch.cat([torch.ones_like(tissue), tissue], 1), ("CT", "MR"))
    assert fused.min() > 0.95


def test_contrastive_divergence_follows_its_gradient():
    from MedFusionLib.fusion.training.boltzmann import divergence

    # With no noise to draw (weights at 0), the gradient has a closed form.
    data = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    zero = torch.zeros(2, 3), torch.zeros(2), torch.zeros(3)
    (weight, below, above), error = divergence(data, *zero, False, 1, 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight, torch.tensor([[0.25] * 3, [0.0] * 3]))
    torch.testing.assert_close(below, torch.tensor([0.5, 0.0]))
    assert above.abs().max() == 0 and error == 0.25


def test_pretraining_learns_to_reconstruct(method, monkeypatch):
    from MedFusionLib.fusion.training import autoencoder, boltzmann
    from MedFusionLib.fusion.training.atlas import Pair
    from MedFusionLib.fusion.training.recipes import RECIPES

    for module in (autoencoder, boltzmann):
        monkeypatch.setattr(module, "STEPS", 400)
        monkeypatch.setattr(module, "SIZE", 64)
    torch.manual_seed(0)
    images = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(4))
    images = torch.nn.functional.avg_pool2d(images[None], 5, 1, 2)[0]
    images = ((images - images.min()) / (images.max() - images.min())).numpy()
    network = RECIPES[method].network()
    errors = RECIPES[method].pretrain(network, [Pair(images, ("CT", "MR"), "CT-MRI", "7", 1)], 0)
    assert len(errors) == (1 if method == "rbm" else 2)
    assert all(last < 0.75 * first for first, last in errors)


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_beats_average_on_unseen_subjects_and_keeps_the_skull(method):
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.score import score

    pairs = atlas.pairs(ATLAS, ("CT-MRI", "SPECT-MRI"), held_back=True)[::5]
    found, average = score(method, None, pairs), score("average", None, pairs)
    for group in found:
        assert found[group]["Qabf"][0] > average[group]["Qabf"][0] + 0.1
        assert found[group]["SCD"][0] > average[group]["SCD"][0] + 0.1
    assert found["CT-MRI"]["bone_solid"][0] > 0.97
    assert found["CT-MRI"]["background"][0] < 0.1
