"""Where registration is to look and where it is to start, from real MRML nodes."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs slicer-core: pip install .[test]")
import vtk  # noqa: E402
from scene import affine, head, rigid  # noqa: E402

from MedFusionLib import mrml  # noqa: E402
from MedFusionLib.errors import VolumeError  # noqa: E402

pytestmark = pytest.mark.scene

GRID = affine((2, 3, 4), (-9, 5, 12), (0.3, -0.2, 0.5))
PARENT = rigid((0.2, 0.1, -0.4), (10, -20, 30))


def transform(matrix, kind="vtkMRMLLinearTransformNode"):
    node = slicer.mrmlScene.AddNewNodeByClass(kind, "a transform")
    if kind == "vtkMRMLLinearTransformNode":
        slicer.util.updateTransformMatrixFromArray(node, matrix)
    else:
        warp = vtk.vtkThinPlateSplineTransform()
        warp.SetBasisToR()
        places = vtk.vtkPoints(), vtk.vtkPoints()
        for corner in np.ndindex(2, 2, 2):
            places[0].InsertNextPoint(*(40.0 * np.array(corner)))
            places[1].InsertNextPoint(*(40.0 * np.array(corner) + (3 * corner[0] * corner[1], 0, 0)))
        warp.SetSourceLandmarks(places[0])
        warp.SetTargetLandmarks(places[1])
        node.SetAndObserveTransformToParent(warp)
    return node


def label_map(array):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(GRID))
    return node


def labels():
    """(K, J, I) of 0, 1 and 7: two regions that are no mirror images of themselves."""
    array = np.zeros((8, 9, 10), np.uint8)
    array[1:4, 2:7, 3:9] = 1
    array[5, 4, 2:5] = 7
    return array


def centers(volume):
    """RAS mm (N, 3) of the voxels that are not 0, in order."""
    k, j, i = np.nonzero(volume.array)
    found = np.stack([i, j, k, np.ones_like(i)], -1) @ volume.affine.T[:, :3]
    return found[np.lexsort(np.round(found, 4).T)]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", ["label map", "segmentation"])
def test_labels_and_segments_lie_where_the_scene_shows_them(scene, kind, moved):
    node = label_map(labels())
    if kind == "segmentation":
        drawn, node = node, scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segments")
        assert slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(drawn, node)
    if moved:
        node.SetAndObserveTransformNodeID(transform(PARENT).GetID())
    found = mrml.mask_from_node(node)
    k, j, i = np.nonzero(labels())
    expected = np.stack([i, j, k, np.ones_like(i)], -1) @ ((PARENT if moved else np.eye(4)) @ GRID).T[:, :3]
    np.testing.assert_allclose(centers(found), expected[np.lexsort(np.round(expected, 4).T)], atol=1e-3)
    assert set(np.unique(found.array)) <= {0, 1}


def test_a_segmentation_of_surfaces_is_filled_and_left_as_it_is(scene):
    """As RT structures are loaded: no segment has a label map."""
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())  # as Slicer's module does
    ball = vtk.vtkSphereSource()
    ball.SetRadius(20)
    ball.SetCenter(10, -5, 8)
    ball.SetThetaResolution(40)
    ball.SetPhiResolution(40)
    ball.Update()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    segment = slicer.vtkSegment()
    segment.SetName("ball")
    segment.AddRepresentation(surface, ball.GetOutput())
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "structures")
    node.GetSegmentation().SetSourceRepresentationName(surface)
    node.GetSegmentation().AddSegment(segment)
    node.SetAndObserveTransformNodeID(transform(PARENT).GetID())
    found = mrml.mask_from_node(node)
    volume = found.array.sum() * abs(np.linalg.det(found.affine[:3, :3]))
    assert np.isclose(volume, 4 / 3 * np.pi * 20**3, rtol=0.02)
    np.testing.assert_allclose(centers(found).mean(0), (PARENT @ (10, -5, 8, 1))[:3], atol=0.2)
    kind = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    assert not node.GetSegmentation().ContainsRepresentation(kind)


@pytest.mark.parametrize("moved", [False, True])
def test_an_roi_is_its_box(scene, moved):
    from MedFusionLib.registration.images import _Mask

    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    node.SetSize(20, 30, 40)
    node.SetCenter(5, 6, 7)
    if moved:
        node.SetAndObserveTransformNodeID(transform(PARENT).GetID())
    mask = _Mask(mrml.mask_from_node(node), "cpu")
    inside = np.array([[x, y, z] for x in (-4.9, 14.9) for y in (-8.9, 20.9) for z in (-12.9, 26.9)])
    outside = np.array([[-5.1, 6, 7], [15.1, 6, 7], [5, -9.1, 7], [5, 21.1, 7], [5, 6, -13.1], [5, 6, 27.1]])
    if moved:
        inside, outside = (part @ PARENT[:3, :3].T + PARENT[:3, 3] for part in (inside, outside))
    assert mask.holds(inside).all()
    assert not mask.holds(outside).any()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("vtkMRMLMarkupsROINode", "is no box yet"),
        ("vtkMRMLSegmentationNode", "is empty"),
        ("vtkMRMLLabelMapVolumeNode", "has no voxels"),
        ("vtkMRMLModelNode", "is no region"),
    ],
)
def test_what_is_no_region_is_refused_by_name(scene, kind, said):
    node = scene.AddNewNodeByClass(kind, "mine")
    with pytest.raises(VolumeError, match=f"“mine” {said}"):
        mrml.mask_from_node(node)


def test_an_empty_label_map_and_a_bent_box_are_refused(scene):
    with pytest.raises(VolumeError, match="“labels” is empty"):
        mrml.mask_from_node(label_map(np.zeros((4, 5, 6), np.uint8)))
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    node.SetSize(20, 30, 40)
    node.SetAndObserveTransformNodeID(transform(None, "vtkMRMLTransformNode").GetID())
    with pytest.raises(VolumeError, match="“box” is under a transform that bends space"):
        mrml.mask_from_node(node)


def test_a_start_is_what_the_transform_does_to_a_scan_under_it(scene):
    """Registration starts from where the scan lies now: from under another transform it is taken back first."""
    scan, own = mrml.add_volume(head()), rigid((0.1, 0.2, 0.3), (1, 2, 3))
    node = transform(own)

    def start():
        return mrml.start_from(node, scan, mrml.volume_from_node(scan))

    np.testing.assert_allclose(start(), own, atol=1e-9)
    node.SetAndObserveTransformNodeID(transform(PARENT).GetID())
    np.testing.assert_allclose(start(), PARENT @ own, atol=1e-9)
    scan.SetAndObserveTransformNodeID(transform(PARENT).GetID())
    np.testing.assert_allclose(start(), PARENT @ own @ np.linalg.inv(PARENT), atol=1e-9)
    scan.SetAndObserveTransformNodeID(node.GetID())
    np.testing.assert_allclose(start(), np.eye(4), atol=1e-9)
    with pytest.raises(VolumeError, match="bends space"):
        mrml.start_from(transform(None, "vtkMRMLTransformNode"), scan, mrml.volume_from_node(scan))
