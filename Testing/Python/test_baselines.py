"""Fusion without training: known answers, and what holds for every method."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from MedFusionLib import Volume
from MedFusionLib import fuse as fuse_volumes
from MedFusionLib.fusion import multiscale, registry
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


def plainly(name, sources):
    """The multi-scale methods written as their papers have them, all of it at once. (B, S, *spatial) tensors."""
    if name == "laplacian":
        bands = []
        for _ in range(4):
            low = smooth(sources)
            for axis in multiscale.spatial(low):
                low = low.index_select(axis, torch.arange(0, low.shape[axis], 2))
            bands.append(strongest(sources - expanded(low, sources.shape)))
            sources = low
        fused = sources.mean(1, keepdim=True)
        for band in reversed(bands):
            fused = expanded(fused, band.shape) + band
        return fused[:, 0].clamp(0, 1)
    if name == "wavelet":
        fused = 0
        for plane in range(3):
            low = smooth(sources, 2**plane)
            fused, sources = fused + strongest(sources - low), low
        return (fused[:, 0] + sources.mean(1)).clamp(0, 1)
    edges = sum(multiscale.filtered(sources, (1, -2, 1), axis) for axis in multiscale.spatial(sources))
    taps = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / 50)
    saliency = smooth(edges.abs(), taps=(taps / taps.sum()).tolist())
    chosen = torch.zeros_like(sources).scatter_(1, saliency.argmax(1, keepdim=True), 1)
    low = mean(sources, 15)
    return sum(
        (filtered_choice(sources, chosen, *filter) * layer).sum(1)
        for filter, layer in (((20, 0.3), low), ((7, 1e-6), sources - low))
    ).clamp(0, 1)


def strongest(bands):
    return bands.gather(1, bands.abs().argmax(1, keepdim=True))


def expanded(image, shape):
    for axis in multiscale.spatial(torch.empty(shape)):
        at = torch.arange(shape[axis])
        beside = ((at + 1) // 2).clamp(max=image.shape[axis] - 1)
        image = (image.index_select(axis, at // 2) + image.index_select(axis, beside)) / 2
    return image


def mean(image, radius):
    for axis in multiscale.spatial(image):
        lines = image.movedim(axis, -1)
        flat = torch.nn.functional.avg_pool1d(
            lines.reshape(-1, 1, lines.shape[-1]), 2 * radius + 1, 1, radius, count_include_pad=False
        )
        image = flat.view(lines.shape).movedim(-1, axis)
    return image


def filtered_choice(guide, chosen, radius, regularisation):
    m, c = mean(guide, radius), mean(chosen, radius)
    slope = (mean(guide * chosen, radius) - m * c) / ((mean(guide**2, radius) - m**2).clamp(0) + regularisation)
    weights = (mean(slope, radius) * guide + mean(c - slope * m, radius)).clamp(0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 1e-6, weights / total, 1 / weights.shape[1])


def scene(kind, shape, count):
    images = np.stack(textures(shape, count))
    if kind == "noise":
        images = np.random.default_rng(3).random((count, *shape))
    if kind == "flat":
        # Nearly constant regions: there a guided filter divides by next to nothing.
        images = np.round(3 * images) / 3 * 0.99 + 1e-4 * np.random.default_rng(3).random((count, *shape))
    return images.astype(np.float32)


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("kind", ("textures", "noise", "flat"))
@pytest.mark.parametrize("shape", ((90, 61), (31, 70, 52), (1, 33), (2, 3, 5)))
def test_working_in_place_part_by_part_changes_nothing(name, kind, shape, monkeypatch):
    monkeypatch.setattr(multiscale, "PART", 1500)
    for count in (2, 3):
        images = scene(kind, shape, count)
        found = fuse(name, *images)[0]
        np.testing.assert_allclose(found, plainly(name, torch.from_numpy(images)[None])[0], atol=1e-6)
        np.testing.assert_array_equal(images, scene(kind, shape, count), "the sources stay as they are")


@pytest.mark.parametrize("name", ("wavelet", "guided"))
def test_slabs_of_a_volume_leave_no_seam(name, monkeypatch):
    monkeypatch.setattr(multiscale, "PART", 3000)
    images = scene("flat", (34, 150, 40), 2)
    first, second = (Volume(image, np.eye(4), "MR", display_range=(0, 1)) for image in images)
    said = []
    fusion = fuse_volumes([first, second], name, device="cpu", progress=lambda fraction, _: said.append(fraction))
    found = fusion.volume.array
    assert len(said) > 2
    np.testing.assert_allclose(found, plainly(name, torch.from_numpy(images)[None])[0], atol=2e-6)


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
