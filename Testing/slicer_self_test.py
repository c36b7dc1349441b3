"""Runs the module's self-test inside a real Slicer and writes "passed" or "failed" to a file.

MEDFUSION_VERDICT=FILE Slicer --testing --no-main-window --additional-module-paths MedFusion \\
    --python-script Testing/slicer_self_test.py
"""

import os
import traceback
import unittest
from pathlib import Path

import slicer


def main(verdict):
    verdict.write_text("failed\n")  # stands if Slicer goes down on the way
    try:
        from MedFusion import MedFusionTest

        suite = unittest.TestLoader().loadTestsFromTestCase(MedFusionTest)
        passed = suite.countTestCases() > 0 and unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful()
    except Exception:
        traceback.print_exc()
        passed = False
    verdict.write_text("passed\n" if passed else "failed\n")
    slicer.util.exit(0 if passed else 1)


main(Path(os.environ["MEDFUSION_VERDICT"]))
