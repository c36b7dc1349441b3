"""A result in a real scene: nodes, transforms, overlay pixels, all or nothing, save and reload."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="needs slicer-core: pip install .[test]")
import vtk  # noqa: E402
from scene import affine, blob, head, new_scene, points, rigid  # noqa: E402

from MedFusionLib import color, mrml, worker  # noqa: E402
from MedFusionLib.errors import MethodError, VolumeError  # noqa: E402
from MedFusionLib.fusion import fuse  # noqa: E402
from MedFusionLib.normalize import display_range, to_unit  # noqa: E402
from MedFusionLib.pipeline import Coloring, Request, Result  # noqa: E402
from MedFusionLib.registration import Grid, Registration  # noqa: E402
from MedFusionLib.registration.result import Quality  # noqa: E402
from MedFusionLib.volume import Volume  # noqa: E402

pytestmark = pytest.mark.scene

MOVED = rigid((0.1, -0.15, 0.2), (6, -4, 5))
"""Moving -> fixed of the PET in these tests."""

QUALITY = Quality("check", "the overlap is small.", 1.05, 1.2, 0.6, 0.4, 3.0, (0.9, 1.1), 0)


def study_of(nodes):
    """Put nodes under a patient's study in the subject hierarchy; its item."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        hierarchy.SetItemParent(item, study) if item else hierarchy.CreateItem(study, node)
    return study


def inputs(parent=None, fixed_grid=None):
    """CT and PET nodes; the PET lies elsewhere by MOVED, and under `parent` where one is given."""
    ct = mrml.add_volume(head("CT", fixed_grid))
    grid = np.linalg.inv(MOVED) @ affine((4, 4, 5), (-60, -64, -52), (0.1, 0, 0.05))
    where = points(MOVED @ grid, (21, 34, 31))
    body = 1 / (1 + np.exp(32 * (np.linalg.norm(where / (42, 50, 38), axis=-1) - 1)))
    spot = blob(MOVED @ grid, (21, 34, 31), (20, 25, 6), 7)
    if parent is not None:
        grid = np.linalg.inv(parent) @ grid
    pet = mrml.add_volume(Volume((body * 0.5 + 8 * spot).astype(np.float32), grid, "PT", "SUV", "PET head"))
    if parent is not None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(node, parent)
        pet.SetAndObserveTransformNodeID(node.GetID())
    return ct, pet


def warp(fixed):
    """MOVED and a smooth 5 mm bulge on top: a displacement field, fixed -> moving."""
    where = points(fixed.affine, fixed.array.shape)
    back = np.linalg.inv(MOVED)
    shift = where @ back[:3, :3].T + back[:3, 3] - where
    shift += 5 * blob(fixed.affine, fixed.array.shape, (0, 10, 0), 20)[..., None] * (0.6, 0.0, -0.8)
    return Volume(shift.astype(np.float32), fixed.affine)


def result_of(ct, pet, model="rigid", coloring=None):
    """(Result, Request) as the pipeline would make them from two nodes, with a known registration."""
    fixed, moving = mrml.volume_from_node(ct), mrml.volume_from_node(pet)
    displacement = warp(fixed) if model == "deformable" else None
    registration = Registration(model, MOVED, displacement, Grid.of(fixed), QUALITY)
    coloring = coloring or Coloring()
    request = Request((fixed, moving), registration=model, method="average", coloring=coloring)
    aligned = registration.resample(moving)
    fusion = fuse([fixed, aligned], "average", device="cpu")
    rgb = color.colorize(fusion.volume, aligned, coloring)
    return Result(fusion, (fixed, aligned), (None, registration), rgb, {}, {}, ()), request


