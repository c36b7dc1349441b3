"""The panel clicked through: the real module and engine on slicer-core's real scene, offscreen."""

import gc
import os
import signal
import subprocess
import sys
import unittest

import numpy as np
import pytest

from MedFusionLib.errors import MedFusionError

pytest.importorskip("slicer_core", reason="slicer-core is not installed")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from panel import ROOT, choose, load_module, open_panel, photograph, wait
from scene import affine, head

pytestmark = pytest.mark.panel


@pytest.fixture
def module():
    module = load_module()
    import Harness

    module.view = Harness.new_scene()
    return module


@pytest.fixture
def panel(module):
    widget = open_panel(module)
    widget.parent.show()
    yield widget
    widget.cleanup()


@pytest.fixture
def nodes(module):
    from MedFusionLib import mrml

    grid = affine((3, 3, 4), (-52, -58, -46), (0.1, -0.05, 0.2))
    return [mrml.add_volume(head(kind, grid, name=kind)) for kind in ("CT", "MR", "PT")]


def test_apply_registers_fuses_and_shows(module, panel, nodes):
    import slicer

    from MedFusionLib import mrml

    assert not panel.ui.applyButton.enabled
    assert "first and a second" in panel.ui.applyButton.toolTip
    choose(panel, nodes)
    assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text
    assert panel.ui.referenceCombo.itemText(0) == nodes[0].GetName()
    panel.ui.lutCombo.currentIndex = panel.ui.lutCombo.findData("PET-Rainbow2")
    panel.ui.thresholdCheck.checked = True
    panel.ui.thresholdSpin.value = 4
    photograph(panel.parent, "panel-chosen")
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancel"
    assert not panel.ui.inputsSection.enabled
    wait(lambda: panel.ui.progressBar.value > 0 or panel._run is None)
    photograph(panel.parent, "panel-running")
    wait(lambda: panel._run is None)
    assert panel.ui.applyButton.text == "Apply"
    assert panel.ui.scoresTable.rowCount > 3
    assert "CT + MR" in panel.ui.summaryLabel.text
    photograph(panel.parent, "panel-done")

    fused = slicer.mrmlScene.GetFirstNodeByName("CT+MR+PT medfusion")
    assert fused is not None
    array = slicer.util.arrayFromVolume(fused)
    assert array.shape == (24, 40, 36)
    assert 0 <= array.min() < array.max() <= 1
    assert mrml.volume_from_node(fused).same_grid(mrml.volume_from_node(nodes[0]))
    assert _colour_at(module.view, (20, 25, 6)), "the hot spot is not in colour"
    assert not _colour_at(module.view, (-20, 25, 6)), "the other side is in colour"


def _colour_at(view, ras):
    """Whether the composited axial slice is coloured, not grey, at a RAS point."""
    import slicer

    node = view.GetSliceNode()
    node.SetDimensions(200, 200, 1)
    view.FitSliceToAll()
    node.JumpSliceByCentering(*ras)
    view.UpdateImageData()
    view.GetBlend().Update()
    image = view.GetBlend().GetOutput(0)
    to_xy = np.linalg.inv(slicer.util.arrayFromVTKMatrix(node.GetXYToRAS()))
    x, y = np.rint((to_xy @ (*ras, 1))[:2]).astype(int)
    return np.ptp([image.GetScalarComponentAsDouble(x, y, 0, n) for n in range(3)]) > 20


def test_scores_come_with_a_result_and_go_with_the_scene(panel, nodes):
    import slicer

    assert not panel.ui.scoresTable.visible
    assert "Nothing was fused yet" in panel.ui.summaryLabel.text
    choose(panel, nodes[:2])
    panel._parameterNode.registration, panel._parameterNode.method = "none", "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    table = panel.ui.scoresTable
    assert table.visible
    names = [table.item(row, 0).text() for row in range(table.rowCount)]
    assert "Structural similarity (SSIM)" in names
    assert "Average, not registered," in panel.ui.summaryLabel.text
    assert all(name.endswith(")") for name in names), "a measure is not explained"
    assert panel.ui.messageLabel.text
    slicer.mrmlScene.Clear(0)
    assert not table.visible
    assert not panel.ui.messageLabel.visible
    assert "Nothing was fused yet" in panel.ui.summaryLabel.text


