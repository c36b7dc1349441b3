"""Every fusion method on real slice pairs: all measures with controls, failures, CPU time, memory, and a picture.

    python Testing/Benchmarks/fusion.py --data ../shared/data/harvard

Rows are means over the slices of the subjects that no training has seen; *copy* rows and `average` are controls: a
measure that they win rewards near-copies. PET and SPECT are measured by their luma. The pictures hold images that may
not be passed on: they are written to --output and are not for the repository.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import fusion_memory  # noqa: E402

from MedFusionLib.color import colorize  # noqa: E402
from MedFusionLib.errors import MedFusionError  # noqa: E402
from MedFusionLib.fusion import fuse, registry  # noqa: E402
from MedFusionLib.fusion.training import atlas  # noqa: E402
from MedFusionLib.metrics import NAMES, TASK, markdown, pair_scores  # noqa: E402
from MedFusionLib.metrics.failures import flicker, scalp_halo, skull_failures, uptake_failures  # noqa: E402
from MedFusionLib.outputs import write_table  # noqa: E402
from MedFusionLib.pipeline import Coloring  # noqa: E402
from MedFusionLib.volume import Volume  # noqa: E402

SHOWN = 3
"""Slices of each group in the picture."""


def main():
    options = arguments()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    methods = options.methods or list(registry.methods())
    failed, rows = {}, []
    for group in options.groups:
        pairs = atlas.pairs(options.data, (group,), held_back=None if options.subjects or options.all else True)
        stacks = {
            subject: stack
            for (_, subject), stack in atlas.stacks(pairs).items()
            if not options.subjects or subject in options.subjects
        }
        if not stacks:
            print(f"\n{group}: none of the subjects {', '.join(options.subjects)}: left out.")
            continue
        results = controls(group, stacks)
        for method in methods:
            tell(f"{group}: {method}")
            try:
                results[method] = {s: fused(method, stack, group) for s, stack in stacks.items()}
            except MedFusionError as error:
                failed[method] = str(error)
        count = sum(stack.shape[1] for stack in stacks.values())
        what = {"slices": count, "subjects": " ".join(stacks)}
        table, spread = {}, {}
        for title, images in results.items():
            tell(f"{group}: measuring {title}")
            table[title], spread[title] = measured(group, stacks, images)
            rows.append({"group": group, "row": title} | what | table[title])
        print(f"\n## {group}: {count} slices of subjects {', '.join(stacks)}\n\n{markdown(table)}")
        print(f"\nStandard deviation over the subjects' means:\n\n{markdown(spread)}" if len(stacks) > 1 else "")
        montage(stacks, results, output / f"montage-{group}.png")
    write_table(output / "fusion.csv", rows)
    if options.fast:
        # Those of an earlier run do not go with these figures.
        (output / "costs.csv").unlink(missing_ok=True)
    else:
        table = costs([method for method in methods if method not in failed], options.threads)
        write_table(output / "costs.csv", [{"row": method} | found for method, found in table.items()])
        print(f"\n## Time and memory\n\n{markdown(table)}")
    print(f"\nwrote {', '.join(sorted(file.name for file in output.iterdir()))} to {output}")
    for method, why in failed.items():
        print(f"FAILED {method}: {why}", file=sys.stderr)
    return 1 if failed else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=ROOT.parent / "shared" / "data" / "harvard", help="the atlas's folder")
    parser.add_argument("--groups", nargs="+", default=list(atlas.GROUPS), choices=list(atlas.GROUPS))
    parser.add_argument("--subjects", nargs="+", default=[], help="these instead of those held back from training")
    parser.add_argument("--all", action="store_true", help="all subjects, also those that networks were trained on")
    parser.add_argument("--methods", nargs="+", help="default: all of the registry")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="to time with")
    parser.add_argument("--fast", action="store_true", help="no times and no memory")
    parser.add_argument("--output", default=ROOT / "bench-output" / "fusion", help="folder for CSV and pictures")
    return parser.parse_args()


def tell(text):
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def controls(group, stacks):
    """Copies of either source, {row title: {subject: (K, H, W), 0..255}}."""
    names = group.split("-")
    return {f"copy {name}": {s: 255 * stack[n] for s, stack in stacks.items()} for n, name in enumerate(names)}


def fused(method, stack, group):
    """A subject's stack (2, K, H, W), fused slice by slice by the one path that users take; (K, H, W), 0..255."""
    grid = np.diag([1.0, 1.0, 4.0, 1.0])
    sources = [Volume(a, grid, m, display_range=(0, 1)) for a, m in zip(stack, atlas.GROUPS[group], strict=True)]
    return 255 * fuse(sources, method, "slice", "axial", "cpu").volume.array


