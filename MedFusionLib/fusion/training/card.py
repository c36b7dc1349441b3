"""Model cards: what a set of weights was trained on, how, and how it scores on subjects it never saw."""

from __future__ import annotations

import datetime

from .. import registry
from .dataset import card_lines, is_atlas, is_folder
from .score import STACK_COLUMNS, table

NOTES = {
    **dict.fromkeys(
        ("boltzmann", "rbm", "autoencoder"),
        "Below the targets of `medfusion`: head-SSIM, and on PET- and SPECT-MRI SCD. On CT-MRI hardly better than\n"
        "`maximum`: where the CT's brain is displayed bright it hides the MRI's sulci. `boltzmann`, `rbm` and\n"
        "`autoencoder` are the paper's three networks; they fuse alike and differ in what judges a block.\n"
        "Brightness counts more in PET and SPECT, chosen on subjects trained on: without it `boltzmann` and\n"
        "`autoencoder` lose more of the hot spots (README, hot_contrast). Uptake of middling brightness still gives\n"
        "way to a sharp MRI.",
    ),
    "wavelet_cnn": (
        "One slice a group seen: skull solid, lesion kept, no halo; the SPECT hot spot is dimmer than in the source."
    ),
    "fwnet": (
        "Skull solid, black stays black, no dark blotches. On CT-MRI it lies between `maximum` and the MRI with the\n"
        "CT's bone pasted on it: CT that is displayed bright still veils some sulci. SPECT hot spots keep little more\n"
        "than half of their contrast where the MRI is bright, as with `maximum`; Qabf, SCD and SSIM stay\n"
        "below the targets of `medfusion` on PET- and SPECT-MRI. The terms' weights in the loss were chosen by the\n"
        "figures of the subjects held back, which flatters these a little. What slices see of their neighbours\n"
        "changes little: SCD and SSIM rise by up to .012 and .005, Qabf moves by up to .003 either way."
    ),
    **dict.fromkeys(
        ("feature_concatenation", "feature_attention"),
        "Skull solid, black stays black, no dark blotches. `feature_concatenation` follows the MRI's soft tissue more\n"
        "closely; `feature_attention` is near to `maximum` on CT-MRI: CT that is displayed bright veils some sulci.\n"
        "PET and SPECT lead where they are brighter than the MRI: SPECT hot spots keep little more than half of their\n"
        "contrast where the MRI is bright. On PET- and SPECT-MRI Qabf, SCD and SSIM stay below the targets of\n"
        "`medfusion`. The terms' weights in the loss were chosen by the figures of the subjects held back, which\n"
        "flatters these a little. What slices see of their neighbours changes little: with concatenation SCD rises by\n"
        "up to .031 and Qabf falls by up to .007, with attention nothing moves by more than .003.\n"
        "The public IFCNN-MAX has Qabf .607 and SCD 1.205 on other CT-MRI slices: `feature_attention` beats it in\n"
        "SCD, `feature_concatenation` slice by slice in neither. It is kept for its soft tissue (soft_corr .967 to\n"
        ".750) and its solid skull (bone_solid 1.000 to .509).",
    ),
    "siamese": (
        "The public implementation, on CT-MRI pairs of other subjects: Qabf .589, Nabf .016, SCD 1.293, head-SSIM\n"
        ".524, bone_solid .854, soft_corr .664, soft_edges .736, where `maximum` has .585, .002, 1.433, .560, 1.000,\n"
        ".777, .718; Qabf .75 on PET-MRI. Trained on blurred patches alone, as in the paper, this one kept less of\n"
        "the skull. The brightness of PET and SPECT adds to their weight, chosen on subjects trained on: it keeps\n"
        "more of the hot spots (README, hot_contrast), of SPECT less than half, and costs up to .01 of Qabf.\n"
        "Kept as the paper's method to compare with: prefer `medfusion`."
    ),
    "sesf": (
        "Qabf of the public implementation: .62 on CT-MRI, .79 on PET-MRI; it keeps .53 of the skull solid.\n"
        "Here a brightness term keeps the skull and costs Qabf (CT-MRI falls .032 short). Its knee and weight were\n"
        "chosen on some of the slices held back, which flatters these figures a little. For PET and SPECT the term is\n"
        "stronger, chosen on subjects trained on, and costs up to .03 of their Qabf: without it hot spots were lost\n"
        "in the MRI's texture. What is left of them: README, hot_contrast; weak uptake still gives way to the MRI."
    ),
}
"""What else a reader of a method's card should know."""


TARGETS = (
    "- Fusions came with the data: it learnt to be like them (mean absolute error + (1 - SSIM)) in place of what is\n"
    "  named next."
)


def write_card(method, recipe, folder, epochs, seed, scores, data, seen, held, stacks=None):
    """Write <folder>/<method>.md and return its path.

    data, seen, held: see `dataset.card_lines`. stacks: `score_stacks`' answer.
    """
    info = registry.find(method)
    shipped = is_atlas(data)
    intro = "Mean and spread over the slices of the subjects held back"
    if shipped:
        intro += "; `average` and `maximum` have .385 and .585 Qabf\non the CT-MRI pairs of a larger test set"
    lines = [
        f"# {info.title} (`{method}`)",
        "",
        info.paper,
        "",
        *card_lines(data, seen, held),
        *([TARGETS] if recipe.targets and seen[0].target is not None else []),
        f"- Training: {recipe.summary}",
        f"  Adam, rate {recipe.rate:g}, times {recipe.decay:g} every {recipe.every} epochs; {epochs} epochs of",
        f"  {recipe.steps} steps of {recipe.size}; seed {seed}.",
        f"- Nothing invented (each voxel a blend of its sources): {'yes' if info.convex else 'no'}.",
        f"- Date: {datetime.date.today():%Y-%m-%d}. For research, not a medical device.",
        "",
        f"{intro}.",
        "",
        table({method: scores}),
        "",
    ]
    if stacks:
        lines += [
            "The same subjects' slices as stacks, one by one and as volumes, where each sees its neighbours; mean and",
            "spread over subjects. Qabf across is that of the planes across slices.",
            "",
            table({method: stacks}, STACK_COLUMNS),
            "",
        ]
    if shipped and method in NOTES:
        lines += [NOTES[method], ""]
    made = f"Made by `python -m MedFusionLib train {method} --data {'FOLDER' if is_folder(data) else 'COHORT'}`"
    if is_folder(data):
        made += "; the table again by\n`python -m MedFusionLib.fusion.training.score "
        made += f"{method} average maximum --data FOLDER{' --stacks' if stacks else ''}`"
    lines += [f"{made}.", ""]
    file = folder / f"{method}.md"
    write_text(file, "\n".join(lines))
    return file


def write_text(file, text):
    """Write a card; what was there stays until it is complete."""
    beside = file.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
