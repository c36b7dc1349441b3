"""The model card of MedFusion's own network: measured, never typed."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import torch

from ...metrics import TASK, pair_scores
from ...volume import MODALITIES
from ..networks.medfusion_net import fuse
from .score import summary

MEASURES = ("Qabf", "SCD", "SSIM", "head-SSIM", "MS-SSIM", "Nabf", "VIF")

TARGETS = {
    "CT-MRI": {
        "bone_solid": 0.97,
        "soft_corr": 0.90,
        "soft_edges": 0.88,
        "background": -0.1,
        "Qabf": 0.64,
        "SCD": 1.38,
        "head-SSIM": 0.57,
        "MS-SSIM": 0.60,
        "Nabf": -0.01,
    },
    "PET-MRI": {"Qabf": 0.78, "SCD": 1.50, "SSIM": 0.735, "head-SSIM": 0.565, "Nabf": -0.01},
    "SPECT-MRI": {"Qabf": 0.78, "SCD": 1.50, "SSIM": 0.785, "head-SSIM": 0.565, "Nabf": -0.01},
}
"""What was aimed at; a negative figure is an upper bound."""

CARD = """# medfusion

The default method: a network of {parameters} parameters that predicts, for each of three frequency bands and
each voxel, how much of each source to take. The result is a convex combination of the sources at every voxel.

- Weights: `medfusion.safetensors`, SHA-256 `{sha256}`
- Made: {date}, by `python -m MedFusionLib train medfusion --data FOLDER --folds 2`
{data}
- Hyper-parameters: {settings}
- The weights of the loss's terms were chosen by the figures of the subjects held back, which flatters these a little.
- For research; not a medical device.

Means over the slices (standard deviation between the subjects' means). `maximum` is the control on the same
slices: subjects differ more than methods do. PET and SPECT are measured as luma. `aim` is what was aimed at.

{tables}
## What fell short

{short}

Where figures pull apart, the training favours what a reader needs: bone as bright as in CT, soft tissue that
follows the MRI, black that stays black. SCD rewards sums brighter than either source, and Q^AB/F edges of both at
one place; a convex combination can give neither in full. How far one can come to all the aims at once, when its pixels
know the measures: `Testing/Benchmarks/fusion_ceiling.py`, in the README.
"""


ATLAS = """\
- Data: The Whole Brain Atlas (K. A. Johnson, J. A. Becker), registered CT-MRI, PET-MRI and SPECT-MRI slices, PET
  and SPECT both as luma and with their colour bar turned back to scalars; slices of MedFusion's own phantom.
  Licence of the atlas: research and education; its images are not part of MedFusion.
- Held back from training: {held_back}."""

OWN = """\
- Data: the user's own registered pairs, and slices of MedFusion's own phantom. Subjects are not named here.
- Held back from training: every fifth subject by name."""


def fused(network, one):
    """float32 (H, W): an `Example` as the network fuses it."""
    index = torch.tensor([MODALITIES.index(name) for name in one.modalities])
    sources = torch.from_numpy(one.images)[None]
    with torch.inference_mode():
        return (fuse(network, sources, index) * sources).sum(1)[0].numpy()


def measure(network, examples):
    """One dict per example: group, subject, and (method, measure) -> value of the network and of the maximum."""
    rows = []
    for one in examples:
        names = MEASURES + (TASK if one.group == "CT-MRI" else ())
        row = {"group": one.group, "subject": one.subject}
        for method, image in (("medfusion", fused(network, one)), ("maximum", one.images.max(0))):
            found = pair_scores(*one.images, image, data_range=1, names=names)
            row |= {(method, name): value for name, value in found.items()}
        rows.append(row)
    return rows


def scores(rows):
    """{group: {measure: (mean, standard deviation)}} of the network over what `measure` returned."""
    found = {}
    for row in rows:
        here = found.setdefault(row["group"], {})
        for name in (key[1] for key in row if key[0] == "medfusion"):
            here.setdefault(name, []).append(row["medfusion", name])
    return {group: summary(measures) for group, measures in found.items()}


def write(settings, rows, sha256, of_atlas):
    """The card's text.

    settings: dict. rows: {title: what `measure` returned}. sha256: of the weight file. of_atlas: whether the data is
    the atlas's.
    """
    from ..networks.medfusion_net import MedFusionNet
    from .atlas import HELD_BACK

    held_back = "; ".join(f"{group} {', '.join(subjects)}" for group, subjects in HELD_BACK.items())
    tables, short = "", []
    for title, found in rows.items():
        for group in sorted({row["group"] for row in found}):
            here = [row for row in found if row["group"] == group]
            tables += _table(title, group, TARGETS.get(group, {}), here, short)
    return CARD.format(
        parameters=f"{sum(p.numel() for p in MedFusionNet().parameters()):,}",
        sha256=sha256,
        date=datetime.now(UTC).date().isoformat(),
        data=ATLAS.format(held_back=held_back) if of_atlas else OWN,
        settings=", ".join(f"{name} {value:g}" for name, value in settings.items()),
        tables=tables,
        short="\n".join(short) or "Nothing.",
    )


def _table(title, group, aims, rows, short):
    names = [*aims, *(name for name in MEASURES if name not in aims)]
    subjects = {row["subject"] for row in rows}
    lines = [f"### {group}, {title}: {len(rows)} slices of {len(subjects)} subjects", ""]
    lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for method in ("medfusion", "maximum"):
        cells = []
        for name in names:
            mean = float(np.nanmean([row[method, name] for row in rows]))
            per_subject = [
                np.nanmean([row[method, name] for row in rows if row["subject"] == subject]) for subject in subjects
            ]
            cells.append(f"{mean:.3f} ({np.std(per_subject):.3f})")
            aim = aims.get(name)
            if method == "medfusion" and aim is not None and (mean > -aim if aim < 0 else mean < aim):
                short.append(f"- {group}, {title}: {name} {mean:.3f}, aimed at {_aim(aim)}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append("| aim | " + " | ".join(_aim(aims.get(name)) for name in names) + " |")
    return "\n".join(lines) + "\n\n"


def _aim(value):
    return "" if value is None else f"<= {-value:g}" if value < 0 else f">= {value:g}"
