"""A volume is fused in at most three times the memory of its sources, however these lie in memory."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

from fusion_memory import peak

from MedFusionLib import Volume, fuse


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak memory")
@pytest.mark.parametrize(
    ("method", "part"),
    [(m, False) for m in ("medfusion", "wavelet_cnn", "rbm", "laplacian", "wavelet", "guided")] + [("selector", True)],
)
def test_memory_of_a_volume(method, part):
    """The result is a part of it: half of the two sources, and as much as both where there are weight maps."""
    assert 0.5 < peak(method, (560, 128, 128), part=part)[0] <= 3


@pytest.mark.parametrize("mode", ("volume", "slice"))
@pytest.mark.parametrize("method", ("siamese", "wavelet_cnn", "feature_attention"))
def test_the_layout_of_the_arrays_does_not_matter(method, mode):
    arrays = np.random.default_rng(0).random((2, 5, 29, 33), dtype=np.float32)

    def fused(layout):
        pair = [
            Volume(layout(a), np.eye(4), m, display_range=(0, 1)) for a, m in zip(arrays, ("CT", "MR"), strict=True)
        ]
        return fuse(pair, method, mode, device="cpu").volume.array

    expected = fused(np.ascontiguousarray)
    np.testing.assert_array_equal(fused(np.asfortranarray), expected)
    np.testing.assert_array_equal(fused(lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1]), expected)
