"""Fusion without training: known answers, and what holds for every method."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from MedFusionLib.fusion import registry
from MedFusionLib.fusion.multiscale import Laplacian, box, smooth

NAMES = ("average", "maximum", "weighted", "pca", "laplacian", "wavelet", "guided")
BANDS = ("laplacian", "wavelet", "guided")


def fuse(name, *images):
    """Fuse arrays (H, W) or (D, H, W); returns (fused, weights) as arrays."""
    stack = torch.from_numpy(np.stack(images).astype(np.float32))
    fuser = registry.load(name, torch.device("cpu"))
    with torch.inference_mode():
        if hasattr(fuser, "prepare"):
            fuser.prepare(stack if stack.ndim == 4 else stack[:, None], ("MR",) * len(stack))
        fused, weights = fuser(stack[None], ("MR",) * len(stack))
    return fused[0].numpy(), None if weights is None else weights[0].numpy()


def textures(shape, count=2, seed=0):
    random = np.random.default_rng(seed)
    images = [ndimage.gaussian_filter(random.normal(size=shape), 1.2 + n) for n in range(count)]
    return [(x - x.min()) / np.ptp(x) for x in images]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", ((48, 40), (24, 30, 26), (1, 48, 40), (33, 1), (1, 1), (1, 1, 1), (2, 3, 5)))
@pytest.mark.parametrize("count", (2, 3))
def test_shapes_and_range(name, shape, count):
    images = [image.clip(0, 1) for image in np.random.default_rng(0).random((count, *shape))]
    fused, weights = fuse(name, *images)
    assert fused.shape == shape
    assert fused.dtype == np.float32
    assert fused.min() >= 0
    assert fused.max() <= 1
    if weights is None:
        assert name in BANDS
        return
    assert weights.shape == (count, *shape)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose((weights * images).sum(0), fused, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_stays_what_it_is(name):
    image = textures((24, 40, 36))[0]
    np.testing.assert_allclose(fuse(name, image, image)[0], image, atol=1e-5)
    np.testing.assert_allclose(fuse(name, image[0], image[0])[0], image[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_does_not_matter(name):
    a, b = textures((40, 44))
    np.testing.assert_allclose(fuse(name, a, b)[0], fuse(name, b, a)[0], atol=1e-5)


def test_known_weights():
    a, b = textures((16, 20, 24))
    weights = fuse("weighted", a, b)[1][:, 0, 0, 0]
    np.testing.assert_allclose(weights, np.array([a.std(), b.std()]) / (a.std() + b.std()), rtol=1e-5)
    first = np.abs(np.linalg.eigh(np.cov(a.ravel(), b.ravel()))[1][:, -1])
    np.testing.assert_allclose(fuse("pca", a, b)[1][:, 0, 0, 0], first / first.sum(), rtol=1e-4)


@pytest.mark.parametrize("name", BANDS)
def test_detail_comes_from_the_source_that_has_it(name):
    """One source sharp on the left, the other on the right: the fusion is sharp on both sides."""
    sharp = textures((96, 96), seed=5)[0]
    blurred = ndimage.gaussian_filter(sharp, 3)
    left, right = sharp.copy(), sharp.copy()
    left[:, 48:], right[:, :48] = blurred[:, 48:], blurred[:, :48]
    fused = fuse(name, left, right)[0]
    inside = np.ones_like(sharp, bool)
    inside[:, 36:60] = False

    def error(image):
        return np.sqrt(((image - sharp)[inside] ** 2).mean())

    assert error(fused) < 0.25 * error((left + right) / 2)


@pytest.mark.parametrize("name", BANDS)
def test_black_stays_black(name):
    a, b = (np.zeros((128, 128)) for _ in range(2))
    a[40:88, 40:88], b[44:84, 44:84] = textures((48, 48))[0], textures((40, 40))[0]
    fused = fuse(name, a, b)[0]
    assert np.abs(fused[:4]).max() < 1e-3


def test_slices_of_a_thin_volume_are_images():
    """A single slice gives the same as the image, so modes agree where both are possible."""
    a, b = textures((40, 44))
    for name in NAMES:
        np.testing.assert_allclose(fuse(name, a[None], b[None])[0][0], fuse(name, a, b)[0], atol=1e-5)


def test_box_is_a_mean_of_the_voxels_there_are():
    image = np.random.default_rng(1).random((9, 11)).astype(np.float32)
    truth = [[image[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].mean() for x in range(11)] for y in range(9)]
    np.testing.assert_allclose(box(torch.from_numpy(image)[None, None], 3)[0, 0], truth, rtol=1e-5)


def test_smooth_is_scipys():
    image = np.random.default_rng(1).random((9, 11, 7)).astype(np.float32)
    truth = image
    for axis in range(3):
        truth = ndimage.correlate1d(truth, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="nearest")
    np.testing.assert_allclose(smooth(torch.from_numpy(image)[None, None])[0, 0], truth, atol=1e-6)


@pytest.mark.parametrize("shape", ((17, 16), (33, 20, 9), (5, 4)))
def test_pyramid_interpolates_a_ramp(shape):
    ramp = torch.arange(shape[0], dtype=torch.float32).view(-1, *[1] * (len(shape) - 1)).expand(shape)[None, None]
    up = Laplacian._expand(ramp[:, :, ::2][(..., *[slice(None, None, 2)] * (len(shape) - 1))], ramp.shape)
    np.testing.assert_allclose(up[:, :, : shape[0] - 1], ramp[:, :, : shape[0] - 1])