def test_a_result_is_leaned_towards_a_scan_without_the_network(panel, nodes):
    import slicer

    from MedFusionLib.normalize import to_unit

    assert not panel.ui.leanSlider.visible
    choose(panel, nodes)
    panel._parameterNode.registration, panel._parameterNode.method = "none", "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert panel.ui.leanSlider.visible and panel.ui.leanCombo.count == 3
    run, outcome = panel._last
    result, scene = run.job.result(), outcome.scene
    as_fused = slicer.util.arrayFromVolume(scene.fused).copy()
    colored = slicer.util.arrayFromVolume(scene.rgb).copy()
    panel.ui.leanCombo.currentIndex = 1
    panel.ui.leanSlider.value = 0.6
    wait(lambda: "Leaned" in panel.ui.messageLabel.text)
    assert panel.ui.messageLabel.text == "Leaned 60 % towards MR head."
    leaned = slicer.util.arrayFromVolume(scene.fused)
    np.testing.assert_allclose(leaned, 0.4 * as_fused + 0.6 * to_unit(result.sources[1]), atol=1e-5)
    assert (slicer.util.arrayFromVolume(scene.rgb) != colored).any()
    assert scene.fused.GetAttribute("MedFusion.Lean") == "0.6 towards source 2"
    assert not panel.ui.scoresTable.visible, "they were measured before"
    photograph(panel.parent, "panel-leaned")
    panel.ui.leanSlider.value = 0
    wait(lambda: panel.ui.scoresTable.visible)
    np.testing.assert_allclose(slicer.util.arrayFromVolume(scene.fused), as_fused, atol=1e-6)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(scene.rgb), colored)

    slicer.mrmlScene.RemoveNode(scene.fused)
    assert not panel.ui.leanSlider.visible
    with pytest.raises(MedFusionError, match="no longer in the scene"):
        panel.logic.lean(run, outcome, 1, 0.2)
    folder = run.job.folder
    assert folder.exists()
    slicer.mrmlScene.Clear(0)
    assert not panel.ui.leanSlider.visible and not folder.exists()


def test_a_run_that_cannot_start_leaves_the_last_result(panel, nodes):
    import slicer

    choose(panel, nodes[:2])
    panel._parameterNode.method = "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    panel.ui.checkCombo.currentIndex = 1
    shown = panel._shownCheck
    panel.ui.regionSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box"))
    panel.ui.applyButton.click()
    assert "“box” is no box yet" in panel.ui.messageLabel.text
    assert panel.ui.leanSlider.visible and panel.ui.checkCombo.currentIndex == 1
    assert shown.GetScene() is not None
    panel.ui.leanSlider.value = 0.5
    wait(lambda: "Leaned" in panel.ui.messageLabel.text)


def test_a_cancelled_run_leaves_the_last_result(panel, nodes):
    """To be leaned and looked at, until there is another; then the edges of the old one go."""
    choose(panel, nodes[:2])
    panel._parameterNode.method = "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    first, folder = panel._last, panel._last[0].job._folder.path
    panel.ui.checkCombo.currentIndex = 1
    shown = panel._shownCheck
    panel.ui.applyButton.click()
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert panel._last is first and shown.GetScene() is not None and panel.ui.leanSlider.visible
    panel.ui.leanSlider.value = 0.5
    wait(lambda: "Leaned" in panel.ui.messageLabel.text)
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert panel._last is not first and shown.GetScene() is None and not folder.exists()
    assert panel.ui.checkCombo.currentIndex == 0 and panel.ui.leanSlider.value == 0


def test_how_well_scans_were_registered_is_said_and_shown(panel, nodes):
    import slicer

    def layers():
        composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
        ids = composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLabelVolumeID()
        return [slicer.mrmlScene.GetNodeByID(one) if one else None for one in ids]

    assert not panel.ui.checkCombo.visible
    choose(panel, nodes)
    panel._parameterNode.method = "laplacian"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    run, outcome = panel._last
    result = run.job.result()
    for name, registration in zip(run.names[1:], result.registrations[1:], strict=True):
        said = f"{name}: {'good' if registration.quality.verdict == 'good' else 'look'}"
        assert said in panel.ui.summaryLabel.text
        assert f"{registration.quality.similarity_after:.3f} after" in panel.ui.summaryLabel.text
    combo, (ct, mr, pet) = panel.ui.checkCombo, run.names
    assert combo.visible and not panel.ui.leanSlider.visible
    assert [combo.itemText(n) for n in range(combo.count)] == [
        "The fused volume",
        f"Edges of {mr} on {ct}, registered",
        f"Edges of {mr} on {ct}, as they lay",
        f"{mr} and {ct} as a checkerboard",
        f"Edges of {pet} on {ct}, registered",
        f"Edges of {pet} on {ct}, as they lay",
        f"{pet} and {ct} as a checkerboard",
    ]
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
    view = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetForegroundOpacity(0.8)
    combo.currentIndex = 1
    background, foreground, label = layers()
    assert background is nodes[0] and foreground is None
    assert label.IsA("vtkMRMLLabelMapVolumeNode")
    assert not label.GetSaveWithScene() and not label.GetDisplayNode().GetSaveWithScene()
    assert slicer.util.arrayFromVolume(label).shape == result.sources[0].array.shape
    photograph(panel.parent, "panel-check")
    combo.currentIndex = 2
    assert slicer.util.arrayFromVolume(layers()[2]).shape == run.request.sources[1].array.shape
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == before + 1
    combo.currentIndex = 6
    board, foreground, label = layers()
    assert board.GetName() == f"{pet} checkerboard" and foreground is None and label is None
    combo.currentIndex = 0
    assert layers() == [outcome.scene.fused, outcome.scene.overlay, None]
    assert view.GetForegroundOpacity() == 0.8, "the user chose that"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == before

    combo.currentIndex = 3
    slicer.mrmlScene.RemoveNode(layers()[0])
    combo.currentIndex = 1
    slicer.mrmlScene.Clear(0)
    assert not combo.visible


