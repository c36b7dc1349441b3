"""The method selector: features, choice, mixing, one choice a volume, and what it loses on unseen subjects."""

from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import Volume, fuse
from MedFusionLib.fusion import registry

torch = pytest.importorskip("torch")
from MedFusionLib.fusion import trial  # noqa: E402  (needs torch)
from MedFusionLib.fusion.networks.selector_net import MEASURES, OPTIONS  # noqa: E402
from MedFusionLib.metrics.failures import uptake_failures  # noqa: E402

ATLAS = Path(__file__).parents[3] / "shared" / "data" / "harvard"


@pytest.fixture
def fuser():
    return registry.load("selector", torch.device("cpu"))


def scene(count=2, shape=(5, 48, 40)):
    """(count, *shape): smooth images within an ellipsoid, black outside it."""
    from MedFusionLib.fusion.multiscale import smooth

    noise = smooth(torch.rand((1, count, *shape), generator=torch.Generator().manual_seed(0)))[0]
    grid = np.indices(shape) - np.reshape([(n - 1) / 2 for n in shape], (-1, 1, 1, 1))
    radius = np.reshape([n / 2 for n in shape], (-1, 1, 1, 1))
    return noise * torch.from_numpy(((grid / radius) ** 2).sum(0) < 0.9)


@pytest.mark.parametrize("count", [2, 3])
def test_what_the_trial_measures_does_not_depend_on_the_order_of_the_sources(fuser, count):
    sources, names = scene(count, (3, 64, 60)), ("CT", "MR", "PT")[:count]
    turn = [1, 0, 2][:count]
    fuser.prepare(sources, names)
    first = trial.measured(fuser._fusers, trial.sample(sources), names, fuser.device)
    turned = tuple(names[n] for n in turn)
    second = trial.measured(fuser._fusers, trial.sample(sources[turn]), turned, fuser.device)
    assert np.isfinite(first[:, :4]).all()
    # Rounding to grey levels may differ; `guided` gives ties to the first source.
    same = [name != "guided" for name, _ in OPTIONS]
    np.testing.assert_allclose(first[same], second[same], atol=2e-3)


def test_a_trial_on_a_band_that_is_the_whole_slice_measures_that_slice(fuser):
    from MedFusionLib.metrics import pair_scores

    sources, names = scene(2, (1, 40, 64)), ("PT", "MR")
    bands = trial.sample(sources)
    torch.testing.assert_close(bands, sources[:, 0][None].expand(len(trial.PLACES), -1, -1, -1))
    fuser.prepare(sources, names)
    found = trial.measured(fuser._fusers, bands, names, fuser.device)
    expected = pair_scores(*sources[:, 0].numpy(), sources[:, 0].amax(0).numpy(), 1, trial.MEASURES[:4])
    np.testing.assert_allclose(found[OPTIONS.index(("maximum", 1.0)), :4], list(expected.values()))
    assert np.isnan(found[:, 4]).all()
    whole = sources[:, 0].repeat(1, len(trial.PLACES), 1).numpy()
    kept = uptake_failures(*(255 * image for image in (*whole, whole.max(0))))["hot_contrast"]
    assert found[OPTIONS.index(("maximum", 1.0)), 5] == pytest.approx(min(kept, 1))


def test_a_lost_hot_spot_costs_quality():
    row, column = np.ogrid[:64, :64]
    distance = np.hypot(row - 32, column - 32)
    brain = distance < 28
    spot = (row - 25) ** 2 + (column - 40) ** 2 < 4**2
    uptake, anatomy = np.where(spot, 0.9, 0.3) * brain, 0.5 * brain
    sources = np.float32([anatomy, uptake])
    assert trial.hot(sources, sources[1], ("MR", "PT")) == pytest.approx(1)
    assert trial.hot(sources, sources[0], ("MR", "NM")) == pytest.approx(0)
    assert trial.hot(sources, np.where(spot, 1, 0.1) * brain, ("MR", "NM")) == 1, "more than the uptake has earns none"
    assert np.isnan(trial.hot(sources, sources[1], ("MR", "CT")))
    skull = brain * (distance > 22)
    of_all = trial.scores(np.float32([skull, anatomy, uptake]), sources[1], ("CT", "MR", "PT"))
    assert np.isfinite(of_all).all()


def test_the_sample_is_of_the_head_and_its_size_does_not_grow_with_the_slices():
    sources = torch.zeros(2, 80, 128, 100)
    sources[:, 20:60, 70:110, 30:60] = 0.5
    bands = trial.sample(sources)
    assert bands.shape == (trial.MOST_SLICES * len(trial.PLACES), 2, 48, 100)
    assert (bands > 0).any((1, 2, 3)).all()
    # The plane of the acquisition, wherever it lies.
    torch.testing.assert_close(trial.sample(sources.movedim(1, 3)[..., ::10]), trial.sample(sources[:, ::10]))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 7, 1), (1, 12, 12)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_choice_is_made_for_thin_and_constant_volumes(fuser, shape, value):
    fuser.prepare(torch.full((2, *shape), value), ("CT", "OT"))
    assert fuser.choice in OPTIONS


@torch.inference_mode()
@pytest.mark.parametrize("count", [2, 3])
def test_the_result_is_the_chosen_method_mixed_with_the_maximum(fuser, count):
    names = ("CT", "MR", "PT")[:count]
    sources = scene(count)
    fuser.prepare(sources, names)
    assert fuser.choice in OPTIONS
    slices = sources.transpose(0, 1).contiguous()
    method, weight = fuser.choice
    alone = registry.load(method, torch.device("cpu"))(slices, names)[0]
    expected = weight * alone + (1 - weight) * slices.amax(1)
    torch.testing.assert_close(fuser(slices, names)[0], expected)


