"""FW-Net and feature extraction: weight maps, geometry, what their losses measure, and figures on unseen subjects."""

from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import Volume
from MedFusionLib.fusion import fuse, registry
from MedFusionLib.metrics.failures import scalp_halo, skull_failures, uptake_failures

torch = pytest.importorskip("torch")
ATLAS = Path(__file__).parents[3] / "shared" / "data" / "harvard"
METHODS = ("fwnet", "feature_concatenation", "feature_attention")


@pytest.fixture(params=METHODS, scope="module")
def method(request):
    return request.param


@pytest.fixture(scope="module")
def fuser(method):
    return registry.load(method, torch.device("cpu"))


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def head(size=128):
    """(ct, mr, pet), 0..1: a white skull that MRI does not show; textured brain in MRI; one hot spot in PET."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(x, y) / size
    brain = radius <= 0.33
    ct = np.where((radius > 0.33) & (radius < 0.4), 0.98, np.where(brain, 0.2, 0))
    mr = np.where(brain, 0.45 + 0.2 * np.sin(x / 2) * np.cos(y / 3), np.where(radius < 0.42, 0.05, 0))
    pet = np.where(brain, 0.25, 0) + 0.7 * (np.hypot(x - 15, y) < 9)
    return torch.tensor(np.stack([ct, mr, pet]), dtype=torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize(("count", "shape"), [(2, (48, 40)), (3, (33, 50)), (2, (1, 1)), (2, (1, 30)), (3, (5, 9))])
def test_every_pixel_is_the_weighted_mean_of_its_sources(fuser, count, shape):
    sources = noise(2, count, *shape)
    fused, shares = fuser(sources, ("CT", "MR", "PT")[:count])
    assert fused.shape == (2, *shape) and shares.shape == (2, count, *shape)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(2, *shape))
    torch.testing.assert_close(fused, (shares * sources).sum(1))
    assert (fused <= sources.amax(1)).all() and (fused >= sources.amin(1)).all()


@torch.inference_mode()
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_the_order_of_the_sources_does_not_matter(fuser, order):
    sources, names = head()[None], ("CT", "MR", "PT")
    fused, shares = fuser(sources, names)
    turned, turned_shares = fuser(sources[:, order], [names[n] for n in order])
    torch.testing.assert_close(turned, fused, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned_shares, shares[:, order], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("names", [("US", "OT"), ("MR", "MR"), ("CT", "US")])
def test_any_modality_fuses_and_two_of_a_kind_are_treated_alike(fuser, names):
    first, second = head()[:2]
    fused, _ = fuser(torch.stack([first, second])[None], names)
    assert torch.isfinite(fused).all()
    if names[0] == names[1]:
        torch.testing.assert_close(fuser(torch.stack([second, first])[None], names)[0], fused, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_slices_of_a_batch_do_not_touch_each_other(fuser):
    sources = noise(3, 2, 40, 40)
    fused, _ = fuser(sources, ("PT", "MR"))
    torch.testing.assert_close(fuser(sources[1:2], ("PT", "MR"))[0], fused[1:2])


def pair(stack, affine=None):
    """CT and MR `Volume`s of (2, K, J, I), displayed as they are."""
    affine = np.diag([1.0, 1, 3, 1]) if affine is None else affine
    return [Volume(a, affine, m, display_range=(0, 1)) for a, m in zip(stack, ("CT", "MR"), strict=True)]


def test_slices_of_a_volume_are_fused_by_one_mapping(method):
    stack = noise(2, 4, 24, 20).numpy() * np.array([0.4, 1, 0.7, 0.1], np.float32)[:, None, None]
    whole = fuse(pair(stack), method, "slice", "axial", "cpu").volume.array
    one = fuse(pair(stack[:, 1:2]), method, "slice", "axial", "cpu").volume.array
    np.testing.assert_allclose(whole[1:2], one, atol=1e-6)


@torch.inference_mode()
def test_a_volume_slice_after_slice_is_what_the_network_makes_of_all_at_once(method, fuser):
    stack = noise(2, 5, 24, 20)
    found = fuse(pair(stack.numpy()), method, device="cpu")
    kinds = torch.tensor([[0, 1]]).expand(5, -1)
    shares = fuser.network.stack(stack.transpose(0, 1), kinds).transpose(0, 1)
    for mine, expected in zip(found.weights, shares, strict=True):
        np.testing.assert_allclose(mine.array, expected, atol=1e-5)
    np.testing.assert_allclose(found.volume.array, (shares * stack).sum(0), atol=1e-5)
    torch.testing.assert_close(fuser(stack[None], ("CT", "MR"))[1][0], shares, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_slice_of_a_volume_sees_its_neighbours_and_no_more(fuser):
    stack = noise(7, 2, 24, 20, seed=2)
    changed = stack.clone()
    changed[3] = noise(2, 24, 20, seed=9)
    kinds = torch.tensor([[2, 1]]).expand(7, -1)
    moved = (fuser.network.stack(stack, kinds) - fuser.network.stack(changed, kinds)).abs().amax((1, 2, 3))
    assert (moved[2:5] > 1e-4).all()
    assert (moved[[0, 1, 5, 6]] < 1e-6).all()


def test_a_volume_upside_down_gives_the_same_upside_down(method):
    stack = noise(2, 6, 24, 20).numpy()
    up = fuse(pair(stack), method, device="cpu").volume.array
    np.testing.assert_allclose(fuse(pair(stack[:, ::-1]), method, device="cpu").volume.array[::-1], up, atol=1e-5)


@pytest.mark.parametrize("place", [1, 2])
def test_a_volume_goes_through_its_axial_slices_however_it_was_scanned(method, place):
    stack = noise(2, 5, 24, 20).numpy()
    axial = fuse(pair(stack), method, device="cpu")
    # Array axes are (K, J, I), the affine's columns I, J, K.
    columns = [0, 1]
    columns.insert(2 - place, 2)
    affine = np.diag([1.0, 1, 3, 1])[:, [*columns, 3]]
    found = fuse(pair(np.moveaxis(stack, 1, place + 1), affine), method, device="cpu")
    np.testing.assert_allclose(np.moveaxis(found.volume.array, place, 0), axial.volume.array, atol=1e-6)
    for mine, expected in zip(found.weights, axial.weights, strict=True):
        np.testing.assert_allclose(np.moveaxis(mine.array, place, 0), expected.array, atol=1e-6)


def test_untrained_layers_across_slices_change_nothing():
    from MedFusionLib.fusion.networks.feature_net import FeatureNet
    from MedFusionLib.fusion.networks.fwnet_net import FWNet

    for network in (FWNet(), FeatureNet("attention")):
        stack, kinds = noise(4, 2, 16, 16), torch.tensor([[0, 1]]).expand(4, -1)
        torch.testing.assert_close(network.stack(stack, kinds), network(stack, kinds))


@torch.inference_mode()
def test_the_skull_stays_solid_the_air_black_and_the_soft_tissue_true(fuser):
    sources = head()[:2]
    fused, _ = fuser(sources[None], ("CT", "MR"))
    ct, mr, result = (255 * image.numpy() for image in (*sources, fused[0]))
    found = skull_failures(ct, mr, result)
    assert found["bone_level"] > 0.9 and found["bone_fill"] > 0.9 and found["bone_lost"] == 0
    assert scalp_halo(ct, mr, result) == 0
    inside = mr > 60
    assert np.corrcoef(result[inside], mr[inside])[0, 1] > 0.8


@torch.inference_mode()
def test_the_hot_spot_stays_hot_without_dark_blotches(fuser):
    sources = head()[[2, 1]]
    fused, _ = fuser(sources[None], ("PT", "MR"))
    found = uptake_failures(*(255 * image.numpy() for image in (*sources, fused[0])))
    assert found["hot_contrast"] > 0.6
    assert found["blotches"] == 0


def test_the_reading_loss_tells_what_a_reader_would_miss():
    from MedFusionLib.fusion.networks.pairwise import kinds_of
    from MedFusionLib.fusion.training.pairs import reading_loss

    ct, mr, pet = head()
    kinds = torch.tensor([kinds_of(("CT", "MR"))])
    sources = torch.stack([ct, mr])[None]
    good = torch.where(ct > 0.9, ct, mr)[None, None]
    dimmed = torch.where(ct > 0.9, 0.5 * ct, mr)[None, None]
    assert reading_loss(sources, kinds, good).item() == pytest.approx(0)
    assert reading_loss(sources, kinds, dimmed).item() == pytest.approx(0.49, abs=1e-3)
    assert reading_loss(sources, kinds, torch.where(ct > 0.9, ct, 1 - mr)[None, None]).item() > 0.85
    assert reading_loss(sources, torch.full_like(kinds, 3), dimmed).item() == 0
    warm = torch.stack([pet, mr])[None], torch.tensor([kinds_of(("PT", "MR"))])
    assert reading_loss(*warm, torch.maximum(pet, mr)[None, None]).item() == pytest.approx(0)
    assert reading_loss(*warm, mr[None, None]).item() > 0.3


def test_the_decoding_loss_trains_both_u_nets_and_wants_each_source_in_its_place():
    from MedFusionLib.fusion.networks.fwnet_net import FWNet
    from MedFusionLib.fusion.networks.pairwise import OTHER
    from MedFusionLib.fusion.training.fwnet import decoding_loss
    from MedFusionLib.fusion.weighing import weighted

    torch.manual_seed(0)
    network, sources, kinds = FWNet(), noise(1, 2, 32, 32), torch.tensor([[1, 2]])
    fused = weighted(sources, network(sources, kinds))[:, None]
    decoding_loss(network, sources, kinds, fused).backward()
    for part in (network.left, network.right):
        assert all(torch.isfinite(value.grad).all() for value in part.parameters())
        assert any(value.grad.abs().max() > 0 for value in part.parameters())
    network.decode = lambda fused: torch.cat([torch.zeros_like(fused), sources], 1)
    assert decoding_loss(network, sources, kinds, fused.detach()).item() == pytest.approx(0, abs=1e-5)
    assert decoding_loss(network, sources, kinds.flip(1), fused.detach()).item() > 0.3
    assert decoding_loss(network, sources, torch.full_like(kinds, OTHER), fused.detach()).item() == 0


def features(*kinds, width=12):
    """(1, S, width, 6, 5) features of 0 or more, and kinds (1, S)."""
    return noise(1, len(kinds), width, 6, 5), torch.tensor([kinds])


def test_concatenation_puts_each_kind_at_its_place():
    from MedFusionLib.fusion.networks.feature_net import Concatenation

    found, kinds = features(1, 0, 1)
    side_by_side, channels = Concatenation(12)(found, kinds)
    assert channels.tolist() == list(range(24)), "the two kinds that there are"
    torch.testing.assert_close(side_by_side[0, :12], found[0, 1])
    torch.testing.assert_close(side_by_side[0, 12:], torch.maximum(found[0, 0], found[0, 2]))
    assert Concatenation(12)(*features(3, 1))[1].tolist() == [*range(12, 24), *range(36, 48)]


@torch.inference_mode()
def test_attention_follows_its_scores():
    from MedFusionLib.fusion.networks.feature_net import Attention

    found, kinds = features(0, 1, 2)
    attention = Attention(12)
    attention.score.weight.zero_()
    attention.score.bias.zero_()
    torch.testing.assert_close(attention(found, kinds)[0], found.mean(1))
    for n in range(12):
        attention.score.weight[n, n, 1, 1] = 1e4
    torch.testing.assert_close(attention(found, kinds)[0], found.amax(1), atol=1e-3, rtol=0)


def test_a_branch_sees_its_own_kind_alone():
    from MedFusionLib.fusion.networks.feature_net import FeatureNet

    torch.manual_seed(0)
    network, images, kinds = FeatureNet("attention"), noise(2, 2, 16, 16), torch.tensor([[0, 1], [1, 3]])
    scales = network.extract(images, kinds)
    for n, kind in ((0, 1), (1, 0)):
        alone = network.branches[1](images[n, kind][None, None])
        for one, scale in zip(alone, scales, strict=True):
            torch.testing.assert_close(scale[n, kind], one[0])
    assert [tuple(scale.shape[3:]) for scale in scales] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    scales[0][:, 1].sum().backward()
    assert network.branches[2].scales[0][0].conv.weight.grad is None


@torch.inference_mode()
@pytest.mark.parametrize("rule", ["concatenation", "attention"])
def test_pet_leads_where_it_is_hot_and_mri_where_anatomy_is_fine(rule):
    sources = head()[[2, 1]]
    share = registry.load(f"feature_{rule}", torch.device("cpu"))(sources[None], ("PT", "MR"))[1][0, 0]
    hot, brain = sources[0] > 0.8, (sources[1] > 0.3) & (sources[0] < 0.3)
    assert share[hot].mean() > 0.7
    assert share[brain].mean() < 0.3


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_beats_average_without_failures_on_unseen_subjects(method):
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.score import score

    pairs = atlas.pairs(ATLAS, ("CT-MRI",), held_back=True)[::4]
    lost = []

    def keep(pair, fused):
        images = [255 * image for image in (*pair.images, fused)]
        lost.append((skull_failures(*images)["bone_lost"], scalp_halo(*images)))

    found, average = (
        score(name, None, pairs, keep if name == method else None)["CT-MRI"] for name in (method, "average")
    )
    assert found["Qabf"][0] > average["Qabf"][0] + 0.1
    assert found["SCD"][0] > max(average["SCD"][0] + 0.1, 1.205)
    assert found["bone_solid"][0] > 0.95
    assert found["background"][0] < 0.1
    bone_lost, halo = np.nanmean(lost, 0)
    assert bone_lost < 0.01 and halo < 1
