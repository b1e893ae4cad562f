# Copyright (c) the mmhpvit authors. Licensed under the Apache License 2.0.
"""2x2 pooling of token maps between the stages.

They start as the average over each 2x2 cell or as one token of it. At an odd height or width the last cell is
incomplete, and has the tokens that it has.
"""

import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = ('conv', 'pick', 'avg')


class AvgPooling(nn.Module):
    """Average of each 2x2 cell: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), C), without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, ceil_mode=True, count_include_pad=False)
        return x.permute(0, 2, 3, 1)


class ConvPooling(nn.Conv2d):
    """2x2 convolution with stride 2: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), C).

    Held as the average of the cell plus a convolution that starts at zero, so that a network with freshly
    inserted poolings computes exactly what it computes with :class:`AvgPooling`, at any precision: under
    autocast only the learned part is in half precision, and the tokens that pass through are not rounded.
    Weight decay pulls towards the average.

    Args:
        channels: Number of channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=2, stride=2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = x.permute(0, 3, 1, 2)
        if h % 2 or w % 2:
            # Repeating the last token makes an incomplete cell's average that of the tokens it has.
            x = F.pad(x, (0, w % 2, 0, h % 2), mode='replicate')
        return (self.start(x) + super().forward(x)).permute(0, 2, 3, 1)

    def start(self, x: Tensor) -> Tensor:
        """What an untrained layer gives, (B, C, H, W) to (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2)


class PickPooling(ConvPooling):
    """As :class:`ConvPooling`, but what the convolution is added to is one token of each cell instead of the average.

    On a grid layout the tokens that are picked belong to one grid, so that what follows is the plain ViT going on with
    the image of that grid: exactly, but for prefix tokens, which are those of all grids averaged.

    Args:
        channels: Number of channels C.
        corner: 0 picks the first row and column of the cell, 1 the second.
    """

    def __init__(self, channels: int, corner: int) -> None:
        super().__init__(channels)
        self.corner = corner

    def start(self, x: Tensor) -> Tensor:
        return x[:, :, self.corner :: 2, self.corner :: 2]


def build_pooling(kind: str, channels: int, index: int = 0) -> nn.Module:
    """Build the pooling layer of that kind.

    Args:
        kind: ``'conv'``, ``'pick'`` or ``'avg'``.
        channels: Number of channels of the tokens.
        index: Which of the poolings it is, from 0. Those that pick take the first token of a cell and the second in
            turn, so that after two of them tokens lie half a token from the centres of their cells.

    Raises:
        ValueError: An unknown kind.
    """
    if kind == 'conv':
        return ConvPooling(channels)
    if kind == 'pick':
        return PickPooling(channels, index % 2)
    if kind == 'avg':
        return AvgPooling()
    raise ValueError(f'pooling {kind!r} is unknown; choose one of {", ".join(POOLINGS)}')
