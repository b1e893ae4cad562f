# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The options of the backbones that are one value a stage: defaults, and checks before anything is built.

Each check returns the option as a tuple, and raises ValueError with the value, what was expected, and where
there is one an example that fits.
"""

from collections.abc import Sequence

STRIDES = (4, 8, 16, 32)


# One block in how many works at 1/4, at 1/8 and at 1/32 (0: none); the others work at 1/16.
PRESETS = {'light': (0, 4, 0), 'standard': (6, 6, 6), 'dense': (4, 4, 4)}


def preset_depths(name: str, num_blocks: int) -> tuple[int, int, int, int]:
    """Blocks of each stage of a preset; for 12 blocks (0, 3, 9, 0), (2, 2, 6, 2) and (3, 3, 3, 3).

    Raises:
        ValueError: An unknown name.
    """
    if name not in PRESETS:
        raise ValueError(
            f'depths={name!r}: expected one of {", ".join(PRESETS)}, or {len(STRIDES)} numbers of blocks'
        )
    finest, fine, coarsest = (max(num_blocks // n, 1) if n else 0 for n in PRESETS[name])
    return finest, fine, num_blocks - finest - fine - coarsest, coarsest


def check_depths(depths: str | Sequence[int], num_blocks: int, plain: str) -> tuple[int, ...]:
    """Blocks of each stage, which must sum to the ``num_blocks`` of ``plain``; or the name of a preset."""
    if isinstance(depths, str):
        depths = preset_depths(depths, num_blocks)
    depths = _as_tuple('depths', depths)
    if len(depths) != len(STRIDES) or any(not isinstance(d, int) or d < 0 for d in depths):
        raise ValueError(f'depths={depths}: expected {len(STRIDES)} numbers of blocks, none negative')
    if sum(depths) != num_blocks:
        raise ValueError(
            f'depths={depths} sum to {sum(depths)}, but {plain} has {num_blocks} blocks; '
            f'for instance depths={preset_depths("standard", num_blocks)}'
        )
    return depths


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Levels to return, each once."""
    out_indices = _as_tuple('out_indices', out_indices)
    levels = range(len(STRIDES))
    if not out_indices or len(set(out_indices)) < len(out_indices) or not set(out_indices) <= set(levels):
        raise ValueError(f'out_indices={out_indices}: expected different levels out of {tuple(levels)}')
    return out_indices


def check_frozen_stages(frozen_stages: int) -> int:
    """-1 to the number of stages; returned as it is."""
    if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= len(STRIDES):
        raise ValueError(f'frozen_stages={frozen_stages!r}: expected -1 (none) to {len(STRIDES)} (all)')
    return frozen_stages


def _as_tuple(option: str, value) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f'{option}={value!r}: expected a list or tuple')
    return tuple(value)


def for_each_stage(option: str, value, kind: type) -> tuple:
    """One value of a type for each stage, out of one for all or of a list."""
    values = (value,) * len(STRIDES) if isinstance(value, kind) else _as_tuple(option, value)
    if len(values) != len(STRIDES) or any(not isinstance(v, kind) for v in values):
        raise ValueError(
            f'{option}={value!r}: expected a {kind.__name__}, or {len(STRIDES)} of them, one a stage'
        )
    return values


def check_positive(option: str, value) -> tuple[int, ...]:
    """A positive number for each stage, out of one for all or of a list."""
    values = for_each_stage(option, value, int)
    if min(values) < 1:
        raise ValueError(f'{option}={value!r}: expected positive numbers')
    return values