def test_no_edges_stay_where_the_reference_lay(panel, nodes):
    """It is moved while they are shown, or deleted: they would lie beside it, and all be red."""
    import slicer

    move = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "move")
    nodes[0].SetAndObserveTransformNodeID(move.GetID())
    choose(panel, nodes[:2])
    panel._parameterNode.method = "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    (run, outcome), combo = panel._last, panel.ui.checkCombo
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    straight = slicer.util.arrayFromTransformMatrix(move)
    for there in (affine(origin=(30, 0, 0)), affine(angles=(0, 0, 0.02))):
        combo.currentIndex = 1
        shown = panel._shownCheck
        move.SetName("renamed")
        nodes[0].SetName("CT, renamed")
        assert shown.GetScene() is not None and combo.currentIndex == 1
        slicer.util.updateTransformMatrixFromArray(move, there)
        assert shown.GetScene() is None and panel._shownCheck is None and not combo.visible
        assert "was deleted or moved" in panel.ui.messageLabel.text
        assert composite.GetBackgroundVolumeID() == outcome.scene.fused.GetID()
        assert panel.ui.leanSlider.visible
        with pytest.raises(MedFusionError, match="deleted or moved"):
            panel.logic.showCheck(run, outcome, (1, "before"))
        slicer.util.updateTransformMatrixFromArray(move, straight)
        assert combo.visible and combo.currentIndex == 0 and combo.count == 4
    combo.currentIndex = 2
    shown = panel._shownCheck
    slicer.mrmlScene.RemoveNode(nodes[0])
    assert shown.GetScene() is None and not combo.visible
    assert composite.GetBackgroundVolumeID() == outcome.scene.fused.GetID()


def test_a_fused_volume_that_was_deleted_is_offered_no_more(panel, nodes):
    """How well the scans were registered can still be looked at, over the reference."""
    import slicer

    choose(panel, nodes[:2])
    panel._parameterNode.method = "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    combo, (run, outcome) = panel.ui.checkCombo, panel._last
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    combo.currentIndex = 3
    board = panel._shownCheck
    slicer.mrmlScene.RemoveNode(outcome.scene.fused)
    assert not panel.ui.leanSlider.visible and not panel.logic.canLean(run, outcome)
    assert combo.itemText(0) == "CT alone" and combo.currentIndex == 3 and board.GetScene() is not None
    combo.currentIndex = 0
    assert board.GetScene() is None and composite.GetBackgroundVolumeID() == nodes[0].GetID()
    combo.currentIndex = 1
    assert composite.GetLabelVolumeID() == panel._shownCheck.GetID()


def test_scans_that_lay_apart_had_no_similarity_before(module, nodes):
    import slicer

    away = affine(origin=(400, 0, 0)) @ slicer.util.arrayFromVTKMatrix(_ijk_to_ras(nodes[1]))
    nodes[1].SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(away))
    outcome = module.MedFusionLogic().run(nodes[:2], method="average", evaluate=False, show=False)
    assert "Similarity – before, 1." in outcome.summary
    assert "nan" not in outcome.summary


def test_a_result_comes_into_a_folded_section(panel, nodes):
    """What it offers is there when the section is unfolded, and not before."""
    panel.ui.resultSection.collapsed = True
    choose(panel, nodes[:2])
    panel._parameterNode.method = "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    offered = (panel.ui.leanSlider, panel.ui.checkCombo, panel.ui.scoresTable)
    assert not any(widget.visible for widget in offered)
    assert panel.ui.outputSection._made._button.isVisible()  # the title of one that was folded all along
    panel.ui.resultSection.collapsed = False
    assert all(widget.visible for widget in offered)


def test_a_method_without_weight_maps_offers_no_leaning(panel, nodes):
    choose(panel, nodes[:2])
    panel._parameterNode.registration, panel._parameterNode.method = "none", "laplacian"
    panel.ui.applyButton.click()
    folder = panel._run.job.folder
    wait(lambda: panel._run is None)
    assert panel.ui.scoresTable.visible and not panel.ui.leanSlider.visible
    assert not folder.exists(), "nothing can be asked of it any more"


