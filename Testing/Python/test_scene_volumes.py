"""Volumes from and to real MRML nodes: geometry, transforms, types, and what is refused."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs slicer-core: pip install .[test]")
import vtk  # noqa: E402
from scene import affine, head, points, rigid  # noqa: E402

from MedFusionLib import mrml  # noqa: E402
from MedFusionLib.errors import VolumeError  # noqa: E402
from MedFusionLib.volume import Volume  # noqa: E402

pytestmark = pytest.mark.scene

GRIDS = {
    "plain": affine((1, 1, 1)),
    "anisotropic": affine((0.5, 0.7, 6), (10, -200, 33)),
    "oblique": affine((1, 2, 3), (5, 6, 7), (0.2, -0.4, 0.9)),
    "left-handed": affine((1, 2, 3), (5, 6, 7), (0.2, -0.4, 0.9), flip=True),
    "sheared": affine((1, 2, 3)) @ np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
}


def linear_transform(matrix, parent=None):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(node, matrix)
    if parent:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def bend():
    """A non-linear transform node: a thin-plate spline that moves one of seven landmarks by 6 mm."""
    here, there = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (60, 0, 0), (-60, 0, 0), (0, 60, 0), (0, -60, 0), (0, 0, 60), (0, 0, -60)):
        here.InsertNextPoint(point)
        there.InsertNextPoint(point[0] + (6 if point == (0, 0, 0) else 0), point[1], point[2])
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(here)
    spline.SetTargetLandmarks(there)
    spline.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.SetAndObserveTransformToParent(spline)
    return node


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (1, 1, 1)], ids=["volume", "slice", "voxel"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_volume_survives_the_scene(scene, grid, shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    node = mrml.add_volume(Volume(array, grid, "PT", "Bq/mL", "sample", display_range=(-1, 99)))
    back = mrml.volume_from_node(node)
    assert np.array_equal(back.array, array)
    assert np.allclose(back.affine, grid, atol=1e-6)
    assert (back.modality, back.units, back.name, back.display_range) == ("PT", "Bq/mL", "sample", (-1, 99))
    # Slicer itself puts a voxel where the affine says.
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    last = np.array([*shape[::-1], 1.0]) - (1, 1, 1, 0)
    assert np.allclose(matrix.MultiplyPoint(last), grid @ last, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["bool", "uint8", "int8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64", ">i2"]
)
def test_every_voxel_type_gets_into_the_scene(scene, kind):
    array = np.array([[[0, 1], [1, 0]]]).astype(kind)
    node = mrml.add_volume(Volume(array, np.eye(4), display_range=(0, 1)))
    back = mrml.volume_from_node(node, "OT").array
    assert np.array_equal(back, array)
    held = {"bool": "uint8", "int64": "float64", "float16": "float32", ">i2": "int16"}.get(kind, kind)
    assert back.dtype == held


def test_voxels_are_a_read_only_view_of_the_node(scene):
    node = mrml.add_volume(head("CT"))
    volume = mrml.volume_from_node(node)
    assert np.shares_memory(volume.array, slicer.util.arrayFromVolume(node))
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1


def test_linear_parents_go_into_the_affine(scene):
    outer = linear_transform(rigid((0.1, 0.2, -0.3), (5, 0, -8)))
    inner = linear_transform(rigid((0, -0.5, 0.1), (0, 12, 3)), outer)
    volume = head("CT")
    node = mrml.add_volume(volume)
    node.SetAndObserveTransformNodeID(inner.GetID())
    expected = rigid((0.1, 0.2, -0.3), (5, 0, -8)) @ rigid((0, -0.5, 0.1), (0, 12, 3)) @ volume.affine
    assert np.allclose(mrml.volume_from_node(node).affine, expected, atol=1e-6)
    assert node.GetParentTransformNode() is inner


def test_a_non_linear_parent_is_applied_to_a_copy(scene):
    volume = head("PT")
    node = mrml.add_volume(volume)
    parent = bend()
    node.SetAndObserveTransformNodeID(parent.GetID())
    seen = mrml.volume_from_node(node)
    assert np.array_equal(slicer.util.arrayFromVolume(node), volume.array)
    assert node.GetParentTransformNode() is parent
    assert (seen.modality, seen.units, seen.name) == ("PT", "SUV", "PET head")
    # The value at a moved point is the node's value at the point it came from.
    spot, moved = (20.0, 25.0, 6.0), [0.0] * 3
    general = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(general)
    general.TransformPoint(spot, moved)
    assert np.linalg.norm(np.subtract(moved, spot)) > 2
    where = points(seen.affine, seen.array.shape).reshape(-1, 3)
    heavy = np.clip(seen.array.ravel() - 4, 0, None)
    assert np.allclose((where * heavy[:, None]).sum(0) / heavy.sum(), moved, atol=0.5)


@pytest.mark.parametrize("bent", [False, True])
def test_a_scan_that_was_moved_is_known(scene, bent):
    node = mrml.add_volume(head("MR", affine((2, 2.5, 3), (-30, -40, -20), (0.1, 0.2, 0.3))))
    around = linear_transform(rigid((0.1, 0, 0), (5, 0, 0)))
    inner = bend() if bent else linear_transform(rigid((0, 0.3, 0), (0, 0, 9)))
    inner.SetAndObserveTransformNodeID(around.GetID())
    node.SetAndObserveTransformNodeID(inner.GetID())
    before = mrml.volume_from_node(node)
    node.SetName("renamed")
    assert not mrml.has_moved(node, before)
    slicer.util.updateTransformMatrixFromArray(around, rigid((0.1, 0, 0.001), (5, 0, 0)))
    assert mrml.has_moved(node, before)
    before = mrml.volume_from_node(node)
    node.SetOrigin(np.array(node.GetOrigin()) + 0.1)
    assert mrml.has_moved(node, before)
    node.SetAndObserveTransformNodeID(None)
    before = mrml.volume_from_node(node)
    node.SetAndObserveImageData(None)
    assert mrml.has_moved(node, before)


@pytest.mark.parametrize("under", ["nothing", "a linear transform", "one that bends"])
def test_a_part_that_vtk_cut_out_lies_where_it_was(scene, view, under):
    """Its extent does not begin at 0, which Slicer's views take account of."""
    spot = (14, 20, 9)
    whole = head("MR")
    array = np.zeros_like(whole.array)
    array[spot[2] - 1 : spot[2] + 2, spot[1] - 1 : spot[1] + 2, spot[0] - 1 : spot[0] + 2] = 100
    node = mrml.add_volume(whole.with_array(array, display_range=(0, 100)))
    if under != "nothing":
        parent = linear_transform(rigid((0.1, 0.2, -0.3), (5, 0, -8))) if under == "a linear transform" else bend()
        node.SetAndObserveTransformNodeID(parent.GetID())
    before = brightest(mrml.volume_from_node(node))
    part = vtk.vtkExtractVOI()
    part.SetInputData(node.GetImageData())
    part.SetVOI(5, 30, 4, 35, 3, 20)
    part.Update()
    node.SetAndObserveImageData(part.GetOutput())
    cut = mrml.volume_from_node(node)
    assert cut.array.shape < whole.array.shape
    np.testing.assert_allclose(brightest(cut), before, atol=0.3)
    view.GetSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
    view.GetSliceNode().SetDimensions(200, 200, 1)
    view.GetSliceNode().SetFieldOfView(120, 120, 1)
    view.GetSliceNode().JumpSliceByCentering(*before)
    view.UpdateImageData()
    view.GetBlend().Update()
    assert view.GetBlend().GetOutput(0).GetScalarComponentAsDouble(100, 100, 0, 0) > 200


