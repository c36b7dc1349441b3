"""Volumes <-> Slicer's scene. The only file that imports `slicer`; call it from the main thread."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import slicer
import vtk
from slicer import (
    vtkMRMLColorNode,
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLPETProceduralColorNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLSubjectHierarchyConstants,
    vtkMRMLSubjectHierarchyNode,
    vtkMRMLTransformNode,
    vtkMRMLVectorVolumeNode,
    vtkOrientedImageData,
    vtkSegmentation,
    vtkSegmentationConverter,
)
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .color import LUTS
from .errors import MedFusionError, MethodError, VolumeError
from .normalize import display_range, looks_like_hu
from .volume import FUNCTIONAL, MODALITIES, Volume

MODALITY = "MedFusion.Modality"
"""Node attribute: the modality of a volume that MedFusion added."""

DISPLAY_RANGE = "MedFusion.DisplayRange"
"""Node attribute: black and white of a volume that MedFusion added, where they are not chosen by modality."""

EDGE_COLOR = (1.0, 0.75, 0.0)
"""Of the edges that a registration is judged by."""

SOURCE_ROLE = "medfusionSource"
"""Node reference from a fused volume to the nodes that it was made of."""

BOX = 4
"""Voxels along each side of an ROI's box."""

UNITS = {
    "HU": ("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "SUV": ("{SUVbw}g/ml", "UCUM", "Standardized Uptake Value body weight"),
    "Bq/mL": ("Bq/ml", "UCUM", "Becquerels/milliliter"),
    "": ("1", "UCUM", "no units"),
}
"""Units of a `Volume` -> DICOM code value, scheme and meaning, as Slicer's own importers write them."""


@dataclass(frozen=True, eq=False)
class SceneResult:
    """The nodes of one result.

    fused: the fused volume. transforms: one transform node per source, None for the reference and for sources
    that kept their place. overlay: the PET or SPECT on the fused grid, in its own units, coloured; or None.
    rgb: the colour volume, or None. opacity: of the overlay.
    """

    fused: vtkMRMLScalarVolumeNode
    transforms: tuple[vtkMRMLTransformNode | None, ...]
    overlay: vtkMRMLScalarVolumeNode | None
    rgb: vtkMRMLVectorVolumeNode | None
    opacity: float


def volume_from_node(node, modality=None):
    """The `Volume` of a scalar volume node, in world space: its parent transforms are part of it.

    modality: one of `MODALITIES`; None: from the node's DICOM attributes and units, else guessed from its name (which
    a file gave it) and values, as for files.
    Linear parent transforms go into the affine, and the array (K, J, I) is a read-only view of the node's voxels.
    Under a non-linear one the voxels are those of a hardened copy; the node itself is never changed.
    The display range is chosen by modality (of a fused volume it is its 0 to 1): the window on the screen is for
    looking, and a narrow one would cut away what should be fused.

    Raises VolumeError for what is not a scalar volume with voxels.
    """
    if node is None:
        raise VolumeError("No volume is chosen: select one.")
    name = node.GetName() or "unnamed"
    if not node.IsA("vtkMRMLVolumeNode"):
        raise VolumeError(f"“{name}” is not a volume: choose a CT, MRI, PET or SPECT volume.")
    if isinstance(node, vtkMRMLLabelMapVolumeNode):
        raise VolumeError(f"“{name}” is a label map, not an image: choose the scan that it was drawn on.")
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise VolumeError(f"“{name}” has no voxels: load it again.")
    if image.GetNumberOfScalarComponents() != 1 or isinstance(node, vtkMRMLVectorVolumeNode):
        raise VolumeError(f"“{name}” is a colour or vector volume: choose a scalar one (its intensities).")
    modality = modality or modality_of_node(node)
    units = units_of_node(node)
    ends = node.GetAttribute(DISPLAY_RANGE)
    node = _straightened(node)
    array = slicer.util.arrayFromVolume(node).view()
    array.flags.writeable = False
    volume = Volume(array, _affine(node), modality or "OT", units, name, ends and tuple(ends.split()))
    if modality is None:
        from .files import guess_modality

        volume = replace(volume, modality=guess_modality(volume, name))
    if not units and looks_like_hu(volume):
        volume = replace(volume, units="HU")
    return volume


def has_moved(node, source):
    """Whether a volume node lies elsewhere now than when `volume_from_node` made `source` of it."""
    if node.GetImageData() is None:
        return True
    before = node.GetParentTransformNode()
    straight = before is None or before.IsTransformToWorldLinear()
    motion = _matrix_to_world(node) if straight else _nearest_motion(_bending_to_world(before), node)
    present = motion @ _matrix_to_ras(node) @ _first_voxel(node.GetImageData())
    return not np.allclose(present, source.affine, rtol=0, atol=1e-4)


def mask_from_node(node):
    """Where registration is to look, as a `Volume` that is not 0 there, in world space; parent transforms count.

    node: a markups ROI (its box), a segmentation (all of its segments) or a label map (all of its labels).
    Raises VolumeError for other nodes, empty ones, and an ROI or a segmentation under a non-linear transform.
    """
    name = node.GetName() or "unnamed"
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        if node.GetImageData() is None or 0 in node.GetImageData().GetDimensions():
            raise VolumeError(f"“{name}” has no voxels: load it again.")
        straight = _straightened(node)
        return _mask(slicer.util.arrayFromVolume(straight), _affine(straight), name)
    before = node.GetParentTransformNode()
    if before is not None and not before.IsTransformToWorldLinear():
        raise VolumeError(f"“{name}” is under a transform that bends space: harden it, or take it away.")
    if node.IsA("vtkMRMLMarkupsROINode"):
        size = np.array(node.GetSize())
        if not (size > 0).all():
            raise VolumeError(f"“{name}” is no box yet: draw it, or leave it out.")
        box = np.diag([*size / BOX, 1.0])
        box[:3, 3] = -size / 2 + size / BOX / 2
        affine = slicer.util.arrayFromVTKMatrix(node.GetObjectToWorldMatrix()) @ box
        return Volume(np.ones((BOX,) * 3, np.uint8), affine, "OT", "", name)
    if node.IsA("vtkMRMLSegmentationNode"):
        image = vtkOrientedImageData()
        drawn = node.GetSegmentation().GetNumberOfSegments() > 0
        made = drawn and _with_label_map(node).GenerateMergedLabelmapForAllSegments(
            image, vtkSegmentation.EXTENT_UNION_OF_SEGMENTS
        )
        if not made or 0 in image.GetDimensions():
            raise VolumeError(f"“{name}” is empty: draw a segment in it, or leave it out.")
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        to_world = _matrix_to_world(node) @ slicer.util.arrayFromVTKMatrix(matrix) @ _first_voxel(image)
        return _mask(array, to_world, name)
    raise VolumeError(f"“{name}” is no region: choose an ROI box, a segmentation or a label map.")


def _with_label_map(node):
    """A segmentation node, or of one that has surfaces or contours alone, as RT structures, a copy with a label map."""
    kind = vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    if node.GetSegmentation().ContainsRepresentation(kind):
        return node
    copy = vtkMRMLSegmentationNode()
    copy.GetSegmentation().DeepCopy(node.GetSegmentation())
    if not copy.GetSegmentation().CreateRepresentation(kind):
        raise VolumeError(
            f"“{node.GetName()}” cannot be made a label map: create its binary labelmap in the Segmentations module."
        )
    return copy


def _mask(array, affine, name):
    if not array.any():
        raise VolumeError(f"“{name}” is empty: draw a region in it, or leave it out.")
    return Volume((array != 0).astype(np.uint8), affine, "OT", "", name)


def start_from(transform, moving, source):
    """4x4, RAS mm, moving -> fixed: the start of a registration that a linear transform node, its parents included, is.

    moving: the volume node that would be brought near by putting it under the transform, in place of what it is under
    now. source: its `Volume`, which contains what it is under.

    Raises VolumeError for a transform that bends space.
    """
    if not transform.IsTransformToWorldLinear():
        raise VolumeError(f"“{transform.GetName()}” bends space: choose a linear transform to start from.")
    return _to_world(transform) @ np.linalg.inv(_moved_by(moving, source))


def modality_of_node(node):
    """The modality that a volume node says it has, by its DICOM attributes or its units; None if it says nothing."""
    said = node.GetAttribute(MODALITY)
    if not said:
        hierarchy = _hierarchy()
        item = hierarchy.GetItemByDataNode(node)
        attribute = vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
        said = (hierarchy.GetItemAttribute(item, attribute) if item else "") or node.GetAttribute(attribute)
    if said:
        return said if said in MODALITIES else "OT"
    return {"HU": "CT", "SUV": "PT"}.get(units_of_node(node))


def units_of_node(node):
    """Units of a volume node's voxels as `Volume` says them, "" if the node does not say."""
    entry = node.GetVoxelValueUnits()
    code = entry.GetCodeValue() if entry is not None else None
    known = {value: units for units, (value, _, _) in UNITS.items()}
    return known.get(code, code or "")


def add_volume(volume, name=None, parent=None):
    """A new volume node of a `Volume`, named uniquely after it, under a subject hierarchy item.

    A scalar Volume becomes a scalar volume node shown in its display range, one of uint8 3-vectors a colour volume.
    """
    kind = "vtkMRMLVectorVolumeNode" if volume.is_vector else "vtkMRMLScalarVolumeNode"
    node = _new_node(kind, name or volume.name or volume.modality, parent)
    # The display before the voxels: else it goes through all of them to find a window of its own.
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().AutoWindowLevelOff()
    if volume.is_vector:
        node.SetVoxelVectorType(node.VoxelVectorTypeColorRGB)
    else:
        node.GetDisplayNode().SetWindowLevelMinMax(*display_range(volume))
        units = slicer.vtkCodedEntry()
        units.SetValueSchemeMeaning(*UNITS.get(volume.units, (volume.units, "UCUM", volume.units)))
        node.SetVoxelValueUnits(units)
    _fill(node, volume)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.affine))
    node.SetAttribute(MODALITY, volume.modality)
    if volume.display_range:
        node.SetAttribute(DISPLAY_RANGE, "{!r} {!r}".format(*volume.display_range))
    return node


