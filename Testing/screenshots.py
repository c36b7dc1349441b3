"""Take the README's pictures of the panel: the demo's phantom chosen, and its result, in the harness.

python Testing/screenshots.py
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "Resources" / "Screenshots"

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [str(ROOT / "Testing" / "Python"), str(ROOT)]

from panel import choose, dock, load_module, open_panel, photograph, wait  # noqa: E402


def main():
    module = load_module()
    from MedFusionLib import mrml, phantom

    made = phantom.make(seed=0)
    nodes = [mrml.add_volume(volume) for volume in (made.ct, made.mr, made.pet)]
    panel = open_panel(module)
    area = dock(panel)
    choose(panel, nodes)
    panel._parameterNode.lut = "PET-HotMetalBlue"
    photograph(panel.parent, "panel-chosen", PICTURES)
    panel.ui.applyButton.click()
    wait(lambda: panel.ui.progressBar.value > 150 or panel._run is None)
    photograph(panel.parent, "panel-running", PICTURES)
    wait(lambda: panel._run is None, 600)
    photograph(panel.parent, "panel-done", PICTURES)
    panel.cleanup()
    area.close()


if __name__ == "__main__":
    main()