@pytest.mark.parametrize("ground", ["#efefef", "#323232", "#000000", "#ffffff"])
def test_what_is_wrong_can_be_read_on_any_ground(panel, ground):
    from PySide6.QtGui import QColor, QPalette
    from PySide6.QtWidgets import QApplication

    before = QApplication.palette()
    try:
        QApplication.setPalette(QPalette(QColor(ground)))
        QApplication.processEvents()
        panel._say("This is wrong.", wrong=True)
        image = panel.ui.messageLabel._made.grab().toImage()
    finally:
        QApplication.setPalette(before)
    assert image.pixelColor(image.width() - 1, 0) == QColor(ground)
    colors = [image.pixelColor(x, y) for x in range(image.width()) for y in range(image.height())]
    best = max(colors, key=lambda color: _contrast(color, QColor(ground)))
    assert _contrast(best, QColor(ground)) > 4.5  # WCAG's least for text
    assert best.red() > best.green() + 80


def _contrast(one, other):
    """WCAG's contrast ratio of two colours."""

    def luminance(color):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color.getRgbF()[:3]]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_complaint_goes_when_another_scan_is_chosen(panel, nodes):
    import slicer

    slicer.util.arrayFromVolume(nodes[1])[:] = 3
    choose(panel, nodes[:2])
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert "constant" in panel.ui.messageLabel.text
    choose(panel, [nodes[0], nodes[2]])
    assert not panel.ui.messageLabel.visible


def test_long_names_leave_the_panel_narrow(module, panel, nodes):
    from MedFusionLib import mrml

    narrow = panel.parent._made.minimumSizeHint().width()
    assert narrow < 450
    name = "MR T1 of head and neck with contrast agent, fat suppressed, second reconstruction of the day"
    long = mrml.add_volume(mrml.volume_from_node(nodes[1]), name=name)
    other = open_panel(module)
    choose(other, [nodes[0], long])
    other.parent.show()
    try:
        assert other.parent._made.minimumSizeHint().width() == narrow
    finally:
        other.cleanup()


def test_names_are_shown_as_they_are(panel, nodes):
    """Qt would take some for marked-up text, and run the lines of a summary together."""
    nodes[0].SetName("CT <b>bone</b>")
    choose(panel, nodes[:2])
    panel._parameterNode.summary = f"{nodes[0].GetName()}\na second line"
    lines = [_height(panel.ui.summaryLabel)]
    panel._parameterNode.summary = "CT bone\na second line"
    lines.append(_height(panel.ui.summaryLabel))
    assert lines[0] == lines[1]
    choose(panel, [nodes[0], nodes[0]])
    assert "CT <b>bone</b>" in panel.ui.reasonLabel.text and "CT &lt;b&gt;bone" in panel.ui.applyButton.toolTip
    for label in (panel.ui.reasonLabel, panel.ui.messageLabel, panel.ui.installLabel):
        label.text = "one <b>two</b>\nthree"
        both = _height(label)
        label.text = "one\nthree"
        assert both == _height(label)


def _height(label):
    return label._made.heightForWidth(400)


def test_a_scan_that_does_not_say_what_it_is(panel, nodes):
    """Its name, which is that of its file, may tell; else the user is asked, and the result is no less shown."""
    from MedFusionLib import mrml

    plain = mrml.volume_from_node(nodes[2])
    for name, modality in (("sub-01_pet", "PT"), ("scan", "OT")):
        node = mrml.add_volume(plain.with_array(plain.array, units="", modality="OT"), name=name)
        node.RemoveAttribute(mrml.MODALITY)
        assert mrml.volume_from_node(node).modality == modality
    choose(panel, [nodes[0], node])
    panel._parameterNode.registration, panel._parameterNode.method = "none", "average"
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert "“scan” does not say what it is" in panel.ui.messageLabel.text
    assert panel.ui.messageLabel.styleSheet == ""
    assert panel.ui.scoresTable.visible


def test_a_fused_volume_is_fused_again_as_it_is(module, nodes):
    """Its 0 to 1 is not stretched, and it is not asked what it is."""
    logic = module.MedFusionLogic()
    options = {"registration": "none", "method": "average", "lut": None, "evaluate": False}
    fused = logic.run(nodes[:2], show=False, **options).scene.fused
    again = logic.run([fused, nodes[2]], show=False, **options)
    assert again.messages == ()
    assert again.scene.fused.GetAttribute("MedFusion.Source1") == "OT  0..1"


def test_the_least_uptake_is_in_the_units_of_the_scan(panel, nodes):
    assert panel.ui.thresholdSpin.suffix == ""
    choose(panel, nodes)
    assert panel.ui.thresholdSpin.suffix == " SUV"
    choose(panel, [nodes[0], nodes[1], None])
    assert panel.ui.thresholdSpin.suffix == ""


def test_cancel_half_way_leaves_the_scene(module, panel, nodes):
    import slicer

    choose(panel, nodes)
    panel._parameterNode.registration = "deformable"
    before = slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    wait(lambda: panel.ui.progressBar.value > 20 or panel._run is None)
    assert panel._run is not None
    folder = panel._run.job.folder
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None, 10)
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert "Cancelled" in panel.ui.messageLabel.text
    assert not folder.exists()
    assert panel.ui.applyButton.enabled