def under_transform(moving, fixed):
    """Slicer's own resampling of a node, with its parent transforms, on another node's grid: (K, J, I) array."""
    to_moving, to_ijk, ijk_to_ras = vtk.vtkGeneralTransform(), vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, moving.GetParentTransformNode(), to_moving)
    moving.GetRASToIJKMatrix(to_ijk)
    fixed.GetIJKToRASMatrix(ijk_to_ras)
    chain = vtk.vtkGeneralTransform()
    chain.PostMultiply()
    chain.Concatenate(ijk_to_ras)
    chain.Concatenate(to_moving)
    chain.Concatenate(to_ijk)
    image = vtk.vtkImageData()
    image.ShallowCopy(moving.GetImageData())
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(chain)
    reslice.SetInterpolationModeToLinear()
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(fixed.GetImageData().GetExtent())
    reslice.Update()
    scalars = vtk.util.numpy_support.vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
    return scalars.reshape(fixed.GetImageData().GetDimensions()[::-1])


def node_ids():
    scene = slicer.mrmlScene
    return [scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())]


def hierarchy_items():
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), children, True)
    return sorted(hierarchy.GetItemName(children.GetId(n)) for n in range(children.GetNumberOfIds()))


def test_nodes_hold_what_the_result_says(view):
    ct, pet = inputs()
    ct.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    pet.SetAttribute("DICOM.instanceUIDs", "5.6.7")
    study = study_of([ct, pet])
    result, request = result_of(ct, pet)
    added = mrml.add_result(result, [ct, pet], request)
    assert np.array_equal(slicer.util.arrayFromVolume(added.fused), result.fusion.volume.array)
    assert np.array_equal(slicer.util.arrayFromVolume(added.rgb), result.rgb.array)
    assert np.array_equal(slicer.util.arrayFromVolume(added.overlay), result.sources[1].array)
    for node in (added.fused, added.overlay, added.rgb):
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), result.sources[0].affine, atol=1e-5)
        assert node.GetDisplayNode() is not None
    assert added.rgb.GetVoxelVectorType() == added.rgb.VoxelVectorTypeColorRGB
    assert added.fused.GetDisplayNode().GetWindowLevelMax() == 1
    assert added.fused.GetVoxelValueUnits().GetCodeValue() == "1"
    assert added.overlay.GetVoxelValueUnits().GetCodeMeaning() == "Standardized Uptake Value body weight"
    instances = [node.GetAttribute("DICOM.instanceUIDs") for node in (added.fused, added.rgb, added.overlay)]
    assert instances == ["1.2.3 1.2.4", "1.2.3 1.2.4", "5.6.7"]
    assert added.fused.GetAttribute("MedFusion.Method") == "average"
    assert added.fused.GetAttribute("MedFusion.Source2").startswith("PT SUV 0..")
    assert [added.fused.GetNthNodeReference(mrml.SOURCE_ROLE, n) for n in (0, 1)] == [ct, pet]
    transform = added.transforms[1]
    assert added.transforms[0] is None
    assert transform.GetNodeReference(transform.GetMovingNodeReferenceRole()) is pet
    assert transform.GetNodeReference(transform.GetFixedNodeReferenceRole()) is ct
    assert transform.GetAttribute("MedFusion.Registration") == "rigid"
    assert transform.GetAttribute("MedFusion.Quality") == "check: the overlap is small."
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for node in (added.fused, added.overlay, added.rgb, transform):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    # A fused volume is a source like any other, and says what it is.
    assert mrml.volume_from_node(added.fused).modality == "OT"


def test_a_second_result_gets_names_of_its_own(view):
    ct, pet = inputs()
    result, request = result_of(ct, pet)
    first, second = (mrml.add_result(result, [ct, pet], request) for _ in range(2))
    names = [node.GetName() for one in (first, second) for node in (one.fused, one.overlay, one.rgb, one.transforms[1])]
    assert len(set(names)) == 8


@pytest.mark.parametrize("model", ["rigid", "deformable"])
@pytest.mark.parametrize("parent", [None, rigid((0.3, 0, -0.2), (15, -20, 8))], ids=["alone", "under a transform"])
@pytest.mark.parametrize("flip", [False, True], ids=["right-handed", "left-handed"])
def test_moving_volume_under_the_transform_equals_the_resampled_one(view, model, parent, flip):
    ct, pet = inputs(parent, affine((3, 3, 4), (52 if flip else -52, -50, -50), (0.1, -0.05, 0.15), flip))
    result, request = result_of(ct, pet, model)
    added = mrml.add_result(result, [ct, pet], request)
    resampled = result.sources[1].array
    before = under_transform(pet, ct)
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    inside = under_transform(pet, ct)
    span = np.ptp(resampled)
    assert np.abs(before - resampled).max() > 0.2 * span
    # Not where the grids' edges cut: the two resamplers treat the outermost half voxel differently.
    body = resampled > 0.02 * span
    assert np.abs(inside - resampled)[body].max() <= 1e-3 * span
    assert added.transforms[1].IsTransformToWorldLinear() == (model == "rigid")