def add_result(result, nodes, request):
    """Add a `pipeline.Result` to the scene, under the study of the reference's node; returns a `SceneResult`.

    nodes: the volume nodes that `request.sources` came from, in the same order. Where anything fails, the scene is
    left as it was.

    Raises VolumeError when an input has left the scene meanwhile, or a node cannot be made.
    """
    if len(nodes) != len(request.sources) or any(node is None or node.GetScene() is None for node in nodes):
        raise VolumeError("An input of this result is no longer in the scene: load it and run again.")
    reference = nodes[request.reference]
    with _all_or_nothing():
        parent = _study(reference)
        fused = add_volume(result.fusion.volume, parent=parent)
        _keep_instances(reference, fused)
        for node in nodes:
            fused.AddNodeReferenceID(SOURCE_ROLE, node.GetID())
        transforms = tuple(
            _add_transform(registration, node, source, reference, parent)
            for registration, node, source in zip(result.registrations, nodes, request.sources, strict=True)
        )
        overlay = rgb = None
        shown = next((n for n, source in enumerate(result.sources) if source.modality in FUNCTIONAL), None)
        if request.coloring and shown is not None:
            overlay = _add_overlay(result.sources[shown], nodes[shown], request.coloring, parent)
        if result.rgb is not None:
            rgb = add_volume(result.rgb, name=f"{fused.GetName()} colour", parent=parent)
            _keep_instances(reference, rgb)
    return SceneResult(fused, transforms, overlay, rgb, request.coloring.opacity if request.coloring else 0.0)


