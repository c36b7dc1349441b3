"""MedFusion's module in 3D Slicer: the panel, the logic behind it, and its self-test."""

import logging
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import qt
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLScalarVolumeNode, vtkMRMLTransformNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

if find_spec("MedFusionLib") is None:
    # In developer mode Slicer knows this folder, not the one above it that holds the engine.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from MedFusionLib import install, mrml, worker
from MedFusionLib.color import LUTS
from MedFusionLib.errors import Cancelled, MedFusionError, MethodError, VolumeError
from MedFusionLib.fusion.registry import methods
from MedFusionLib.normalize import display_range
from MedFusionLib.pipeline import Coloring, Request, leaned, require_reference
from MedFusionLib.volume import FUNCTIONAL, is_single

INPUTS = ("first", "second", "third")

PAUSE = 200
"""Milliseconds after the last move of a slider before what it asks for is done."""

POLL = 100
"""Milliseconds between two looks at a running job."""

AUTOMATIC = "auto"

TRANSFORM = "transform"
"""Start of a registration: that of a transform node."""

DARK_RED, LIGHT_RED = "#b00020", "#ff8a80"
"""Of what went wrong, on a light and on a dark ground."""


#
# MedFusion
#


class MedFusion(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedFusion")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The MedFusion contributors"]
        self.parent.helpText = _(
            "Registers CT, MRI, PET and SPECT scans of one patient to each other and fuses them into one volume, with"
            " the uptake laid over it in colour. For research: not a medical device."
        )
        self.parent.acknowledgementText = _(
            "Built on MONAI, PyTorch and SimpleITK. Every method names its source paper in the panel."
        )


#
# MedFusionParameterNode
#


@parameterNodeWrapper
class MedFusionParameterNode:
    """What the panel shows, saved with the scene.

    first, second, third: the scans. firstModality ...: DICOM terms, or "auto". reference: 0, 1 or 2.
    registration, method, mode, axis, lut, device: as `pipeline.Request` has them. threshold: in the uptake's own
    units, used where thresholdOn. summary: of the last run. initial: as `register` has it, or "transform" for that of
    initialTransform. region: of the reference, see `mrml.mask_from_node`.
    """

    first: vtkMRMLScalarVolumeNode
    second: vtkMRMLScalarVolumeNode
    third: vtkMRMLScalarVolumeNode
    firstModality: str = AUTOMATIC
    secondModality: str = AUTOMATIC
    thirdModality: str = AUTOMATIC
    reference: Annotated[int, WithinRange(0, 2)] = 0
    registration: str = "rigid"
    initial: str = AUTOMATIC
    initialTransform: vtkMRMLTransformNode
    region: vtkMRMLNode
    method: str = "medfusion"
    mode: str = "volume"
    axis: str = "axial"
    color: bool = True
    lut: str = "PET-Heat"
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    thresholdOn: bool = False
    threshold: Annotated[float, WithinRange(0, 1e9)] = 2.5
    show: bool = True
    evaluate: bool = True
    device: str = AUTOMATIC
    summary: str = ""


#
# MedFusionWidget
#


class MedFusionWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. It reads and writes the parameter node and leaves the work to its logic."""

    def __init__(self, parent=None):
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._followers = []
        self._run = None
        self._last = None
        self._shownCheck = None
        self._complaint = False
        self._importing = False
        self._watched = set()
        # Last, and it starts the mixin too: without a parent Slicer calls setup() from in there.
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedFusion.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = self.logic or MedFusionLogic()
        self._combos = {
            "registration": self.ui.registrationCombo,
            "initial": self.ui.initialCombo,
            "method": self.ui.methodCombo,
            "mode": self.ui.modeCombo,
            "axis": self.ui.axisCombo,
            "lut": self.ui.lutCombo,
            "device": self.ui.deviceCombo,
            "reference": self.ui.referenceCombo,
            "firstModality": self.ui.firstModality,
            "secondModality": self.ui.secondModality,
            "thirdModality": self.ui.thirdModality,
        }
        children = vars(self.ui).values()
        self._connected = {name: child for child in children if (name := child.property("SlicerParameterName"))}
        for name, combo in self._combos.items():
            for value, text in choices(name):
                combo.addItem(text, value)
            combo.connect("currentIndexChanged(int)", lambda _index, name=name: self._onCombo(name))
        # The timer lives as long as the panel: a local one would die at the end of this method.
        self._timer = qt.QTimer()
        self._timer.interval = POLL
        self._timer.connect("timeout()", self._onTimer)
        self._leanTimer = qt.QTimer()
        self._leanTimer.interval = PAUSE
        self._leanTimer.singleShot = True
        self._leanTimer.connect("timeout()", self._lean)
        self.ui.leanSlider.connect("valueChanged(double)", lambda _amount: self._leanTimer.start())
        self.ui.leanCombo.connect("currentIndexChanged(int)", lambda _index: self._leanTimer.start())
        self.ui.checkCombo.connect("currentIndexChanged(int)", self._onCheck)
        self._offerResult(None)
        self.ui.progressBar.visible = False
        self.ui.messageLabel.visible = False
        self.ui.scoresTable.verticalHeader().visible = False
        self.ui.scoresTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        self.ui.scoresTable.visible = False

        # By hand: Slicer's connector of a node and its selector offers one class alone.
        self.ui.regionSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onRegion)
        self.ui.applyButton.connect("clicked()", self.onApplyButton)
        self.ui.installButton.connect("clicked()", self.onInstallButton)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self._offer)
        self._missing = install.missing()
        # Not in enter() alone, which a panel in a window of its own never hears of.
        self.initializeParameterNode()

    def cleanup(self):
        try:
            self._abandon()
            self.setParameterNode(None)
        finally:  # where Slicer ends, the widgets may be gone before
            self.removeObservers()

    def enter(self):
        self._missing = install.missing()
        self.initializeParameterNode()

    def exit(self):
        # A run goes on while another module is shown; only the panel lets go of the parameters.
        if self._run is None:
            self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self._abandon()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        if self._isShown():
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event):
        # A scene's parameters are loaded before the scans that they name, and at the end of it Slicer's selectors are
        # filled anew, which chooses nothing: neither may reach the parameters.
        self._importing = self._parameterNode is not None
        self.setParameterNode(None)

    def onSceneEndImport(self, caller, event):
        if self._importing:
            self._importing = False
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node):
        # Before the selectors hear of it: they go on to the neighbour of what they lose, and the parameters with them.
        if self._parameterNode is not None:
            for name in (*INPUTS, "initialTransform", "region"):
                if getattr(self._parameterNode, name) is node:
                    setattr(self._parameterNode, name, None)

    def _isShown(self):
        """Whether this module is the one that is shown, or the panel is in a window of its own."""
        return getattr(self.parent, "isEntered", True) or self.parent.visible

    def initializeParameterNode(self):
        if self.logic:
            self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            node = self._parameterNode.parameterNode
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            while self._followers:
                node.RemoveObserver(self._followers.pop())
            self.removeObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._parameterNode = parameterNode
        self._watch()
        if self._parameterNode is not None:
            node = self._parameterNode.parameterNode

            def remember(*observer):
                self._followers.append(node.AddObserver(*observer))
                return self._followers[-1]

            # Slicer forgets the observer by which widgets follow parameters: each visit to the panel would leave one.
            parameterNode.AddObserver = remember
            # Not by connectGui, which gives Slicer 5.10 no tag to disconnect by.
            self._parameterNodeGuiTag = parameterNode.connectParametersToGui(self._connected)
            del parameterNode.AddObserver
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParameters)
            self._onParameters()

    def _watch(self):
        """Follow the chosen scans: one may get its voxels, as while a scene is loaded, or another name later."""
        chosen = {getattr(self._parameterNode, name) for name in INPUTS} if self._parameterNode is not None else set()
        chosen.discard(None)
        for node in self._watched - chosen:
            self.removeObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        for node in chosen - self._watched:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._watched = chosen

    def onApplyButton(self):
        """Start, or cancel what runs."""
        if self._run is not None:
            self._run.cancel()
            self.ui.applyButton.enabled = False
            self._say(_("Cancelling…"))
            return
        parameters = self._parameterNode
        self.ui.logText.plainText = ""
        try:
            self._run = self.logic.start(**self.logic.optionsOf(parameters))
        except MedFusionError as error:
            self._complain(error)
            return
        self._timer.start()
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self._say("")
        self._onParameters()

    def onInstallButton(self):
        # Slicer goes on between two lines of pip: another click must not start another installation beside this one.
        self.ui.installButton.enabled = False
        try:
            install.install(progress=self._onInstalling)
        except MedFusionError as error:
            self._complain(error)
        finally:
            self.ui.installButton.enabled = True
        self._missing = install.missing()
        self._onParameters()

    def _onInstalling(self, line):
        self.ui.installLabel.text = _(
            "Installing, which can take many minutes. Slicer hardly answers until it is done.\n{line}"
        ).format(line=line)

    def _onTimer(self):
        run = self._run
        if run is None:
            self._timer.stop()
            return
        for event in run.poll():
            if event.kind == "progress":
                self.ui.progressBar.value = round(1000 * event.fraction)
                self._say(event.message)
            else:
                self.ui.logText.appendPlainText(event.message)
        if run.state == "running":
            return
        self._timer.stop()
        self._run = None
        try:
            self._finish(run)
        finally:
            if self._last is None or self._last[0] is not run:
                run.close()
            self.ui.progressBar.visible = False
            self._onParameters()
            if not self._isShown():
                self.exit()

    def _finish(self, run):
        try:
            run.job.result()  # raises what ended it: then the last result stays to be leaned and looked at
            self._offerResult(None)
            outcome = self.logic.finish(run, show=self._parameterNode is not None and self._parameterNode.show)
        except Cancelled as error:
            self._say(str(error))
            return
        except MedFusionError as error:
            self._complain(error)
            self.ui.logText.appendPlainText(str(error))
            return
        for message in outcome.messages:
            self.ui.logText.appendPlainText(message)
        self._say("\n".join(outcome.messages) or _("Done."), wrong=len(outcome.messages) > len(run.notes))
        if self._parameterNode is not None:
            self._parameterNode.summary = outcome.summary
        self._showScores(outcome.scores)
        self._offerResult((run, outcome))

    def _offerResult(self, last):
        """Let the result of a run be leaned, and its registrations be looked at; None: there is none.

        Ends the run that it was before.
        """
        moves = (slicer.vtkMRMLTransformableNode.TransformModifiedEvent, vtk.vtkCommand.ModifiedEvent)
        if self._last is not None:
            run, outcome = self._last
            self._shownCheck = self.logic.showCheck(run, outcome, instead=self._shownCheck)
            for event in moves:
                self.removeObserver(run.nodes[run.request.reference], event, self._offer)
            run.close()
        self._last = None
        if last is not None and (self.logic.canLean(*last) or self.logic.checks(*last)):
            self._last = last
            for event in moves:
                self.addObserver(last[0].nodes[last[0].request.reference], event, self._offer)
        self.ui.leanCombo.blockSignals(True)
        self.ui.leanCombo.clear()
        for name in last[0].names if last is not None else ():
            self.ui.leanCombo.addItem(name)
        self.ui.leanCombo.blockSignals(False)
        self.ui.leanSlider.blockSignals(True)
        self.ui.leanSlider.value = 0
        self.ui.leanSlider.blockSignals(False)
        self._offer()

    def _offer(self, caller=None, event=None):
        """Offer of the last result what its nodes allow, which may be deleted or moved by now."""
        leanable, checks = False, []
        if self._last is not None:
            leanable, checks = self.logic.canLean(*self._last), self.logic.checks(*self._last)
        if not leanable:
            self._leanTimer.stop()
        for widget in (self.ui.leanLabel, self.ui.leanCombo, self.ui.leanSlider):
            widget.visible = leanable
        combo = self.ui.checkCombo
        self.ui.checkLabel.visible = combo.visible = bool(checks)
        combo.blockSignals(True)
        if combo.count != len(checks):
            combo.clear()
            for _check, text in checks:
                combo.addItem(text)
            if self._shownCheck is not None:
                run, outcome = self._last
                self._shownCheck = self.logic.showCheck(run, outcome, instead=self._shownCheck)
                name = run.names[run.request.reference]
                self._say(_("“{name}” was deleted or moved: run again to see how well scans fit it.").format(name=name))
        for index, (_check, text) in enumerate(checks):
            combo.setItemText(index, text)
        combo.blockSignals(False)

    def _onCheck(self, index):
        if self._last is None or index < 0:
            return
        check, _text = self.logic.checks(*self._last)[index]
        slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            self._shownCheck = self.logic.showCheck(*self._last, check, self._shownCheck)
        except MedFusionError as error:
            self._complain(error)
        finally:
            slicer.app.restoreOverrideCursor()

    def _lean(self):
        if self._last is None:
            return
        run, outcome = self._last
        amount = self.ui.leanSlider.value
        try:
            self.logic.lean(run, outcome, self.ui.leanCombo.currentIndex, amount)
        except MedFusionError as error:
            self._complain(error)
            return
        self._showScores({} if amount else outcome.scores)  # they were measured of the fusion as it was
        self._say(
            _("Leaned {percent:.0f} % towards {name}.").format(percent=100 * amount, name=self.ui.leanCombo.currentText)
            if amount
            else ""
        )

    def _abandon(self):
        """End a run whose scene is going: nothing of it may arrive, and nothing of an earlier one stays."""
        self._timer.stop()
        if self._run is not None:
            self._run.close()
            self._run = None
        self._offerResult(None)
        self.ui.progressBar.visible = False
        self._say("")
        self._showScores({})

    def _onCombo(self, name):
        if self._parameterNode is not None:
            value = self._combos[name].currentData
            if value is not None and getattr(self._parameterNode, name) != value:
                setattr(self._parameterNode, name, value)

    def _onRegion(self, node):
        if self._parameterNode is not None and self._parameterNode.region is not node:
            self._parameterNode.region = node

    def _onParameters(self, caller=None, event=None):
        """Make the panel say what the parameters are, and whether Apply can go."""
        parameters = self._parameterNode
        if parameters is None:
            return
        self._watch()
        if caller is not None and self._complaint:
            self._say("")  # it was about what the parameters were
        for name, combo in self._combos.items():
            # -1, nothing, where there is no such choice, as of weights that are gone: every one can be chosen then.
            index = combo.findData(getattr(parameters, name))
            if index != combo.currentIndex:
                combo.currentIndex = index
        self.ui.regionSelector.blockSignals(True)  # one that it does not offer, as a hidden one, would be taken away
        self.ui.regionSelector.setCurrentNode(parameters.region)
        self.ui.regionSelector.blockSignals(False)
        self._nameReferences(parameters)
        method = methods().get(parameters.method)
        if method is not None:
            self.ui.methodCombo.toolTip = f"{method.title}. {method.paper}"
        moves = parameters.registration != "none"
        for widget in (self.ui.initialCombo, self.ui.regionSelector):
            widget.enabled = moves
        self.ui.transformSelector.enabled = moves and parameters.initial == TRANSFORM
        volumeOnly = parameters.mode == "volume" and method is not None and 3 in method.dimensions
        self.ui.axisCombo.enabled = not volumeOnly
        for widget in (self.ui.lutCombo, self.ui.opacitySlider, self.ui.thresholdCheck):
            widget.enabled = parameters.color
        self.ui.thresholdSpin.enabled = parameters.color and parameters.thresholdOn
        self.ui.thresholdSpin.suffix = f" {self.logic.uptakeUnits(parameters)}".rstrip()
        self.ui.summaryLabel.text = parameters.summary or _(
            "Nothing was fused yet. What was done, and how well, will be said here."
        )
        self.ui.installButtonSection.visible = bool(self._missing)
        self.ui.installLabel.text = _("MedFusion needs Python packages that are not here yet: {names}").format(
            names=", ".join(self._missing)
        )
        running = self._run is not None
        valid, reason = (True, "") if running else self.logic.isValid(parameters, self._missing)
        self.ui.applyButton.text = _("Cancel") if running else _("Apply")
        self.ui.applyButton.enabled = running or valid
        # Escaped: Slicer makes rich text of every tool tip, and scans may have any name.
        hint = _("Stop; nothing is changed.") if running else reason or _("Register and fuse.")
        self.ui.applyButton.toolTip = escape(hint, quote=False)
        self.ui.reasonLabel.text = reason
        self.ui.reasonLabel.visible = bool(reason)
        for section in (self.ui.inputsSection, self.ui.settingsSection, self.ui.colorSection, self.ui.outputSection):
            section.enabled = not running

    def _nameReferences(self, parameters):
        for index, name in enumerate(INPUTS):
            node = getattr(parameters, name)
            self.ui.referenceCombo.setItemText(index, node.GetName() if node else choices("reference")[index][1])

    def _showScores(self, scores):
        table = self.ui.scoresTable
        table.visible = bool(scores)
        table.setColumnCount(2)
        table.setRowCount(len(scores))
        table.setHorizontalHeaderLabels([_("Measure"), _("Value")])
        table.horizontalHeader().setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)
        for row, (name, value) in enumerate(scores.items()):
            meaning = measures().get(name, "")
            for column, text in enumerate((f"{meaning} ({name})" if meaning else name, f"{value:.4g}")):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)  # a narrow panel cuts it short
                table.setItem(row, column, item)
        table.resizeRowsToContents()
        # All of it: the module panel scrolls, and a list that scrolls inside of it would be two to scroll.
        rows = sum(table.rowHeight(row) for row in range(len(scores)))
        table.minimumHeight = table.horizontalHeader().sizeHint.height() + rows + 2 * table.frameWidth

    def _complain(self, error):
        """Say what is wrong, until the parameters change; of a crash the log has the rest."""
        said, _line, rest = str(error).partition("\n")
        self._say(f"{said} {_('The log tells more.')}" if rest else said, wrong=True)
        self._complaint = True

    def _say(self, text, wrong=False):
        label = self.ui.messageLabel
        label.text = text
        label.visible = bool(text)
        dark = label.palette.window().color().lightness() < 128
        label.styleSheet = f"color: {LIGHT_RED if dark else DARK_RED}" if wrong else ""
        self._complaint = False


def trust(name, quality):
    """How far the registration of a scan can be trusted, in a line."""
    verdicts = {"good": _("good"), "check": _("look at it before use"), "failed": _("failed: do not use it")}
    return _(
        "{name}: {verdict}. Similarity {before} before, {after} after; {overlap} % in common; there and back"
        " {consistency} mm apart."
    ).format(
        name=name,
        verdict=verdicts[quality.verdict],
        before=_figure(quality.similarity_before, 3),
        after=_figure(quality.similarity_after, 3),
        overlap=_figure(100 * quality.overlap, 0),
        consistency=_figure(quality.inverse_consistency, 1),
    )


def _figure(value, decimals):
    """A number as text; a dash for NaN, as the similarity of scans that lie apart."""
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def measures():
    """{measure: what it says of the fused volume} of those that a run reports."""
    return {
        "SSIM": _("Structural similarity"),
        "PSNR": _("Peak signal to noise, dB"),
        "MSE": _("Mean squared difference"),
        "MI": _("Mutual information"),
        "EN": _("Information content, bits"),
        "SD": _("Contrast"),
        "SF": _("Sharpness, spatial frequency"),
        "AG": _("Sharpness, mean gradient"),
        "SCD": _("What each scan adds"),
        "Qabf": _("Edges kept"),
    }


def choices(name):
    """((value, readable text), ...) of a parameter that the panel offers in a combo box."""
    if name.endswith("Modality"):
        return (
            (AUTOMATIC, _("Automatic")),
            ("CT", _("CT")),
            ("MR", _("MRI")),
            ("PT", _("PET")),
            ("NM", _("SPECT")),
            ("OT", _("Other")),
        )
    if name == "method":
        return tuple((method.name, method.title) for method in methods().values())
    if name == "lut":
        return tuple((lut, lut) for lut in LUTS)
    return {
        "reference": ((0, _("First scan")), (1, _("Second scan")), (2, _("Third scan"))),
        "registration": (
            ("none", _("None (already aligned)")),
            ("rigid", _("Rigid (same head, other scanner)")),
            ("affine", _("Affine (rigid, scale and shear)")),
            ("deformable", _("Deformable (soft tissue moved)")),
        ),
        "initial": (
            (AUTOMATIC, _("Automatic (tries many)")),
            ("identity", _("Where the scans lie")),
            ("geometry", _("Centre on centre")),
            ("moments", _("Centre of mass on centre of mass")),
            (TRANSFORM, _("A transform")),
        ),
        "mode": (("volume", _("As a volume")), ("slice", _("Slice by slice"))),
        "axis": (("axial", _("Axial")), ("coronal", _("Coronal")), ("sagittal", _("Sagittal"))),
        "device": (
            (AUTOMATIC, _("Automatic")),
            ("cpu", _("Processor")),
            ("cuda", _("Graphics card (CUDA)")),
            ("mps", _("Graphics (Apple)")),
        ),
    }[name]


#
# MedFusionLogic
#


@dataclass(frozen=True, eq=False)
class FusionOutcome:
    """What a run made.

    scene: the nodes (`mrml.SceneResult`). scores: measure -> value. seconds: step -> time. messages: what the user
    should know, such as a registration that is not to be trusted, or a scan that does not say what it is.
    """

    scene: mrml.SceneResult
    scores: dict
    seconds: dict
    messages: tuple
    summary: str


class FusionRun:
    """A job with the nodes that it was started for. notes: what was noticed at its start, for the user."""

    def __init__(self, job, nodes, request, notes=()):
        self.job, self.nodes, self.request, self.notes = job, nodes, request, tuple(notes)
        # Names for the summary; nodes may leave the scene meanwhile.
        self.names = [node.GetName() for node in nodes]
        self.opacity = None  # of the overlay, as it was seen before something else was shown

    @property
    def state(self):
        """ "running", "done", "failed" or "cancelled"."""
        return self.job.state

    def poll(self):
        return self.job.poll()

    def wait(self, timeout=None):
        return self.job.wait(timeout)

    def cancel(self):
        self.job.cancel()

    def close(self):
        self.job.close()


class MedFusionLogic(ScriptedLoadableModuleLogic):
    """The module without its panel: what scripts and the Python console call."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)

    def getParameterNode(self):
        return MedFusionParameterNode(super().getParameterNode())

    def optionsOf(self, parameters):
        """dict: arguments of `start` that a `MedFusionParameterNode` stands for."""
        chosen = [name for name in INPUTS if getattr(parameters, name) is not None]
        places = [INPUTS.index(name) for name in chosen]
        reference = places.index(parameters.reference) if parameters.reference in places else 0
        masks = [parameters.region if n == reference else None for n in range(len(chosen))]
        modalities = [getattr(parameters, f"{name}Modality") for name in chosen]
        return {
            "nodes": [getattr(parameters, name) for name in chosen],
            "modalities": [None if modality == AUTOMATIC else modality for modality in modalities],
            "reference": reference,
            "registration": parameters.registration,
            "initial": parameters.initialTransform if parameters.initial == TRANSFORM else parameters.initial,
            "masks": masks,
            "method": parameters.method,
            "mode": parameters.mode,
            "axis": parameters.axis,
            "lut": parameters.lut if parameters.color else None,
            "opacity": parameters.opacity,
            "threshold": parameters.threshold if parameters.thresholdOn else None,
            "evaluate": parameters.evaluate,
            "device": parameters.device,
        }

    def uptakeUnits(self, parameters):
        """str: units of the chosen PET or SPECT, as far as it says them."""
        for name in INPUTS:
            node, kind = getattr(parameters, name), getattr(parameters, f"{name}Modality")
            if node is not None and (mrml.modality_of_node(node) if kind == AUTOMATIC else kind) in FUNCTIONAL:
                return mrml.units_of_node(node)
        return ""

    def isValid(self, parameters, missing=()):
        """(whether a run can start, the reason why not). missing: packages that are not installed."""
        if missing:
            return False, _("Install the needed packages first.")
        nodes = [getattr(parameters, name) for name in INPUTS]
        if nodes[0] is None or nodes[1] is None:
            return False, _("Choose a first and a second scan.")
        chosen = [node for node in nodes if node is not None]
        for n, node in enumerate(chosen):
            if node in chosen[:n]:
                return False, _("“{name}” is chosen twice: choose different scans.").format(name=node.GetName())
            image = node.GetImageData()
            if image is None or 0 in image.GetDimensions():
                return False, _("“{name}” has no voxels: load it again.").format(name=node.GetName())
            if node.IsA("vtkMRMLLabelMapVolumeNode") or image.GetNumberOfScalarComponents() != 1:
                return False, _("“{name}” is not a scalar volume: choose a CT, MRI, PET or SPECT.").format(
                    name=node.GetName()
                )
        if nodes[parameters.reference] is None:
            return False, _("The reference is not chosen: choose it, or another reference.")
        if parameters.initial == TRANSFORM and parameters.registration != "none" and not parameters.initialTransform:
            return False, _("Choose the transform to start from, or another start of the registration.")
        if parameters.method not in methods():
            return False, _("There is no fusion method “{name}”: choose another.").format(name=parameters.method)
        return True, ""

    def start(
        self,
        nodes,
        modalities=None,
        reference=0,
        registration="rigid",
        method="medfusion",
        mode="volume",
        axis="axial",
        lut="PET-Heat",
        opacity=0.5,
        threshold=None,
        evaluate=True,
        device=AUTOMATIC,
        seed=0,
        untrusted="warn",
        initial=AUTOMATIC,
        masks=None,
        similarity=AUTOMATIC,
    ):
        """Start to register and fuse in a process of its own; returns a `FusionRun` at once.

        nodes: two or three scalar volume nodes. modalities: DICOM terms in the same order, None for what the node says
        or its values suggest. reference: index of the scan that keeps its place. lut: colour table of the uptake,
        None for no colour. initial: as `MedFusionLib.register` has it, or a linear transform node that brings a moving
        scan near the reference, or would, put on it; or a list with one for each node. masks: for each node where to
        look, as an ROI, a segmentation or a label map node, or None. similarity: see `MedFusionLib.register`.
        The others are those of `MedFusionLib.pipeline.Request`.

        Raises MedFusionError for nodes that cannot be used, and a reference or masks that do not go with them.
        """
        nodes = _several(nodes)
        for place, node in enumerate(nodes, 1):
            # To leave out None would shift what modalities and reference mean.
            if not isinstance(node, vtk.vtkObject):
                raise VolumeError(
                    _("Scan {n} is {what}: give two or three volume nodes, as slicer.util.getNode finds them.").format(
                        n=place, what=repr(node)
                    )
                )
        if len(nodes) < 2:
            raise VolumeError(_("Choose a first and a second scan."))
        for n, node in enumerate(nodes):
            if node in nodes[:n]:
                raise VolumeError(_("“{name}” is chosen twice: choose different scans.").format(name=node.GetName()))
        require_reference(reference, len(nodes))
        modalities = _several(modalities or [None] * len(nodes))
        if len(modalities) != len(nodes):
            raise MethodError(_("Give one modality for each scan, or none at all."))
        volumes = [mrml.volume_from_node(node, kind) for node, kind in zip(nodes, modalities, strict=True)]
        request = Request(
            sources=tuple(volumes),
            reference=reference,
            registration=registration,
            method=method,
            mode=mode,
            axis=axis,
            device=device,
            seed=seed,
            coloring=Coloring(lut, opacity, threshold) if lut else None,
            evaluate=evaluate,
            untrusted=untrusted,
            register_options=self._registerOptions(nodes, volumes, reference, registration, initial, masks, similarity),
        )
        notes = [
            _("“{name}” does not say what it is: choose CT, MRI, PET or SPECT for it, for the best result.").format(
                name=node.GetName()
            )
            for node, volume, kind in zip(nodes, volumes, modalities, strict=True)
            if kind is None and volume.modality == "OT" and not node.GetAttribute("MedFusion.Method")
        ]
        return FusionRun(worker.start(request, pythonInterpreter()), nodes, request, notes)

    def _registerOptions(self, nodes, volumes, reference, registration, initial, masks, similarity):
        """dict: `pipeline.Request`'s register_options of what `start` was given."""
        if registration == "none":
            return {}
        count = len(nodes)
        several = isinstance(initial, (list, tuple)) and len(initial) == count
        starts = list(initial) if several else [initial] * count
        starts = [
            mrml.start_from(start, node, volume) if isinstance(start, vtkMRMLTransformNode) else start
            for start, node, volume in zip(starts, nodes, volumes, strict=True)
        ]
        masks = _several(masks or [None] * count)
        if len(masks) != count or not all(node is None or isinstance(node, vtkMRMLNode) for node in masks):
            raise MethodError(_("Give one mask for each scan, a node or None for all of it, or none at all."))
        regions = [None if node is None else mrml.mask_from_node(node) for node in masks]
        options = {"initial": tuple(starts), "fixed_mask": regions[reference], "moving_mask": tuple(regions)}
        return options | {"similarity": similarity}

    def finish(self, run, show=True):
        """Add the result of a run that has ended to the scene; returns a `FusionOutcome`.

        Raises what ended the run (MedFusionError, Cancelled); then the scene is as it was.
        """
        result = run.job.result()
        scene = mrml.add_result(result, run.nodes, run.request)
        if show:
            mrml.show(scene)
        total = sum(result.seconds.values())
        method = methods()[run.request.method]
        model = run.request.registration
        aligned = _("not registered") if model == "none" else _("{model} registration").format(model=model)
        summary = _("{names}: {method}, {aligned}, {seconds:.1f} s").format(
            names=" + ".join(run.names), method=method.title, aligned=aligned, seconds=total
        )
        for name, registration in zip(run.names, result.registrations, strict=True):
            if registration is not None and registration.quality is not None:
                summary += "\n" + trust(name, registration.quality)
        messages = (*result.messages, *run.notes)
        return FusionOutcome(scene, dict(result.scores), dict(result.seconds), messages, summary)

    def checks(self, run, outcome):
        """[(check, what it shows)] of a run that has ended, as `showCheck` takes them, what to go back to (None) first.

        outcome: what `finish` returned for it. Empty where nothing was registered, and where the reference has left the
        scene or its place since.
        """
        names, reference = run.names, run.names[run.request.reference]
        if not self._isReferenceThere(run):
            return []
        found = []
        for n, registration in enumerate(run.job.result().registrations):
            if registration is not None and registration.model != "none":
                texts = {
                    "after": _("Edges of {name} on {reference}, registered"),
                    "before": _("Edges of {name} on {reference}, as they lay"),
                    "checkerboard": _("{name} and {reference} as a checkerboard"),
                }
                found += [((n, kind), text.format(name=names[n], reference=reference)) for kind, text in texts.items()]
        back = _("The fused volume") if outcome.scene.fused.GetScene() else _("{name} alone").format(name=reference)
        return [(None, back), *found] if found else []

    def _isReferenceThere(self, run):
        """Whether the reference of a run is in the scene, and lies where it lay."""
        n = run.request.reference
        return run.nodes[n].GetScene() is not None and not mrml.has_moved(run.nodes[n], run.request.sources[n])

    def showCheck(self, run, outcome, check=None, instead=None):
        """Show in the slice views how well a scan was registered, or the fused volume again; returns the node for that.

        run: that has not been closed. outcome: what `finish` returned for it. check: of `checks`, None for the fused
        volume, or the reference where that was deleted. instead: the node that was shown for another check: it is taken
        out of the scene.

        Raises MedFusionError.
        """
        from MedFusionLib.registration.checks import checkerboard_volume, edge_volume

        result, request, node = run.job.result(), run.request, None
        reference = run.nodes[request.reference]
        if check is not None:
            if not self._isReferenceThere(run):
                raise VolumeError(_("The reference was deleted or moved since: run again."))
            known = [one for one, _text in self.checks(run, outcome)]
            if check not in known:
                raise MethodError(_("There is no check {check}: choose of {known}.").format(check=check, known=known))
            if instead is None:
                run.opacity = mrml.seen_opacity(outcome.scene)
            n, kind = check
            if kind == "checkerboard":
                ends = display_range(request.sources[n])
                board = checkerboard_volume(result.sources[request.reference], result.sources[n], ends)
                node = mrml.show_alone(replace(board, name=_("{name} checkerboard").format(name=run.names[n])))
            else:
                scan = request.sources[n] if kind == "before" else result.sources[n]
                edges = replace(edge_volume(scan), name=_("{name} edges").format(name=run.names[n]))
                node = mrml.show_edges(edges, reference)
        elif instead is not None:
            if outcome.scene.fused.GetScene() is not None:
                mrml.show(replace(outcome.scene, opacity=run.opacity), turn=False)
            elif reference.GetScene() is not None:
                mrml.show_only(reference)
        mrml.remove(instead)
        return node

    def canLean(self, run, outcome):
        """Whether the result of a run that has ended can be leaned: it has weight maps, and its fused volume is there.

        outcome: what `finish` returned for it.
        """
        return run.job.result().fusion.weights is not None and outcome.scene.fused.GetScene() is not None

    def lean(self, run, outcome, towards, amount):
        """Lean a result in the scene towards one of its scans; no network runs.

        run: that has not been closed. outcome: what `finish` returned for it. towards: index of a scan. amount: 0 (as
        it was fused) to 1 (that scan alone). The fused volume and its colour change in place.

        Raises MedFusionError.
        """
        mrml.update_result(outcome.scene, leaned(run.job.result(), run.request, towards, amount))

    def run(self, nodes, show=True, progress=None, **options):
        """Register and fuse, wait for it, and add the result to the scene: the console's way in.

        nodes and options: as `start` takes them. progress(fraction, message) is called as it goes.

        Returns a `FusionOutcome`. Raises MedFusionError; then the scene is as it was.
        """
        run = self.start(nodes, **options)
        try:
            while True:
                ended = run.wait(0.1)
                for event in run.poll():
                    if event.kind == "progress" and progress:
                        progress(event.fraction, event.message)
                    elif event.kind == "log":
                        logging.info(event.message)
                if ended:
                    return self.finish(run, show)
        finally:
            run.close()


