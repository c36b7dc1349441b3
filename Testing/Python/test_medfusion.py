"""The default method: every value a traceable blend, no seams, symmetric, leaning, true to bone and uptake."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedFusionLib import phantom
from MedFusionLib.errors import GeometryError, MethodError, VolumeError
from MedFusionLib.fusion import driver, fuse, lean
from MedFusionLib.fusion.networks import medfusion_net as net
from MedFusionLib.fusion.networks import medfusion_tiles as tiles
from MedFusionLib.normalize import to_unit
from MedFusionLib.registration import register
from MedFusionLib.volume import Volume

CT, MR, PT = 0, 1, 2


@pytest.fixture(scope="module")
def head():
    """CT, MR and PET of the phantom on the CT's grid."""
    made = phantom.make(seed=3, spacing=2.5, rotation=0, translation=0)
    moved = [register(made.ct, moving, model="none").resample(moving) for moving in (made.mr, made.pet)]
    return made.ct, *moved


@pytest.fixture(scope="module")
def fused(head):
    return {mode: fuse(head, mode=mode, device="cpu") for mode in ("volume", "slice")}


def network(seed=0):
    torch.manual_seed(seed)
    return net.MedFusionNet().eval().requires_grad_(False)


@pytest.mark.parametrize("mode", ["volume", "slice"])
def test_every_voxel_is_its_weighted_sources(head, fused, mode):
    units = np.stack([to_unit(source) for source in head])
    shares = np.stack([share.array for share in fused[mode].weights])
    values = fused[mode].volume.array
    assert shares.min() >= 0
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose((shares * units).sum(0), values, atol=1e-5)
    assert (values <= units.max(0) + 1e-5).all()
    assert (values >= units.min(0) - 1e-5).all()


@pytest.mark.parametrize("mode", ["volume", "slice"])
def test_bone_is_solid_air_is_black_and_soft_tissue_follows_the_mri(head, mode):
    ct, mr, _ = head
    values = fuse([ct, mr], mode=mode, device="cpu").volume.array
    unit_ct, unit_mr = to_unit(ct), to_unit(mr)
    bone = unit_ct > 0.9
    assert bone.sum() > 1000
    assert (values[bone] >= 0.8 * unit_ct[bone]).mean() > 0.97
    assert values[np.maximum(unit_ct, unit_mr) < 0.02].max() < 0.02
    brain = (ct.array > 10) & (ct.array < 60) & (unit_mr > 0.1)
    assert np.corrcoef(values[brain], unit_mr[brain])[0, 1] > 0.9


def test_hot_spots_stay_hot(head):
    _, mr, pet = head
    values = fuse([pet, mr], device="cpu").volume.array
    unit = to_unit(pet)
    hot = unit > 0.8
    assert hot.sum() > 10
    assert values[hot].mean() > 0.95 * unit[hot].mean()


@pytest.mark.parametrize("shape", [(40, 50, 60), (70, 130, 101), (3, 120, 97), (1, 17, 5)])
def test_tiles_give_what_the_whole_volume_gives(shape):
    rng = np.random.default_rng(1)
    values = rng.random((2, *shape), np.float32)
    values[:, :, 10:30] *= 0.3
    modalities = torch.tensor([CT, MR])
    whole = net.fuse(network(), torch.from_numpy(values)[None], modalities)[0].numpy()
    parts, blended = np.full_like(values, np.nan), np.full_like(values[0], np.nan)

    def store(window, fused, weights):
        blended[window] = fused
        parts[(slice(None), *window)] = weights

    def read(window):
        return np.ascontiguousarray(values[(slice(None), *window)])

    tiles.fuse_volume(network(), read, shape, modalities, torch.device("cpu"), store)
    np.testing.assert_allclose(blended, (whole * values).sum(0), atol=1e-5)
    # Where the sources are equal any weights do, and rounding decides.
    differ = np.abs(values[0] - values[1]) > 0.02
    np.testing.assert_allclose(parts[:, differ], whole[:, differ], atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 48), (32, 16, 32)])
def test_order_and_mirroring_of_the_sources_do_not_matter(shape):
    sources = torch.rand(1, 3, *shape)
    modalities = torch.tensor([CT, MR, PT])
    found = net.fuse(network(), sources, modalities)
    order = [2, 0, 1]
    swapped = net.fuse(network(), sources[:, order], modalities[order])
    torch.testing.assert_close(swapped, found[:, order], atol=2e-4, rtol=0)
    mirrored = net.fuse(network(), sources.flip(-1), modalities)
    torch.testing.assert_close(mirrored.flip(-1), found, atol=2e-4, rtol=0)


def test_alike_modalities_are_told_apart_by_nothing():
    sources = torch.rand(1, 2, 32, 32)
    found = net.fuse(network(), sources, torch.tensor([MR, MR]))
    torch.testing.assert_close(
        net.fuse(network(), sources.flip(1), torch.tensor([MR, MR])), found.flip(1), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (2, 3, 1, 8), (1, 2, 4, 1, 6)])