def update_result(scene_result, result):
    """Give the fused and the colour volume of a `SceneResult` the voxels of another `pipeline.Result` on the same grid.

    Raises VolumeError where the fused volume has left the scene.
    """
    if scene_result.fused.GetScene() is None:
        raise VolumeError("The fused volume is no longer in the scene: run again.")
    for node, volume in ((scene_result.fused, result.fusion.volume), (scene_result.rgb, result.rgb)):
        if node is not None and node.GetScene() is not None and volume is not None:
            _fill(node, volume)


def show(scene_result, turn=True):
    """Show a result in all slice views: the fused volume below, the coloured overlay above.

    turn: to the planes of the fused volume, and fit it to the views; else they stay where they are. Without a layout
    manager (no main window) the views' nodes are set and nothing is fitted to a screen.
    """
    manager = slicer.app.layoutManager() if hasattr(slicer, "app") else None
    if turn:
        for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            view.RotateToVolumePlane(scene_result.fused)
    slicer.util.setSliceViewerLayers(
        background=scene_result.fused,
        foreground=scene_result.overlay,
        label=None,
        foregroundOpacity=scene_result.opacity if scene_result.overlay else 0.0,
        fit=turn and manager is not None,
    )


def seen_opacity(scene_result):
    """Opacity at which a slice view shows the overlay of a result; where none does, that which it was made with."""
    overlay = scene_result.overlay
    if overlay is not None and overlay.GetScene() is not None:
        for view in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            if view.GetForegroundVolumeID() == overlay.GetID():
                return view.GetForegroundOpacity()
    return scene_result.opacity


