# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""Biases over relative positions of timm's plain ViTs, for sequences of any shape and spacing.

A bias is a function of the offset between two tokens, known at the whole-patch offsets of the pre-training
grid. For an image of that size it is taken as it is, and between its points linearly. For an image of another
size the function is stretched over it as BEiT does: its points move apart by a geometric progression, so that
near offsets keep their bias and the farthest ones meet the edges of the image.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import RelPosBias
from torch import Tensor, nn


def table_bias(
    table: Tensor,
    window: tuple[int, int],
    shape: tuple[int, int],
    spacing: float,
    extent: tuple[float, float],
    prefix: int,
) -> Tensor:
    """Attention bias from a table of relative positions (BEiT, arXiv 2106.08254; Swin, arXiv 2103.14030).

    Args:
        table: One row for each offset of the pre-training grid in row-major order, then, where the ViT has a
            class token, three rows: class to token, token to class, class to class; a column for each head.
        window: Rows and columns of the pre-training grid.
        shape: Rows and columns of the sequence.
        spacing: Distance between neighbouring tokens of the sequence, in patches.
        extent: Height and width of the image in patches.
        prefix: 1 if the class token heads the sequence, else 0.

    Returns:
        (heads, prefix + L, prefix + L) with L = rows * columns.
    """
    height, width = 2 * window[0] - 1, 2 * window[1] - 1
    grid = table[: height * width].T.unflatten(1, (height, width))
    grid_of_image = math.ceil(extent[0]), math.ceil(extent[1])
    exact = grid_of_image == tuple(window)
    # MPS has no float64.
    device = torch.device('cpu') if table.device.type == 'mps' else table.device
    rows, columns = (
        _axis_weights(w, None if exact else e, s, spacing, device).to(table.dtype).to(table.device)
        for w, e, s in zip(window, grid_of_image, shape, strict=True)
    )
    with torch.autocast('cpu' if table.is_meta else table.device.type, enabled=False):
        offsets = rows @ grid @ columns.T
    bias = _between_tokens(offsets, shape)
    if not prefix:
        return bias
    to_token, to_class, to_itself = table[-3:, :, None, None]
    length = bias.shape[-1]
    row = torch.cat([to_itself, to_token.expand(-1, 1, length)], dim=2)
    return torch.cat([row, torch.cat([to_class.expand(-1, length, 1), bias], dim=2)], dim=1)


def module_bias(
    rel_pos: nn.Module, shape: tuple[int, int], spacing: float, extent: tuple[float, float], prefix: int
) -> Tensor:
    """Attention bias from timm's ``RelPosMlp`` (Swin v2, arXiv 2111.09883) or ``RelPosBias``.

    Arguments and result as for :func:`table_bias`.
    """
    if isinstance(rel_pos, RelPosBias):
        table = rel_pos.relative_position_bias_table
        return table_bias(table, rel_pos.window_size, shape, spacing, extent, prefix)
    weight = rel_pos.mlp.fc1.weight
    axes = [torch.arange(1 - s, s, device=weight.device, dtype=torch.float32) * spacing for s in shape]
    if rel_pos.mode == 'swin':
        axes = [a / max(math.ceil(e) - 1, 1) * 8 for a, e in zip(axes, extent, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
    if rel_pos.mode == 'swin':
        places = places.sign() * torch.log2(1 + places.abs()) / math.log2(8)
    else:
        places = places.sign() * torch.log(1 + places.abs())
    offsets = rel_pos.bias_act(rel_pos.mlp(places.to(weight.dtype)).permute(2, 0, 1))
    if rel_pos.bias_gain is not None:
        offsets = rel_pos.bias_gain * offsets
    return F.pad(_between_tokens(offsets, shape), [prefix, 0, prefix, 0])


def _between_tokens(offsets: Tensor, shape: tuple[int, int]) -> Tensor:
    """From a value for each offset, (heads, 2 rows - 1, 2 columns - 1), to one for each pair of tokens."""
    y, x = (torch.arange(s, device=offsets.device) for s in shape)
    dy = y[:, None] - y + shape[0] - 1
    dx = x[:, None] - x + shape[1] - 1
    return offsets[:, dy[:, None, :, None], dx[None, :, None, :]].flatten(3, 4).flatten(1, 2)


def _axis_weights(
    window: int, extent: int | None, length: int, spacing: float, device: torch.device
) -> Tensor:
    """Linear interpolation from the points of an axis of a table to the offsets of a sequence.

    Made on the device, without a copy from the host.

    Returns:
        (2 * length - 1, 2 * window - 1), float64.
    """
    offsets = torch.arange(1 - length, length, device=device, dtype=torch.float64) * spacing
    if window == 1:
        return torch.ones_like(offsets)[:, None]
    points = stretched_points(window, extent, device)
    last = len(points) - 1
    offsets = torch.minimum(torch.maximum(offsets, points[0]), points[-1])
    after = torch.searchsorted(points, offsets).clamp(1, last)
    share = (offsets - points[after - 1]) / (points[after] - points[after - 1])
    weights = offsets.new_zeros(len(offsets), len(points))
    return weights.scatter(1, after[:, None], share[:, None]).scatter(
        1, after[:, None] - 1, 1 - share[:, None]
    )


def stretched_points(window: int, extent: int | None, device: torch.device | str = 'cpu') -> Tensor:
    """Offsets in patches that the 2 * window - 1 points of an axis of a table stand for.

    Args:
        window: Patches of the pre-training grid on that axis.
        extent: Patches of the image; None where the image has the pre-training grid, whose points stay.
        device: Where to make them.

    Returns:
        Float64: the whole offsets, or as in BEiT's fine-tuning code 1, 1 + q, 1 + q + q^2, ... on either side
        of 0, with the q in [1.01, 1.5] that comes nearest to ending at the edge of the image.
    """
    steps = torch.arange(window, device=device, dtype=torch.float64)
    if extent is not None:
        ratio = _ratio(window, extent)
        steps = (ratio**steps - 1) / (ratio - 1)
    return torch.cat([-steps[1:].flip(0), steps])


@lru_cache(maxsize=4096)
def _ratio(window: int, extent: int) -> float:
    low, high, ratio = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        too_far = (1 - ratio ** (window - 1)) / (1 - ratio) > extent - 1
        low, high = (low, ratio) if too_far else (ratio, high)
    return ratio