def test_closing_the_scene_ends_the_run(module, panel, nodes):
    import slicer

    choose(panel, nodes)
    panel.ui.applyButton.click()
    wait(lambda: panel.ui.progressBar.value > 0 or panel._run is None)
    folder = panel._run.job.folder
    slicer.mrmlScene.Clear(0)
    assert panel._run is None
    assert not folder.exists()
    assert not panel.ui.applyButton.enabled
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


@pytest.mark.skipif(os.name == "nt", reason="signals of Linux and macOS")
def test_a_crash_is_told_in_a_line_and_the_log_has_the_rest(panel, nodes):
    choose(panel, nodes)
    panel._parameterNode.registration = "deformable"
    panel.ui.applyButton.click()
    wait(lambda: panel.ui.progressBar.value > 50 or panel._run is None)
    os.kill(panel._run.job.pid, signal.SIGSEGV)
    wait(lambda: panel._run is None)
    assert panel.ui.messageLabel.text == (
        "The engine crashed (exit code -11). The scene is unchanged. The log tells more."
    )
    assert 'File "pipeline.py", line' in panel.ui.logText.plainText


def test_an_input_removed_while_it_runs(module, panel, nodes):
    import slicer

    choose(panel, nodes[:2])
    panel.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(nodes[1])
    wait(lambda: panel._run is None)
    assert "no longer in the scene" in panel.ui.messageLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda nodes: [nodes[0], None], "first and a second"),
        (lambda nodes: [nodes[0], nodes[0]], "chosen twice"),
        (lambda nodes: [nodes[0], _empty()], "has no voxels"),
    ],
)
def test_apply_says_why_not(module, panel, nodes, spoil, reason):
    choose(panel, spoil(nodes))
    assert not panel.ui.applyButton.enabled
    assert reason in panel.ui.applyButton.toolTip
    assert reason in panel.ui.reasonLabel.text