def show_edges(edges, reference):
    """Show edges (a `Volume` of 0 and 1) in colour over a volume node in all slice views; returns their node.

    It is for looking: it is not saved with the scene.
    """
    with _all_or_nothing():
        node = _new_node("vtkMRMLLabelMapVolumeNode", edges.name, None)
        node.CreateDefaultDisplayNodes()
        slicer.util.updateVolumeFromArray(node, edges.array)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(edges.affine))
        colors = _edge_colors()
        node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    _leave_unsaved(node)
    slicer.util.setSliceViewerLayers(background=reference, foreground=None, label=node, labelOpacity=1.0)
    return node


def show_alone(volume):
    """Show a `Volume` by itself in all slice views; returns its node, which is not saved with the scene."""
    with _all_or_nothing():
        node = add_volume(volume)
    _leave_unsaved(node)
    show_only(node)
    return node


def show_only(node):
    """Show a volume node by itself in all slice views."""
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None)


def _leave_unsaved(node):
    for one in (node, node.GetDisplayNode()):
        one.SaveWithSceneOff()
    # Nor its place in the hierarchy, which would come back without it.
    node.SetAttribute(vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyExcludeFromTreeAttributeName(), "1")
    item = _hierarchy().GetItemByDataNode(node)
    if item:
        _hierarchy().RemoveItem(item, False, False)


def remove(node):
    """Take a node, and what belongs to it, out of the scene, if it is still there."""
    if node is not None and node.GetScene() is not None:
        _remove(node)


def _edge_colors():
    name = "MedFusion edges"
    node = slicer.util.getFirstNodeByClassByName("vtkMRMLColorTableNode", name)
    if node is not None:
        return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
    node.SetTypeToUser()
    node.SetNumberOfColors(2)
    node.SetColor(0, "none", 0.0, 0.0, 0.0, 0.0)
    node.SetColor(1, "edge", *EDGE_COLOR, 1.0)
    node.SetHideFromEditors(True)
    node.SaveWithSceneOff()
    return node


def _add_overlay(volume, node, coloring, parent):
    overlay = add_volume(volume, name=f"{node.GetName()} overlay", parent=parent)
    _keep_instances(node, overlay)
    display = overlay.GetDisplayNode()
    display.SetAndObserveColorNodeID(_color_node(coloring.lut).GetID())
    black, _ = display_range(volume)
    whole, least = volume.array.dtype.kind in "iu", coloring.threshold
    if least is None:
        # What is black is clear, not a dark veil over the anatomy.
        least = np.floor(black) + 1 if whole else np.nextafter(np.float32(black), np.float32(np.inf))
    elif whole:
        least = np.ceil(least)  # VTK cuts the decimals off, and would show what is less
    display.SetLowerThreshold(float(least))
    display.SetUpperThreshold(float(max(volume.array.max(), least)))
    display.ApplyThresholdOn()
    return overlay


def _color_node(name):
    """Slicer's colour node called `name`; a PET one is made where the scene does not have it."""
    for node in slicer.util.getNodesByClass("vtkMRMLColorNode"):
        if isinstance(node, vtkMRMLColorNode) and node.GetName() == name:
            return node
    if name not in LUTS:
        raise MethodError(f"{name!r} is not a colour table: choose one of {', '.join(LUTS)}.")
    node = vtkMRMLPETProceduralColorNode()
    getattr(node, f"SetTypeTo{name.removeprefix('PET-')}")()
    node.SetName(name)
    return slicer.mrmlScene.AddNode(node)


