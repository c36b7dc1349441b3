"""Scans as large as the clinic's: what their many voxels are worth."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

from registration_cases import full_size_case

import MedFusionLib as mf


def test_full_size_scans_are_registered_to_a_hundredth_of_a_voxel():
    case = full_size_case(seed=30)
    found = mf.register(case.fixed, case.moving, device="cpu")
    assert found.quality.verdict == "good"
    # The noise of as many points as small scans get is .02 mm.
    assert case.errors(np.linalg.inv(found.matrix))["error"] < 0.012