@pytest.mark.parametrize("model", ["rigid", "deformable"])
@pytest.mark.parametrize("how", ["put under another transform", "hardened"])
def test_a_scan_that_was_moved_while_the_work_ran(view, model, how):
    parent = rigid((0.3, 0, -0.2), (15, -20, 8))
    ct, pet = inputs(parent)
    result, request = result_of(ct, pet, model)
    if how == "hardened":
        pet.HardenTransform()
    else:
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(other, rigid((0, 0.2, 0), (5, 30, 0)))
        pet.SetAndObserveTransformNodeID(other.GetID())
    added = mrml.add_result(result, [ct, pet], request)
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    resampled = result.sources[1].array
    body = resampled > 0.02 * np.ptp(resampled)
    assert np.abs(under_transform(pet, ct) - resampled)[body].max() <= 1e-3 * np.ptp(resampled)


@pytest.mark.parametrize(("model", "ending"), [("rigid", ".h5"), ("rigid", ".tfm"), ("deformable", ".h5")])
def test_slicer_reads_the_transform_file_to_the_same_mapping(view, tmp_path, model, ending):
    ct, pet = inputs()
    result, _ = result_of(ct, pet, model)
    path = tmp_path / f"pet_to_ct{ending}"
    result.registrations[1].write(path)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    node.AddDefaultStorageNode(str(path))
    assert node.GetStorageNode().ReadData(node)
    pet.SetAndObserveTransformNodeID(node.GetID())
    resampled = result.sources[1].array
    body = resampled > 0.02 * np.ptp(resampled)
    assert np.abs(under_transform(pet, ct) - resampled)[body].max() <= 1e-3 * np.ptp(resampled)


def test_a_transform_replaces_a_bent_parent(view, capfd):
    ct, pet = inputs()
    first = mrml.add_result(*(lambda r, q: (r, [ct, pet], q))(*result_of(ct, pet, "deformable")))
    pet.SetAndObserveTransformNodeID(first.transforms[1].GetID())
    moving = mrml.volume_from_node(pet)
    fixed = mrml.volume_from_node(ct)
    again = Registration("rigid", rigid((0, 0, 0.1), (3, 0, 0)), None, Grid.of(fixed), QUALITY)
    aligned = again.resample(moving)
    result = Result(fuse([fixed, aligned], "average", device="cpu"), (fixed, aligned), (None, again), None, {}, {}, ())
    added = mrml.add_result(result, [ct, pet], Request((fixed, moving), coloring=None))
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    inside = under_transform(pet, ct)
    # Resampled twice against once: interpolation alone differs.
    assert np.abs(inside - aligned.array)[2:-2, 2:-2, 2:-2].max() < 0.15 * np.ptp(aligned.array)
    assert np.corrcoef(inside.ravel(), aligned.array.ravel())[0, 1] > 0.995
    assert "not linear" not in capfd.readouterr().err  # Slicer would show an error


