"""Siamese CNN and SESF: their parts against ground truth, and the trained networks on what they must not do."""

import itertools

import numpy as np
import pytest
import torch

from MedFusionLib.fusion import registry, sesf, siamese
from MedFusionLib.fusion.networks.sesf_net import SESFNet
from MedFusionLib.fusion.networks.siamese_net import PATCH, SiameseNet, spread
from MedFusionLib.metrics.failures import uptake_failures

CPU = torch.device("cpu")


def head(size=96):
    """(ct, mri), 0..1: a skull ring that is flat and white in CT and black in MRI; textured soft tissue in MRI."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, y) / size
    skull = (radius > 0.33) & (radius < 0.43)
    brain = radius <= 0.33
    texture = 0.45 + 0.2 * np.sin(x / 2) * np.cos(y / 3)
    ct = np.where(skull, 0.95, np.where(brain, 0.2, 0.0))
    mri = np.where(brain, texture, np.where(radius < 0.45, 0.02, 0.0))
    return torch.tensor(np.stack([ct, mri]), dtype=torch.float32), torch.tensor(skull), torch.tensor(brain)


@pytest.fixture(params=["siamese", "sesf"], scope="module")
def fuser(request):
    return registry.load(request.param, CPU)


@torch.inference_mode()
def test_air_stays_black_and_tissue_true(fuser):
    sources, _, brain = head()
    fused, _ = fuser(sources[None], ("CT", "MR"))
    assert fused[0][(sources.amax(0) == 0)].max() < 1e-6
    inner = -torch.nn.functional.max_pool2d(-brain[None].float(), 25, 1, 12)[0] > 0
    assert torch.corrcoef(torch.stack([fused[0][inner], sources[1][inner]]))[0, 1] > 0.8


@torch.inference_mode()
def test_sesf_keeps_the_skull_solid_where_the_paper_switches_it_off():
    sources, skull, _ = head()
    ours = registry.load("sesf", CPU)
    papers = sesf.SESF(ours.network, plateaus=False)
    inner = -torch.nn.functional.max_pool2d(-skull[None].float(), 3, 1, 1)[0] > 0
    solid = [
        (fuser(sources[None], ("CT", "MR"))[0][0][inner] >= 0.8 * sources[0][inner]).float().mean()
        for fuser in (papers, ours)
    ]
    assert solid[1] > 0.9
    assert solid[1] >= solid[0]


@torch.inference_mode()
@pytest.mark.parametrize("modality", ["PT", "NM"])
def test_sesf_keeps_the_hot_spot_that_the_paper_loses_in_texture(modality):
    network = registry.load("sesf", CPU).network
    papers, ours = (hot_contrast(sesf.SESF(network, plateaus), modality) for plateaus in (False, True))
    assert papers < 0.2
    assert ours > 0.8


@torch.inference_mode()
@pytest.mark.parametrize("modality", ["PT", "NM"])
@pytest.mark.parametrize(("method", "least"), [("siamese", 0.7), ("boltzmann", 0.85), ("autoencoder", 0.9)])
def test_uptake_keeps_more_than_anatomy_as_bright(method, least, modality):
    fuser = registry.load(method, CPU)
    assert hot_contrast(fuser, modality) > max(least, hot_contrast(fuser, "OT") + 0.15)


def hot_contrast(fuser, modality):
    """What a fusion with an MRI full of texture keeps of a smooth hot spot."""
    row, column = np.ogrid[:96, :96]
    brain = (row - 48) ** 2 + (column - 48) ** 2 < 40**2
    uptake = (0.2 + 0.7 * np.exp(-((row - 40) ** 2 + (column - 60) ** 2) / (2 * 9**2))) * brain
    texture = (0.5 + 0.2 * np.sin(row / 2) * np.sin(column / 2)) * brain
    sources = torch.tensor(np.stack([texture, uptake]), dtype=torch.float32)
    fused = fuser(sources[None], ("MR", modality))[0][0]
    return uptake_failures(*(255 * image.numpy() for image in (sources[1], sources[0], fused)))["hot_contrast"]


@torch.inference_mode()
def test_nothing_leaves_the_range_of_the_sources(fuser):
    sources = torch.rand(1, 3, 40, 37, generator=torch.Generator().manual_seed(1))
    fused, weights = fuser(sources, ("CT", "MR", "PT"))
    assert (fused <= sources.amax(1) + 1e-5).all()
    assert (fused >= sources.amin(1) - 1e-5).all()
    if weights is not None:
        assert torch.allclose(weights.sum(1), torch.ones(1, 40, 37), atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (5, 9), (17, 64)])
def test_any_image_size(fuser, shape):
    fused, _ = fuser(torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(2)), ("CT", "MR"))
    assert fused.shape == (2, *shape)
    assert torch.isfinite(fused).all()


@torch.inference_mode()
def test_the_order_of_the_sources_does_not_matter(fuser):
    sources, *_ = head()
    forward, _ = fuser(sources[None], ("CT", "MR"))
    backward, _ = fuser(sources.flip(0)[None], ("MR", "CT"))
    assert (forward - backward).abs().mean() < 1e-3


@torch.inference_mode()
def test_volumes_of_equal_slices_fuse_alike(fuser):
    sources, *_ = head(48)
    volume = sources[None, :, None].expand(1, 2, 6, -1, -1).contiguous()
    fused, _ = fuser(volume, ("CT", "MR"))
    assert fused.shape == (1, 6, 48, 48)
    assert (fused[0, 1:] - fused[0, :-1]).abs().max() < 0.05


@torch.inference_mode()
def test_the_siamese_network_tells_clear_from_blurred():
    from MedFusionLib.fusion import weights

    network = weights.load("siamese.safetensors", SiameseNet())
    clear = torch.rand(64, 1, PATCH, PATCH, generator=torch.Generator().manual_seed(3))
    clear = torch.nn.functional.avg_pool2d(clear, 3, 1, 1)
    blurred = torch.nn.functional.avg_pool2d(clear, 5, 1, 2, count_include_pad=False)
    clear_first = network(clear, blurred).flatten(1).argmax(1) == 0
    assert clear_first.float().mean() > 0.9
    assert (network(blurred, clear).flatten(1).argmax(1) == 1).float().mean() > 0.9


def test_patch_weights_spread_over_their_pixels():
    patches = torch.zeros(1, 1, 9, 9)
    patches[0, 0, 4, 4] = 1
    spreaded = spread(patches, (48, 48))[0, 0]
    assert spreaded[16:32, 16:32].min() > 0
    assert spreaded.sum().item() == pytest.approx(spreaded[16:32, 16:32].sum().item())
    assert torch.allclose(spread(torch.full((1, 2, 9, 9), 0.3), (50, 48)), torch.tensor(0.3))


@pytest.mark.parametrize("shape", [(40, 33), (9, 24, 17)])
def test_equal_sources_pass_the_pyramids_unchanged(shape):
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(4))
    sources = image.expand(1, 2, *shape).contiguous()
    assert torch.allclose(siamese.pyramid_rule(sources, torch.full_like(sources, 0.5)), image[:, 0], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(2, 33, 40), (17, 32, 19), (24, 30, 32)])
def test_siamese_volumes_go_by_the_pyramids_of_the_whole(shape):
    fuser = registry.load("siamese", CPU)
    sources = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(7))
    modalities = ("CT", "MR", "PT")
    shares = torch.stack([fuser.weight_map(sources[:, :, k], modalities) for k in range(shape[0])], 2)
    expected = siamese.within(siamese.pyramid_rule(sources, shares), sources)
    torch.testing.assert_close(fuser(sources, modalities)[0], expected, atol=1e-6, rtol=0)


def test_unlike_bands_take_the_stronger_one():
    strong = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    sources = torch.cat([strong, torch.zeros_like(strong)], 1)
    shares = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)], 1)
    assert torch.allclose(siamese.pyramid_rule(sources, shares), strong[:, 0], atol=1e-5)


def test_small_regions_change_sides_unless_that_dims_them():
    def verified(values):
        chosen = np.zeros((1, 64, 64), np.uint8)
        chosen[0, 30:34, 30:34] = 1
        return sesf.verify(chosen, lambda window: values[(slice(None), *window)], 2)

    alike = np.full((2, 1, 64, 64), 0.3, np.float32)
    assert not verified(alike).any()
    bright = alike.copy()
    bright[1, :, 30:34, 30:34] = 0.9
    assert verified(bright).sum() == 16


@pytest.mark.parametrize("depth", [1, 21])
def test_regions_of_a_volume_are_verified_as_a_whole(depth):
    """A region may run through many slices: its size and what it would lose are those of all of it."""
    chosen = np.zeros((depth, 40, 40), np.uint8)
    chosen[:, 10, 10] = 1
    values = np.zeros((2, depth, 40, 40), np.float32)
    values[1, -1, 10, 10] = 0.9
    # A hundredth of a slice is 16 voxels. The mean loss is .9 / depth.
    kept = sesf.verify(chosen.copy(), lambda window: values[(slice(None), *window)], 2)
    assert kept.sum() == depth
    values[1] = 0
    changed = sesf.verify(chosen.copy(), lambda window: values[(slice(None), *window)], 2)
    assert changed.sum() == (depth if depth > 16 else 0)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(48, 48), (6, 32, 30)])
def test_sesf_of_three_sources_has_no_order(shape):
    fuser = registry.load("sesf", CPU)
    sources = torch.rand(3, *shape, generator=torch.Generator().manual_seed(8))
    # Equal values, as in the air, where no activity decides.
    sources[..., : shape[-1] // 3] = 0
    sources[:2, ..., -5:] = 0.4
    names = ("CT", "MR", "PT")
    fused, shares = fuser(sources[None], names)
    for order in itertools.permutations(range(3)):
        again, theirs = fuser(sources[list(order)][None], tuple(names[n] for n in order))
        torch.testing.assert_close(again, fused, atol=1e-6, rtol=0)
        torch.testing.assert_close(theirs, shares[:, list(order)], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_slabs_of_a_sesf_volume_leave_no_seam(monkeypatch):
    sources = torch.rand(1, 2, 30, 20, 24, generator=torch.Generator().manual_seed(9))
    fuser = registry.load("sesf", CPU)
    found = fuser(sources, ("CT", "MR"))
    monkeypatch.setattr(sesf, "ROWS", 30)
    for part, whole in zip(found, fuser(sources, ("CT", "MR")), strict=True):
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=0)


def test_the_guided_filter_keeps_a_constant_and_a_linear_image():
    guide = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(6))
    assert torch.allclose(sesf.guided(guide, torch.full_like(guide, 0.4)), torch.tensor(0.4), atol=1e-4)
    assert torch.allclose(sesf.guided(guide, 0.5 * guide, eps=1e-9), 0.5 * guide, atol=1e-3)


def test_the_networks_have_the_sizes_of_the_papers():
    def count(network):
        return sum(value.numel() for value in network.parameters())

    siamese_net = SiameseNet()
    assert siamese_net.judge.in_channels == 256
    assert count(siamese_net) * 4 < 5e6
    assert SESFNet().encode(torch.zeros(1, 1, 8, 8)).shape == (1, 64, 8, 8)
