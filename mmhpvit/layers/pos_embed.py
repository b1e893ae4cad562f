# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""The absolute position embedding at the tokens of a map of any size."""

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

# From torch 2.3 on; mmcv has ready wheels for 2.1, where nothing here is compiled.
is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)


def interpolate_positions(
    embedding: Tensor, prefix: int, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Resize a position embedding as timm does: bicubic, antialiased, computed in float32.

    Args:
        embedding: (1, P + gh * gw, C), or as a map (1, gh, gw, C) without prefix.
        prefix: Number P of entries for prefix tokens at its head.
        grid: gh and gw.
        size: H and W of the token map.

    Returns:
        (1, H, W, C) in the dtype of ``embedding``, without the entries for prefix tokens.
    """
    positions = embedding[:, prefix:].reshape(1, -1, embedding.shape[-1])
    if is_compiling():  # sizes stay open, so they must not be compared
        by_axis = embedding.requires_grad and torch.is_grad_enabled()
    else:
        by_axis = torch.are_deterministic_algorithms_enabled() and grid != size
    if by_axis:
        return _interpolate_by_axis(positions.unflatten(1, grid), size)
    return resample_abs_pos_embed(positions, size, old_size=grid, num_prefix_tokens=0).reshape(1, *size, -1)


def _interpolate_by_axis(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """The same with a matrix for each axis.

    The gradient of torch's own interpolation has no deterministic form on GPUs, and none for a compiler that keeps the
    sizes open.

    Args:
        positions: (1, gh, gw, C).
        size: H and W.

    Returns:
        (1, H, W, C) in the dtype of ``positions``, computed in float32.
    """
    rows, columns = (
        F.interpolate(
            torch.eye(old, device=positions.device)[None, None],
            size=(new, old),
            mode='bicubic',
            antialias=True,
        )[0, 0]
        for old, new in zip(positions.shape[1:3], size, strict=True)
    )
    with torch.autocast('cpu' if positions.is_meta else positions.device.type, enabled=False):
        wide = torch.einsum('hi,wj,bijc->bhwc', rows, columns, positions.float())
    return wide.to(positions.dtype)
