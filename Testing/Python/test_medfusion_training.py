"""Training of the default method: its measures agree with the published ones, it learns, resumes and is repeatable."""

import logging
import random

import numpy as np
import pytest
import torch

from MedFusionLib.fusion.training import medfusion_card as card
from MedFusionLib.fusion.training import medfusion_data as data
from MedFusionLib.fusion.training import medfusion_losses as losses
from MedFusionLib.fusion.training import medfusion_training as training
from MedFusionLib.metrics import pair_scores


@pytest.fixture(scope="module")
def examples():
    return data.phantom(seeds=(5,), spacing=3.0)


def test_measures_agree_with_those_that_people_read(examples):
    one = examples[len(examples) // 2]
    first, second = (np.round(255 * image) / 255 for image in one.images[:2])
    fused = np.round(255 * np.maximum(first, 0.8 * second)) / 255
    names = ("Qabf", "SCD", "MS-SSIM")
    wanted = pair_scores(first, second, fused, data_range=1, names=names)
    a, b, f = (torch.from_numpy(image.astype(np.float32))[None, None] for image in (first, second, fused))
    found = {
        "Qabf": losses.gradient_transfer(a, b, f)[0].item(),
        "SCD": losses.difference_correlation(a, b, f).item(),
        "MS-SSIM": (losses.multiscale_structure(a, f) + losses.multiscale_structure(b, f)).item() / 2,
    }
    for name in names:
        assert found[name] == pytest.approx(wanted[name], abs=2e-3), name


def test_copying_a_source_has_no_artefacts_and_adding_edges_has():
    source = torch.rand(1, 1, 64, 64)
    other = torch.zeros_like(source) + 0.5
    assert losses.gradient_transfer(source, other, source)[1].item() == 0
    assert losses.gradient_transfer(source * 0.2, other, source)[1].item() > 0.1


def test_edges_kept():
    source = torch.rand(1, 1, 32, 32)
    everywhere = torch.ones_like(source)
    assert losses.edges_kept(source, source, everywhere).item() == pytest.approx(1, abs=1e-4)
    assert losses.edges_kept(source, -source, everywhere).item() == pytest.approx(0, abs=1e-4)


def test_folds_keep_subjects_together_and_cover_all():
    subjects = list("aaaabbbccd")
    split = data.folds(subjects, 3)
    assert sorted(one for part in split for one in part) == list("abcd")
    assert max(sum(subjects.count(one) for one in part) for part in split) <= 4


def test_phantom_examples_have_their_masks(examples):
    assert {len(one.modalities) for one in examples} == {2, 3}
    for one in examples:
        assert one.images.shape[1:] == (data.SIZE, data.SIZE)
        assert not (one.bone & one.soft).any()
    assert any(one.bone.sum() > 50 for one in examples)


def test_training_improves_resumes_and_repeats(examples, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings = training.Settings(steps=6, batch=1)
    first = training.train(examples, settings)
    again = training.train(examples, settings)
    for one, two in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)

    class Broken(Exception):
        pass

    def break_off(fraction, message):
        if fraction > 0.5:
            raise Broken

    state = tmp_path / "state.pt"
    with pytest.raises(Broken):
        training.train(examples, settings, state, break_off, keep_every=2)
    assert torch.load(state, weights_only=True)["step"] == 2
    resumed = training.train(examples, settings, state)
    for one, two in zip(first.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, two)

    fixed = [data.Sampler(examples, 9).draw(n) for n in range(4)]
    torch.manual_seed(settings.seed)
    before = training.MedFusionNet()

    def mean_loss(network):
        return np.mean(
            [training.loss(network, one, random.Random(n), settings).item() for n, (one, _) in enumerate(fixed)]
        )

    assert mean_loss(first) < mean_loss(before)


def test_card_says_what_fell_short():
    row = {"group": "CT-MRI", "subject": "1"}
    for method in ("medfusion", "maximum"):
        row |= {(method, name): 0.7 for name in (*card.MEASURES, *card.TASK)}
    text = card.write({"steps": 3}, {"held back": [row]}, "abc", of_atlas=True)
    assert "CT-MRI, held back: SCD 0.700, aimed at >= 1.38" in text
    assert "Nabf 0.700, aimed at <= 0.01" in text
    assert "Qabf 0.700, aimed at" not in text
    assert "abc" in text
