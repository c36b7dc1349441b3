"""The harness against cases recorded in genuine Slicer: what PythonQt and the parameter node wrapper do."""

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer_core", reason="slicer-core is not installed")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import Harness

FACTS = Path(__file__).resolve().parents[3] / "shared" / "slicer"


def _cases(name):
    file = FACTS / name
    if not file.is_file():
        return [], ""
    facts = json.loads(file.read_text())
    return facts["cases"], facts.get("preamble", "")


def _run(case, preamble):
    Harness.start()
    Harness.new_scene()  # other tests have scenes of their own
    import ctk
    import qt
    import slicer

    scope = {"qt": qt, "ctk": ctk, "slicer": slicer}
    exec(preamble, scope)
    exec(case["setup"], scope)
    if "raises" in case:
        with pytest.raises(Exception) as caught:
            eval(case["expression"], scope)
        assert type(caught.value).__name__ == case["raises"]
    else:
        assert repr(eval(case["expression"], scope)) == case["value"]


def _name(case):
    return f"{case['setup'][-40:]}|{case['expression'][:40]}"


@pytest.mark.panel
@pytest.mark.skipif(not FACTS.is_dir(), reason="the recorded cases are not beside the checkout")
@pytest.mark.parametrize("case", _cases("pythonqt-facts.json")[0], ids=_name)
def test_pythonqt(case):
    _run(case, "")


@pytest.mark.panel
@pytest.mark.skipif(not FACTS.is_dir(), reason="the recorded cases are not beside the checkout")
@pytest.mark.parametrize("case", _cases("parameter-node-facts.json")[0], ids=_name)
def test_parameter_node(case):
    _run(case, _cases("parameter-node-facts.json")[1])