@pytest.mark.parametrize(
    ("kind", "shape"), [("vtkMRMLLabelMapVolumeNode", (4, 5, 6)), ("vtkMRMLVectorVolumeNode", (4, 5, 6, 3))]
)
def test_labels_and_colours_are_no_scans(panel, nodes, kind, shape):
    """The selectors do not offer them; a script that sets them is told why Apply cannot go."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass(kind, "other")
    slicer.util.updateVolumeFromArray(node, np.zeros(shape, np.uint8))
    choose(panel, [nodes[0], node])
    assert panel.ui.secondSelector.currentNode() is None
    panel._parameterNode.second = node
    assert "“other” is not a scalar volume" in panel.ui.reasonLabel.text
    assert not panel.ui.applyButton.enabled


def test_a_script_that_leaves_a_gap_is_told(module, nodes):
    with pytest.raises(MedFusionError, match="Scan 2 is None"):
        module.MedFusionLogic().start([nodes[0], None, nodes[1]], reference=1)
    for one in ([nodes[0]], nodes[0]):
        with pytest.raises(MedFusionError, match="a first and a second"):
            module.MedFusionLogic().start(one)
    with pytest.raises(MedFusionError, match="Scan 1 is 'CT head': give two or three volume nodes"):
        module.MedFusionLogic().start(["CT head", "MR head"])
    for reference in (3, -1, 1.0, None):
        with pytest.raises(MedFusionError, match=r"the reference is source .*, but there are 3 sources"):
            module.MedFusionLogic().start(nodes, reference=reference)


def test_a_script_that_gives_something_else_is_told(module, nodes):
    logic = module.MedFusionLogic()
    for wrong in (None, 5):
        with pytest.raises(MedFusionError, match=f"Scan 1 is {wrong}: give two or three volume nodes"):
            logic.start(wrong)
    for wrong in ("CT", 5, ["CT"]):
        with pytest.raises(MedFusionError, match="one modality for each scan"):
            logic.start(nodes, modalities=wrong)
    for wrong in ("box", 5, ["a", "b", "c"]):
        with pytest.raises(MedFusionError, match="one mask for each scan"):
            logic.start(nodes, masks=wrong)
    run = logic.start(nodes[:2], method="average", evaluate=False)
    try:
        outcome = logic.finish(run, show=False)
        for wrong in ((0, "after"), (5, "after"), (-1, "after"), (1, "edges"), "after", 5):
            with pytest.raises(MedFusionError, match=r"There is no check .*\(1, 'checkerboard'\)"):
                logic.showCheck(run, outcome, wrong)
    finally:
        run.close()


def _empty():
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")


@pytest.mark.parametrize(
    ("spoil", "said"), [(lambda a: np.full_like(a, 3), "constant"), (lambda a: np.where(a > 100, np.nan, a), "NaN")]
)
def test_bad_voxels_are_named_and_the_scene_unchanged(module, panel, nodes, spoil, said):
    import slicer

    array = slicer.util.arrayFromVolume(nodes[1])
    array[:] = spoil(array.copy())
    choose(panel, nodes[:2])
    before = slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    wait(lambda: panel._run is None)
    assert said in panel.ui.messageLabel.text
    assert nodes[1].GetName() in panel.ui.messageLabel.text
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_a_registration_starts_from_a_transform_within_a_region(module, panel, nodes):
    """The MRI lies 130 mm aside and on its head; the transform brings it back but for some millimetres."""
    import slicer

    ct, mr, _ = nodes
    away = affine(origin=(130, 10, -20), angles=(0, 0, np.pi))
    lies = slicer.util.arrayFromVTKMatrix(_ijk_to_ras(mr))
    mr.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(away @ lies))
    start = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "start")
    slicer.util.updateTransformMatrixFromArray(start, affine(origin=(3, -2, 2)) @ np.linalg.inv(away))
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    box.SetSize(100, 120, 70)
    choose(panel, [ct, mr])
    panel.ui.startSection.collapsed = False
    assert panel.ui.initialCombo.enabled and not panel.ui.transformSelector.enabled
    panel.ui.initialCombo.currentIndex = panel.ui.initialCombo.findData("transform")
    assert "transform to start from" in panel.ui.applyButton.toolTip and not panel.ui.applyButton.enabled
    panel.ui.transformSelector.setCurrentNode(start)
    panel.ui.regionSelector.setCurrentNode(box)
    assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text
    photograph(panel.parent, "panel-start")
    panel.ui.registrationCombo.currentIndex = panel.ui.registrationCombo.findData("none")
    assert not panel.ui.initialCombo.enabled and not panel.ui.regionSelector.enabled
    panel.ui.registrationCombo.currentIndex = panel.ui.registrationCombo.findData("rigid")

    given = panel.logic.optionsOf(panel._parameterNode)
    assert given["initial"] is start and given["masks"] == [box, None]
    # Also where the scan lies under the transform already, as while it was aligned by hand.
    for under in (None, start.GetID()):
        mr.SetAndObserveTransformNodeID(under)
        outcome = panel.logic.run(**given | {"evaluate": False, "method": "average"})
        found = slicer.util.arrayFromTransformMatrix(outcome.scene.transforms[1])
        for point in ((0, 0, 0, 1), (30, 30, 20, 1)):
            assert np.linalg.norm((found @ away @ point - point)[:3]) < 1.5
    # The search saw the box alone: what a script is told, the engine is told.
    options = panel.logic.start(**given | {"method": "average"})
    try:
        passed = options.request.register_options
        assert passed["fixed_mask"].name == "box" and passed["moving_mask"] == (passed["fixed_mask"], None)
    finally:
        options.close()


def test_a_region_is_offered_by_its_kind_and_kept_with_the_parameters(panel, nodes, tmp_path):
    import slicer

    selector = panel.ui.regionSelector
    kinds = ("vtkMRMLMarkupsROINode", "vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode")
    offered = [slicer.mrmlScene.AddNewNodeByClass(kind, kind) for kind in kinds]
    for node in offered:
        selector.setCurrentNode(node)
        assert panel._parameterNode.region is node
    selector.setCurrentNode(nodes[0])
    assert selector.currentNode() is None and panel._parameterNode.region is None
    panel._parameterNode.region = offered[0]
    assert selector.currentNode() is offered[0]
    panel.exit()
    panel.enter()
    assert selector.currentNode() is panel._parameterNode.region is offered[0]
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(0)
    assert selector.currentNode() is None and panel._parameterNode.region is None
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Import()
    assert selector.currentNode().GetName() == "vtkMRMLMarkupsROINode"
    assert panel._parameterNode.region is selector.currentNode()
    slicer.mrmlScene.RemoveNode(selector.currentNode())
    assert selector.currentNode() is None and panel._parameterNode.region is None


def test_each_scan_may_start_from_a_place_of_its_own(module, nodes):
    import slicer

    start = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "start")
    logic = module.MedFusionLogic()
    run = logic.start(nodes, initial=["auto", start, "moments"], method="average", evaluate=False)
    try:
        _, second, third = run.request.register_options["initial"]
        np.testing.assert_allclose(second, np.eye(4), atol=1e-12)
        assert third == "moments"
        assert run.wait(120) and run.state == "done", run.job.result()
    finally:
        run.close()
    for masks in ([None], start):
        with pytest.raises(MedFusionError, match="one mask for each scan"):
            logic.start(nodes, masks=masks)
    with pytest.raises(MedFusionError, match="is no region"):
        logic.start(nodes, masks=[start, None, None])


def _ijk_to_ras(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def test_parameters_are_saved_with_the_scene(module, panel, nodes, tmp_path):
    import slicer

    choose(panel, nodes)
    panel.ui.methodCombo.currentIndex = panel.ui.methodCombo.findData("maximum")
    panel.ui.opacitySlider.value = 0.25
    file = str(tmp_path / "scene.mrml")
    slicer.mrmlScene.SetURL(file)
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(0)
    assert panel._parameterNode.method == "medfusion"
    slicer.mrmlScene.SetURL(file)
    slicer.mrmlScene.Import()
    parameters = module.MedFusionLogic().getParameterNode()
    assert (parameters.method, parameters.opacity) == ("maximum", 0.25)


def test_a_method_that_is_gone_is_not_shown_as_another(panel, nodes):
    """As in a scene that was saved with weights of one's own."""
    choose(panel, nodes[:2])
    panel._parameterNode.method = "my_weights"
    assert "There is no fusion method “my_weights”" in panel.ui.reasonLabel.text
    combo = panel.ui.methodCombo
    assert combo.currentText == ""
    combo.currentIndex = 0
    assert panel._parameterNode.method == combo.currentData
    assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text