@pytest.mark.parametrize("option", [("medfusion", 0.5), ("wavelet_cnn", 1.0), ("maximum", 1.0)])
def test_volumes_go_the_way_of_the_chosen_method(option, monkeypatch):
    """Also by the way through whole volumes that a method may have of its own."""
    from MedFusionLib.fusion import selector

    def always(self, measured, kind):
        return torch.nn.functional.one_hot(torch.tensor([OPTIONS.index(option)]), len(OPTIONS)).float()

    monkeypatch.setattr(selector.SelectorNet, "forward", always)
    volumes = [Volume(one.numpy(), np.eye(4), name) for one, name in zip(scene(), ("MR", "PT"), strict=True)]
    fused = fuse(volumes, "selector").volume
    assert option[0] in fused.attributes["MedFusion.Selected"]
    found = fused.array
    alone, brightest = (fuse(volumes, name).volume.array for name in (option[0], "maximum"))
    np.testing.assert_allclose(found, option[1] * alone + (1 - option[1]) * brightest, atol=1e-6)


def lesson(count=120, seed=1):
    """(trials, kinds, quality, subjects): what is best changes from pair to pair, and the trial shows it noisily."""
    draw = np.random.default_rng(seed)
    quality = draw.normal(size=(count, len(OPTIONS), len(MEASURES)))
    quality[:, 3] += 0.5
    trials = 2 * quality + 0.3 * draw.normal(size=quality.shape) + draw.normal(size=len(OPTIONS))[:, None]
    quality[::2, :, 4] = trials[::2, :, 4] = np.nan
    return trials, np.zeros((count, 3), np.float32), quality, np.arange(count) % 6


def test_training_learns_to_read_the_trial_and_its_bias():
    from MedFusionLib.fusion.training.selector import cross_validated, lost

    trials, kind, quality, subjects = lesson()
    gain, chosen, single = cross_validated((trials, kind, quality), subjects)
    assert lost(gain, chosen).mean() < 0.25 * lost(gain, single).mean()
    # The trial as it is would choose by what it gets wrong for each option.
    naive = np.nanmean(trials, 2).argmax(1)
    assert lost(gain, chosen).mean() < 0.5 * lost(gain, naive).mean()


def test_cross_validation_judges_no_subject_by_itself():
    from MedFusionLib.fusion.training.selector import cross_validated

    trials, kind, quality, subjects = lesson()
    _, before, _ = cross_validated((trials, kind, quality), subjects)
    quality[subjects == 2] = quality[subjects == 2][:, ::-1]
    _, after, _ = cross_validated((trials, kind, quality), subjects)
    assert (before == after)[subjects == 2].all() and (before != after)[subjects != 2].any()


def test_the_card_tells_what_is_lost():
    from MedFusionLib.fusion.training.selector_card import table

    gain = np.zeros((4, len(OPTIONS)))
    gain[:, 2], gain[:2, 3] = 1, 1.5
    rows = table(gain, np.array([3, 2, 2, 0]), np.full(4, 2), np.array(["A", "A", "B", "B"]), np.array(list("wxyz")))
    cells = {row.split(" | ")[0]: row.split(" | ")[1:] for row in rows[2:]}
    assert cells["| A"][:6] == ["0.250", "0.500", "0.000", "50%, -", "0.250 ± 0.250", "0.500 ± 0.000"]
    assert cells["| B"][:4] == ["0.500", "0.000", "0.000", "-, -"]
    assert cells["| all"][:4] == ["0.375", "0.250", "0.250", "150%, 150%"]


def test_gains_are_of_standardised_measures_that_are_there():
    from MedFusionLib.fusion.training.selector import gains, spread_of

    quality = np.array([[[1.0, 10.0], [3.0, 30.0]], [[2.0, np.nan], [6.0, np.nan]]])
    spread = spread_of(quality)
    np.testing.assert_allclose(spread, [np.sqrt(2.5), 10])
    np.testing.assert_allclose(gains(quality, spread)[:, 1], [(1 / np.sqrt(2.5) + 1) / 2, 2 / np.sqrt(2.5)])


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_the_choice_loses_little_against_the_best_option_on_unseen_subjects(fuser):
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.selector import choose, gains, lost, measured, spread_of

    data, _ = measured(atlas.pairs(ATLAS, held_back=True)[::24])
    gain = gains(data[2], spread_of(data[2]))
    chosen = choose(fuser.network, *data[:2])
    alone = (gain.max(1, keepdims=True) - gain).mean(0)
    assert lost(gain, chosen).mean() < 0.6 * alone.min()


@pytest.mark.data
@pytest.mark.skipif(not ATLAS.is_dir(), reason="the atlas images are not beside this checkout")
def test_the_choice_beats_average_on_unseen_subjects():
    from MedFusionLib.fusion.training import atlas
    from MedFusionLib.fusion.training.score import score

    pairs = atlas.pairs(ATLAS, held_back=True)[::25]
    found, average = score("selector", None, pairs), score("average", None, pairs)
    for group in found:
        assert found[group]["Qabf"][0] > average[group]["Qabf"][0] + 0.1
        assert found[group]["SCD"][0] > average[group]["SCD"][0]
    assert found["CT-MRI"]["bone_solid"][0] > 0.97
