"""How long the panel's event loop stands still while a job runs: a timer beats every 10 ms and notes its gaps.

python Testing/Benchmarks/panel_responsiveness.py
"""

import os
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [str(ROOT / "Testing" / "Python"), str(ROOT)]

from panel import choose, load_module, open_panel, wait  # noqa: E402


def main():
    module = load_module()
    import qt

    from MedFusionLib import mrml, phantom

    made = phantom.make(seed=0)
    nodes = [mrml.add_volume(volume) for volume in (made.ct, made.mr, made.pet)]
    began = time.perf_counter()
    panel = open_panel(module)
    print(f"panel opened in {1000 * (time.perf_counter() - began):.0f} ms; torch loaded: {'torch' in sys.modules}")
    choose(panel, nodes)
    beats = []
    timer = qt.QTimer()
    timer.interval = 10
    timer.connect("timeout()", lambda: beats.append(time.perf_counter()))
    timer.start()
    wait(lambda: len(beats) > 10)
    arrived = []
    finish = panel._finish
    panel._finish = lambda run: (arrived.append(time.perf_counter()), finish(run), arrived.append(time.perf_counter()))
    began = time.perf_counter()
    panel.ui.applyButton.click()
    clicked = time.perf_counter()
    wait(lambda: panel._run is None, 600)
    during = [beat for beat in beats if began <= beat <= arrived[0]]
    gaps = [1000 * (after - before) for before, after in pairwise(during)]
    print(f"click on Apply: {1000 * (clicked - began):.0f} ms")
    print(f"while the job ran ({arrived[0] - clicked:.1f} s): longest gap {max(gaps):.0f} ms, of {len(gaps)} beats")
    print(f"adding the result to the scene: {1000 * (arrived[1] - arrived[0]):.0f} ms")
    panel.ui.applyButton.click()
    wait(lambda: panel.ui.progressBar.value > 100)
    began = time.perf_counter()
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    print(f"cancel took effect after {1000 * (time.perf_counter() - began):.0f} ms")
    panel.cleanup()


if __name__ == "__main__":
    main()
