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
    depths = _as_tuple('depths', depths, f'one of {", ".join(PRESETS)}, or {len(STRIDES)} numbers of blocks')
    if len(depths) != len(STRIDES) or not all(_is(int, d) and d >= 0 for d in depths):
        raise ValueError(f'depths={depths}: expected {len(STRIDES)} numbers of blocks, none negative')
    if sum(depths) != num_blocks:
        raise ValueError(
            f'depths={depths} sum to {sum(depths)}, but {plain} has {num_blocks} blocks; '
            f'for instance depths={preset_depths("standard", num_blocks)}'
        )
    return depths


def check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Levels to return, each once."""
    levels = tuple(range(len(STRIDES)))
    out_indices = _as_tuple('out_indices', out_indices, f'different levels out of {levels}')
    known = all(_is(int, i) and i in levels for i in out_indices)
    if not out_indices or not known or len(set(out_indices)) < len(out_indices):
        raise ValueError(f'out_indices={out_indices}: expected different levels out of {levels}')
    return out_indices


def check_frozen_stages(frozen_stages: int) -> int:
    """-1 to the number of stages; returned as it is."""
    if not _is(int, frozen_stages) or not -1 <= frozen_stages <= len(STRIDES):
        raise ValueError(f'frozen_stages={frozen_stages!r}: expected -1 (none) to {len(STRIDES)} (all)')
    return frozen_stages


def check_init_cfg(init_cfg: dict | list[dict] | None) -> dict | list[dict] | None:
    """What mmengine takes as a weight initialiser, and no name of a file; returned as it is."""
    many = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    if init_cfg and not all(isinstance(one, dict) and 'type' in one for one in many):
        raise ValueError(
            f"init_cfg={init_cfg!r}: expected dict(type='PlainViT', checkpoint=FILE), or None for random weights"
        )
    return init_cfg


def check_flag(option: str, value: bool) -> bool:
    """True or False, and no text that says so; returned as it is."""
    if not isinstance(value, bool):
        raise ValueError(f'{option}={value!r}: expected True or False')
    return value


def check_rate(option: str, value: float) -> float:
    """A probability at least 0 and below 1; returned as it is."""
    if not (_is(int, value) or _is(float, value)) or not 0 <= value < 1:
        raise ValueError(f'{option}={value!r}: expected a probability, at least 0 and below 1')
    return value


def check_choice(option: str, value: str, choices: Sequence[str]) -> str:
    """One of several names; returned as it is."""
    if value not in choices:
        raise ValueError(f'{option}={value!r}: expected one of {", ".join(choices)}')
    return value


def for_each_stage(option: str, value, kind: type) -> tuple:
    """One value of a type for each stage, out of one for all or of a list."""
    wanted = f'one {kind.__name__} for all stages, or {len(STRIDES)} of them, one a stage'
    values = (value,) * len(STRIDES) if _is(kind, value) else _as_tuple(option, value, wanted)
    if len(values) != len(STRIDES) or not all(_is(kind, v) for v in values):
        raise ValueError(f'{option}={value!r}: expected {wanted}')
    return values


def check_positive(option: str, value) -> tuple[int, ...]:
    """A positive number for each stage, out of one for all or of a list."""
    values = for_each_stage(option, value, int)
    if min(values) < 1:
        raise ValueError(f'{option}={value!r}: expected positive numbers')
    return values


def check_after(after: Sequence[int], levels: Sequence[int], depth: int) -> tuple[int, ...]:
    """A number of blocks for each level; of those that are returned one must be all blocks, so that none is unused."""
    wanted = f'{len(STRIDES)} numbers of blocks, 1 to {depth}'
    after = _as_tuple('after', after, wanted)
    if len(after) != len(STRIDES) or not all(_is(int, n) and 1 <= n <= depth for n in after):
        raise ValueError(f'after={after}: expected {wanted}')
    if max(after[i] for i in levels) < depth:
        raise ValueError(
            f'after={after} with out_indices={tuple(levels)}: expected {depth} for one of these levels, so that no '
            'block is left out'
        )
    return after


def check_number(option: str, value: int, least: int, most: int) -> int:
    """A number in a range; returned as it is."""
    if not (_is(int, value) and least <= value <= most):
        raise ValueError(f'{option}={value!r}: expected {least} to {most}')
    return value


def check_two(option: str, value, least: int, most: int | None = None) -> tuple[int, int]:
    """A number for 1/4 and one for 1/8, in a range, out of a list or of one for both."""
    wanted = f'two numbers, for 1/4 and 1/8, or one for both, of {least} '
    wanted += 'or more' if most is None else f'to {most}'
    found = (value, value) if _is(int, value) else _as_tuple(option, value, wanted)
    if len(found) != 2 or not all(_is(int, v) and least <= v <= (v if most is None else most) for v in found):
        raise ValueError(f'{option}={value!r}: expected {wanted}')
    return found


def _is(kind: type, value: object) -> bool:
    """Whether a value is of a type; True is no number here."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_tuple(option: str, value, wanted: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ValueError(f'{option}={value!r}: expected {wanted}')
    return tuple(value)