@pytest.mark.parametrize("shift", [(6, -4, 5), (60, -30, 40), (150, 0, 0)])
def test_a_scan_that_is_bent_and_moved_far_is_read_whole(view, monkeypatch, shift):
    """As under the transform of a deformable result, which holds the linear part too."""
    monkeypatch.setitem(globals(), "MOVED", rigid((0.1, -0.15, 0.2), shift))
    ct, pet = inputs()
    added = mrml.add_result(*(lambda r, q: (r, [ct, pet], q))(*result_of(ct, pet, "deformable")))
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    seen = under_transform(pet, ct)
    fixed, moving = mrml.volume_from_node(ct), mrml.volume_from_node(pet)
    read = Registration("none", np.eye(4), None, Grid.of(fixed)).resample(moving).array
    assert np.isclose(read.sum(), seen.sum(), rtol=0.03)
    axes = moving.affine[:3, :3] / moving.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6), "a sheared grid"
    assert np.corrcoef(read.ravel(), seen.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("lut", sorted(color.LUTS))
def test_overlay_pixels_have_the_right_colour_on_the_right_side(view, lut):
    ct, pet = inputs()
    result, request = result_of(ct, pet, coloring=Coloring(lut, opacity=0.6))
    added = mrml.add_result(result, [ct, pet], request)
    assert added.overlay.GetDisplayNode().GetColorNode().GetName() == lut
    mrml.show(added)
    view.GetSliceNode().SetDimensions(200, 200, 1)
    view.FitSliceToAll()
    view.SetSliceOffset(6)
    view.UpdateImageData()
    view.GetBlend().Update()
    image = view.GetBlend().GetOutput(0)
    to_xy = np.linalg.inv(slicer.util.arrayFromVTKMatrix(view.GetSliceNode().GetXYToRAS()))

    def pixel(ras):
        x, y = np.rint((to_xy @ [*ras, 1])[:2]).astype(int)
        return x, np.array([image.GetScalarComponentAsDouble(x, y, 0, n) for n in range(3)])

    def value(volume, ras):
        # The views interpolate between voxels: look where a voxel's centre is.
        index = np.rint(np.linalg.inv(volume.affine) @ [*ras, 1])[:3].astype(int)
        return volume.array[tuple(index[::-1])]

    fixed = result.sources[0]
    center = fixed.affine @ np.append(np.rint(np.linalg.inv(fixed.affine) @ [20, 25, 6, 1])[:3], 1)
    mirrored = center * (-1, 1, 1, 1)
    black, white = display_range(result.sources[1])
    place = int(np.clip(255 * (value(result.sources[1], center[:3]) - black) / (white - black), 0, 255))
    grey = 255 * value(result.fusion.volume, center[:3])
    expected = 0.4 * grey + 0.6 * color.table(lut)[place].astype(float)
    view.SetSliceOffset(center[2])
    view.UpdateImageData()
    view.GetBlend().Update()
    x, seen = pixel(center[:3])
    assert np.abs(seen - expected).max() <= 12, (seen, expected)
    # Radiological: the patient's right (+R) is on the left of an axial view.
    x_mirrored, other = pixel(mirrored[:3])
    assert x < x_mirrored
    assert np.ptp(other) < np.ptp(seen) or np.abs(other - seen).max() > 40
    # Outside the head the anatomy's black stays black: the colour table's low end is clear there.
    assert pixel((-50, -55, center[2]))[1].max() <= 1


def test_the_rgb_volume_is_seen_in_its_own_colours(view):
    ct, pet = inputs()
    result, request = result_of(ct, pet)
    rgb = mrml.add_result(result, [ct, pet], request).rgb
    view.GetSliceCompositeNode().SetBackgroundVolumeID(rgb.GetID())
    view.GetSliceNode().SetDimensions(200, 200, 1)
    view.FitSliceToAll()
    affine = result.rgb.affine
    for ijk in ((24, 27, 13), (18, 20, 13), (2, 2, 13)):
        center = affine @ (*ijk, 1)
        view.SetSliceOffset(center[2])
        view.UpdateImageData()
        view.GetBlend().Update()
        to_xy = np.linalg.inv(slicer.util.arrayFromVTKMatrix(view.GetSliceNode().GetXYToRAS()))
        x, y = np.rint((to_xy @ center)[:2]).astype(int)
        seen = [view.GetBlend().GetOutput(0).GetScalarComponentAsDouble(x, y, 0, n) for n in range(3)]
        assert np.abs(seen - result.rgb.array[ijk[::-1]].astype(float)).max() <= 8, (seen, ijk)


def test_the_threshold_is_in_the_pets_own_units(view):
    ct, pet = inputs()
    result, request = result_of(ct, pet, coloring=Coloring(threshold=4.0))
    display = mrml.add_result(result, [ct, pet], request).overlay.GetDisplayNode()
    assert (display.GetApplyThreshold(), display.GetLowerThreshold()) == (1, 4.0)
    shown = to_unit(result.sources[1])
    assert display.GetWindowLevelMin() == 0
    assert np.isclose(display.GetWindowLevelMax(), result.sources[1].array.max() / 1.0, rtol=0.2)
    assert shown.max() == 1


@pytest.mark.parametrize(
    ("threshold", "black", "white", "colored"),
    [
        (49.5, 0, 80, (50, 80)),
        (49, 0, 80, (49, 50, 80)),
        (80.5, 0, 80, ()),
        (None, 0, 80, (49, 50, 80)),
        (None, 48.5, 51, (49, 50, 80)),
    ],
)
def test_whole_counts_are_shown_from_the_threshold_on(view, threshold, black, white, colored):
    """The same voxels as in the colour volume: VTK compares counts with a threshold without its decimals."""
    ct = head("CT")
    counts = np.zeros(ct.array.shape, np.uint16)
    columns = {0: 5, 49: 15, 50: 25, 80: 33}
    for count, i in columns.items():
        counts[:, :, i - 2 : i + 3] = count
    sources = ct, Volume(counts, ct.affine, "NM", "counts", "SPECT", (black, white))
    same = Registration("none", np.eye(4), None, Grid.of(ct))
    coloring = Coloring("PET-Rainbow2", 1.0, threshold)
    fusion = fuse(sources, "average", device="cpu")
    rgb = color.colorize(fusion.volume, sources[1], coloring)
    request = Request(sources, registration="none", coloring=coloring)
    result = Result(fusion, sources, (None, same), rgb, {}, {}, ())
    mrml.show(mrml.add_result(result, [mrml.add_volume(source) for source in sources], request))
    view.GetSliceNode().SetDimensions(200, 200, 1)
    view.FitSliceToAll()
    view.SetSliceOffset((ct.affine @ (0, 0, 12, 1))[2])
    view.UpdateImageData()
    view.GetBlend().Update()
    to_xy = np.linalg.inv(slicer.util.arrayFromVTKMatrix(view.GetSliceNode().GetXYToRAS()))
    for count, i in columns.items():
        x, y = np.rint((to_xy @ ct.affine @ (i, 20, 12, 1))[:2]).astype(int)
        seen = [view.GetBlend().GetOutput(0).GetScalarComponentAsDouble(x, y, 0, n) for n in range(3)]
        assert (np.ptp(seen) > 20) == (np.ptp(rgb.array[12, 20, i].astype(int)) > 20) == (count in colored), (
            count,
            seen,
        )


def test_without_pet_there_is_no_overlay(view):
    ct, mr = mrml.add_volume(head("CT")), mrml.add_volume(head("MR"))
    sources = tuple(map(mrml.volume_from_node, (ct, mr)))
    same = Registration("none", np.eye(4), None, Grid.of(sources[0]))
    result = Result(fuse(sources, "average", device="cpu"), sources, (None, same), None, {}, {}, ())
    added = mrml.add_result(result, [ct, mr], Request(sources, registration="none"))
    assert (added.overlay, added.rgb, added.transforms) == (None, None, (None, None))
    mrml.show(added)
    composite = view.GetSliceCompositeNode()
    assert composite.GetBackgroundVolumeID() == added.fused.GetID()
    assert composite.GetForegroundVolumeID() is None


@pytest.mark.parametrize("failure", ["table", "field", "nodes"])
def test_a_failure_leaves_the_scene_as_it_was(view, failure):
    ct, pet = inputs()
    study_of([ct, pet])
    result, request = result_of(ct, pet, "deformable")
    nodes = [ct, pet]
    if failure == "table":
        request, error = Request(request.sources, coloring=Coloring("PET-Nothing")), MethodError
    elif failure == "field":
        # A volume that no scene can show fails late, when fused volume, transform and overlay are there.
        hopeless = Volume(np.zeros((2, 2, 2, 3), np.complex64).real.astype(np.float32), np.eye(4))
        object.__setattr__(hopeless, "affine", np.eye(3))
        result, error = Result(**(vars(result) | {"rgb": hopeless})), VolumeError
    else:
        slicer.mrmlScene.RemoveNode(pet)
        error = VolumeError
    nodes_before, items_before = node_ids(), hierarchy_items()
    with pytest.raises(error):
        mrml.add_result(result, nodes, request)
    assert node_ids() == nodes_before
    assert hierarchy_items() == items_before


def test_a_saved_scene_comes_back_whole(view, tmp_path):
    ct, pet = inputs(rigid((0.3, 0, -0.2), (15, -20, 8)))
    study_of([ct, pet])
    result, request = result_of(ct, pet, "deformable")
    added = mrml.add_result(result, [ct, pet], request)
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    names = [node.GetName() for node in (added.fused, added.overlay, added.rgb, added.transforms[1])]
    moved = under_transform(pet, ct)
    bundle = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(bundle))
    scene, _, alive = new_scene()
    assert scene.ReadFromMRB(str(bundle))
    fused, overlay, rgb, transform = (scene.GetFirstNodeByName(name) for name in names)
    assert np.allclose(slicer.util.arrayFromVolume(fused), result.fusion.volume.array, atol=1e-6)
    assert np.array_equal(slicer.util.arrayFromVolume(rgb), result.rgb.array)
    assert rgb.GetVoxelVectorType() == rgb.VoxelVectorTypeColorRGB
    assert overlay.GetDisplayNode().GetColorNode().GetName() == "PET-Heat"
    assert mrml.volume_from_node(overlay).units == "SUV"
    assert fused.GetAttribute("MedFusion.Method") == "average"
    ct, pet = scene.GetFirstNodeByName("CT head"), scene.GetFirstNodeByName("PET head")
    assert transform.GetNodeReference(transform.GetMovingNodeReferenceRole()) is pet
    assert pet.GetParentTransformNode() is transform
    assert np.allclose(under_transform(pet, ct), moved, atol=1e-3 * np.ptp(moved))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = {hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n))) for n in (ct, fused, rgb)}
    assert parents == {"study"}
    del alive


