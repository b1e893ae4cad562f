# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Which blocks of a plain ViT run at which stride, and the checks of options given per stage.

Checks run before anything is built. Each raises ValueError with the value and what was expected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from timm.layers import to_ntuple

from ..layers.partition import LAYOUTS, Layout, named_layout

STRIDES = (4, 8, 16, 32)
# One block in how many runs at 1/4, at 1/8 and at 1/32 (0: none); the others run at 1/16.
PRESETS = {'light': (0, 4, 0), 'standard': (6, 6, 6), 'dense': (4, 4, 4)}
_DEPTHS = f'one of {", ".join(PRESETS)}, or {len(STRIDES)} numbers of blocks'


@dataclass(frozen=True)
class Stage:
    """Blocks ``start`` to ``stop`` of the plain ViT at one stride in pixels, and their attention layout."""

    stride: int
    start: int
    stop: int
    layout: Layout


def preset_depths(name: str, num_blocks: int) -> tuple[int, int, int, int]:
    """Blocks of each stage of a preset; for 12 blocks (0, 3, 9, 0), (2, 2, 6, 2) and (3, 3, 3, 3).

    Raises:
        ValueError: An unknown name.
    """
    expect(name in PRESETS, 'depths', name, _DEPTHS)
    finest, fine, coarsest = (max(num_blocks // n, 1) if n else 0 for n in PRESETS[name])
    return finest, fine, num_blocks - finest - fine - coarsest, coarsest


def resolve_depths(depths: str | Sequence[int], num_blocks: int, plain: str) -> tuple[int, ...]:
    """Blocks of each stage from a preset or from numbers, which must sum to the ``num_blocks`` of ``plain``."""
    if isinstance(depths, str):
        return preset_depths(depths, num_blocks)
    expect(isinstance(depths, list | tuple), 'depths', depths, _DEPTHS)
    depths = tuple(depths)
    fits = len(depths) == len(STRIDES) and all(is_number(d) and d >= 0 for d in depths)
    expect(fits, 'depths', depths, f'{len(STRIDES)} numbers of blocks, none negative')
    if sum(depths) != num_blocks:
        raise ValueError(
            f'depths={depths} sum to {sum(depths)}, but {plain} has {num_blocks} blocks; '
            f'for instance depths={preset_depths("standard", num_blocks)}'
        )
    return depths


def plan_stages(
    depths: Sequence[int],
    last: int,
    patch: int,
    attention: str | Sequence[str],
    window_size: int | Sequence[int],
    grid_spacing: int | Sequence[int],
) -> list[Stage]:
    """The stages from the first that has blocks to number ``last``.

    Args:
        depths: Blocks of each stage.
        last: Index of the last stage to plan.
        patch: Side of the plain ViT's patches in pixels.
        attention: Layout, see :func:`named_layout`, for each stage or one for all.
        window_size: Most tokens along the side of a windowed sequence, for each stage or one for all.
        grid_spacing: Distance between neighbours of a grid in patches, for each stage or one for all.

    Raises:
        ValueError: An unknown layout, or a size that is no positive integer.
    """
    names = per_stage('attention', attention, str)
    for name in names:
        expect(name in LAYOUTS, 'attention', name, f'one of {", ".join(LAYOUTS)}')
    windows = per_stage('window_size', window_size, int)
    expect(min(windows) > 0, 'window_size', window_size, 'positive numbers')
    spacings = per_stage('grid_spacing', grid_spacing, int)
    expect(min(spacings) > 0, 'grid_spacing', grid_spacing, 'positive numbers')
    stages, start = [], 0
    for i, stride in enumerate(STRIDES[: last + 1]):
        stop = start + depths[i]
        layout = named_layout(names[i], windows[i], grid_dilation(spacings[i], patch, stride))
        if stages or stop > start:
            stages.append(Stage(stride, start, stop, layout))
        start = stop
    return stages


def grid_dilation(spacing: int, patch: int, stride: int) -> int:
    """Tokens between neighbours of a grid whose spacing is given in patches."""
    return max(1, spacing * patch // stride)


def per_stage(option: str, value: object, kind: type) -> tuple:
    """A tuple of one value for each stage, from one for all or a list."""
    values = to_ntuple(len(STRIDES))(value)
    fits = len(values) == len(STRIDES) and all(
        is_number(v) if kind is int else isinstance(v, kind) for v in values
    )
    expect(fits, option, value, f'one {kind.__name__} for all stages, or {len(STRIDES)} of them, one a stage')
    return tuple(values)


def check_levels(option: str, levels: Sequence[int]) -> tuple[int, ...]:
    """A tuple of different levels out of 0 (1/4) to 3 (1/32)."""
    known = tuple(range(len(STRIDES)))
    fits = isinstance(levels, list | tuple) and all(is_number(i) and i in known for i in levels)
    fits = fits and 0 < len(levels) == len(set(levels))
    expect(fits, option, levels, f'different levels out of {known}')
    return tuple(levels)


def expect(fits: bool, option: str, value: object, expected: str) -> None:
    """Raise a ValueError that names the option, its value and what was expected, unless it fits."""
    if not fits:
        raise ValueError(f'{option}={value!r}: expected {expected}')


def is_number(value: object) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
