"""The a trous and CNN hybrid: its transform, its blending, its geometry, and its figures on unseen subjects."""

from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import Volume
from MedFusionLib.fusion import driver, fuse, registry
from MedFusionLib.fusion.wavelet_cnn import blend_planes, split

torch = pytest.importorskip("torch")
ATLAS = Path(__file__).parents[3] / "shared" / "data" / "harvard"


@pytest.fixture(scope="module")
def fuser():
    return registry.load("wavelet_cnn", torch.device("cpu"))


def scene(count=2, shape=(48, 40), seed=0):
    """(1, count, *shape): smooth random images within a disc, black outside it."""
    noise = torch.rand((1, count, *shape), generator=torch.Generator().manual_seed(seed))
    grid = np.indices(shape) - np.reshape([n / 2 for n in shape], (-1, *[1] * len(shape)))
    disc = torch.from_numpy(np.sqrt((grid**2).sum(0)) < min(shape) / 2.5)
    return noise * disc


@torch.inference_mode()
@pytest.mark.parametrize(("count", "shape"), [(2, (48, 40)), (3, (48, 40)), (2, (9, 32, 30)), (3, (5, 24, 24))])
def test_every_voxel_lies_between_its_sources(fuser, count, shape):
    sources = scene(count, shape)
    fused, weights = fuser(sources, ("CT", "MR", "PT")[:count])
    assert fused.shape == (1, *shape) and weights is None
    assert (fused <= sources.amax(1)).all() and (fused >= sources.amin(1)).all()


@torch.inference_mode()
def test_planes_add_up_to_the_source():
    sources = scene(shape=(12, 20, 24))
    torch.testing.assert_close(split(sources).sum(2), sources)


@torch.inference_mode()
def test_order_of_sources_does_not_matter(fuser):
    sources = scene(3)
    turned = fuser(sources[:, [2, 0, 1]], ("PT", "CT", "MR"))[0]
    torch.testing.assert_close(turned, fuser(sources, ("CT", "MR", "PT"))[0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_equal_sources_come_back(fuser):
    one = scene(1)
    torch.testing.assert_close(fuser(one.expand(-1, 2, -1, -1), ("CT", "MR"))[0], one[:, 0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_halo_suffices_for_tiles(fuser):
    sources = scene(shape=(120, 100), seed=1)
    whole = fuser(sources, ("CT", "MR"))[0]
    low, high = 60 - fuser.halo, 70 + fuser.halo
    tile = fuser(sources[:, :, low:high], ("CT", "MR"))[0]
    torch.testing.assert_close(tile[:, fuser.halo : fuser.halo + 10], whole[:, 60:70], atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("depth", [2, 7, 31])
def test_a_volume_is_split_as_a_whole(fuser, depth):
    """Slice after slice it gets the planes that all slices together have."""
    sources = scene(2, (depth, 24, 20))
    planes = split(sources)
    expected = [blend_planes(fuser.network, sources[:, :, k], planes[:, :, :, k])[0] for k in range(depth)]
    torch.testing.assert_close(fuser(sources, ("CT", "MR"))[0], torch.stack(expected, 1), atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_driver_leaves_no_seam_between_tiles_with_their_halo(fuser, monkeypatch):
    class Tiled:
        """The method without its own way through volumes."""

        halo, fused = fuser.halo, 0

        def __call__(self, sources, modalities):
            Tiled.fused += 1
            return fuser(sources, modalities)

    pair = [
        Volume(one.numpy(), np.eye(4), name) for one, name in zip(scene(2, (100, 20, 24))[0], ("CT", "MR"), strict=True)
    ]
    whole = fuse(pair, "wavelet_cnn", device="cpu").volume.array
    monkeypatch.setattr(registry, "load", lambda name, device: Tiled())
    monkeypatch.setattr(driver, "BATCH_VOXELS", 90 * 20 * 24 // 4)
    np.testing.assert_allclose(fuse(pair, "wavelet_cnn", device="cpu").volume.array, whole, atol=2e-6)
    assert Tiled.fused > 1


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_beats_average_and_keeps_air_black_on_unseen_subjects(fuser):
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.score import score

    pairs = atlas.pairs(ATLAS, ("CT-MRI",), held_back=True)[::4]
    found = score("wavelet_cnn", None, pairs)["CT-MRI"]
    average = score("average", None, pairs)["CT-MRI"]
    assert found["Qabf"][0] > average["Qabf"][0] + 0.1
    assert found["SCD"][0] > average["SCD"][0] + 0.1