def _add_transform(registration, moving, source, fixed, parent):
    """The transform node under which the moving node lies where its resampled volume does.

    source: what of the request came from the moving node.
    """
    if registration is None or registration.model == "none":
        return None
    node = _new_node("vtkMRMLTransformNode", f"{moving.GetName()} to {fixed.GetName()}", parent)
    # A node has one parent: the new transform takes the place of the present one, so it contains it.
    present = vtk.vtkGeneralTransform()
    before = moving.GetParentTransformNode()
    straight = before is None or before.IsTransformToWorldLinear()
    if straight:
        to_world = _matrix_to_world(moving)
        if isinstance(source, Volume):
            # Where the scan lay when it was registered: it may have been moved since, while the work ran.
            to_world = _moved_by(moving, source)
        present.Concatenate(slicer.util.vtkMatrixFromArray(to_world))
    else:
        vtkMRMLTransformNode.GetTransformBetweenNodes(before, None, present)
    if straight and registration.displacement is None:
        slicer.util.updateTransformMatrixFromArray(node, registration.matrix @ to_world)
    else:
        frozen = vtk.vtkGeneralTransform()
        vtkMRMLTransformNode.DeepCopyTransform(frozen, present)
        frozen.Inverse()
        back = vtk.vtkGeneralTransform()
        back.PostMultiply()
        back.Concatenate(_from_fixed(registration))
        back.Concatenate(frozen)
        node.SetAndObserveTransformFromParent(back)
    node.SetNodeReferenceID(node.GetMovingNodeReferenceRole(), moving.GetID())
    node.SetNodeReferenceID(node.GetFixedNodeReferenceRole(), fixed.GetID())
    node.SetAttribute("MedFusion.Registration", registration.model)
    if registration.quality is not None:
        node.SetAttribute("MedFusion.Quality", f"{registration.quality.verdict}: {registration.quality.reason}")
    return node


def _from_fixed(registration):
    """vtkAbstractTransform: fixed -> moving, RAS mm."""
    if registration.displacement is None:
        inverse = vtk.vtkTransform()
        inverse.SetMatrix(slicer.util.vtkMatrixFromArray(np.linalg.inv(registration.matrix)))
        return inverse
    field = registration.displacement
    grid = vtk.vtkImageData()
    grid.SetDimensions(field.size)
    grid.SetSpacing(field.spacing)
    grid.SetOrigin(field.affine[:3, 3])
    vectors = numpy_to_vtk(field.array.reshape(-1, 3).astype(np.float32, copy=False), deep=True)
    grid.GetPointData().SetScalars(vectors)
    directions = np.eye(4)
    directions[:3, :3] = field.affine[:3, :3] / np.array(field.spacing)
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(slicer.util.vtkMatrixFromArray(directions))
    transform.SetDisplacementGridData(grid)
    transform.SetInterpolationModeToLinear()
    return transform


def _straightened(node):
    """The node itself, or under a non-linear parent transform a hardened copy of it outside the scene."""
    before = node.GetParentTransformNode()
    if before is None or before.IsTransformToWorldLinear():
        return node
    copy = vtkMRMLScalarVolumeNode()
    copy.Copy(node)
    copy.SetAndObserveTransformNodeID(None)
    copy.SetAndObserveImageData(node.GetImageData())
    to_world = _bending_to_world(before)
    # Hardening keeps the grid: it is moved first, or a scan that is moved further than bent would be cut off by it.
    moved = _nearest_motion(to_world, node)
    copy.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(moved @ _matrix_to_ras(node)))
    back = vtk.vtkTransform()
    back.SetMatrix(slicer.util.vtkMatrixFromArray(np.linalg.inv(moved)))
    to_world.PreMultiply()
    to_world.Concatenate(back)
    copy.ApplyTransform(to_world)
    return copy


def _bending_to_world(transform):
    """vtkGeneralTransform of a transform node and its parents, RAS mm, to world."""
    to_world = vtk.vtkGeneralTransform()
    transform.GetTransformToWorld(to_world)
    return to_world


