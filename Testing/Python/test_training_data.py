"""Training on a user's own data: volumes of a cohort, other slice pairs, and fusions to learn from."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from MedFusionLib import Volume, write_volume
from MedFusionLib.__main__ import main
from MedFusionLib.cohort import find_subjects
from MedFusionLib.errors import FileError, GeometryError
from MedFusionLib.fusion import registry
from MedFusionLib.fusion.training import atlas, dataset, trainer
from MedFusionLib.fusion.training.pairs import kind_batch, stack_batch, target_loss

SPACING = np.diag([2.0, 2, 3, 1])


def head(seed, shape=(10, 60, 50)):
    """(CT, MR) arrays of one head: a bright shell and a textured inside."""
    rng = np.random.default_rng(seed)
    _, j, i = np.indices(shape)
    radius = np.hypot((j - shape[1] / 2) / shape[1], (i - shape[2] / 2) / shape[2])
    inside = radius < 0.35
    texture = rng.random((5, 12, 10)).repeat(2, 0).repeat(5, 1).repeat(5, 2)
    ct = np.where(inside, 40, np.where(radius < 0.42, 900, -1000)) + 5 * rng.normal(size=shape)
    return ct.astype(np.float32), (300 * texture * inside + 3 * (radius < 0.45)).astype(np.float32)


@pytest.fixture
def cohort(tmp_path):
    """Three subjects with a CT and an MRI on one grid."""
    for n in range(3):
        folder = tmp_path / "cohort" / f"patient {n}"
        folder.mkdir(parents=True)
        for name, array in zip(("ct", "t1"), head(n), strict=True):
            write_volume(Volume(array, SPACING, {"ct": "CT", "t1": "MR"}[name]), folder / f"{name}.nii.gz")
    return tmp_path / "cohort"


def add_targets(cohort):
    """The darker of the two scans at every voxel: what no other loss would ask for."""
    for n in range(3):
        ct, mr = head(n)
        dark = np.minimum(np.clip((ct + 100) / 1000, 0, 1), np.clip(mr / np.percentile(mr[mr > 6], 99.8), 0, 1))
        write_volume(Volume(dark.astype(np.float32), SPACING, "OT"), cohort / f"patient {n}" / "target.nii.gz")


def test_volumes_become_slice_pairs_split_by_subject(cohort):
    found = dataset.pairs(find_subjects(cohort))
    assert {(pair.group, pair.modalities, pair.held_back) for pair in found if pair.subject == "patient 2"} == {
        ("CT-MRI", ("CT", "MR"), True)
    }
    assert {pair.subject for pair in found if not pair.held_back} == {"patient 0", "patient 1"}
    assert [pair.slice for pair in found if pair.subject == "patient 1"] == list(range(10))
    ct, _ = head(1)
    images = found[10].images
    assert images.shape == (2, 256, 256)
    expected = np.clip((ct[0] + 100) / 1000, 0, 1)
    np.testing.assert_allclose(images[0, 98:158, 103:153], expected, atol=1e-5)
    assert images[0].sum() == pytest.approx(expected.sum(), rel=1e-4), "black around the slice"


def test_larger_slices_are_means_of_blocks():
    image = np.random.default_rng(0).random((511, 300)).astype(np.float32)
    fitted = dataset._fitted(image)
    assert fitted.shape == (256, 256)
    assert fitted[100, 53 + 20] == pytest.approx(image[200:202, 40:42].mean())
    assert fitted[255, 53] == pytest.approx(image[510, :2].mean()), "the last row goes on"


def test_three_volumes_give_every_two_of_them_and_sagittal_ones_their_axial_slices(cohort, tmp_path):
    ct, mr = head(7)
    sagittal = np.array([[0, 0, 3.0, 0], [2.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    folder = tmp_path / "three" / "a"
    folder.mkdir(parents=True)
    for name, modality, array in (("x", "CT", ct), ("y", "MR", mr), ("z", "PT", np.maximum(mr, 0.1) ** 2)):
        write_volume(Volume(array, sagittal, modality), folder / f"{name}.nrrd")
    found = dataset.pairs([*find_subjects(cohort)[:1], *find_subjects(tmp_path / "three")])
    mine = [pair for pair in found if pair.subject == "a"]
    assert {pair.group for pair in mine} == {"CT-MRI", "PET-MRI", "PET-CT"}
    assert max(pair.slice for pair in mine) > 20, "60 axial slices, of a grid of 10 sagittal ones"


def test_what_cannot_be_learnt_from_is_named(cohort):
    subjects = find_subjects(cohort)
    with pytest.raises(FileError, match="one subject cannot be both"):
        trainer.train("sesf", subjects[:1])
    ct, _ = head(1)
    write_volume(Volume(ct[:, :, :40], SPACING, "CT"), cohort / "patient 1" / "ct.nii.gz")
    with pytest.raises(GeometryError, match=r"subject 2 of 3: .*register them first"):
        dataset.pairs(subjects)
    (cohort / "patient 1" / "ct.nii.gz").unlink()
    with pytest.raises(FileError, match="subject 2 of 3: 1 volumes and 0 targets"):
        dataset.pairs(find_subjects(cohort))


def test_some_targets_are_refused(cohort):
    add_targets(cohort)
    (cohort / "patient 0" / "target.nii.gz").unlink()
    with pytest.raises(FileError, match="some slices have a target and others have none"):
        dataset.pairs(find_subjects(cohort))


def test_targets_follow_their_sources_through_crops_and_turns(cohort):
    add_targets(cohort)
    found = dataset.pairs(find_subjects(cohort))
    for batch in (kind_batch, stack_batch):
        sources, kinds, targets = batch(found, torch.Generator().manual_seed(1), 8)
        assert sources.shape == (8, 2, 96, 96) and targets.shape == (8, 1, 96, 96) and kinds.shape == (8, 2)
        torch.testing.assert_close(targets[:, 0], sources.amin(1), atol=0.02, rtol=0)


def test_pictures_may_have_targets_too(tmp_path):
    for kind, level in (("CT", 200), ("MRI", 90), ("TARGET", 120)):
        folder = tmp_path / "CT-MRI" / kind
        folder.mkdir(parents=True)
        for subject in (1, 2):
            Image.fromarray(np.full((64, 64), level + subject, np.uint8)).save(folder / f"{subject}001.png")
    first, second = atlas.pairs(tmp_path)
    assert (first.held_back, second.held_back) == (False, True)
    np.testing.assert_allclose(first.target * 255, 121)
    (tmp_path / "CT-MRI" / "TARGET" / "1001.png").unlink()
    with pytest.raises(FileError, match="some slices have a target"):
        atlas.pairs(tmp_path)


@pytest.mark.parametrize("method", ("wavelet_cnn", "fwnet", "feature_attention"))
def test_a_network_learns_to_give_the_targets(method, cohort, tmp_path, monkeypatch):
    add_targets(cohort)
    recipe = trainer.RECIPES[method]
    volumes = recipe.volumes and replace(recipe.volumes, epochs=1, steps=1, size=6)
    monkeypatch.setitem(trainer.RECIPES, method, replace(recipe, steps=6, size=2, rate=0.01, volumes=volumes))
    subjects = find_subjects(cohort)
    batch = kind_batch(dataset.pairs(subjects), torch.Generator().manual_seed(3), 4)
    taught = trainer.train(method, subjects, tmp_path / "out", epochs=1, device="cpu")
    assert "Fusions came with the data" in taught.card.read_text()
    assert "Atlas" not in taught.card.read_text() and "patient" not in taught.card.read_text()
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "out"))
    losses = []
    for name in (method, f"{method}-own"):
        with torch.inference_mode():
            fused, _ = registry.load(name, torch.device("cpu"))(batch[0], ("CT", "MR"))
        losses.append(float(target_loss(batch[2], fused[:, None])))
    assert losses[1] < 0.9 * losses[0], "nearer to the targets than what was shipped"


def test_medfusion_learns_from_targets_alone(cohort, tmp_path):
    from MedFusionLib.fusion.training import medfusion_training as training

    add_targets(cohort)
    examples, extra, made = training._examples(find_subjects(cohort), None)
    assert examples and not extra and not made
    network = training.MedFusionNet()
    given = training.loss(network, examples[0], Random(0), training.Settings(range=0.0))
    assert given.item() > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "target_loss", lambda targets, fused: fused.sum() * 0)
        assert training.loss(network, examples[0], Random(0), training.Settings(range=0.0)) == 0


def test_the_verb_trains_on_a_cohort(cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trainer.RECIPES, "sesf", replace(trainer.RECIPES["sesf"], steps=2, size=2))
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["MedFusionLib", "train", "sesf", "--data", str(cohort), "--epochs", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr()
    assert "sesf-own" in registry.methods()
    assert (tmp_path / "own" / "sesf.md").is_file()
