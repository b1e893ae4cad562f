# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""How a map of tokens is cut into attention sequences, and put together again.

A map of H x W tokens is cut along each axis by a period ``k`` into ``ceil(size / k)`` runs of ``k``
neighbours. Read as a table of runs (rows) by place in the run (columns), a *window* is a row of the
table, k neighbours, and a *grid* is a column of it, every k-th token::

    tokens of an axis      0 1 2 3 4 5 6       k = 3
    as a table             0 1 2
                           3 4 5
                           6 - -
    windows                (0 1 2) (3 4 5) (6)
    grids                  (0 3 6) (1 4) (2 5)

Sizes that k does not divide leave an incomplete last row. Rather than padding sequences with tokens
that are not there, the full and the incomplete windows (or grids) become separate groups, at most two
an axis, so at most four a map and exactly one where k divides both sizes. Every sequence therefore
holds real tokens only, and no attention mask is needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = ('global', 'window', 'grid')

# A part of an axis's table: its rows, its columns.
_Part = tuple[slice, slice]


def _axis_parts(size: int, period: int, layout: str) -> list[_Part]:
    """Cut one axis into rectangles of the table that hold real tokens only, equal in sequence length."""
    rows, rest = size // period, size % period  # torch.compile knows no divmod of sizes
    if rest == 0:
        return [(slice(0, rows), slice(0, period))]
    if layout == 'window':
        parts = [(slice(0, rows), slice(0, period)), (slice(rows, rows + 1), slice(0, rest))]
    else:
        parts = [(slice(0, rows + 1), slice(0, rest)), (slice(0, rows), slice(rest, period))]
    return [(r, c) for r, c in parts if r.stop > r.start and c.stop > c.start]


def _length(part: slice) -> int:
    return part.stop - part.start


def partition(x: Tensor, layout: str, period: int = 1) -> list[Tensor]:
    """Cut a token map into attention sequences.

    Args:
        x: Token map, (B, H, W, C), any dtype.
        layout: ``'global'`` (one sequence an image), ``'window'`` (squares of ``period`` x ``period``
            neighbours) or ``'grid'`` (the tokens that lie a multiple of ``period`` apart on both axes).
        period: Side of a window, or dilation of a grid, in tokens. Not used by ``'global'``.

    Returns:
        One tensor (B, n, L, C) for each group of sequences of one shape: n sequences an image, L tokens
        each, in row-major order. One group where ``period`` divides H and W, four at the most.

    Raises:
        ValueError: An unknown layout, or a period below 1.
    """
    _check(layout, period)
    b, h, w, c = x.shape
    if layout == 'global' or (layout == 'grid' and period == 1):
        return [x.reshape(b, 1, h * w, c)]
    if h % period or w % period:
        x = F.pad(x, (0, 0, 0, -w % period, 0, -h % period))
    table = x.reshape(b, x.shape[1] // period, period, x.shape[2] // period, period, c)
    groups = []
    for row_y, column_y in _axis_parts(h, period, layout):
        for row_x, column_x in _axis_parts(w, period, layout):
            part = table[:, row_y, column_y, row_x, column_x]
            order = (0, 1, 3, 2, 4, 5) if layout == 'window' else (0, 2, 4, 1, 3, 5)
            part = part.permute(order)
            groups.append(part.reshape(b, part.shape[1] * part.shape[2], part.shape[3] * part.shape[4], c))
    return groups


def sequence_shapes(size: tuple[int, int], layout: str, period: int = 1) -> list[tuple[int, int]]:
    """Rows and columns of the sequences in each group of :func:`partition`.

    Args:
        size: H and W of the token map.
        layout: The layout given to :func:`partition`.
        period: The period given to :func:`partition`.

    Raises:
        ValueError: An unknown layout, or a period below 1.
    """
    _check(layout, period)
    if layout == 'global':
        return [size]
    axis = 1 if layout == 'window' else 0  # a window is a row of the table, as long as its columns are many
    lengths = [[_length(part[axis]) for part in _axis_parts(s, period, layout)] for s in size]
    return [(rows, columns) for rows in lengths[0] for columns in lengths[1]]


def restore(groups: list[Tensor], layout: str, size: tuple[int, int], period: int = 1) -> Tensor:
    """Put the sequences of :func:`partition` together again.

    Args:
        groups: What :func:`partition` returned, or tensors of those shapes.
        layout: The layout given to :func:`partition`.
        size: H and W of the token map.
        period: The period given to :func:`partition`.

    Returns:
        The token map, (B, H, W, C).

    Raises:
        ValueError: An unknown layout, or a period below 1.
    """
    _check(layout, period)
    (h, w), (b, _, _, c) = size, groups[0].shape
    if layout == 'global' or (layout == 'grid' and period == 1):
        return groups[0].reshape(b, h, w, c)
    groups = iter(groups)
    columns_axis = 1 if layout == 'window' else 2
    bands = []
    for row_y, column_y in _axis_parts(h, period, layout):
        parts = []
        for row_x, column_x in _axis_parts(w, period, layout):
            ry, cy, rx, cx = map(_length, (row_y, column_y, row_x, column_x))
            if layout == 'window':
                part = next(groups).reshape(b, ry, rx, cy, cx, c).permute(0, 1, 3, 2, 4, 5)
            else:
                part = next(groups).reshape(b, cy, cx, ry, rx, c).permute(0, 3, 1, 4, 2, 5)
            parts.append(part)
        bands.append(_join(parts, axis=2 + columns_axis))
    table = _join(bands, axis=columns_axis)
    x = table.reshape(b, table.shape[1] * table.shape[2], table.shape[3] * table.shape[4], c)
    return x[:, :h, :w] if x.shape[1:3] != (h, w) else x


def _join(parts: list[Tensor], axis: int) -> Tensor:
    """Join one or two rectangles of a table; the second is incomplete on the other axis of the table."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    other = axis + 1 if axis in (1, 3) else axis - 1
    missing = first.shape[other] - second.shape[other]
    if missing:
        pad = [0, 0] * (second.dim() - 1 - other) + [0, missing]
        second = F.pad(second, pad)
    return torch.cat([first, second], dim=axis)


def _check(layout: str, period: int) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f'attention layout {layout!r} is unknown; choose one of {", ".join(LAYOUTS)}')
    if period < 1:
        raise ValueError(f'the period of layout {layout!r} is {period}; expected a positive number of tokens')
