"""The registration benchmark's table says what was measured, and judges by it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))
from registration_arms import Arm, Bar
from registration_report import by_tool, figures, judged, table


def record(tool, seed, error, seconds=1.0, megabytes=10.0, **more):
    found = {"error": error, "seconds": seconds, "cpu_seconds": seconds, "megabytes": megabytes} if error else {}
    return {"arm": "a", "case": "c", "seed": seed, "tool": tool, "threads": 1, **found, **more}


def arm(*bars):
    return Arm("a", "an arm", "rigid", None, 1, 3, bars)


RECORDS = [record("MedFusion", n, 0.1 * n + 0.1, 0.4, 50) for n in range(3)]
RECORDS += [record("elastix", n, 0.3, 1.0, 60) for n in range(3)]
RECORDS += [record("ANTs", n, 1.5, 0.6, 40) for n in range(3)]


def test_figures():
    found = figures([r for r in RECORDS if r["tool"] == "MedFusion"])
    assert found["mean"] == pytest.approx(0.2) and found["worst"] == pytest.approx(0.3)
    assert found["p95"] == pytest.approx(0.29) and found["seconds"] == 0.4 and found["megabytes"] == 50


def test_only_cases_that_every_tool_has_had_are_compared():
    tools = by_tool(arm(), [*RECORDS, record("MedFusion", 9, 30.0)])
    assert tools["MedFusion"]["worst"] < 1 and tools["MedFusion"]["count"] == 3


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (Bar("mean", 1.0, "best"), True),
        (Bar("mean", 0.5, "best"), False),
        (Bar("worst", 0.25), False),
        # ANTs is faster but beyond 1 mm: elastix is the fastest that is right.
        (Bar("seconds", 0.4, "fastest"), True),
        (Bar("seconds", 0.39, "fastest"), False),
        (Bar("megabytes", 1.0, "elastix"), True),
        (Bar("megabytes", 1.0, "best"), False),
    ],
)
def test_bars(bar, met):
    assert judged(arm(), bar, by_tool(arm(), RECORDS)).endswith("| yes |" if met else "| NO |")


def test_a_lost_case_meets_no_bar():
    records = [r for r in RECORDS if (r["tool"], r["seed"]) != ("MedFusion", 2)]
    records.append(record("MedFusion", 2, None, problem="gave up"))
    assert judged(arm(), Bar("mean", 1.0, "best"), by_tool(arm(), records)).endswith("| NO |")
    assert "2 (1 lost)" in table([arm()], records)