def test_growing_is_linear_interpolation(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    followed = image.clone().requires_grad_()
    torch.testing.assert_close(net.grow(image), net.grow(followed).detach(), atol=1e-6, rtol=0)


def test_settle_reaches_what_is_wanted_or_the_end_of_the_range():
    sources = torch.tensor([0.2, 0.6, 0.5]).view(1, 3, 1).expand(1, 3, 4)
    start = torch.full((1, 3, 4), 1 / 3)
    wanted = torch.tensor([[0.1, 0.25, 0.55, 0.9]])
    weights = net.settle(sources, wanted, start)
    torch.testing.assert_close((weights * sources).sum(1), torch.tensor([[0.2, 0.25, 0.55, 0.6]]))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 4))
    same = torch.full((1, 2, 3), 0.4)
    weights = net.settle(same, torch.full((1, 3), 0.9), torch.full((1, 2, 3), 0.5))
    torch.testing.assert_close((weights * same).sum(1), torch.full((1, 3), 0.4))


@pytest.mark.parametrize("mode", ["volume", "slice"])
def test_does_not_flicker_through_plane(head, fused, mode):
    """Steps between slices are no larger than those of the source that changes most there."""
    steps = np.max([np.abs(np.diff(to_unit(source), axis=0)) for source in head], axis=0)
    assert np.abs(np.diff(fused[mode].volume.array, axis=0)).mean() <= 1.05 * steps.mean()


def test_small_and_thin_volumes():
    rng = np.random.default_rng(0)
    for shape in ((1, 5, 7), (2, 3, 4), (1, 1, 2), (5, 1, 3)):
        pair = [Volume(rng.random(shape, np.float32), np.eye(4), m, display_range=(0, 1)) for m in ("CT", "MR")]
        result = fuse(pair, device="cpu")
        assert result.volume.array.shape == shape
        assert np.isfinite(result.volume.array).all()


def test_slices_do_not_depend_on_their_batch(head, monkeypatch):
    pair = [Volume(one.array[30:40], one.affine, one.modality, one.units, "", (0, 100)) for one in head[:2]]
    together = fuse(pair, mode="slice", device="cpu").volume.array
    monkeypatch.setattr(driver, "BATCH_VOXELS", 1)
    np.testing.assert_allclose(fuse(pair, mode="slice", device="cpu").volume.array, together, atol=1e-6)


def test_leaning(head, fused):
    fusion = fused["volume"]
    same = lean(fusion, head, 1, 0)
    np.testing.assert_allclose(same.volume.array, fusion.volume.array, atol=1e-5)
    full = lean(fusion, head, 1, 1)
    # Beyond the MRI's field of view the brightest of the others goes on.
    shown = [np.where(source.view if source.view is not None else True, to_unit(source), 0) for source in head]
    mr = np.where(head[1].view, shown[1], np.maximum(shown[0], shown[2]))
    np.testing.assert_allclose(full.volume.array, mr, atol=1e-5)
    half = lean(fusion, head, 1, 0.5)
    np.testing.assert_allclose(half.volume.array, (fusion.volume.array + mr) / 2, atol=1e-5)
    np.testing.assert_allclose(sum(share.array for share in half.weights), 1, atol=1e-5)
    assert half.volume.attributes["MedFusion.Lean"] == "0.5 towards source 2"
    twice = lean(half, head, 0, 0.25)
    for told in (twice.volume, *twice.weights):
        assert told.attributes["MedFusion.Lean"] == "0.5 towards source 2, then 0.25 towards source 1"


def test_leaning_refuses_what_makes_no_sense(head, fused):
    fusion = fused["volume"]
    with pytest.raises(MethodError, match="amount"):
        lean(fusion, head, 0, 1.5)
    with pytest.raises(MethodError, match="no source 3"):
        lean(fusion, head, 3, 0.5)
    with pytest.raises(MethodError, match="no source MR"):
        lean(fusion, head, "MR", 0.5)
    with pytest.raises(VolumeError, match="a NoneType is no Volume"):
        lean(fusion, [*head[:-1], None], 0, 0.5)
    with pytest.raises(VolumeError, match="one Volume, not a list"):
        lean(fusion, head[0], 0, 0.5)
    with pytest.raises(GeometryError, match="own sources"):
        lean(fusion, head[:2], 0, 0.5)
    elsewhere = replace(head[0], affine=head[0].affine @ np.diag([1, 1, 1.1, 1]))
    with pytest.raises(GeometryError, match="own sources"):
        lean(fusion, [elsewhere, *head[1:]], 0, 0.5)
    with pytest.raises(MethodError, match="weight maps"):
        lean(driver.Fusion(fusion.volume, None), head, 0, 0.5)


def test_leaning_refuses_sources_in_another_order(head, fused):
    fusion = fused["volume"]
    ct, mr, pt = head
    with pytest.raises(VolumeError, match="is not source 1 of this fusion"):
        lean(fusion, [mr, ct, pt], 0, 0.5)
    with pytest.raises(VolumeError, match="is not source 2 of this fusion"):
        lean(fusion, [ct, mr.with_array(mr.array, display_range=(0, 10)), pt], 0, 0.5)
    again = lean(lean(fusion, head, 1, 0.5), head, 0, 0.5)
    assert again.volume.attributes["MedFusion.Source1"] == fusion.volume.attributes["MedFusion.Source1"]
