"""The real module in the harness."""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "test-output"


def load_module():
    """Import MedFusion.py as Slicer's developer mode does: with its own folder on the path."""
    if str(ROOT / "Testing") not in sys.path:
        sys.path.insert(0, str(ROOT / "Testing"))
    import Harness

    Harness.start()
    return Harness.load(ROOT / "MedFusion" / "MedFusion.py")


def open_panel(module, entered=True):
    """The module's panel, made as Slicer's module panel makes it: in a parent of its own."""
    import qt
    import slicer

    parent = slicer.qSlicerScriptedLoadableModuleWidget()
    if entered:
        parent.enter()
    parent.setLayout(qt.QVBoxLayout())
    parent.setMRMLScene(slicer.mrmlScene)
    widget = module.MedFusionWidget(parent)
    widget.setup()
    return widget


def dock(panel, width=440, height=700):
    """Put a panel into what Slicer's dock is: an area that scrolls. Keep it: the panel goes with it."""
    from PySide6.QtWidgets import QScrollArea

    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setWidget(panel.parent._made)
    area.resize(width, height)
    area.show()
    return area


def choose(panel, nodes):
    """Choose scans in the panel's selectors, first to third."""
    selectors = (panel.ui.firstSelector, panel.ui.secondSelector, panel.ui.thirdSelector)
    for selector, node in zip(selectors, nodes, strict=False):
        selector.setCurrentNode(node)


def wait(condition, seconds=180):
    """Let the event loop run until `condition()`."""
    import qt

    end = time.time() + seconds
    loop = qt.QEventLoop()
    while not condition():
        assert time.time() < end, "it did not happen in time"
        qt.QTimer.singleShot(20, loop.quit)
        loop.exec_()


def photograph(widget, name, folder=PICTURES):
    """Save a picture of a widget of the harness, once its layout has settled; its path."""
    end = time.time() + 0.1
    wait(lambda: time.time() > end)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    widget._made.grab().save(str(path))
    return path
