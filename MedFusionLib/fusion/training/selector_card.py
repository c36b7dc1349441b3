"""The method selector's model card: what its choice loses against an oracle, on subjects it has not learnt from."""

from __future__ import annotations

import datetime
import textwrap
from collections import Counter

import numpy as np

from .. import trial
from ..networks.selector_net import MEASURES, METHODS, OPTIONS
from .selector import EVERY, KIND, RIDGE, choose, cross_validated, gains, lost, spread_of, stacks, volumes


def label(option):
    name, weight = option
    return name if weight == 1 else f"{weight:g} {name} + {1 - weight:g} maximum"


def table(gain, chosen, single, groups, subjects):
    """Markdown: the losses of each of the groups (N,) and of all, and their mean and spread over the subjects (N,)."""
    lines = [
        "| | selector | single option | best single in hindsight | shares | selector, over subjects"
        " | single option, over subjects | pairs | chosen |",
        "|---" * 9 + "|",
    ]
    ours, theirs = lost(gain, chosen), lost(gain, single)
    for group in (*dict.fromkeys(groups), "all"):
        there = (groups == group) | (group == "all")
        hindsight = _hindsight(gain[there])
        members = [there & (subjects == one) for one in np.unique(subjects[there])]
        means = [np.array([part[member].mean() for member in members]) for part in (ours, theirs)]
        often = Counter(label(OPTIONS[n]) for n in chosen[there]).most_common(3)
        cells = [
            f"{ours[there].mean():.3f}",
            f"{theirs[there].mean():.3f}",
            f"{hindsight:.3f}",
            f"{_share(ours[there], theirs[there].mean())}, {_share(ours[there], hindsight)}",
            *(f"{part.mean():.3f} ± {part.std():.3f}" for part in means),
            str(there.sum()),
            "; ".join(f"{name} ({count})" for name, count in often),
        ]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return lines


def _hindsight(gain):
    """What the best single option loses, found on these very pairs."""
    return (gain.max(1, keepdims=True) - gain).mean(0).min()


def _share(ours, theirs):
    return f"{ours.mean() / theirs:.0%}" if theirs > 5e-4 else "-"


def card(data, found, seen, network, seconds, of_atlas):
    """The model card's text.

    data: `selector.measured`'s of the `atlas.Pair`s `found`. seen: (N,) whether the shipped `network` learnt from
    them. seconds: of a trial. of_atlas: whether the data is the atlas's.
    """
    groups = np.array([pair.group for pair in found])
    # A number means one person, whatever the group: subject 28 is in two.
    people = np.array([pair.subject for pair in found])
    members = stacks(found)
    slices = cross_validated(data, people)
    names = np.array(list(dict.fromkeys(members)))
    whole = cross_validated(volumes(data, members), np.array([name.split(maxsplit=1)[1] for name in names]))
    spread = spread_of(data[2][seen])
    unseen = gains(data[2][~seen], spread)
    single = np.full(len(unseen), gains(data[2][seen], spread).mean(0).argmax())
    shipped = unseen, choose(network, data[0][~seen], data[1][~seen]), single
    ours, theirs = lost(*slices[:2]), lost(slices[0], slices[2]).mean()
    short = [
        group
        for group in dict.fromkeys(groups)
        if ours[groups == group].mean() > 0.5 * _hindsight(slices[0][groups == group])
    ]
    facts = [
        f"Options: {', '.join(METHODS)}, each also half and half with `maximum`, and `maximum`.",
        f"Quality: the mean of {', '.join(MEASURES)} (bone_solid for CT-MRI only, hot_contrast for PET and SPECT only),"
        " each less its mean over the options and in units of its standard deviation between them.",
        f"Input: every option fuses a sample of the volume, bands of {trial.SHARE:g} of the rows (at least"
        f" {trial.FEWEST}) at {', '.join(f'{place:g}' for place in trial.PLACES)} of the head's height, in up to"
        f" {trial.MOST_SLICES} slices; the same measures, taken there, and which modalities there are.",
        "Model: linear in the measures' differences between the options, with a bias for each option and one for each"
        f" option and modality; ridge regression (penalty {RIDGE:g}, biases by modality count {KIND:g}) of the quality"
        " of whole slices, each subject with one voice. Bands and penalties were chosen by the cross-validation below,"
        " which flatters it a little.",
        f"Cost: the trial took {seconds:.1f} s a 256x256 pair on one thread of the machine that trained it (median),"
        f" and takes {trial.MOST_SLICES} times that for a volume, however many such slices it has. Every network is"
        " loaded; the bands of one slice are in memory at a time.",
        (
            "Data: The Whole Brain Atlas (K. A. Johnson, J. A. Becker), luma; its slices are not part of this project."
            if of_atlas
            else "Data: the user's own."
        )
        + f" One slice in {EVERY}. The weights come from the subjects that are not held back.",
        f"Date: {datetime.date.today():%Y-%m-%d}. For research, not a medical device.",
    ]
    reading = (
        "Quality lost against an oracle that knows the best option of each pair: means over the pairs, then mean and"
        " spread over the subjects. Cross-validated: the selector and the single option (the best one there) come from"
        " all other subjects. The best single in hindsight is found on the very pairs of its row: a harder comparison"
        " than a fair one. Shares: what the selector loses of what each of the two loses."
    )
    result = (
        f"By slice pairs, the selector loses {_share(ours, theirs)} of what the single option loses, and"
        f" {_share(ours, _hindsight(slices[0]))} of what the best one in hindsight loses; the aim was at most 50%."
        + (f" On {', '.join(short)} alone it is more than half of the latter." if short else "")
        + (
            " There are two PET subjects, perhaps of one person, and the networks among the options have seen the"
            " subjects that are not held back."
            if of_atlas
            else ""
        )
    )
    parts = [
        "# Method selector (`selector`)",
        _wrapped(
            "Chooses a method, and its weight against `maximum`, once per volume; after Rice, The algorithm selection"
            " problem, 1976."
        ),
        "\n".join(_wrapped(f"- {fact}", "  ") for fact in facts),
        _wrapped(reading),
        "Every slice pair by itself, cross-validated:",
        "\n".join(table(*slices, groups, members)),
        "One choice a volume (the slices of a subject), cross-validated:",
        "\n".join(table(*whole, np.array([name.split(maxsplit=1)[0] for name in names]), names)),
        "The weights here, on slice pairs of the subjects held back:",
        "\n".join(table(*shipped, groups[~seen], members[~seen])),
        _wrapped(result),
        "Made by `python -m MedFusionLib train selector --data FOLDER`.",
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text, indent=""):
    return textwrap.fill(text, 116, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
