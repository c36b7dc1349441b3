"""Draw the extension's icon: half a CT, half an MRI of one head, and a hot spot.

python Testing/icon.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SIZE, SAMPLES = 128, 4


def draw(size):
    y, x = np.mgrid[: size * SAMPLES, : size * SAMPLES] / (size * SAMPLES) * 2 - 1
    radius = np.hypot(x / 0.78, y / 0.94)
    left = x < 0
    brain = 0.55 + 0.2 * np.sin(14 * np.hypot(x, y)) * np.cos(6 * np.arctan2(y, np.abs(x)))
    ct = np.where(radius > 0.84, 1.0, 0.3)
    mri = np.where(radius > 0.93, 0.9, np.where(radius > 0.84, 0.08, brain))
    grey = np.where(left, ct, mri)
    rgb = np.stack([grey, grey, grey], -1)
    heat = np.exp(-(((x - 0.22) / 0.24) ** 2 + ((y + 0.2) / 0.24) ** 2))[..., None]
    warm = np.concatenate(
        [np.minimum(1, 2.2 * heat), np.clip(2 * heat - 0.75, 0, 1), np.clip(4 * heat - 3.2, 0, 1)], -1
    )
    rgb = np.where(heat > 0.15, (1 - np.minimum(1, 1.4 * heat)) * rgb + np.minimum(1, 1.4 * heat) * warm, rgb)
    rgb = np.where((radius > 0.96)[..., None], 0.35, rgb)  # so that bone shows on a white page
    alpha = (radius < 1)[..., None].astype(float)
    image = Image.fromarray((255 * np.concatenate([rgb, alpha], -1)).round().astype(np.uint8), "RGBA")
    return image.resize((size, size), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw(SIZE).save(ROOT / "MedFusion.png")
    draw(SIZE).save(ROOT / "MedFusion" / "Resources" / "Icons" / "MedFusion.png")
