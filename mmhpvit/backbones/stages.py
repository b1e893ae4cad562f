# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Which blocks of a plain ViT work at which resolution, and how their attention sequences are cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..layers.partition import Layout, named_layout
from .options import STRIDES


@dataclass(frozen=True)
class Stage:
    """One stage: its stride in pixels, its blocks ``start`` to ``stop``, how attention sequences are cut."""

    stride: int
    start: int
    stop: int
    layout: Layout


def plan_stages(
    depths: Sequence[int],
    last: int,
    patch: int,
    attention: Sequence[str],
    windows: Sequence[int],
    spacings: Sequence[int],
) -> list[Stage]:
    """The stages from the first that has blocks.

    Args:
        depths: Blocks of each stage.
        last: Index of the last stage to plan.
        patch: Side of the plain ViT's patches in pixels.
        attention: Name of each stage's layout, see :func:`named_layout`.
        windows: Most tokens along the side of a sequence in windows, for each stage.
        spacings: Distance between neighbours of a grid in patches, for each stage.
    """
    stages, start = [], 0
    for i in range(last + 1):
        stop = start + depths[i]
        layout = named_layout(attention[i], windows[i], max(1, spacings[i] * patch // STRIDES[i]))
        if stages or stop > start:
            stages.append(Stage(STRIDES[i], start, stop, layout))
        start = stop
    return stages
