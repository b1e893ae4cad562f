# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The options of the backbones that are one value a stage: defaults, and checks before anything is built.

Each check returns the option as a tuple, and raises ValueError with the value, what was expected, and where
there is one an example that fits.
"""

from collections.abc import Sequence

STRIDES = (4, 8, 16, 32)


def default_depths(num_blocks: int) -> tuple[int, int, int, int]:
    """Split blocks over the stages as 1/6, 1/6, 1/2, 1/6: (2, 2, 6, 2) for 12, (4, 4, 12, 4) for 24."""
    sixth = max(num_blocks // 6, 1)
    return sixth, sixth, num_blocks - 3 * sixth, sixth


def check_depths(depths: Sequence[int] | None, num_blocks: int, plain: str) -> tuple[int, ...]:
    """Blocks of each stage, which must sum to the ``num_blocks`` of ``plain``; None is the default split."""
    if depths is None:
        return default_depths(num_blocks)
    depths = _as_tuple('depths', depths)
    if len(depths) != len(STRIDES) or any(not isinstance(d, int) or d < 0 for d in depths):
        raise ValueError(f'depths={depths}: expected {len(STRIDES)} numbers of blocks, none negative')
    if sum(depths) != num_blocks:
        raise ValueError(
            f'depths={depths} sum to {sum(depths)}, but {plain} has {num_blocks} blocks; '
            f'for instance depths={default_depths(num_blocks)}'
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