def _several(value):
    """list of what a script gave for several scans; of a single thing, itself alone."""
    return [value] if isinstance(value, vtk.vtkObject) or is_single(value) else list(value)


def pythonInterpreter():
    """Path of the interpreter that runs the engine: `PythonSlicer` in Slicer, else this one."""
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    home = getattr(getattr(slicer, "app", None), "slicerHome", "")
    beside = os.path.join(home, "bin", name) if home else ""
    return beside if os.path.isfile(beside) else shutil.which("PythonSlicer") or sys.executable


#
# MedFusionTest
#


class MedFusionTest(ScriptedLoadableModuleTest):
    """The main cases of the module, by Slicer's self-test framework."""

    def setUp(self):
        slicer.mrmlScene.Clear()
        self.ct, self.mr, self.pet = self._head()

    def test_console(self):
        """The logic registers and fuses, and the scene holds the result."""
        outcome = MedFusionLogic().run([self.ct, self.mr, self.pet], modalities=["CT", "MR", "PT"], show=False)
        self.assertEqual(slicer.util.arrayFromVolume(outcome.scene.fused).shape, (20, 40, 36))
        moved = slicer.util.arrayFromTransformMatrix(outcome.scene.transforms[1])
        self.assertLess(abs(moved[:3, 3] - (-6, 4, 0)).max(), 1.0)  # the MRI lies (6, -4, 0) mm away
        self.assertIsNotNone(outcome.scene.overlay)
        self.assertIsNotNone(outcome.scene.rgb)
        self.assertGreater(outcome.scores["SSIM"], 0)

    def test_panel(self):
        """Apply in the panel does the same, and the parameters come back with the scene's node."""
        widget = self._panel()
        try:
            parameters = widget._parameterNode
            self.assertFalse(widget.ui.applyButton.enabled)
            parameters.first, parameters.second = self.ct, self.mr
            parameters.registration, parameters.method = "none", "average"
            self.assertTrue(widget.ui.applyButton.enabled)
            widget.ui.applyButton.click()
            self.assertEqual(widget.ui.applyButton.text, _("Cancel"))
            self._wait(lambda: widget._run is None)
            self.assertIn("+", parameters.summary)
            self.assertEqual(MedFusionLogic().getParameterNode().method, "average")
        finally:
            widget.cleanup()

    def test_cancel(self):
        """A cancelled run leaves the scene as it was."""
        widget = self._panel()
        try:
            parameters = widget._parameterNode
            parameters.first, parameters.second, parameters.registration = self.ct, self.mr, "deformable"
            before = self._count()
            widget.ui.applyButton.click()
            self._wait(lambda: widget.ui.progressBar.value > 0 or widget._run is None)
            widget.ui.applyButton.click()
            self._wait(lambda: widget._run is None)
            self.assertEqual(self._count(), before)
            self.assertEqual(parameters.summary, "")
        finally:
            widget.cleanup()

    def test_bad_input(self):
        """What cannot be fused is refused with the volume's name, and the scene is as it was."""
        before = self._count()
        logic = MedFusionLogic()
        with self.assertRaisesRegex(VolumeError, "twice"):
            logic.run([self.ct, self.ct])
        with self.assertRaisesRegex(VolumeError, "first and a second"):
            logic.run([self.ct])
        slicer.util.arrayFromVolume(self.mr)[:] = 7
        with self.assertRaisesRegex(VolumeError, "MRI.*constant"):
            logic.run([self.ct, self.mr], registration="none")
        self.assertEqual(self._count(), before)

    def _panel(self):
        parent = slicer.qMRMLWidget()
        parent.setLayout(qt.QVBoxLayout())
        parent.setMRMLScene(slicer.mrmlScene)
        widget = MedFusionWidget(parent)
        widget.setup()
        return widget

    def _count(self):
        kinds = ("vtkMRMLVolumeNode", "vtkMRMLTransformNode")
        return [slicer.mrmlScene.GetNumberOfNodesByClass(kind) for kind in kinds]

    def _wait(self, condition, seconds=120):
        end = time.time() + seconds
        loop = qt.QEventLoop()
        while not condition():
            self.assertLess(time.time(), end, "the run did not end in time")
            qt.QTimer.singleShot(50, loop.quit)
            loop.exec_()

    def _head(self):
        """A CT, an MRI (6 mm to the right, 4 mm to the back) and a PET of a smooth head, made here."""
        import numpy as np

        spacing = np.array([4.0, 4.0, 5.0])
        origin = np.array([-70.0, -78.0, -48.0])
        k, j, i = np.indices((20, 40, 36))
        where = np.stack([i, j, k], -1) * spacing + origin

        def blob(center, size):
            return np.exp(-(((where - center) / size) ** 2).sum(-1) / 2)

        def head(shift):
            return 1 / (1 + np.exp(24 * (np.linalg.norm((where - shift) / (52, 64, 42), axis=-1) - 1)))

        shift = np.array([6.0, -4.0, 0.0])
        arrays = {
            "CT": 1040 * head(0) - 1000 + 800 * blob((20, 25, 6), 9) + 500 * blob((-25, -20, -8), 12),
            "MRI": 500 * head(shift)
            + 300 * blob(shift + np.array((20, 25, 6)), 9)
            - 200 * blob(shift + np.array((-25, -20, -8)), 12),
            "PET": 0.5 * head(0) + 8 * blob((20, 25, 6), 9),
        }
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = origin
        nodes = []
        for name, array in arrays.items():
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
            slicer.util.updateVolumeFromArray(node, array.astype(np.float32))
            node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(affine))
            nodes.append(node)
        return nodes