def brightest(volume):
    """RAS mm of the centre of what is bright."""
    bright = np.clip(volume.array - 20, 0, None)
    return (points(volume.affine, volume.array.shape) * bright[..., None]).sum((0, 1, 2)) / bright.sum()


@pytest.mark.parametrize(
    ("kind", "fill", "message"),
    [
        ("vtkMRMLLabelMapVolumeNode", np.ones((2, 3, 4), np.uint8), "“lesion” is a label map"),
        ("vtkMRMLVectorVolumeNode", np.ones((2, 3, 4, 3), np.uint8), "“lesion” is a colour or vector volume"),
        ("vtkMRMLScalarVolumeNode", None, "“lesion” has no voxels"),
        ("vtkMRMLModelNode", None, "“lesion” is not a volume"),
    ],
)
def test_what_is_not_a_scan_is_refused_by_name(scene, kind, fill, message):
    node = scene.AddNewNodeByClass(kind, "lesion")
    if fill is not None:
        slicer.util.updateVolumeFromArray(node, fill)
    with pytest.raises(VolumeError, match=message):
        mrml.volume_from_node(node)


def test_nothing_chosen_is_refused():
    with pytest.raises(VolumeError, match="No volume is chosen"):
        mrml.volume_from_node(None)


@pytest.mark.parametrize(("said", "expected"), [("MR", "MR"), ("PT", "PT"), ("RTDOSE", "OT")])
def test_modality_comes_from_dicom(scene, said, expected):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "series")
    slicer.util.updateVolumeFromArray(node, np.ones((2, 3, 4), np.float32))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", said)
    assert mrml.volume_from_node(node).modality == expected


@pytest.mark.parametrize(("code", "modality", "units"), [("[hnsf'U]", "CT", "HU"), ("{SUVbw}g/ml", "PT", "SUV")])
def test_modality_comes_from_units(scene, code, modality, units):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "series")
    slicer.util.updateVolumeFromArray(node, np.ones((2, 3, 4), np.float32))
    entry = slicer.vtkCodedEntry()
    entry.SetValueSchemeMeaning(code, "UCUM", "as an importer says it")
    node.SetVoxelValueUnits(entry)
    volume = mrml.volume_from_node(node)
    assert (volume.modality, volume.units) == (modality, units)


def test_modality_is_guessed_from_values_last(scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "series")
    slicer.util.updateVolumeFromArray(node, head("CT").array)
    volume = mrml.volume_from_node(node)
    assert (volume.modality, volume.units) == ("CT", "HU")
    volume = mrml.volume_from_node(node, "MR")
    assert (volume.modality, volume.units) == ("MR", "")
