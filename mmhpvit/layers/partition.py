# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""How a map of tokens is cut into attention sequences, and put together again.

Each axis is cut by itself. A sequence takes every ``dilation``-th token of it, over the whole axis or within a
window of ``window`` such steps::

    tokens of an axis                0 1 2 3 4 5 6 7
    global                          (0 1 2 3 4 5 6 7)
    window 4                        (0 1 2 3) (4 5 6 7)
    grid, dilation 2                (0 2 4 6) (1 3 5 7)
    grid in windows of 2            (0 2) (1 3) (4 6) (5 7)

As few windows as will do, of one length but for the last: 50 tokens in windows of up to 16 are cut
13, 13, 13, 11. Sizes that a dilation does
not divide give sequences of two lengths. Rather than padding sequences with tokens that are not there, sequences
of one shape become a group: one where everything divides, at most three an axis. Every sequence therefore holds
real tokens only, and no attention mask is needed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = ('global', 'window', 'grid', 'window_grid')


@dataclass(frozen=True)
class Layout:
    """How each axis of a token map is cut.

    Attributes:
        window: Most tokens that a sequence has of an axis, at least 1; None is no limit.
        dilation: Distance of neighbours in a sequence, in tokens of the map, at least 1.

    Raises:
        ValueError: A number below 1.
    """

    window: int | None = None
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.dilation < 1 or (self.window is not None and self.window < 1):
            raise ValueError(f'{self}: expected positive numbers of tokens')


def named_layout(name: str, window: int, dilation: int) -> Layout:
    """The layout of a name out of ``LAYOUTS``; ``global`` uses neither number, ``window`` no dilation.

    Raises:
        ValueError: An unknown name.
    """
    layouts = {
        'global': Layout(),
        'window': Layout(window),
        'grid': Layout(None, dilation),
        'window_grid': Layout(window, dilation),
    }
    if name not in layouts:
        raise ValueError(f'attention={name!r}: expected one of {", ".join(layouts)}')
    return layouts[name]


@dataclass(frozen=True)
class _Segment:
    """A part of an axis from token ``start``: windows of ``length`` steps, each step ``dilation`` tokens.

    Of the tokens of a step, the segment has those from ``first`` to ``stop``: its phases.
    """

    start: int
    windows: int
    length: int
    first: int
    stop: int

    @property
    def phases(self) -> int:
        return self.stop - self.first


def _segments(size: int, layout: Layout) -> list[_Segment]:
    """Cut one axis into segments whose sequences have the same length."""
    d = layout.dilation
    steps = -(-size // d)
    if layout.window is None:
        length, whole = steps, int(size % d == 0)
    else:
        length = -(-steps // -(-steps // layout.window))
        whole = size // (length * d)
    start = whole * length * d
    rows, extra = (size - start) // d, (size - start) % d  # torch.compile knows no divmod of sizes
    segments = [_Segment(0, whole, length, 0, d)] if whole else []
    segments += [_Segment(start, 1, rows + 1, 0, extra)] if extra else []
    segments += [_Segment(start, 1, rows, extra, d)] if rows else []
    return segments


def partition(x: Tensor, layout: Layout) -> list[Tensor]:
    """Cut a token map into attention sequences.

    Args:
        x: Token map, (B, H, W, C), any dtype.
        layout: How each axis is cut.

    Returns:
        One tensor (B, n, L, C) for each group of sequences of one shape: n sequences an image, L tokens each,
        in row-major order.
    """
    b, h, w, c = x.shape
    d = layout.dilation
    if h % d or w % d:
        x = F.pad(x, (0, 0, 0, -w % d, 0, -h % d))
    groups = []
    for rows in _segments(h, layout):
        band = _take(x, rows, d, axis=1)
        for columns in _segments(w, layout):
            part = _take(band, columns, d, axis=4).permute(0, 1, 4, 3, 6, 2, 5, 7)
            n = rows.windows * columns.windows * rows.phases * columns.phases
            groups.append(part.reshape(b, n, rows.length * columns.length, c))
    return groups


def sequence_shapes(size: tuple[int, int], layout: Layout) -> list[tuple[int, int]]:
    """Rows and columns of the sequences in each group of :func:`partition`, for a map of ``size`` (H, W)."""
    rows, columns = (_segments(s, layout) for s in size)
    return [(r.length, c.length) for r in rows for c in columns]


def restore(groups: list[Tensor], layout: Layout, size: tuple[int, int]) -> Tensor:
    """Put the sequences of :func:`partition` together again.

    Args:
        groups: What :func:`partition` returned, or tensors of those shapes.
        layout: The layout given to :func:`partition`.
        size: H and W of the token map.

    Returns:
        The token map, (B, H, W, C).
    """
    b, _, _, c = groups[0].shape
    groups = iter(groups)
    rows, columns = (_segments(s, layout) for s in size)
    bands = []
    for y in rows:
        parts = []
        for x in columns:
            shape = (y.windows, x.windows, y.phases, x.phases, y.length, x.length)
            parts.append(next(groups).reshape(b, *shape, c).permute(0, 1, 5, 3, 2, 6, 4, 7))
        bands.append(_join(parts, columns, size[1], axis=4))
    return _join(bands, rows, size[0], axis=1)


def _take(x: Tensor, segment: _Segment, dilation: int, axis: int) -> Tensor:
    """A segment of an axis, which becomes three: windows, steps, phases."""
    tokens = segment.windows * segment.length * dilation
    x = x.narrow(axis, segment.start, tokens).unflatten(axis, (segment.windows, segment.length, dilation))
    return x.narrow(axis + 2, segment.first, segment.phases)


def _join(parts: list[Tensor], segments: list[_Segment], size: int, axis: int) -> Tensor:
    """Put the segments of an axis, (windows, steps, phases) from ``axis`` on, in a row of ``size`` tokens."""
    if len(parts) > 1 and segments[-2].start == segments[-1].start:
        # The last step is incomplete: the later phases do not have it.
        *parts, early, late = parts
        late = F.pad(late, [0, 0] * (late.dim() - 2 - axis) + [0, 1])
        parts = [*parts, torch.cat([early, late], dim=axis + 2)]
    runs = [part.flatten(axis, axis + 2) for part in parts]
    return (runs[0] if len(runs) == 1 else torch.cat(runs, dim=axis)).narrow(axis, 0, size)
