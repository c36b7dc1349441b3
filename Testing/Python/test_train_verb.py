"""`train` of the two methods that do not learn by a recipe: as people type it, and what lies on the disk afterwards."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage

from MedFusionLib.cli import main
from MedFusionLib.errors import Cancelled, FileError, MethodError
from MedFusionLib.fusion import registry, weights
from MedFusionLib.fusion.training import medfusion_data, medfusion_training, trainer


@pytest.fixture
def data(tmp_path):
    """A small atlas of heads with a bright rim: subjects 7 and 8 are trained on, 28 held back."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    radius = np.hypot(y, x)
    for subject in (7, 8, 28):
        for slice in range(3):
            for kind in ("CT", "MRI"):
                folder = tmp_path / "atlas" / "CT-MRI" / kind
                folder.mkdir(parents=True, exist_ok=True)
                noise = ndimage.gaussian_filter(random.normal(size=radius.shape), 2)
                image = (0.5 + 0.8 * noise).clip(0.2, 0.8) * (radius < 0.8)
                image[(radius > 0.65) & (radius < 0.8)] = 1 if kind == "CT" else 0.2
                Image.fromarray(np.uint8(255 * image)).save(folder / f"{subject}{slice:03}.png")
    return tmp_path / "atlas"


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    """A smaller phantom to learn from, and whatever is trained leaves the shipped files alone."""
    monkeypatch.setattr(medfusion_data, "phantom", partial(medfusion_data.phantom, (11,), 3.0))
    before = {file.name: file.stat().st_mtime_ns for file in weights.FOLDER.iterdir()}
    yield
    assert {file.name: file.stat().st_mtime_ns for file in weights.FOLDER.iterdir()} == before


def type_in(capsys, *arguments):
    """(exit code, standard output, standard error) of the command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


def test_train_medfusion(data, tmp_path, capsys, monkeypatch):
    own = tmp_path / "own"
    code, out, err = type_in(capsys, "train", "medfusion", "--data", data, "-o", own, "--steps", 3, "--folds", 2)
    assert code == 0, err
    assert "| CT-MRI |" in out and "Qabf" in out and "bone_solid" in out
    assert json.loads((own / "checksums.json").read_text())["medfusion.safetensors"]
    card = (own / "medfusion.md").read_text()
    assert "steps 3" in card and "seed 0" in card
    assert "CT-MRI, held back: 3 slices of 1 subjects" in card
    assert "CT-MRI, cross-validated: 9 slices of 3 subjects" in card
    assert list((own / "tensorboard" / "medfusion").glob("events*"))

    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(own))
    sources = torch.rand(1, 2, 32, 32)
    with torch.inference_mode():
        fused = registry.load("medfusion-own", torch.device("cpu"))(sources, ("CT", "MR"))[0]
        shipped = registry.load("medfusion", torch.device("cpu"))(sources, ("CT", "MR"))[0]
    assert not torch.equal(fused, shipped)


def test_medfusion_goes_on_where_it_stopped(data, tmp_path, monkeypatch):
    monkeypatch.setattr(medfusion_training, "train", partial(medfusion_training.train, keep_every=2))
    whole = trainer.train("medfusion", data, tmp_path / "whole", seed=4, device="cpu", steps=4)
    asked = iter(range(100))
    with pytest.raises(Cancelled):
        trainer.train("medfusion", data, tmp_path, seed=4, device="cpu", steps=4, cancelled=lambda: next(asked) == 3)
    assert not (tmp_path / "medfusion.safetensors").exists()
    assert torch.load(tmp_path / "medfusion.checkpoint.pt", weights_only=True)["step"] == 2
    said = []
    parts = trainer.train(
        "medfusion", data, tmp_path, seed=4, device="cpu", steps=4, progress=lambda _, message: said.append(message)
    )
    assert [message.partition(":")[0] for message in said if "step" in message] == ["step 3 of 4", "step 4 of 4"]
    first, second = load_file(whole.weights), load_file(parts.weights)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    other = load_file(trainer.train("medfusion", data, tmp_path / "other", seed=5, device="cpu", steps=4).weights)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_wrong_lengths_are_refused(data, tmp_path, capsys, monkeypatch):
    code, _, err = type_in(capsys, "train", "medfusion", "--data", data, "-o", tmp_path, "--epochs", 3)
    assert code == 1 and "give steps" in err
    with pytest.raises(MethodError, match="too few for medfusion"):
        trainer.train("medfusion", data, tmp_path, steps=2)
    with pytest.raises(MethodError, match="9 folds of 3 subjects"):
        trainer.train("medfusion", data, tmp_path, steps=3, folds=9)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MethodError, match="without torchrun"):
        trainer.train("selector", data, tmp_path)


def test_train_selector(data, tmp_path, capsys):
    own = tmp_path / "own"
    code, out, err = type_in(capsys, "train", "selector", "--data", data, "-o", own)
    assert code == 0, err
    assert "| CT-MRI |" in out and "bone_solid" in out
    assert "The weights here, on slice pairs of the subjects held back" in (own / "selector.md").read_text()
    assert weights.shapes(own / "selector.safetensors") == weights.shapes(weights.path("selector.safetensors"))

    # Measured once: a second training reads what the first one kept.
    said = []
    again = trainer.train("selector", data, own, progress=lambda _, message: said.append(message))
    assert not said
    assert again.scores["CT-MRI"]["Qabf"][0] > 0


def test_the_selector_goes_on_measuring_where_it_stopped(data, tmp_path, monkeypatch):
    from MedFusionLib.fusion.training import atlas, selector

    monkeypatch.setattr(selector, "KEEP_EVERY", 1)
    pairs, file = atlas.pairs(data)[:3], tmp_path / "kept.pt"
    whole, _ = selector.measured(pairs)
    asked = iter(range(9))
    with pytest.raises(Cancelled):
        selector.measured(pairs, file, cancelled=lambda: next(asked) == 2)
    done = []
    parts, _ = selector.measured(pairs, file, lambda fraction, _: done.append(fraction))
    assert done == [1]
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, two)
    selector.measured(pairs[1:2], file, lambda fraction, _: done.append(fraction))
    assert done == [1, 1], "other slices are measured afresh"


def test_too_few_slices_for_the_selector(data, tmp_path):
    for subject in (7, 8):
        for file in data.rglob(f"{subject}0*.png"):
            file.unlink()
    for kind in ("CT", "MRI"):
        for n in (1, 2):
            (data / "CT-MRI" / kind / f"2800{n}.png").rename(data / "CT-MRI" / kind / f"700{n}.png")
    with pytest.raises(FileError, match="too few of the subjects"):
        trainer.train("selector", data, tmp_path)
