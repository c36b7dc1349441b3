"""The registry of fusion methods: what each is, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

from ..errors import MethodError


@dataclass(frozen=True)
class Method:
    """What the panel, the command line and the result's provenance say of a method.

    name: what requests use. title: what people read. paper: its source, or "".
    convex: every fused value is a weighted mean of the sources at that voxel or band (nothing invented).
    dimensions: image ranks that the method works in; a 2-D one runs a volume slice by slice, axially.
    max_sources: how many sources at once. modalities: those it was made for ("any", or DICOM terms).
    licence: that of its training data, or "none" where nothing was trained.
    home: module in this package whose `load(device)` returns the `Fuser`.
    weights: file in Resources/, or "".
    """

    name: str
    title: str
    paper: str
    convex: bool
    home: str
    dimensions: tuple[int, ...] = (2, 3)
    max_sources: int = 3
    modalities: tuple[str, ...] = ("any",)
    licence: str = "none"
    weights: str = ""


class Fuser(Protocol):
    """A loaded method, as `load(device)` of its module returns it.

    `halo`: voxels of context that a result voxel depends on, per side: the overlap of tiles. None: the
    method needs the whole image at once.
    `prepare(sources, modalities, step)` (optional): sees the whole float32 stack (S, K, J, I) once, before any
    tile, for what must be one value per volume (PCA weights, a selector's choice). step(done, count): to be called
    where that takes long.
    `provenance` (optional, from `prepare` on): attributes that the fused volume gets beside the usual ones.
    `fuse_volume(read, shape, modalities, store, step)` (optional): does whole volumes itself, part by part, see
    `networks.medfusion_tiles.fuse_volume`.
    `along` (optional): "axial", "coronal" or "sagittal", the slices that `fuse_volume` wants on its first axis.
    """

    halo: int | None

    def __call__(self, sources, modalities):
        """Fuse a batch.

        sources: float32 tensor (B, S, H, W) or (B, S, D, H, W), 0..1, on the method's device.
        modalities: S DICOM terms, in the order of the sources.
        Returns (fused, weights): (B, *spatial) in 0..1, and (B, S, *spatial) that sum to 1, or None.
        """


ATLAS = "The Whole Brain Atlas (research and education)"


def _table():
    baseline = {"convex": True, "home": "baselines"}
    bands = {"convex": True, "home": "multiscale"}
    return (
        Method(
            "medfusion",
            "MedFusion network",
            "MedFusion's own: multi-scale blending weights, every voxel a convex combination of its sources",
            convex=True,
            home="medfusion",
            licence=ATLAS,
            weights="medfusion.safetensors",
        ),
        Method(
            "siamese",
            "Siamese CNN",
            "Liu et al., A medical image fusion method based on convolutional neural networks, 2017",
            convex=True,
            home="siamese",
            licence=ATLAS,
            weights="siamese.safetensors",
        ),
        Method(
            "sesf",
            "Spatial-frequency autoencoder (SESF)",
            "Ma et al., SESF-Fuse: an unsupervised deep model for multi-focus image fusion, 2021",
            convex=True,
            home="sesf",
            licence=ATLAS,
            weights="sesf.safetensors",
        ),
        Method(
            "wavelet_cnn",
            "A trous wavelet and CNN",
            "Starck and Murtagh, Astronomical image and data analysis, 2002; its a trous planes weighed by a CNN",
            convex=True,
            home="wavelet_cnn",
            licence=ATLAS,
            weights="wavelet_cnn.safetensors",
        ),
        Method(
            "fwnet",
            "FW-Net (two U-Nets)",
            "Fan et al., A semantic-based medical image fusion approach, 2019",
            convex=True,
            home="fwnet",
            licence=ATLAS,
            weights="fwnet.safetensors",
        ),
        Method(
            "feature_concatenation",
            "Feature extraction, concatenated",
            "MedFusion's own: a CNN branch per modality, features concatenated at four scales",
            convex=True,
            home="feature_extraction",
            licence=ATLAS,
            weights="feature_concatenation.safetensors",
        ),
        Method(
            "feature_attention",
            "Feature extraction, attention",
            "MedFusion's own: a CNN branch per modality, attention over the sources at four scales",
            convex=True,
            home="feature_extraction",
            licence=ATLAS,
            weights="feature_attention.safetensors",
        ),
        Method(
            "boltzmann",
            "Deep Boltzmann machine",
            "Li et al., Medical image fusion method by deep learning, 2021",
            convex=True,
            home="boltzmann",
            licence=ATLAS,
            weights="boltzmann.safetensors",
        ),
        Method(
            "rbm",
            "Restricted Boltzmann machine",
            "Li et al., Medical image fusion method by deep learning, 2021; trained after Hinton, 2002",
            convex=True,
            home="rbm",
            licence=ATLAS,
            weights="rbm.safetensors",
        ),
        Method(
            "autoencoder",
            "Stacked autoencoder",
            "Li et al., Medical image fusion method by deep learning, 2021; trained after Bengio et al., 2006",
            convex=True,
            home="autoencoder",
            licence=ATLAS,
            weights="autoencoder.safetensors",
        ),
        Method(
            "selector",
            "Method selector",
            "Rice, The algorithm selection problem, 1976; learnt from measured quality",
            convex=True,
            home="selector",
            licence=ATLAS,
            weights="selector.safetensors",
        ),
        Method("average", "Average", "", **baseline),
        Method("maximum", "Maximum", "", **baseline),
        Method("weighted", "Average weighted by contrast", "", **baseline),
        Method(
            "pca",
            "Principal component",
            "Naidu and Raol, Pixel-level image fusion using wavelets and principal component analysis, 2008",
            **baseline,
        ),
        Method(
            "laplacian",
            "Laplacian pyramid",
            "Burt and Kolczynski, Enhanced image capture through fusion, 1993",
            **bands,
        ),
        Method(
            "wavelet",
            "A trous wavelet",
            "Nunez et al., Multiresolution-based image fusion with additive wavelet decomposition, 1999",
            **bands,
        ),
        Method("guided", "Guided filter", "Li, Kang and Hu, Image fusion with guided filtering, 2013", **bands),
    )


def methods():
    """dict: name -> `Method`, in the order that people should read them; a user's own weights come last."""
    from .weights import own

    known = {method.name: method for method in _table()}
    for name, label, file in own({name: method.weights for name, method in known.items() if method.weights}):
        title = f"{known[name].title}, own weights {label!r}"
        known[f"{name}-{label}"] = replace(
            known[name], name=f"{name}-{label}", title=title, weights=str(file), licence="the user's"
        )
    return known


def find(name):
    """The `Method` called `name`. Raises MethodError, naming those there are."""
    known = methods()
    if name not in known:
        raise MethodError(f"{name!r} is not a fusion method: choose one of {', '.join(known)}.")
    return known[name]


def load(name, device):
    """The `Fuser` of a method, on a torch device."""
    method = find(name)
    return import_module(f".{method.home}", __package__).load(method, device)


def weights_hash(method):
    """SHA-256 of the method's weight file, or "none"."""
    if not method.weights:
        return "none"
    from .weights import sha256

    return sha256(method.weights)