def test_a_scan_that_gets_its_voxels_or_its_name_later(panel, nodes):
    import slicer

    late = _empty()
    choose(panel, [late, nodes[1]])
    assert "“empty” has no voxels" in panel.ui.reasonLabel.text
    slicer.util.updateVolumeFromArray(late, slicer.util.arrayFromVolume(nodes[0]).copy())
    assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text
    late.SetName("Knee")
    assert panel.ui.referenceCombo.itemText(0) == "Knee"
    choose(panel, nodes[:2])
    late.SetName("not chosen any more")
    assert panel.ui.referenceCombo.itemText(0) == nodes[0].GetName()


def test_a_scene_loaded_from_disk_can_be_fused(panel, nodes, tmp_path):
    """Its parameters come before the voxels of its scans."""
    import slicer

    choose(panel, nodes)
    for node in nodes:
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / f"{node.GetName()}.nrrd"))
        assert node.GetStorageNode().WriteData(node)
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(0)
    assert not panel.ui.applyButton.enabled
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Import()
    assert panel.ui.firstSelector.currentNode().GetName() == "CT"
    assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text


def test_what_is_missing_is_offered_for_installation(module, panel, nodes, monkeypatch):
    monkeypatch.setattr(module.install, "missing", lambda: ["monai>=1.5"])
    choose(panel, nodes)
    panel.enter()
    assert not panel.ui.applyButton.enabled
    assert "monai>=1.5" in panel.ui.installLabel.text
    assert panel.ui.installButtonSection.visible


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for PythonSlicer")
def test_an_installation_is_followed_and_not_started_twice(module, panel, monkeypatch, tmp_path):
    """By Slicer's own functions, which work off clicks between two lines that pip says."""
    import qt
    import slicer

    python = tmp_path / "PythonSlicer"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    lacking, started, seen = ["monai>=1.5"], [], []

    def pip_install(arguments):
        started.append(arguments)
        qt.QTimer.singleShot(0, panel.ui.installButton.click)
        slicer.util.executePythonModule("pip", ["--version"])
        seen.append(panel.ui.installLabel.text)
        lacking.clear()

    monkeypatch.setattr(module.install, "missing", lambda: list(lacking))
    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)
    panel.enter()
    panel.ui.installButton.click()
    assert [one[-1] for one in started] == ["monai>=1.5"]
    assert "minutes" in seen[0] and "\npip " in seen[0]
    assert not panel.ui.installButtonSection.visible and panel.ui.installButton.enabled
    assert "Install the needed" not in panel.ui.reasonLabel.text


def test_a_panel_that_is_left_lets_go_of_the_parameters(module, panel, nodes):
    choose(panel, nodes[:2])
    panel.exit()
    parameters = module.MedFusionLogic().getParameterNode()
    panel.ui.opacitySlider.value = 0.9
    panel.ui.firstSelector.setCurrentNode(nodes[2])
    assert parameters.opacity == 0.5 and parameters.first is nodes[0]
    panel.enter()
    assert panel.ui.opacitySlider.value == 0.5 and panel.ui.firstSelector.currentNode() is nodes[0]
    panel.ui.opacitySlider.value = 0.9
    assert parameters.opacity == 0.9


def test_visits_to_the_panel_leave_nothing_behind(panel):
    def kept():
        gc.collect()
        return sum(type(one).__name__ == "MedFusionParameterNode" for one in gc.get_objects())

    before = kept()
    for _ in range(3):
        panel.exit()
        panel.enter()
    assert kept() == before == 1
    panel.exit()
    assert kept() == 0


def test_a_panel_that_is_not_shown_leaves_the_scene_alone(panel):
    """Also where the scene is closed while another module is shown."""
    import slicer

    panel.parent.exit()
    panel.parent.hide()
    panel.exit()
    slicer.mrmlScene.Clear(0)
    assert panel._parameterNode is None
    panel.parent.enter()
    slicer.mrmlScene.Clear(0)
    assert panel._parameterNode is not None


def test_a_panel_in_a_window_of_its_own(module, nodes):
    """No module is entered then."""
    import slicer

    panel = open_panel(module, entered=False)
    try:
        panel.parent.show()
        choose(panel, nodes[:2])
        assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text
        slicer.mrmlScene.Clear(0)
        assert panel._parameterNode is not None and not panel.ui.applyButton.enabled
    finally:
        panel.cleanup()