def _nearest_motion(transform, node):
    """4x4, RAS mm: the motion that a transform comes nearest to over a volume node's box, with the node's axes
    stretched as the transform does: right angles stay right angles, as Slicer's tools want them."""
    grid = _matrix_to_ras(node)
    size = np.array(node.GetImageData().GetDimensions())
    index = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 3), -1).reshape(-1, 3) * size - 0.5
    places = index @ grid[:3, :3].T + grid[:3, 3]
    moved = np.array([transform.TransformPoint(place) for place in places])
    middle, aim = places.mean(0), moved.mean(0)
    linear = np.linalg.lstsq(places - middle, moved - aim, rcond=None)[0].T
    left, _, right = np.linalg.svd(linear)
    stretch = np.linalg.norm(linear @ grid[:3, :3], axis=0) / np.linalg.norm(grid[:3, :3], axis=0)
    motion = np.eye(4)
    motion[:3, :3] = left @ right @ (grid[:3, :3] * stretch) @ np.linalg.inv(grid[:3, :3])
    motion[:3, 3] = aim - motion[:3, :3] @ middle
    return motion


def _affine(node):
    return _matrix_to_world(node) @ _matrix_to_ras(node) @ _first_voxel(node.GetImageData())


def _first_voxel(image):
    """4x4 from the index in an image's array to that in its extent, which need not begin at 0, as a part's that VTK
    cut out: Slicer shows it where it was."""
    shift = np.eye(4)
    shift[:3, 3] = image.GetExtent()[::2]
    return shift


def _moved_by(node, source):
    """4x4 of what took a volume node, RAS mm, to where its `Volume` lies: its parents when that was made, of those that
    bend what is nearest to them."""
    return source.affine @ np.linalg.inv(_matrix_to_ras(node) @ _first_voxel(node.GetImageData()))


def _matrix_to_ras(node):
    """4x4, voxel index to RAS mm, without the node's parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _matrix_to_world(node):
    """4x4 of a node's linear parent transforms, RAS mm, to world."""
    before = node.GetParentTransformNode()
    return np.eye(4) if before is None else _to_world(before)


def _to_world(transform):
    """4x4 of a linear transform node and its parents, RAS mm, to world."""
    matrix = vtk.vtkMatrix4x4()
    vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(transform, None, matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _fill(node, volume):
    """Give a volume node the voxels and the attributes of a `Volume`."""
    slicer.util.updateVolumeFromArray(node, _displayable(volume.array))
    for key, value in volume.attributes.items():
        node.SetAttribute(key, value)


def _displayable(array):
    """The array in a type that Slicer's volumes can hold."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _keep_instances(source, node):
    """Let a node say from which DICOM instances it comes, as copies of a volume do in Slicer."""
    instances = source.GetAttribute("DICOM.instanceUIDs")
    if instances:
        node.SetAttribute("DICOM.instanceUIDs", instances)


def _hierarchy():
    return vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _study(node):
    """Subject hierarchy item of a node's study; without one, of what the node lies in."""
    hierarchy = _hierarchy()
    item = hierarchy.GetItemByDataNode(node)
    if not item:
        return hierarchy.GetSceneItemID()
    study = hierarchy.GetItemAncestorAtLevel(item, vtkMRMLSubjectHierarchyConstants.GetDICOMLevelStudy())
    return study or hierarchy.GetItemParent(item)


def _new_node(kind, name, parent):
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass(kind, scene.GenerateUniqueName(name))
    if parent is not None:
        hierarchy = _hierarchy()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, parent)
        else:  # without Slicer's application nothing adds new nodes to the hierarchy
            hierarchy.CreateItem(parent, node)
    return node


def _remove(node):
    hierarchy = _hierarchy()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.RemoveItem(item, False, False)
    scene = slicer.mrmlScene
    helpers = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    helpers += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    for gone in (node, *helpers):
        if gone is not None and scene.IsNodePresent(gone):
            scene.RemoveNode(gone)


@contextmanager
def _all_or_nothing():
    """Remove what was added to the scene inside, where an error leaves it."""
    scene = slicer.mrmlScene
    _hierarchy()  # made when first asked for: not part of what may have to go
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    try:
        yield
    except Exception as error:
        added = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        for node in [node for node in added if node.GetID() not in before]:
            if not scene.IsNodePresent(node):
                continue
            if node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLStorableNode"):
                _remove(node)
            else:
                scene.RemoveNode(node)
        if isinstance(error, MedFusionError):
            raise
        raise VolumeError(f"The result could not be added to the scene, which is unchanged: {error}") from error