@pytest.mark.parametrize("how", ["edges", "alone"])
def test_a_scene_saved_while_a_registration_is_looked_at_keeps_nothing_of_that(view, tmp_path, how):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def list_it(scene, event, node):  # as Slicer's application does with what is added
        if node.IsA("vtkMRMLVolumeNode"):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, list_it)
    ct = mrml.add_volume(head("CT"))
    before = hierarchy_items()
    picture = head("MR")
    picture = picture.with_array((picture.array > 100).astype(np.uint8), name="picture", display_range=(0, 1))
    node = mrml.show_edges(picture, ct) if how == "edges" else mrml.show_alone(picture)
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    mrml.remove(node)
    assert hierarchy_items() == before
    scene, _, alive = new_scene()
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Import()
    assert hierarchy_items() == before
    assert scene.GetFirstNodeByName("picture") is None
    del alive


def test_from_nodes_through_the_child_process_to_nodes(view):
    ct, pet = inputs()
    sources = (mrml.volume_from_node(ct), mrml.volume_from_node(pet))
    request = Request(sources, registration="rigid", method="average", device="cpu", evaluate=False)
    with worker.start(request) as job:
        result = job.result()
        added = mrml.add_result(result, [ct, pet], request)
        expected = result.sources[1].array.copy()
    pet.SetAndObserveTransformNodeID(added.transforms[1].GetID())
    body = expected > 0.02 * np.ptp(expected)
    assert np.abs(under_transform(pet, ct) - expected)[body].max() <= 1e-3 * np.ptp(expected)
    # The nodes hold the voxels themselves: the job's files are gone.
    assert np.array_equal(slicer.util.arrayFromVolume(added.overlay), expected)


def test_showing_works_without_views():
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    ct, pet = inputs()
    added = mrml.add_result(*(lambda r, q: (r, [ct, pet], q))(*result_of(ct, pet)))
    mrml.show(added)
    assert added.overlay.GetDisplayNode().GetColorNode().GetTypeAsString() == "PET-Heat"
    slicer.mrmlScene = None