def test_a_run_that_ends_while_another_module_is_shown(module, panel, nodes):
    """Its summary is kept, and the panel lets go of the parameters then."""
    choose(panel, nodes[:2])
    panel._parameterNode.registration, panel._parameterNode.method = "none", "average"
    panel.ui.applyButton.click()
    panel.parent.exit()
    panel.parent.hide()
    panel.exit()
    assert panel._parameterNode is not None
    wait(lambda: panel._run is None)
    assert panel._parameterNode is None
    assert "CT + MR" in module.MedFusionLogic().getParameterNode().summary
    panel.parent.show()
    panel.parent.enter()
    panel.enter()
    assert "CT + MR" in panel.ui.summaryLabel.text and panel.ui.leanSlider.visible


def test_a_panel_without_a_parent_sets_itself_up(module, nodes):
    import slicer

    panel = module.MedFusionWidget()
    try:
        choose(panel, nodes[:2])
        assert panel.ui.applyButton.enabled, panel.ui.reasonLabel.text
        assert panel.ui.methodCombo.count == len(module.methods())  # set up once, not twice
        slicer.mrmlScene.Clear(0)
        assert not panel.ui.applyButton.enabled
    finally:
        panel.cleanup()
    assert not panel.Observations


def test_the_module_describes_itself(module):
    import slicer

    about = slicer.modules.medfusion
    assert about.title == "MedFusion"
    assert "not a medical device" in about.helpText
    assert about.categories == ["Registration"]
    assert about.icon is not None


def test_the_panel_opens_without_torch():
    code = (
        "import sys; sys.path[:0] = ['Testing/Python']\n"
        "from panel import load_module, open_panel\n"
        "widget = open_panel(load_module())\n"
        "print({'torch', 'monai', 'skimage'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.stdout.strip().endswith("set()"), said.stdout + said.stderr


def test_slicers_self_test(module):
    suite = unittest.TestLoader().loadTestsFromTestCase(module.MedFusionTest)
    outcome = unittest.TextTestRunner().run(suite)
    assert suite.countTestCases() >= 4
    assert outcome.wasSuccessful(), outcome.failures + outcome.errors


def test_every_choice_has_a_name_that_is_read_out(module, panel):
    """For those who hear the panel: a label of its own, a name, or its own text."""
    from xml.etree import ElementTree

    tree = ElementTree.parse(ROOT / "MedFusion" / "Resources" / "UI" / "MedFusion.ui")
    named = {found.text for found in tree.iterfind(".//property[@name='buddy']/cstring")}
    choices = {"QComboBox", "qMRMLNodeComboBox", "ctkSliderWidget", "QDoubleSpinBox", "QSpinBox", "QLineEdit"}
    silent = [
        widget.get("name")
        for widget in tree.iter("widget")
        if widget.get("class") in choices
        and widget.get("name") not in named
        and widget.find("property[@name='accessibleName']") is None
    ]
    assert not silent
    assert all(hasattr(panel.ui, name) for name in named)


def test_a_chosen_node_that_goes_is_chosen_no_more(panel, nodes):
    """Slicer's selectors go on to the neighbour of what they lose; a scan or region that nobody chose must not come."""
    import slicer

    choose(panel, nodes[:2])
    rois = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode") for _ in range(2)]
    transforms = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode") for _ in range(2)]
    panel.ui.regionSelector.setCurrentNode(rois[1])
    panel.ui.transformSelector.setCurrentNode(transforms[1])
    parameters = panel._parameterNode
    assert parameters.region is rois[1] and parameters.initialTransform is transforms[1]
    for node in (rois[1], transforms[1], nodes[1]):
        slicer.mrmlScene.RemoveNode(node)
    assert (parameters.first, parameters.second) == (nodes[0], None)
    assert parameters.region is None and parameters.initialTransform is None
    assert panel.ui.secondSelector.currentNode() is None and panel.ui.regionSelector.currentNode() is None
    assert not panel.ui.applyButton.enabled


def test_what_is_chosen_stays_when_another_scene_is_added(panel, nodes, tmp_path):
    import slicer

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    choose(panel, nodes[:2])
    panel.ui.regionSelector.setCurrentNode(roi)
    other = slicer.vtkMRMLScene()
    other.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Of another scene")
    other.SetURL(str(tmp_path / "other.mrml"))
    assert other.Commit()
    slicer.mrmlScene.SetURL(str(tmp_path / "other.mrml"))
    slicer.mrmlScene.Import()
    assert slicer.mrmlScene.GetFirstNodeByName("Of another scene")
    parameters = panel._parameterNode
    assert (parameters.first, parameters.second, parameters.region) == (*nodes[:2], roi)
    assert panel.ui.firstSelector.currentNode() is nodes[0] and panel.ui.regionSelector.currentNode() is roi
    assert panel.ui.applyButton.enabled
