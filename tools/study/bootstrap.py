# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""How far a difference in mIoU rests on which images were tested on: a paired bootstrap over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A backbone's mIoU less another's, in points.

    Attributes:
        seeds: The difference of each seed on all test images.
        low, high: 95 % interval of the mean over the seeds when test images are resampled.
    """

    seeds: tuple[float, ...]
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Better or worse where the interval excludes zero and all seeds agree; else empty."""
        if self.low > 0 and min(self.seeds) > 0:
            return 'better'
        return 'worse' if self.high < 0 and max(self.seeds) < 0 else ''


def miou(areas: np.ndarray) -> np.ndarray:
    """Compute mIoU in percent from areas, as mmseg does.

    Args:
        areas: (..., 2, classes), intersections and unions in pixels, summed over the images. A class with an empty
            union is left out.

    Returns:
        (...), in percent.
    """
    with np.errstate(invalid='ignore'):
        return 100 * np.nanmean(areas[..., 0, :] / areas[..., 1, :], axis=-1)


def compare(
    ours: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    draws: int = 2000,
    block: int = 1,
) -> Difference:
    """Compare two backbones by a paired bootstrap: each resample of images is the same for both and for all seeds.

    Args:
        ours, other: For each seed (images, 2, classes), intersections and unions in pixels; the images in one order.
        draws: How many resamples; they are the same in every call.
        block: How many neighbouring images are drawn together, for frames of a film.
    """
    images = len(ours[0])
    starts = np.random.default_rng(0).integers(images, size=(draws, -(-images // block)))
    chosen = (starts[..., None] + np.arange(block)).reshape(draws, -1)[:, :images] % images
    counts = np.stack([np.bincount(one, minlength=images) for one in chosen]).astype(float)

    def resampled(seeds: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([miou(np.tensordot(counts, areas, axes=1)) for areas in seeds], axis=0)

    low, high = np.percentile(resampled(ours) - resampled(other), [2.5, 97.5])
    pairs = zip(ours, other, strict=True)
    return Difference(
        tuple(float(miou(a.sum(0)) - miou(b.sum(0))) for a, b in pairs), float(low), float(high)
    )