def measured(group, stacks, images):
    """({measure: mean over all slices}, {measure: standard deviation over the subjects' means})."""
    anatomical = group == "CT-MRI"
    by_subject = []
    for subject, image in images.items():
        # Black slices have nothing to measure.
        slices = [n for n in range(len(image)) if np.ptp(stacks[subject][:, n]) > 0]
        rows = []
        for n in slices:
            first, second = (np.rint(255 * one[n]).astype(np.float64) for one in stacks[subject])
            result = np.rint(image[n]).astype(np.float64)
            row = pair_scores(first, second, result, names=(*NAMES, *TASK) if anatomical else NAMES)
            row |= (skull_failures if anatomical else uptake_failures)(first, second, result)
            row["halo"] = scalp_halo(first, second, result)
            if not anatomical:
                row["overlay_contrast"] = overlay_contrast(first, second, result)
            rows.append(row)
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        table["flicker"] = np.array([flicker(*(255 * stacks[subject]), image)])
        by_subject.append(table)
    names = list(by_subject[0])
    means = {name: _nanmean(np.concatenate([table[name] for table in by_subject])) for name in names}
    spread = {name: _nanstd([_nanmean(table[name]) for table in by_subject]) for name in names}
    return means, spread


def overlay_contrast(uptake, anatomy, fused):
    """Hot-spot contrast of the luma of the colour overlay on the fusion, over that of the uptake alone in colour.

    Images are (H, W), 0..255; the overlay is the default one. 1: the hot spot stands out as in the PET or SPECT.
    """
    pet, grey = (Volume(image[None] / 255, np.eye(4), "PT", display_range=(0, 1)) for image in (uptake, fused))
    black = grey.with_array(np.zeros_like(grey.array))
    overlay, alone = (
        colorize(base, pet, coloring).array[0] @ atlas.LUMA
        for base, coloring in ((grey, Coloring()), (black, Coloring(opacity=1.0)))
    )
    there, own = (uptake_failures(uptake, anatomy, image)["hot_contrast"] for image in (overlay, alone))
    return there / own


def _nanmean(values):
    values = np.asarray(values)[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _nanstd(values):
    values = np.asarray(values)[~np.isnan(values)]
    return float(values.std()) if values.size else float("nan")


def costs(methods, threads):
    """{method: CPU and wall-clock seconds of one 256 x 256 pair, peak memory as `fusion_memory` measures it}."""
    table = {method: {} for method in methods}
    for count in threads:
        # In turns, so that a busy moment of the machine does not fall on one method alone.
        times = {method: [] for method in methods}
        with multiprocessing.get_context("spawn").Pool(1, initializer=_with_threads, initargs=(count,)) as pool:
            for _ in range(3):
                for method in methods:
                    tell(f"timing {method} on {count} threads")
                    times[method].append(pool.apply(_time, (method,)))
        for method, found in times.items():
            table[method][f"CPU s, {count} thread{'s' * (count > 1)}"] = min(cpu for cpu, _ in found)
            table[method][f"s, {count} thread{'s' * (count > 1)}"] = min(wall for _, wall in found)
    for method in methods:
        tell(f"memory of {method}")
        table[method]["peak memory / sources"] = fusion_memory.peak(method)[0]
    tell("")
    return table


def _with_threads(count):
    import torch

    torch.set_num_threads(count)


def _textures(shape):
    random = np.random.default_rng(0)
    return random.random((2, *shape), dtype=np.float32)


def _time(method):
    """(CPU seconds, seconds) of a pair, mean of several, after a warm-up."""
    import torch

    fuser = registry.load(method, torch.device("cpu"))
    pair = torch.from_numpy(_textures((256, 256)))
    with torch.inference_mode():
        if hasattr(fuser, "prepare"):
            fuser.prepare(pair[:, None], ("CT", "MR"))
        fuser(pair[None], ("CT", "MR"))
        runs, cpu, wall = 5, time.process_time(), time.perf_counter()
        for _ in range(runs):
            fuser(pair[None], ("CT", "MR"))
    return (time.process_time() - cpu) / runs, (time.perf_counter() - wall) / runs


def montage(stacks, results, path):
    """A row of slices for each source and method, evenly spread over the subjects."""
    from PIL import Image, ImageDraw

    places = [(subject, n) for subject, stack in stacks.items() for n in range(stack.shape[1])]
    chosen = [places[int((n + 0.5) * len(places) / SHOWN)] for n in range(SHOWN)]
    size, band = 256, 14
    columns = list(results)
    sheet = Image.new("L", (size * len(columns), SHOWN * (size + band)))
    draw = ImageDraw.Draw(sheet)
    for row, (subject, n) in enumerate(chosen):
        for column, title in enumerate(columns):
            image = np.rint(np.clip(results[title][subject][n], 0, 255)).astype(np.uint8)
            sheet.paste(Image.fromarray(image).resize((size, size)), (column * size, row * (size + band) + band))
            draw.text((column * size + 3, row * (size + band) + 1), f"{title}   {subject} slice {n}", fill=255)
    sheet.save(path)


if __name__ == "__main__":
    sys.exit(main())
